//! The allocator's settings, before anything allocates: the one module of this crate with `unsafe`.
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
