//! Each subcommand as a function, and what failing costs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cli::{Cli, Command, GovernorCommand};
use crate::config::{CgroupDriver, Config, Input, Problems};
use crate::{app, control, join, leave, node, preflight, shutdown, telemetry};

/// sysexits' EX_CONFIG: the unit does not restart on it.
const EX_CONFIG: u8 = 78;

/// Does what the command line says. The value is the exit code.
pub fn run(cli: Cli, started: Instant) -> anyhow::Result<u8> {
    match cli.command {
        Command::Run(args) => {
            let mut flags = Vec::new();
            if args.debug {
                flags.push(("debug", "true".to_owned()));
            }
            let (config, warnings) = load(args.instance.config.as_deref(), &flags)?;
            telemetry::start(config.debug);
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            need_root()?;
            runtime()?.block_on(async {
                let stop = shutdown::on_signal()?;
                app::run(config, stop, started).await
            })?;
            Ok(0)
        }
        Command::Join(args) => {
            telemetry::start(false);
            need_root()?;
            runtime()?.block_on(join::run(args))?;
            Ok(0)
        }
        Command::Preflight(args) => verdict(preflight::run(&args)),
        Command::Status(args) => {
            let run_dir = run_dir(args.instance.config.as_deref());
            runtime()?.block_on(control::client_status(&run_dir, args.json, args.watch, &mut std::io::stdout()))?;
            Ok(0)
        }
        Command::Why(args) => {
            let run_dir = run_dir(args.instance.config.as_deref());
            runtime()?.block_on(control::client_why(&run_dir, &args.pod, args.json, &mut std::io::stdout()))?;
            Ok(0)
        }
        Command::Governor(args) => match args.command {
            GovernorCommand::Release(args) => {
                need_root()?;
                let run_dir = run_dir(args.instance.config.as_deref());
                let released = match runtime()?.block_on(control::client_release(&run_dir))? {
                    Some(released) => released,
                    None => release_without_agent(args.instance.config.as_deref())?,
                };
                Ok(tell_released(&released))
            }
        },
        Command::Leave(args) => {
            telemetry::start(false);
            need_root()?;
            let (config, _) = load(args.instance.config.as_deref(), &[])?;
            runtime()?.block_on(leave::run(config, args.purge))?;
            Ok(0)
        }
    }
}

/// 1 of preflight is warnings: what keeps it from checking or repairing is its 2.
fn verdict(result: anyhow::Result<u8>) -> anyhow::Result<u8> {
    match result {
        Err(error) if exit_code(&error) == 1 => {
            complain(&error);
            Ok(2)
        }
        result => result,
    }
}

/// Reads the configuration of an instance.
pub fn load(file: Option<&Path>, flags: &[(&'static str, String)]) -> anyhow::Result<(Config, Vec<String>)> {
    let environment = |name: &str| std::env::var(name).ok();
    let hostname = node::machine::hostname();
    Ok(Config::load(&Input { config: file, environment: &environment, flags, hostname: &hostname })?)
}

/// Where the control socket is, also when the rest of the configuration is wrong.
fn run_dir(file: Option<&Path>) -> PathBuf {
    load(file, &[]).map_or_else(|_| crate::config::run_dir_of(file), |(config, _)| config.run_dir)
}

/// What a governor that is gone left in the groups of pods, from the groups themselves and its ledger.
fn release_without_agent(file: Option<&Path>) -> anyhow::Result<control::Released> {
    let (config, _) = load(file, &[])?;
    let hierarchy = cgroup::Hierarchy::detect().context("looking for the control groups of this machine")?;
    let driver = match config.cgroup_driver {
        CgroupDriver::Cgroupfs => cgroup::Driver::Cgroupfs,
        CgroupDriver::Systemd => cgroup::Driver::Systemd,
    };
    let tree = cgroup::PodTree::new(hierarchy, &config.cgroup_root, driver).context("naming the pods' control groups")?;
    let recovered = cgroup::governor::recover(&tree, &config.run_dir);
    let undone = |undone: &cgroup::governor::Undone| format!("{} {}: {} -> {}", undone.group, undone.knob.file(), undone.from, undone.to);
    Ok(control::Released {
        undone: recovered.undone.iter().map(undone).collect(),
        failed: recovered.failed.iter().map(|error| telemetry::chain(error)).collect(),
    })
}

fn tell_released(released: &control::Released) -> u8 {
    let mut out = std::io::stdout().lock();
    for line in &released.undone {
        let _ = writeln!(out, "undone {line}");
    }
    if released.undone.is_empty() && released.failed.is_empty() {
        let _ = writeln!(out, "nothing to undo");
    }
    let mut err = std::io::stderr().lock();
    for line in &released.failed {
        let _ = writeln!(err, "edge-agent: not undone: {line}");
    }
    u8::from(!released.failed.is_empty())
}

/// The one thread everything but the heartbeat runs on; file and name look-ups go to a few small ones.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Room for 1024 is 12 KB.
        .max_io_events_per_tick(64)
        // Of each thread that ended 16 KB of stack stay with the process.
        .max_blocking_threads(4)
        .thread_stack_size(1 << 20)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .context("starting the runtime")
}

fn need_root() -> anyhow::Result<()> {
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "root is needed (cgroups, containerd, networks); run it with sudo");
    Ok(())
}

/// 78 for a configuration that has to be changed by somebody, 1 for the rest. (Usage errors are clap's 2.)
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Problems>().is_some() {
        return EX_CONFIG;
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<tunnel::Error>()) {
        Some(error) if !error.is_retryable() => EX_CONFIG,
        Some(_) | None => 1,
    }
}

/// What went wrong, on standard error: each problem on its own line.
pub fn complain(error: &anyhow::Error) {
    let mut err = std::io::stderr().lock();
    let text = match error.downcast_ref::<Problems>() {
        Some(problems) => problems.to_string(),
        None => telemetry::chain(error.as_ref()),
    };
    for line in text.lines() {
        let _ = writeln!(err, "edge-agent: {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preflight_that_failed_is_not_preflight_with_warnings() {
        for code in 0..=2 {
            assert_eq!(verdict(Ok(code)).unwrap(), code);
        }
        assert_eq!(verdict(Err(anyhow::anyhow!("repairs need root"))).unwrap(), 2);
        let error = verdict(Err(Problems(vec!["server is not set".to_owned()]).into())).unwrap_err();
        assert_eq!(exit_code(&error), EX_CONFIG);
    }
}
