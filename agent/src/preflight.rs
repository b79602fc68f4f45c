//! `edge-agent preflight`: what this machine lacks, one line a check with its remedy.
//!
//! Facts are gathered first, then judged by pure functions. `--fix` only writes sysctl settings of our own file and loads
//! kernel modules; nothing here touches a boot file or reboots.

mod checks;
mod facts;

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::cli::Preflight;
use crate::commands::load;
use crate::config::{Config, Problems};

pub use checks::judge;
pub use facts::Facts;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Pass,
    Warning,
    Blocked,
}

/// What can be done about it without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fix {
    /// `path` below /proc/sys and the value.
    Sysctl(&'static str, u64),
    Module(&'static str),
}

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; empty when it passed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    #[serde(skip)]
    pub fix: Option<Fix>,
}

/// Settings of ours; the directory is read at boot.
const SYSCTL_FILE: &str = "/etc/sysctl.d/90-edge-agent.conf";

/// 0 pass, 1 warnings, 2 blocked.
pub fn run(args: &Preflight) -> anyhow::Result<u8> {
    let config = for_checks(args.instance.config.as_deref())?;
    let mut findings = judge(&Facts::gather(&config));
    if args.fix {
        let fixed = fix(&findings)?;
        if fixed > 0 {
            findings = judge(&Facts::gather(&config));
        }
    }
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Pass);
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &serde_json::json!({"result": worst, "checks": findings}))?;
        writeln!(out)?;
    } else {
        for finding in &findings {
            writeln!(out, "{}", line(finding))?;
        }
    }
    Ok(worst as u8)
}

/// The configuration as far as it goes: before `join` there is no server yet, which is no reason not to check.
fn for_checks(file: Option<&Path>) -> anyhow::Result<Config> {
    let placeholder = [("server", "https://127.0.0.1:6443".to_owned())];
    match load(file, &[]) {
        Ok((config, _)) => Ok(config),
        Err(error) => match error.downcast_ref::<Problems>() {
            Some(problems) if problems.0.iter().all(|line| line.starts_with("server is not set")) => Ok(load(file, &placeholder)?.0),
            Some(_) | None => Err(error),
        },
    }
}

/// One finding as text.
pub fn line(finding: &Finding) -> String {
    let mark = match finding.level {
        Level::Pass => "ok     ",
        Level::Warning => "warning",
        Level::Blocked => "BLOCKED",
    };
    let remedy = if finding.remedy.is_empty() { String::new() } else { format!("; {}", finding.remedy) };
    format!("{mark}  {:<18} {}{remedy}", finding.check, finding.found)
}

/// Applies what needs no reboot. Returns how many fixes there were.
pub fn fix(findings: &[Finding]) -> anyhow::Result<usize> {
    let fixes: Vec<&Fix> = findings.iter().filter_map(|finding| finding.fix.as_ref()).collect();
    let mut settings = String::new();
    for fix in &fixes {
        match fix {
            Fix::Sysctl(path, value) => {
                std::fs::write(Path::new("/proc/sys").join(path), value.to_string())?;
                settings.push_str(&format!("{} = {value}\n", path.replace('/', ".")));
            }
            Fix::Module(name) => {
                // Without modprobe or the module the next look says so.
                let _ = std::process::Command::new("modprobe").arg(name).status();
            }
        }
    }
    if !settings.is_empty() {
        let kept = std::fs::read_to_string(SYSCTL_FILE).unwrap_or_default();
        let names: Vec<&str> = settings.lines().filter_map(|line| line.split(" =").next()).collect();
        let kept: String =
            kept.lines().filter(|line| !names.iter().any(|name| line.starts_with(name))).map(|line| format!("{line}\n")).collect();
        crate::ledger::write_whole(Path::new(SYSCTL_FILE), format!("{kept}{settings}").as_bytes())?;
    }
    Ok(fixes.len())
}
