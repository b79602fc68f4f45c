//! What the machine has, for sizes that were not given. Where the kernel does not say, a small board is assumed.
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes of a line of /proc/meminfo.
fn meminfo(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    meminfo_of(&text, name)
}

fn meminfo_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

pub(crate) fn memory() -> u64 {
    meminfo("MemTotal").unwrap_or(512 << 20)
}

pub(crate) fn swap() -> u64 {
    meminfo("SwapTotal").unwrap_or(0)
}

/// The memory limit of this process' own cgroup, as a container sees it on v2 or v1; none is the machine's memory.
pub(crate) fn own_limit() -> u64 {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .map_or_else(memory, |limit| limit.min(memory()))
}

/// Bytes that may still be written below `dir`.
#[allow(clippy::useless_conversion)] // both are 32 bits wide on armhf
pub(crate) fn free_space(dir: &Path) -> u64 {
    nix::sys::statvfs::statvfs(dir).map_or(1 << 30, |fs| u64::from(fs.blocks_available()).saturating_mul(u64::from(fs.fragment_size())))
}

/// As many open files as this process may give itself.
pub(crate) fn open_files_to_the_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Refused only where the limit is as high already.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kib() {
        let text = "MemTotal:         425984 kB\nMemFree:           1 kB\nSwapTotal:         0 kB\n";
        assert_eq!(meminfo_of(text, "MemTotal"), Some(416 << 20));
        assert_eq!(meminfo_of(text, "SwapTotal"), Some(0));
        assert_eq!(meminfo_of(text, "Mem"), None);
    }

    #[test]
    fn sizes_are_never_zero() {
        assert!(cores() >= 1);
        assert!(memory() >= 1 << 20);
        assert!(own_limit() <= memory());
    }
}
