//! Generates the CRI client, messages and server trait from `proto/cri.proto`, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/cri.proto");
    let files = protox::compile(["proto/cri.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Ordered maps make requests and debug output the same in every run.
        .btree_map(".")
        .bytes(".")
        .compile_fds(files)?;
    Ok(())
}
