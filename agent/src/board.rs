//! Heat and power of the board, as the kernel and the Raspberry Pi's firmware tell them (`governor.md` 1.5). A machine that
//! has none of these files simply has no such readings.
//!
//! Never the old `get_throttled` file of sysfs: reading it writes a stack trace into the kernel's log.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::memory;

/// The firmware's mailbox is asked no more often.
const FIRMWARE_EVERY: Duration = Duration::from_secs(60);
const GET_THROTTLED: u32 = 0x0003_0046;
/// At which the firmware lowers the clock, softly first.
const HOT_CELSIUS: f64 = 80.0;
/// The most that a slow clock may stretch a threshold.
const MOST: f64 = 2.5;

/// Where this board tells its heat and power; found once.
#[derive(Debug)]
pub struct Board {
    alarm: Option<PathBuf>,
    temperature: Option<PathBuf>,
    policies: Vec<(String, PathBuf)>,
    mailbox: PathBuf,
    firmware: Mutex<(Option<Instant>, Option<Throttled>)>,
}

/// One look. What the board does not tell is `None` or empty.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    /// The supply is too low right now.
    pub undervoltage: Option<bool>,
    /// Of the processor.
    pub celsius: Option<f64>,
    /// Of each group of processors that share a clock.
    pub clocks: Vec<Clock>,
    /// What the firmware says, at most a minute old.
    pub throttled: Option<Throttled>,
}

/// The clock of some processors, in hertz.
#[derive(Debug, Clone, PartialEq)]
pub struct Clock {
    /// `policy0`
    pub policy: String,
    pub now: f64,
    pub most: f64,
}

/// The firmware's bits, as `vcgencmd get_throttled` shows them. The bit of a former undervoltage is cleared by the kernel's own driver every two
/// seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttled(pub u32);

impl Throttled {
    /// Conditions by bit.
    pub const CONDITIONS: [&str; 4] = ["undervoltage", "frequency_capped", "throttled", "soft_temperature_limit"];

    /// Whether this condition (an index into [`Self::CONDITIONS`]) holds now.
    pub fn now(self, condition: usize) -> bool {
        self.0 & 1 << condition != 0
    }

    /// Whether it has held since the board was started.
    pub fn since_boot(self, condition: usize) -> bool {
        self.0 & 1 << (16 + condition) != 0
    }
}

impl Reading {
    /// Whether heat or power hold the processor back, or are about to.
    pub fn is_held_back(&self) -> bool {
        let firmware = self.throttled.is_some_and(|bits| (0..Throttled::CONDITIONS.len()).any(|condition| bits.now(condition)));
        firmware || self.undervoltage == Some(true) || self.celsius.is_some_and(|celsius| celsius >= HOT_CELSIUS)
    }

    /// By how much everything takes longer, 1 to 2.5. A slow clock alone is an idle board, and on a weak supply as well; where the clock is
    /// held down for want of power the firmware says so.
    pub fn slowdown(&self) -> f64 {
        let held_down = self.throttled.is_some_and(|bits| (1..Throttled::CONDITIONS.len()).any(|condition| bits.now(condition)));
        if !held_down && self.celsius.is_none_or(|celsius| celsius < HOT_CELSIUS) {
            return 1.0;
        }
        let slower = self.clocks.iter().filter(|clock| clock.now > 0.0).map(|clock| clock.most / clock.now);
        slower.fold(1.0, f64::max).clamp(1.0, MOST)
    }
}

impl Board {
    /// Looks below `root`, `/` on a real machine.
    pub fn find(root: &Path) -> Board {
        let entries = |dir: &str| {
            let listed = fs::read_dir(root.join(dir)).map(|all| all.flatten().map(|entry| entry.path()).collect::<Vec<_>>());
            let mut listed = listed.unwrap_or_default();
            listed.sort();
            listed
        };
        let supply = entries("sys/class/hwmon").into_iter().find(|dir| text(&dir.join("name")).as_deref() == Some("rpi_volt"));
        let temperature = root.join("sys/class/thermal/thermal_zone0/temp");
        let policies = entries("sys/devices/system/cpu/cpufreq").into_iter().filter_map(|dir| {
            let name = dir.file_name()?.to_str()?.to_owned();
            name.starts_with("policy").then_some((name, dir))
        });
        Board {
            alarm: supply.map(|dir| dir.join("in0_lcrit_alarm")),
            temperature: temperature.exists().then_some(temperature),
            policies: policies.collect(),
            mailbox: root.join("dev/vcio"),
            firmware: Mutex::new((None, None)),
        }
    }

    /// Reads everything; a few files of the kernel, no disk.
    pub fn read(&self) -> Reading {
        self.read_at(Instant::now(), |mailbox| {
            let bits = File::open(mailbox).and_then(|file| memory::firmware_property(&file, GET_THROTTLED));
            bits.ok().flatten().map(Throttled)
        })
    }

    fn read_at(&self, now: Instant, ask: impl FnOnce(&Path) -> Option<Throttled>) -> Reading {
        let clock = |(policy, dir): &(String, PathBuf)| {
            // The kernel counts in kilohertz.
            let hertz = |file: &str| number(&dir.join(file)).map(|kilohertz| kilohertz * 1000.0);
            Some(Clock { policy: policy.clone(), now: hertz("scaling_cur_freq")?, most: hertz("cpuinfo_max_freq")? })
        };
        Reading {
            undervoltage: self.alarm.as_ref().and_then(|path| number(path)).map(|alarm| alarm != 0.0),
            celsius: self.temperature.as_ref().and_then(|path| number(path)).map(|milli| milli / 1000.0),
            clocks: self.policies.iter().filter_map(clock).collect(),
            throttled: self.firmware_at(now, ask),
        }
    }

    fn firmware_at(&self, now: Instant, ask: impl FnOnce(&Path) -> Option<Throttled>) -> Option<Throttled> {
        let mut held = self.firmware.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (asked, bits) = &mut *held;
        if asked.is_none_or(|asked| now.saturating_duration_since(asked) >= FIRMWARE_EVERY) {
            *asked = Some(now);
            *bits = ask(&self.mailbox);
        }
        *bits
    }
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number(path: &Path) -> Option<f64> {
    text(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pi() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("tempdir");
        for (file, content) in [
            ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
            ("sys/class/hwmon/hwmon1/name", "rpi_volt\n"),
            ("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0\n"),
            ("sys/class/thermal/thermal_zone0/temp", "61342\n"),
            ("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "600000\n"),
            ("sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "1500000\n"),
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("below root")).expect("created");
            fs::write(path, content).expect("written");
        }
        root
    }

    #[test]
    fn a_pi_tells_heat_power_and_clock() {
        let root = pi();
        let board = Board::find(root.path());
        let now = Instant::now();
        let calm = board.read_at(now, |_| Some(Throttled(0x50000)));
        assert_eq!(calm.undervoltage, Some(false));
        assert_eq!(calm.celsius, Some(61.342));
        assert_eq!(calm.clocks, [Clock { policy: "policy0".to_owned(), now: 6e8, most: 1.5e9 }]);
        let bits = calm.throttled.expect("asked");
        assert_eq!([bits.now(0), bits.since_boot(0), bits.since_boot(1), bits.since_boot(2)], [false, true, false, true]);
        assert!(!calm.is_held_back(), "what was is over");
        assert_eq!(calm.slowdown(), 1.0, "idle, not held back");

        let later = board.read_at(now + Duration::from_secs(59), |_| Some(Throttled(0b10)));
        assert_eq!(later.throttled, Some(Throttled(0x50000)), "not asked again");
        let later = board.read_at(now + Duration::from_secs(60), |_| Some(Throttled(0b10)));
        assert!(later.is_held_back());
        assert_eq!(later.slowdown(), 2.5);

        fs::write(root.path().join("sys/class/hwmon/hwmon1/in0_lcrit_alarm"), "1\n").expect("written");
        assert!(board.read_at(now + Duration::from_secs(120), |_| None).is_held_back());
    }

    #[test]
    fn other_machines_tell_nothing() {
        let root = tempfile::tempdir().expect("tempdir");
        let reading = Board::find(root.path()).read();
        assert_eq!(reading, Reading::default());
        assert_eq!(reading.slowdown(), 1.0);
    }
}
