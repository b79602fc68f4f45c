//! Doing what checks propose: each file kept beside itself before it changes, each change shown, never a reboot.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::boot_line::{self, Edit, Firmware, Unwanted};
use super::{Finding, command, containerd_config};
use crate::preflight::facts::runtime::CONFIG as CONTAINERD_CONFIG;

/// One change. Nothing in it came from elsewhere than this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fix {
    /// A word at the end of the line in `cmdline.txt`.
    BootLineWith(&'static str),
    BootLineWithout(Unwanted),
    /// `key=value` in `config.txt`.
    FirmwareSetting(&'static str, &'static str),
    /// Controllers the root cgroup shall hand to its children.
    HandDown(Vec<&'static str>),
    /// A path below `/proc/sys` and its value, now and for later boots.
    Setting(&'static str, u64),
    Module(&'static str),
    /// A file that is ours as a whole.
    File {
        path: String,
        text: String,
    },
    /// Lowers the score of a running process; 0 is no process.
    OomScore {
        pid: u32,
        score: i64,
    },
    /// CRI in containerd's configuration.
    EnableCri,
    /// The systemd driver in containerd's configuration.
    SystemdCgroup,
    /// A program with fixed arguments.
    Run(&'static [&'static str]),
}

impl Fix {
    /// A file that is ours as a whole.
    pub(super) fn file(path: impl Into<String>, text: impl Into<String>) -> Fix {
        Fix::File { path: path.into(), text: text.into() }
    }
}

/// What somebody would do by hand.
impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fix::BootLineWith(word) => write!(f, "append \" {word}\" to the line in cmdline.txt"),
            Fix::BootLineWithout(Unwanted::MemoryOff) => f.write_str("remove cgroup_disable=memory from cmdline.txt"),
            Fix::BootLineWithout(Unwanted::LegacyHierarchy) => f.write_str("remove systemd.unified_cgroup_hierarchy=0 from cmdline.txt"),
            Fix::FirmwareSetting(key, value) => write!(f, "add {key}={value} to config.txt"),
            Fix::HandDown(names) => write!(f, "enable {} in /sys/fs/cgroup/cgroup.subtree_control", names.join(", ")),
            Fix::Setting(path, value) => write!(f, "set {} = {value} in {SETTINGS}", path.replace('/', ".")),
            Fix::Module(name) => write!(f, "modprobe {name}"),
            Fix::File { path, text } => write!(f, "write {path}: {}", text.trim_end().replace('\n', " / ")),
            Fix::OomScore { pid, score } => write!(f, "set /proc/{pid}/oom_score_adj to {score}"),
            Fix::EnableCri => write!(f, "remove \"cri\" from disabled_plugins in {CONTAINERD_CONFIG}"),
            Fix::SystemdCgroup => write!(f, "set SystemdCgroup = true in {CONTAINERD_CONFIG}"),
            Fix::Run(argv) => f.write_str(&argv.join(" ")),
        }
    }
}

/// Settings of this program; the name comes after the package's own file, whose values these replace.
pub(super) const SETTINGS: &str = "/etc/sysctl.d/91-edge-agent-preflight.conf";
/// Installing a package over a slow link to a slow card; one that is ended midway is left half configured.
const PROGRAM: Duration = Duration::from_secs(1800);

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Checks whose fixes were made.
    pub done: Vec<&'static str>,
    /// Those of them that a reboot puts into effect.
    pub reboot: Vec<&'static str>,
    /// Check and reason.
    pub failed: Vec<(&'static str, String)>,
}

/// Makes the changes below one root and tells about them.
pub(super) struct Doer<'a> {
    root: PathBuf,
    /// Part of the names of backups: `20261123T140000Z`.
    stamp: String,
    out: &'a mut dyn Write,
    /// Programs that would have been run below another root than `/`.
    pub(super) commands: Vec<String>,
    reload: bool,
    /// Paths that were written: what stands there now is not worth keeping.
    written: BTreeSet<String>,
}

impl<'a> Doer<'a> {
    /// `now` is `clock::now()`.
    pub(super) fn new(root: &Path, now: &str, out: &'a mut dyn Write) -> Doer<'a> {
        let stamp = now.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
        Doer { root: root.to_owned(), stamp, out, commands: Vec::new(), reload: false, written: BTreeSet::new() }
    }

    /// Does what the given findings propose. What fails is told and does not keep the others from being done.
    pub(super) fn apply(&mut self, findings: &[&Finding]) -> Applied {
        let mut applied = Applied::default();
        let line = self.boot_line(findings).map_err(|error| format!("{error:#}"));
        for finding in findings {
            let mut result = Ok(());
            for fix in &finding.fixes {
                result = result.and_then(|()| match fix {
                    Fix::BootLineWith(_) | Fix::BootLineWithout(_) => line.clone(),
                    fix => self.make(fix).map_err(|error| format!("{error:#}")),
                });
            }
            match result {
                Ok(()) => {
                    applied.done.push(finding.check);
                    if finding.reboot {
                        applied.reboot.push(finding.check);
                    }
                }
                Err(why) => applied.failed.push((finding.check, why)),
            }
        }
        if let Err(error) = self.reload() {
            applied.failed.push(("systemd", format!("{error:#}")));
        }
        applied
    }

    /// A unit that is restarted before systemd has read its drop-ins begins with what they were to change.
    fn reload(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.reload) { self.run(&["systemctl", "daemon-reload"]) } else { Ok(()) }
    }

    /// All changes of the line at once, so that there is one backup and one moment of danger.
    fn boot_line(&mut self, findings: &[&Finding]) -> anyhow::Result<()> {
        let mut edit = Edit::default();
        for fix in findings.iter().flat_map(|finding| &finding.fixes) {
            match fix {
                Fix::BootLineWith(word) => edit.add.push(word),
                Fix::BootLineWithout(unwanted) => edit.remove.push(*unwanted),
                _ => {}
            }
        }
        if edit == Edit::default() {
            return Ok(());
        }
        let firmware = self.firmware()?;
        let file = format!("{}/cmdline.txt", firmware.place);
        let new = boot_line::edit(&firmware.line, &edit).with_context(|| format!("{file} is left alone"))?;
        self.replace_on_firmware(&file, &firmware.line, &new)
    }

    fn firmware(&self) -> anyhow::Result<Firmware> {
        let firmware = Firmware::find(&self.root).context("no cmdline.txt is mounted at /boot/firmware or /boot")?;
        if let Some(why) = firmware.tryboot {
            anyhow::bail!("{why}: which file boots is not certain, so none is changed");
        }
        anyhow::ensure!(!firmware.read_only, "{} is mounted read-only", firmware.place);
        Ok(firmware)
    }

    fn replace_on_firmware(&mut self, file: &str, old: &str, new: &str) -> anyhow::Result<()> {
        if new == old {
            return Ok(());
        }
        self.show(file, old, new)?;
        self.put(file, new, true)
    }

    /// Renamed into place; what was there before this run is kept beside it.
    fn put(&mut self, path: &str, text: &str, was_there: bool) -> anyhow::Result<()> {
        let keep = was_there && !self.written.contains(path);
        let backup = keep.then(|| format!("{path}.edge-agent.{}", self.stamp));
        boot_line::replace(&self.at(path), backup.as_ref().map(|backup| self.at(backup)).as_deref(), text)?;
        self.written.insert(path.to_owned());
        if let Some(backup) = backup {
            writeln!(self.out, "the old text is in {backup}")?;
        }
        Ok(())
    }

    fn make(&mut self, fix: &Fix) -> anyhow::Result<()> {
        match fix {
            // Done together before.
            Fix::BootLineWith(_) | Fix::BootLineWithout(_) => Ok(()),
            Fix::FirmwareSetting(key, value) => {
                let firmware = self.firmware()?;
                if boot_line::settings(&firmware.config).any(|setting| setting == (*key, *value)) {
                    return Ok(());
                }
                let kept = firmware.config.trim_end_matches('\n');
                let new = format!("{kept}\n[all]\n{key}={value}\n");
                self.replace_on_firmware(&format!("{}/config.txt", firmware.place), &firmware.config, &new)
            }
            Fix::HandDown(names) => {
                for name in names {
                    self.set("/sys/fs/cgroup/cgroup.subtree_control", &format!("+{name}"))?;
                }
                Ok(())
            }
            Fix::Setting(path, value) => {
                self.set(&format!("/proc/sys/{path}"), &value.to_string())?;
                let old = self.read(SETTINGS).unwrap_or_default();
                self.write(SETTINGS, &with_setting(&old, path, *value))
            }
            Fix::Module(name) => self.run(&["modprobe", name]),
            Fix::File { path, text } => self.write(path, text),
            Fix::OomScore { pid: 0, .. } => Ok(()),
            Fix::OomScore { pid, score } => self.set(&format!("/proc/{pid}/oom_score_adj"), &score.to_string()),
            Fix::EnableCri => self.edit(CONTAINERD_CONFIG, containerd_config::enable_cri),
            Fix::SystemdCgroup => self.edit(CONTAINERD_CONFIG, containerd_config::systemd_cgroup),
            Fix::Run(argv) => {
                self.reload()?;
                self.run(argv)
            }
        }
    }

    fn edit(&mut self, path: &str, edit: fn(&str) -> Result<String, String>) -> anyhow::Result<()> {
        let old = self.read(path).with_context(|| format!("{path} cannot be read"))?;
        let new = edit(&old).map_err(anyhow::Error::msg).with_context(|| path.to_owned())?;
        self.write(path, &new)
    }

    /// Files of `/proc` and `/sys`: no backup, the value is shown.
    fn set(&mut self, path: &str, value: &str) -> anyhow::Result<()> {
        std::fs::write(self.at(path), value).with_context(|| format!("writing {value} to {path}"))?;
        writeln!(self.out, "{path} <- {value}")?;
        Ok(())
    }

    /// A whole file: shown, kept beside itself if it had another text, renamed into place.
    fn write(&mut self, path: &str, text: &str) -> anyhow::Result<()> {
        let old = self.read(path);
        if old.as_deref() == Some(text) {
            return Ok(());
        }
        if let Some(directory) = self.at(path).parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        self.show(path, old.as_deref().unwrap_or_default(), text)?;
        self.reload |= path.starts_with("/etc/systemd/system/");
        self.put(path, text, old.is_some())
    }

    fn run(&mut self, argv: &[&str]) -> anyhow::Result<()> {
        writeln!(self.out, "run {}", argv.join(" "))?;
        self.commands.push(argv.join(" "));
        if self.root == Path::new("/") {
            command::run(argv, PROGRAM).map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.at(path)).ok()
    }

    /// Lines that go and come, as `diff` shows them.
    fn show(&mut self, path: &str, old: &str, new: &str) -> std::io::Result<()> {
        let (before, after): (BTreeSet<&str>, BTreeSet<&str>) = (old.lines().collect(), new.lines().collect());
        writeln!(self.out, "--- {path}\n+++ {path}")?;
        for line in old.lines().filter(|line| !after.contains(line)) {
            writeln!(self.out, "-{line}")?;
        }
        for line in new.lines().filter(|line| !before.contains(line)) {
            writeln!(self.out, "+{line}")?;
        }
        Ok(())
    }
}

/// The file of settings with one changed or added. A key whose module may be missing at boot is marked so (`-`).
fn with_setting(old: &str, path: &str, value: u64) -> String {
    let name = path.replace('/', ".");
    let mark = if path.starts_with("net/netfilter/") { "-" } else { "" };
    let is_it = |line: &&str| line.trim_start_matches('-').split('=').next().is_some_and(|key| key.trim() == name);
    let head = if old.is_empty() { "# Written by `edge-agent preflight --fix`.\n" } else { "" };
    let kept: String = old.lines().filter(|line| !is_it(line)).map(|line| format!("{line}\n")).collect();
    format!("{head}{kept}{mark}{name} = {value}\n")
}

#[cfg(test)]
#[path = "fix_tests.rs"]
mod tests;
