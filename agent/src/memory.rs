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

/// For a quiet moment after a burst: gives back the pages of freed memory, also those between what is still in use.
/// Takes about a millisecond and the allocator's lock.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own lock and releases only pages that hold nothing.
    unsafe {
        libc::malloc_trim(0);
    }
}
