//! Pure: pod spec → what CRI is asked for (kubelet-contract 3.3, 3.6, 6). No IO: paths, addresses and objects come in.

mod container;
mod sandbox;
mod security;

pub use container::{ContainerInputs, container_config, log_path};
pub use sandbox::{SandboxInputs, sandbox_config};
pub use security::{ImageUser, check_non_root, sees_processes_of};

use crate::api::pod::Container;

/// Hash of what forces a container to be replaced, as the kubelet annotates it: 32-bit FNV-1 of name and image,
/// hexadecimal. (It hashes how Go's dump prints the bytes of the JSON.)
pub fn container_hash(container: &Container) -> String {
    let json = serde_json::json!({"image": container.image, "name": container.name}).to_string();
    let bytes: Vec<String> = json.bytes().map(|b| b.to_string()).collect();
    let text = format!("([]uint8)[{}]", bytes.join(" "));
    let mut hash: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        hash ^= u32::from(byte);
        hash = hash.wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}

#[cfg(test)]
#[path = "../translate_tests.rs"]
mod tests;
