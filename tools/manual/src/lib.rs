//! Manual pages and shell completions of `edge-agent` and `edge-server`, made from what their command lines are parsed with.
//!
//! They are made while packaging and not by the programs themselves, which therefore grow by nothing.

pub mod example;
pub mod pages;

use std::fs;
use std::path::Path;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;

/// A program with a package of its own.
struct Program {
    name: &'static str,
    command: Command,
    notes: &'static [pages::Note],
}

fn programs() -> [Program; 2] {
    [
        Program { name: "edge-agent", command: agent::cli::Cli::command(), notes: pages::AGENT },
        Program { name: "edge-server", command: server::app::Options::command().name("edge-server"), notes: pages::SERVER },
    ]
}

/// Writes, below `directory`, one tree a program as its package installs it:
/// `PROGRAM/usr/share/man/man8/*.8`, `PROGRAM/usr/share/man/man5/*.5` and the completions of bash, zsh and fish.
///
/// # Errors
///
/// When a directory or file cannot be written.
pub fn write(directory: &Path) -> anyhow::Result<()> {
    for program in programs() {
        let share = directory.join(program.name).join("usr/share");
        for (name, text) in pages::of(&program.command, program.notes) {
            put(&share.join("man/man8").join(format!("{name}.8")), text.as_bytes())?;
        }
        if program.name == "edge-agent" {
            put(&share.join("man/man5/edge-agent-config.5"), pages::configuration().as_bytes())?;
        }
        for (shell, place) in [
            (Shell::Bash, format!("bash-completion/completions/{}", program.name)),
            (Shell::Zsh, format!("zsh/vendor-completions/_{}", program.name)),
            (Shell::Fish, format!("fish/vendor_completions.d/{}.fish", program.name)),
        ] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut program.command.clone(), program.name, &mut text);
            put(&share.join(place), &text)?;
        }
    }
    Ok(())
}

fn put(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let parent = path.parent().context("a file in a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn every_subcommand_has_a_page_and_is_completed() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        let share = directory.path().join("edge-agent/usr/share");
        let bash = fs::read_to_string(share.join("bash-completion/completions/edge-agent")).unwrap();
        let command = agent::cli::Cli::command();
        let visible: Vec<&Command> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).collect();
        assert!(visible.len() >= 6, "{visible:?}");
        for sub in visible {
            let name = sub.get_name();
            let page = fs::read_to_string(share.join(format!("man/man8/edge-agent-{name}.8"))).unwrap();
            assert!(page.contains(&format!(".TH edge\\-agent\\-{name} 8")) || page.contains(&format!(".TH edge-agent-{name} 8")), "{page}");
            assert!(bash.contains(&format!("edge__agent__subcmd__{name}")) || bash.contains(&format!("edge__agent__{name}")), "{name}");
        }
        let server = directory.path().join("edge-server/usr/share");
        for path in [
            share.join("man/man5/edge-agent-config.5"),
            share.join("zsh/vendor-completions/_edge-agent"),
            share.join("fish/vendor_completions.d/edge-agent.fish"),
            server.join("man/man8/edge-server.8"),
            server.join("bash-completion/completions/edge-server"),
        ] {
            assert!(fs::metadata(&path).unwrap().len() > 200, "{}", path.display());
        }
    }
}
