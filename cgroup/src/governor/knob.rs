//! The control files the governor changes: what they hold as one line of text, and writing one with a look at what became of it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use super::action::{IoLimits, Knob, Setting, Target};
use crate::value::{CPU_PERIOD_US, Limit};
use crate::{CgroupDir, Controller, Error, Hierarchy, PodTree, QosClass, Result};

/// The kernel takes no shorter time for `cpu.max`.
const LEAST_QUOTA_US: u64 = 1000;

/// The largest page of any architecture: memory is rounded down to whole pages.
const LARGEST_PAGE: u64 = 64 * 1024;

/// The group of a target, as a path from the mounts.
pub(super) fn group(tree: &PodTree, target: &Target) -> Result<String> {
    match target {
        Target::Pod { uid, qos } => tree.cgroup_parent(uid, *qos),
        Target::BestEffort => Ok(tree.class(QosClass::BestEffort)),
        Target::Burstable => Ok(tree.class(QosClass::Burstable)),
        Target::Kubepods => Ok(tree.kubepods()),
    }
}

/// The directory of a group where the knob lives. The governor changes nothing in v1 hierarchies.
pub(super) fn dir(hierarchy: &Hierarchy, group: &str, knob: Knob) -> Result<CgroupDir> {
    let controller = match knob {
        Knob::MemoryHigh | Knob::SwapMax => Controller::Memory,
        Knob::CpuMax | Knob::CpuIdle => Controller::Cpu,
        Knob::IoMax => Controller::Io,
        Knob::Freeze => Controller::Freezer,
    };
    v2_dir(hierarchy, group, controller)
}

/// The directory of a group in the v2 hierarchy, which must have the controller.
pub(super) fn v2_dir(hierarchy: &Hierarchy, group: &str, controller: Controller) -> Result<CgroupDir> {
    let freezer = matches!(controller, Controller::Freezer);
    match hierarchy.unified_dir(group) {
        Some(dir) if freezer || hierarchy.is_v2(controller) => Ok(dir),
        Some(_) | None => {
            Err(Error::MissingController { controller: controller.v2_name(), remedy: "the governor acts on cgroup v2 only".to_owned() })
        }
    }
}

/// What a setting is written as. `disk` is the `MAJ:MIN` of the disk that [`Setting::IoMax`] is about.
pub(super) fn text(setting: &Setting, disk: Option<&str>) -> Result<String> {
    Ok(match setting {
        Setting::MemoryHigh(bytes) | Setting::SwapMax(bytes) => bytes.to_string(),
        Setting::CpuMax(us) => format!("{} {CPU_PERIOD_US}", (*us).max(LEAST_QUOTA_US)),
        Setting::CpuIdle => "1".to_owned(),
        Setting::IoMax(limits) => format!("{} {limits}", known(disk)?),
        Setting::Freeze => "1".to_owned(),
    })
}

fn known(disk: Option<&str>) -> Result<&str> {
    disk.ok_or_else(|| Error::MissingController { controller: "io", remedy: "the disk of the pods is not known".to_owned() })
}

/// What a knob holds, such that [`write`] of it gives it back. For `io.max` that is the line of one disk; for `cpu.idle` the weight comes
/// too, because the kernel forgets it when a group becomes idle and has 100 afterwards.
pub(super) fn read(dir: &CgroupDir, knob: Knob, disk: Option<&str>) -> Result<String> {
    let text = dir.read(knob.file())?;
    match knob {
        Knob::MemoryHigh | Knob::SwapMax | Knob::CpuMax | Knob::Freeze => Ok(text),
        Knob::CpuIdle => match dir.read("cpu.weight") {
            Ok(weight) if text == "0" => Ok(format!("{text} {weight}")),
            Ok(_) | Err(_) => Ok(text),
        },
        Knob::IoMax => {
            let disk = known(disk)?;
            let limits = text.lines().find_map(|line| line.strip_prefix(disk)?.strip_prefix(' '));
            Ok(format!("{disk} {}", limits.unwrap_or("rbps=max wbps=max riops=max wiops=max")))
        }
    }
}

/// Writes what [`read`] or [`text`] gave.
pub(super) fn write(dir: &CgroupDir, knob: Knob, text: &str) -> Result<()> {
    match (knob, text.split_once(' ')) {
        (Knob::CpuIdle, Some((idle, weight))) => {
            dir.write(knob.file(), idle)?;
            dir.write("cpu.weight", weight)
        }
        (Knob::MemoryHigh, _) => write_at_once(dir, knob.file(), text),
        _ => dir.write(knob.file(), text),
    }
}

/// From Linux 6.16 on, `memory.high` opened this way does not make the writer take the memory back itself; before, it changes nothing.
fn write_at_once(dir: &CgroupDir, file: &str, value: &str) -> Result<()> {
    let path = dir.path().join(file);
    let open = OpenOptions::new().write(true).truncate(true).custom_flags(nix::libc::O_NONBLOCK).open(&path);
    let done = open.and_then(|mut open| open.write_all(value.as_bytes()));
    done.map_err(|source| Error::Write { path, value: value.to_owned(), source })
}

/// Whether a knob that was set to `wanted` still is when it holds `found`.
pub(super) fn same(knob: Knob, wanted: &str, found: &str) -> bool {
    if wanted == found {
        return true;
    }
    match knob {
        Knob::MemoryHigh | Knob::SwapMax => match (Limit::parse(wanted), Limit::parse(found)) {
            (Some(Limit::At(wanted)), Some(Limit::At(found))) => found <= wanted && wanted - found < LARGEST_PAGE,
            (wanted, found) => wanted == found,
        },
        Knob::CpuIdle => wanted.split(' ').next() == found.split(' ').next(),
        Knob::IoMax => match (io(wanted), io(found)) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => false,
        },
        Knob::CpuMax | Knob::Freeze => false,
    }
}

/// A line of `io.max` as its disk and the four limits, `u64::MAX` for none.
fn io(line: &str) -> Option<(&str, IoLimits)> {
    let (disk, rest) = line.split_once(' ')?;
    let mut limits = IoLimits { rbps: u64::MAX, wbps: u64::MAX, riops: u64::MAX, wiops: u64::MAX };
    for word in rest.split_ascii_whitespace() {
        let (key, value) = word.split_once('=')?;
        let value = Limit::parse(value)?.value().unwrap_or(u64::MAX);
        match key {
            "rbps" => limits.rbps = value,
            "wbps" => limits.wbps = value,
            "riops" => limits.riops = value,
            "wiops" => limits.wiops = value,
            _ => {}
        }
    }
    Some((disk, limits))
}

/// Writes and reads back. Returns what the knob holds now.
pub(super) fn set(dir: &CgroupDir, knob: Knob, wanted: &str, disk: Option<&str>) -> Result<String> {
    write(dir, knob, wanted)?;
    let found = read(dir, knob, disk)?;
    if same(knob, wanted, &found) {
        Ok(found)
    } else {
        Err(Error::NotApplied { path: dir.path().join(knob.file()), wanted: wanted.to_owned(), found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_spelled_as_the_kernel_wants_them() {
        let disk = Some("179:0");
        let limits = IoLimits { rbps: 1, wbps: 2, riops: 3, wiops: 4 };
        for (setting, wanted) in [
            (Setting::MemoryHigh(4096), "4096"),
            (Setting::SwapMax(0), "0"),
            (Setting::CpuMax(20_000), "20000 100000"),
            (Setting::CpuMax(1), "1000 100000"),
            (Setting::CpuIdle, "1"),
            (Setting::IoMax(limits), "179:0 rbps=1 wbps=2 riops=3 wiops=4"),
            (Setting::Freeze, "1"),
        ] {
            assert_eq!(text(&setting, disk).unwrap(), wanted);
        }
        assert!(text(&Setting::IoMax(limits), None).unwrap_err().to_string().contains("disk"));
    }

    #[test]
    fn what_reads_back_is_what_was_written() {
        for (knob, wanted, found, same_) in [
            (Knob::MemoryHigh, "10000", "8192", true),
            (Knob::MemoryHigh, "10000", "12288", false),
            (Knob::MemoryHigh, "10000", "max", false),
            (Knob::MemoryHigh, "max", "max", true),
            (Knob::CpuMax, "max 100000", "max 100000", true),
            (Knob::CpuMax, "20000 100000", "max 100000", false),
            (Knob::CpuIdle, "0 79", "0 100", true),
            (Knob::CpuIdle, "1", "0 79", false),
            (Knob::IoMax, "8:0 rbps=max wbps=5", "8:0 rbps=max wbps=5 riops=max wiops=max", true),
            (Knob::IoMax, "8:0 rbps=max wbps=5", "8:0 rbps=max wbps=6 riops=max wiops=max", false),
            (Knob::IoMax, "8:0 wbps=5", "8:1 wbps=5", false),
            (Knob::Freeze, "1", "0", false),
        ] {
            assert_eq!(same(knob, wanted, found), same_, "{knob:?} {wanted} {found}");
        }
    }

    #[test]
    fn one_disk_of_several_and_the_weight_that_idling_loses() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
        let dir = CgroupDir::new(root.path());
        file("io.max", "8:0 rbps=max wbps=1 riops=max wiops=max\n179:0 rbps=7 wbps=max riops=max wiops=max\n");
        assert_eq!(read(&dir, Knob::IoMax, Some("179:0")).unwrap(), "179:0 rbps=7 wbps=max riops=max wiops=max");
        assert_eq!(read(&dir, Knob::IoMax, Some("179:8")).unwrap(), "179:8 rbps=max wbps=max riops=max wiops=max");
        file("cpu.idle", "0\n");
        file("cpu.weight", "1\n");
        let before = read(&dir, Knob::CpuIdle, None).unwrap();
        assert_eq!(before, "0 1");
        set(&dir, Knob::CpuIdle, "1", None).unwrap();
        file("cpu.weight", "100\n");
        set(&dir, Knob::CpuIdle, &before, None).unwrap();
        assert_eq!((dir.read("cpu.idle").unwrap(), dir.read("cpu.weight").unwrap()), ("0".to_owned(), "1".to_owned()));
    }
}
