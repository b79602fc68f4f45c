//! `edge-agent preflight`: what this machine lacks, one line a check with its remedy.
//!
//! Facts are gathered first ([`facts`]), then judged by pure functions ([`checks`]), then repaired where `--fix` was given ([`fix`]).
//! The 35 numbered checks are those of section 7 of the governor reference; what an instance needs beside them follows without
//! number. Detection is by effect: what files, controllers and writes do, not what the kernel was told. Nothing here ever reboots.

mod boot_line;
mod checks;
mod command;
mod containerd_config;
mod facts;
mod fix;

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use serde::Serialize;

use crate::cli::Preflight;
use crate::commands::load;
use crate::config::{Config, Problems};
use crate::reboot;

pub use checks::judge;
pub use facts::{Depth, Facts};
pub use fix::{Applied, Fix};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Could not be looked at here; the text says why.
    Skipped,
    Pass,
    Warning,
    /// Pods would not run.
    Blocked,
}

impl Level {
    /// As in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Level::Skipped => "skipped",
            Level::Pass => "pass",
            Level::Warning => "warning",
            Level::Blocked => "blocked",
        }
    }

    fn exit_code(self) -> u8 {
        match self {
            Level::Skipped | Level::Pass => 0,
            Level::Warning => 1,
            Level::Blocked => 2,
        }
    }
}

/// Whether `--fix` repairs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Consent {
    Yes,
    /// Only after a question, or with `--yes`.
    Ask,
    No,
}

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its place in the list of 35.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u8>,
    /// Stable id.
    pub check: &'static str,
    pub level: Level,
    /// What was found, or why it was not looked at.
    pub found: String,
    /// What to do; empty when it passed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    pub fix: Consent,
    /// In effect only after a reboot.
    pub reboot: bool,
    /// Repaired already: only the reboot is missing.
    pub pending: bool,
    #[serde(skip)]
    pub fixes: Vec<Fix>,
}

impl Finding {
    /// `--fix` can do something about it.
    pub fn is_repairable(&self) -> bool {
        !self.fixes.is_empty()
    }
}

/// Who decides about repairs that deserve a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The person at the terminal.
    Terminal,
    /// `--yes`.
    Yes,
    /// Nobody is there: they are left out.
    Nobody,
}

/// The checks of the list without programs, connections and writes, for the metric `edge_agent_preflight_check` at the start of
/// the agent: id and level. Takes a few milliseconds; what only a closer look tells is [`Level::Skipped`].
pub fn cheap(config: &Config) -> Vec<(&'static str, Level)> {
    judge(&Facts::gather(config, Depth::Cheap)).into_iter().map(|finding| (finding.check, finding.level)).collect()
}

/// 0 pass, 1 warnings, 2 blocked.
pub fn run(args: &Preflight) -> anyhow::Result<u8> {
    let config = for_checks(args.instance.config.as_deref())?;
    let mut facts = Facts::gather(&config, Depth::Full);
    let mut findings = judge(&facts);
    if args.fix {
        let answer = match (args.yes, std::io::stdin().is_terminal()) {
            (true, _) => Answer::Yes,
            (false, true) => Answer::Terminal,
            (false, false) => Answer::Nobody,
        };
        // The one JSON document stays alone on standard output.
        let mut notes: Box<dyn Write> = if args.json { Box::new(std::io::stderr()) } else { Box::new(std::io::stdout()) };
        repair(&config, &facts, &findings, answer, &mut *notes)?;
        writeln!(notes)?;
        facts = Facts::gather(&config, Depth::Full);
        findings = judge(&facts);
    }
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Pass);
    let needs_reboot = findings.iter().any(|finding| finding.pending);
    let mut out = std::io::stdout().lock();
    if args.json {
        let result = worst.max(Level::Pass);
        serde_json::to_writer(&mut out, &serde_json::json!({"result": result, "reboot_required": needs_reboot, "checks": findings}))?;
        writeln!(out)?;
    } else {
        for finding in &findings {
            writeln!(out, "{}", line(finding))?;
        }
        writeln!(out, "\n{}", summary(&findings))?;
    }
    reboot::settle(&config.data_dir);
    Ok(worst.exit_code())
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
        Level::Skipped => "skipped",
        Level::Pass => "ok",
        Level::Warning => "warning",
        Level::Blocked => "BLOCKED",
    };
    let number = finding.number.map(|number| number.to_string()).unwrap_or_default();
    // The texts of the reference go on after a full stop or a semicolon.
    let joint = match finding.remedy.chars().next() {
        None => "",
        Some(first) if first.is_uppercase() => ". ",
        Some(_) => "; ",
    };
    format!("{mark:<7} {number:>2} {:<23} {}{joint}{}", finding.check, finding.found, finding.remedy)
}

/// The last line for people.
pub fn summary(findings: &[Finding]) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let names = |wanted: &dyn Fn(&Finding) -> bool| {
        findings.iter().filter(|finding| wanted(finding)).map(|finding| finding.check).collect::<Vec<_>>().join(", ")
    };
    let mut text = format!(
        "{} checks: {} ok, {} not looked at, {} warnings, {} blocked",
        findings.len(),
        count(Level::Pass),
        count(Level::Skipped),
        count(Level::Warning),
        count(Level::Blocked)
    );
    let silent = names(&|finding| finding.is_repairable() && finding.fix == Consent::Yes);
    if !silent.is_empty() {
        text.push_str(&format!("\nrepaired by: edge-agent preflight --fix: {silent}"));
    }
    let asked = names(&|finding| finding.is_repairable() && finding.fix == Consent::Ask);
    if !asked.is_empty() {
        text.push_str(&format!("\nrepaired by it after a question: {asked}"));
    }
    let pending = names(&|finding| finding.pending);
    if !pending.is_empty() {
        text.push_str(&format!("\nin effect after a reboot: {pending}"));
    }
    text
}

/// Repairs what the findings propose and `answer` agrees to, tells about it on `out`, and records what a reboot has to complete.
pub fn repair(config: &Config, facts: &Facts, findings: &[Finding], answer: Answer, out: &mut dyn Write) -> anyhow::Result<Applied> {
    anyhow::ensure!(facts.root, "repairs need root; run it with sudo");
    if facts.boot.overlay_root {
        writeln!(out, "the root file system is an overlay: nothing is written; with it switched off do this:")?;
        for fix in findings.iter().flat_map(|finding| &finding.fixes) {
            writeln!(out, "  {fix}")?;
        }
        return Ok(Applied::default());
    }
    let mut agreed = Vec::new();
    for finding in findings.iter().filter(|finding| finding.is_repairable()) {
        let may = match finding.fix {
            Consent::Yes => true,
            Consent::Ask => asked(finding, answer, out)?,
            Consent::No => false,
        };
        if may {
            agreed.push(finding);
        }
    }
    let applied = fix::Doer::new(Path::new("/"), &crate::clock::now(), out).apply(&agreed);
    for (check, why) in &applied.failed {
        writeln!(out, "not repaired: {check}: {why}")?;
    }
    if !applied.reboot.is_empty() {
        reboot::record(&config.data_dir, &applied.reboot)?;
        writeln!(out, "a reboot puts into effect: {}", applied.reboot.join(", "))?;
    }
    if applied == Applied::default() {
        writeln!(out, "nothing to repair")?;
    }
    Ok(applied)
}

fn asked(finding: &Finding, answer: Answer, out: &mut dyn Write) -> anyhow::Result<bool> {
    match answer {
        Answer::Yes => Ok(true),
        Answer::Nobody => {
            writeln!(out, "left alone, as nobody can be asked (--yes agrees): {}", finding.check)?;
            Ok(false)
        }
        Answer::Terminal => {
            writeln!(out, "{}", line(finding))?;
            for fix in &finding.fixes {
                writeln!(out, "  {fix}")?;
            }
            write!(out, "do this? [y/N] ")?;
            out.flush()?;
            let mut reply = String::new();
            std::io::stdin().lock().read_line(&mut reply)?;
            Ok(matches!(reply.trim(), "y" | "Y" | "yes"))
        }
    }
}
