//! How the binary is linked. Both linkers in use (GNU ld and lld) know what is asked of them here.

use std::path::PathBuf;

/// Tables for unwinding. A release build aborts on a panic and is stripped: nobody reads them, and they are 0.9 MB.
const WITHOUT_UNWINDING: &str = "SECTIONS { /DISCARD/ : { *(.eh_frame) *(.eh_frame_hdr) } } INSERT AFTER .text;\n";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("CARGO_CFG_TARGET_OS") != "linux" || variable("CARGO_CFG_TARGET_ENV") != "gnu" {
        return;
    }
    // Packed relative relocations: 8 bytes and a bit per pointer become a bit, some 250 KB of the binary.
    // Needs glibc 2.36 (Debian 12) at run time, which the packages ask for anyway.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // Debug builds and those of tests unwind.
    if variable("PROFILE") == "release" {
        let script = PathBuf::from(variable("OUT_DIR")).join("without-unwinding.ld");
        std::fs::write(&script, WITHOUT_UNWINDING).expect("cargo's own directory takes a file");
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{}", script.display());
    }
}
