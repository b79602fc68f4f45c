//! The two threads that may never wait, the heartbeat's and the governor's: their turn at the processor, and the pages they run on.
//!
//! Pages (`governor.md` 2.4): with a promise of the kernel (`memory.min`) only code, constant data and the stacks of the two threads are
//! kept, as far as they were ever used, against reclaim that is not about memory of this group. Without one (cgroup v1, memory
//! controller off) everything is. Nothing that was not used is read in by this.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};

use crate::memory;

/// As systemd's unit asks for the whole process; in the thread it also holds where there is no unit.
const NICE: i32 = -10;
/// A short request to the scheduler has an early deadline (`governor.md` 2.5).
const SLICE: Duration = Duration::from_micros(500);

/// Called by the thread itself when it begins. What is not allowed is told once and is no reason not to run.
pub fn enter(thread: &'static str) {
    if let Err(error) = memory::schedule(NICE, SLICE) {
        tracing::info!(thread, %error, "thread runs without precedence at the processor; it needs CAP_SYS_NICE");
    }
    if let Err(error) = memory::first_at_the_disk() {
        tracing::debug!(thread, %error, "no precedence at the disk");
    }
    if let Err(error) = memory::own_stack().and_then(|(from, to)| memory::keep(from, to)) {
        tracing::debug!(thread, %error, "stack is not kept in memory");
    }
}

/// What [`keep_pages`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Code, constants, data and bss of this many bytes of address space.
    Program(u64),
    /// Everything, as the kernel promises no memory to this process.
    Everything,
}

/// Called once, after the hot paths ran for the first time.
pub fn keep_pages() -> io::Result<Kept> {
    if promised(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup")) == 0 {
        return memory::keep_everything().map(|()| Kept::Everything);
    }
    let maps = Process::myself().and_then(|process| process.maps()).map_err(io::Error::other)?;
    let mut bytes = 0;
    for (from, to) in program(&maps.0) {
        memory::keep(usize::try_from(from).map_err(io::Error::other)?, usize::try_from(to).map_err(io::Error::other)?)?;
        bytes += to - from;
    }
    Ok(Kept::Program(bytes))
}

/// Mappings of files (the program and its libraries), and what follows their data without a file: bss.
fn program(maps: &[MemoryMap]) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut data_ends_at = None;
    for map in maps {
        let of_file = matches!(map.pathname, MMapPath::Path(_)) && map.inode != 0;
        let bss = matches!(map.pathname, MMapPath::Anonymous) && data_ends_at == Some(map.address.0);
        data_ends_at = ((of_file || bss) && map.perms.contains(MMPermissions::WRITE)).then_some(map.address.1);
        if of_file || bss {
            found.push(map.address);
        }
    }
    found
}

/// Memory that reclaim leaves to this process: the least `memory.min` on the way to its group, as a promise counts only as far as all
/// above it promise the same. 0 without a v2 memory controller.
fn promised(own: &Path, root: &Path) -> u64 {
    let Ok(groups) = fs::read_to_string(own) else { return 0 };
    let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return 0 };
    let mut dir = root.to_owned();
    let mut least = None;
    for part in group.split('/').filter(|part| !part.is_empty()) {
        dir.push(part);
        let text = fs::read_to_string(dir.join("memory.min")).unwrap_or_default();
        let here = if text.trim() == "max" { u64::MAX } else { text.trim().parse().unwrap_or(0) };
        least = Some(least.map_or(here, |least: u64| least.min(here)));
    }
    least.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::FromRead;
    use procfs::process::MemoryMaps;

    #[test]
    fn a_promise_is_worth_the_least_on_the_way() {
        let dir = tempfile::tempdir().expect("tempdir");
        let own = dir.path().join("cgroup");
        let service = dir.path().join("edge.slice/edge-agent.service");
        fs::create_dir_all(&service).expect("created");
        let promise = |above: &str, here: &str| {
            fs::write(dir.path().join("edge.slice/memory.min"), above).expect("written");
            fs::write(service.join("memory.min"), here).expect("written");
            promised(&own, dir.path())
        };
        fs::write(&own, "0::/edge.slice/edge-agent.service\n").expect("written");
        assert_eq!(promise("25165824\n", "max\n"), 25_165_824);
        assert_eq!(promise("0\n", "25165824\n"), 0, "the slice promises nothing");
        assert_eq!(promise("25165824\n", "0\n"), 0);
        fs::write(&own, "0::/\n").expect("written");
        assert_eq!(promised(&own, dir.path()), 0, "the root group");
        fs::write(&own, "12:memory:/edge-agent\n0::/user.slice\n").expect("written");
        assert_eq!(promised(&own, dir.path()), 0, "hybrid");
    }

    #[test]
    fn code_data_and_bss_are_the_program_the_heap_is_not() {
        let text = "\
55d0a0000000-55d0a0100000 r--p 00000000 fe:01 77 /usr/bin/edge-agent
55d0a0100000-55d0a0500000 r-xp 00100000 fe:01 77 /usr/bin/edge-agent
55d0a0500000-55d0a0520000 rw-p 00500000 fe:01 77 /usr/bin/edge-agent
55d0a0520000-55d0a0522000 rw-p 00000000 00:00 0
55d0a1000000-55d0a1200000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
7f0000400000-7f0000600000 r-xp 00000000 fe:01 78 /usr/lib/libc.so.6
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
7ffc00100000-7ffc00102000 r-xp 00000000 00:00 0 [vdso]
";
        // The kernel ends lines without a name with a space.
        let maps = MemoryMaps::from_read(text.replace(" 0\n", " 0 \n").as_bytes()).expect("parses");
        let starts: Vec<u64> = program(&maps.0).into_iter().map(|(from, _)| from).collect();
        assert_eq!(starts, [0x55d0_a000_0000, 0x55d0_a010_0000, 0x55d0_a050_0000, 0x55d0_a052_0000, 0x7f00_0040_0000]);
    }

    #[test]
    fn the_stack_is_around_us_and_can_be_kept() {
        let here = 0u8;
        let (from, to) = memory::own_stack().expect("known");
        let address = (&raw const here).addr();
        assert!((from..to).contains(&address), "{address:#x} in {from:#x}..{to:#x}");
        let page = address & !0xfff;
        memory::keep(page, page + 0x1000).expect("one page is within every limit");
        assert!(memory::keep(0x1000, 0x2000).is_err(), "nothing is mapped there");
    }
}
