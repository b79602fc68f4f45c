//! `edge-agent join`: verifies server and token by really joining, then writes down what `run` needs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tunnel::{JoinOptions, ServerAddr, Token};

use crate::cli::Join;
use crate::commands::load;
use crate::config::{Config, DEFAULT_FILE};
use crate::ledger::write_whole;
use crate::node::address;
use crate::preflight::{self, Level};

/// One line of progress on standard output.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Joins, writes the configuration, and starts the service where there is systemd.
pub async fn run(args: Join) -> anyhow::Result<()> {
    let file = args.instance.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let flags = flags(&args);
    // A file that join is about to make may be missing; one that exists is completed.
    let named = args.instance.config.as_deref().filter(|path| path.exists());
    let (config, warnings) = load(named, &flags)?;
    for warning in warnings {
        say(&format!("warning: {warning}"));
    }
    check_machine(&config, args.yes)?;
    let text = token_text(&config)?;
    let token = Token::parse(&text).context("reading the token")?;
    let server = ServerAddr::from_url(&config.server)?;
    let node_ips = address::find(&config, Some(&server));
    anyhow::ensure!(!node_ips.is_empty(), "this machine has no address other nodes could reach; connect it, or give --node-ip");

    say(&format!("joining {} as {} ({})", server.url(), config.node_name, node_ips[0]));
    let options = JoinOptions {
        server: server.clone(),
        token: Some(token),
        data_dir: config.data_dir.clone(),
        node_name: config.node_name.clone(),
        node_ips: node_ips.iter().chain(&config.node_external_ips).copied().collect(),
        node_password_file: config.node_password_file.clone(),
    };
    let identity = tunnel::identity::join(&options).await?;
    identity.config.check(&node_ips).map_err(anyhow::Error::msg)?;
    say("server and token are right; certificates are in place");

    let token_file = config.data_dir.join("token");
    write_whole(&token_file, format!("{}\n", text.trim()).as_bytes())?;
    let written = write_config(&file, &args, &config, &token_file)?;
    say(&format!("wrote {} and {}", written.display(), token_file.display()));
    start(&file, &config).await
}

/// Says what is wrong with the machine; what would keep pods from running ends the join.
fn check_machine(config: &Config, fix: bool) -> anyhow::Result<()> {
    let mut findings = preflight::judge(&preflight::Facts::gather(config));
    if fix && preflight::fix(&findings)? > 0 {
        findings = preflight::judge(&preflight::Facts::gather(config));
    }
    for finding in findings.iter().filter(|finding| finding.level != Level::Pass) {
        say(&preflight::line(finding));
    }
    let blocked = findings.iter().filter(|finding| finding.level == Level::Blocked).count();
    anyhow::ensure!(blocked == 0, "{blocked} of the checks above keep pods from running; look at: edge-agent preflight");
    Ok(())
}

fn flags(args: &Join) -> Vec<(&'static str, String)> {
    let mut flags = vec![("server", args.server.clone())];
    flags.extend(args.token.clone().map(|token| ("token", token)));
    flags.extend(args.token_file.as_ref().map(|path| ("token-file", path.display().to_string())));
    flags.extend(args.node_name.clone().map(|name| ("node-name", name)));
    flags.extend(args.data_dir.clone().map(|dir| ("data-dir", dir)));
    flags.extend(args.node_label.iter().map(|label| ("node-label", label.clone())));
    flags.extend(args.node_taint.iter().map(|taint| ("node-taint", taint.clone())));
    flags.extend(args.node_ip.iter().map(|ip| ("node-ip", ip.clone())));
    flags
}

/// The token, from wherever it was given.
pub fn token_text(config: &Config) -> anyhow::Result<String> {
    if let Some(file) = &config.token_file {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading the token from {}", file.display()))?;
        return Ok(text.trim().to_owned());
    }
    match &config.token {
        Some(token) => Ok(token.0.trim().to_owned()),
        None => anyhow::bail!("no token was given; use --token-file FILE or the environment variable EDGE_TOKEN (on a K3s server it is in /var/lib/rancher/k3s/server/node-token)"),
    }
}

/// A new file, or a drop-in beside one that exists, so that its owner's comments and choices stay.
fn write_config(file: &Path, args: &Join, config: &Config, token_file: &Path) -> anyhow::Result<PathBuf> {
    let target = if file.exists() {
        let mut drop_in = file.as_os_str().to_owned();
        drop_in.push(".d");
        PathBuf::from(drop_in).join("90-join.yaml")
    } else {
        file.to_owned()
    };
    let mut text = String::from("# Written by `edge-agent join`.\n");
    let mut line = |key: &str, value: &str| text.push_str(&format!("{key}: {}\n", quoted(value)));
    line("server", &config.server);
    line("token-file", &token_file.display().to_string());
    line("node-name", &config.node_name);
    if let Some(dir) = &args.data_dir {
        line("data-dir", dir);
    }
    let mut list = |key: &str, values: &[String]| {
        if !values.is_empty() {
            text.push_str(&format!("{key}:\n"));
            for value in values {
                text.push_str(&format!("  - {}\n", quoted(value)));
            }
        }
    };
    list("node-label", &args.node_label);
    list("node-taint", &args.node_taint);
    list("node-ip", &args.node_ip);
    write_whole(&target, text.as_bytes())?;
    Ok(target)
}

/// A YAML double-quoted scalar.
fn quoted(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

async fn start(file: &Path, config: &Config) -> anyhow::Result<()> {
    let program = std::env::current_exe().map_or_else(|_| "edge-agent".to_owned(), |path| path.display().to_string());
    if !Path::new("/run/systemd/system").exists() {
        say(&format!("there is no systemd here; start the agent with:\n  {program} run --config {}", file.display()));
        return Ok(());
    }
    if file != Path::new(DEFAULT_FILE) {
        say(&format!("the service reads {DEFAULT_FILE}; start this instance with:\n  {program} run --config {}", file.display()));
        return Ok(());
    }
    let status = tokio::process::Command::new("systemctl").args(["enable", "--now", "edge-agent.service"]).status().await;
    let enabled = status.context("running systemctl")?.success();
    anyhow::ensure!(enabled, "systemctl enable --now edge-agent.service failed; see: journalctl -u edge-agent");
    say("the service runs; waiting for the node to be Ready");
    let until = tokio::time::Instant::now() + Duration::from_secs(120);
    while tokio::time::Instant::now() < until {
        if is_ready(config).await {
            say(&format!("node {} is Ready", config.node_name));
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    anyhow::bail!("the node was not Ready within 120 s; look at: edge-agent status, journalctl -u edge-agent")
}

/// What the running agent says about its node.
async fn is_ready(config: &Config) -> bool {
    let mut answer = Vec::new();
    let asked = crate::control::client_status(&config.run_dir, true, false, &mut answer).await;
    asked.is_ok() && serde_json::from_slice::<crate::control::Status>(&answer).is_ok_and(|status| status.ready == Some(true))
}
