//! Links with packed relative relocations: 8 bytes and a bit per pointer become a bit, some 250 KB of the binary.
//! Needs glibc 2.36 (Debian 12) at run time, which the packages ask for anyway.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |name: &str| std::env::var(name).unwrap_or_default();
    if target("CARGO_CFG_TARGET_OS") == "linux" && target("CARGO_CFG_TARGET_ENV") == "gnu" {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
