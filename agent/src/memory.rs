//! The allocator: its settings, before anything allocates, and what it gives back. The one module of this crate with `unsafe`.
#![allow(unsafe_code)]

/// One arena, freed memory given back early (`dependencies.md` 4). Other C libraries than glibc need nothing.
pub fn tune() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only changes parameters of the allocator; called first in main, before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
}

/// Starts this program again without the allocator's caches per thread, which keep up to 0.4 MB of small pieces among what is in
/// use; glibc can be told so only by its environment. Returns where that is already so, or cannot be had.
pub fn without_thread_caches() {
    #[cfg(target_env = "gnu")]
    {
        use std::os::unix::process::CommandExt;
        const TUNABLES: &str = "GLIBC_TUNABLES";
        const NO_CACHE: &str = "glibc.malloc.tcache_count=0";
        let before = std::env::var(TUNABLES).unwrap_or_default();
        if before.contains("glibc.malloc.tcache_count") {
            return;
        }
        let Ok(program) = std::env::current_exe() else { return };
        let all = if before.is_empty() { NO_CACHE.to_owned() } else { format!("{before}:{NO_CACHE}") };
        let mut arguments = std::env::args_os();
        let mut again = std::process::Command::new(program);
        if let Some(name) = arguments.next() {
            again.arg0(name);
        }
        // Comes back only where the program's file was replaced meanwhile: then it goes on as it is.
        let _ = again.args(arguments).env(TUNABLES, all).exec();
    }
}

/// For a quiet moment after a burst: gives back the pages of freed memory, also those between what is still in use.
/// Takes about a millisecond and the allocator's lock.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own lock and releases only pages that hold nothing.
    unsafe {
        libc::malloc_trim(0);
    }
}
