//! Pressure stall information, of the node and of single groups.
//!
//! procfs parses a record; the file around it is ours, because older kernels write no `full` line for the CPU and procfs
//! then refuses the whole file. Decide on `total_us`: the averages move every two seconds only.

use std::fs;
use std::io;
use std::path::Path;

use crate::{Error, Result};

/// What tasks wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// A processor.
    Cpu,
    /// Memory: reclaim, refaults, swap-in.
    Memory,
    /// Block devices.
    Io,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 3] = [Resource::Cpu, Resource::Memory, Resource::Io];

    /// The file's name below `/proc/pressure`, and in a group's directory before `.pressure`.
    pub fn as_str(self) -> &'static str {
        match self {
            Resource::Cpu => "cpu",
            Resource::Memory => "memory",
            Resource::Io => "io",
        }
    }
}

/// One line: shares of time in percent over 10, 60 and 300 seconds, and the total.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Record {
    /// Percent of the last 10 seconds.
    pub avg10: f32,
    /// Percent of the last 60 seconds.
    pub avg60: f32,
    /// Percent of the last 300 seconds.
    pub avg300: f32,
    /// Stalled time since boot, or since the group was made, in microseconds.
    pub total_us: u64,
}

/// Pressure on one resource.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Pressure {
    /// Time in which at least one task waited.
    pub some: Record,
    /// Time in which all tasks that could run waited; absent for the CPU on kernels before 5.13.
    pub full: Option<Record>,
}

/// Pressure of this node on `resource`; `None` when the kernel does not measure it.
pub fn read(resource: Resource) -> Result<Option<Pressure>> {
    read_in(Path::new("/proc"), resource)
}

/// Pressure of the node whose process file system is mounted at `proc_root`.
pub fn read_in(proc_root: &Path, resource: Resource) -> Result<Option<Pressure>> {
    read_file(&proc_root.join("pressure").join(resource.as_str()))
}

/// Pressure from a file in the kernel's format; `None` when there is no such file or the kernel has PSI turned off.
pub fn read_file(path: &Path) -> Result<Option<Pressure>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {
            return Ok(None);
        }
        Err(source) => {
            return Err(Error::Read { path: path.to_owned(), source });
        }
    };
    match parse(&text) {
        Some(pressure) => Ok(Some(pressure)),
        None => Err(Error::Parse { path: path.to_owned(), text: text.chars().take(80).collect(), expected: "pressure records" }),
    }
}

fn parse(text: &str) -> Option<Pressure> {
    let record = |kind: &str| {
        let line = text.lines().find(|line| line.starts_with(kind))?;
        let parsed = procfs::parse_pressure_record(line).ok()?;
        Some(Record { avg10: parsed.avg10, avg60: parsed.avg60, avg300: parsed.avg300, total_us: parsed.total })
    };
    Some(Pressure { some: record("some ")?, full: record("full ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_or_only_the_first() {
        let some = "some avg10=2.95 avg60=1.93 avg300=1.04 total=12516102\n";
        let full = "full avg10=0.50 avg60=0.00 avg300=0.00 total=7\n";
        let pressure = parse(&format!("{some}{full}")).unwrap();
        assert_eq!(pressure.some.total_us, 12_516_102);
        assert_eq!(pressure.some.avg10, 2.95);
        assert_eq!(pressure.full.unwrap().total_us, 7);
        assert_eq!(parse(some).unwrap().full, None);
    }

    #[test]
    fn nonsense_is_an_error_and_a_missing_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.pressure");
        assert_eq!(read_file(&path).unwrap(), None);
        for text in ["", "some avg10=x avg60=0 avg300=0 total=0", "hello"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(read_file(&path), Err(Error::Parse { .. })), "{text:?}");
        }
    }

    #[test]
    fn this_kernel_answers_if_it_measures_pressure() {
        for resource in Resource::ALL {
            match read(resource).unwrap() {
                Some(pressure) => assert!(pressure.some.avg10 >= 0.0),
                None => eprintln!("\nSKIP cgroup::psi: this kernel does not measure {} pressure", resource.as_str()),
            }
        }
    }
}
