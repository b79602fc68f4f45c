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

/// For a quiet moment after a burst: gives back the pages of freed memory, also those between what is still in use, and the
/// pages of the program's code. Code that runs again is mapped again from the page cache; most ran for the start only.
/// Takes about a millisecond and the allocator's lock.
pub fn trim() {
    let code = std::fs::read_to_string("/proc/self/maps").ok().and_then(|maps| code_around(&maps, trim as *const () as usize));
    // SAFETY: malloc_trim releases only pages that hold nothing. The other range is a mapping of our file that was never
    // written, so that its pages come back as they were, also under a thread that runs there right now.
    unsafe {
        #[cfg(target_env = "gnu")]
        libc::malloc_trim(0);
        if let Some((start, end)) = code {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// The mapping of `/proc/self/maps` that holds an address, if it is code of a file that nobody can write to.
fn code_around(maps: &str, address: usize) -> Option<(usize, usize)> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        let code = fields.next()? == "r-xp" && fields.nth(3).is_some_and(|path| path.starts_with('/'));
        (code && (start..end).contains(&address)).then_some((start, end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c8000000-55d0c8168000 r--p 00000000 fe:00 7 /usr/bin/edge-agent
55d0c8168000-55d0c85ce000 r-xp 00167000 fe:00 7 /usr/bin/edge-agent
55d0c85ce000-55d0c85fc000 r--p 005cc000 fe:00 7 /usr/bin/edge-agent
7f0000000000-7f0000001000 r-xp 00000000 00:00 0
";

    #[test]
    fn only_code_of_a_file_is_given_back() {
        assert_eq!(code_around(MAPS, 0x55d0_c816_8000), Some((0x55d0_c816_8000, 0x55d0_c85c_e000)));
        assert_eq!(code_around(MAPS, 0x55d0_c85c_e000), None, "read-only only since it was relocated");
        assert_eq!(code_around(MAPS, 0x7f00_0000_0000), None, "no file brings it back");
    }

    #[test]
    fn the_program_runs_on() {
        let before = vec![7_u8; 100_000];
        trim();
        assert_eq!(before.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 700_000);
    }
}
