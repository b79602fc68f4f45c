//! `edge-agent join`: verifies server and token by really joining, then writes down what `run` needs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tunnel::{JoinOptions, ServerAddr, Token};

use crate::cli::Join;
use crate::commands::load;
use crate::config::{Config, DEFAULT_FILE, Problems};
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

const NO_TOKEN: &str = "no token was given; use --token-file FILE or the environment variable EDGE_TOKEN \
     (on a K3s server it is in /var/lib/rancher/k3s/server/node-token)";

/// The token, from wherever it was given.
pub fn token_text(config: &Config) -> anyhow::Result<String> {
    if let Some(file) = &config.token_file {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Problems(vec![format!("token-file: {}: {error}; write the server's token there, or name another file", file.display())])
        })?;
        return Ok(text.trim().to_owned());
    }
    match &config.token {
        Some(token) => Ok(token.0.trim().to_owned()),
        None => Err(Problems(vec![NO_TOKEN.to_owned()]).into()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::exit_code;
    use crate::config::Redacted;

    #[test]
    fn the_token_comes_from_its_file_first_and_its_absence_is_a_configuration_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::below(dir.path(), "n");
        let error = token_text(&config).unwrap_err();
        assert_eq!(error.to_string(), NO_TOKEN);
        assert_eq!(exit_code(&error), 78);
        config.token = Some(Redacted(" t1\n".to_owned()));
        assert_eq!(token_text(&config).unwrap(), "t1");
        config.token_file = Some(dir.path().join("token"));
        let error = token_text(&config).unwrap_err();
        assert!(error.to_string().contains("write the server's token there"), "{error}");
        assert_eq!(exit_code(&error), 78);
        std::fs::write(dir.path().join("token"), "t2\n").unwrap();
        assert_eq!(token_text(&config).unwrap(), "t2");
    }

    #[test]
    fn join_completes_a_file_without_touching_it_and_the_result_loads() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        let mut args = Join {
            server: "https://10.0.0.1:6443".to_owned(),
            token: None,
            token_file: None,
            node_name: Some("n1".to_owned()),
            node_label: vec!["a=b: c".to_owned()],
            node_taint: Vec::new(),
            node_ip: Vec::new(),
            data_dir: Some("/x/data".to_owned()),
            yes: false,
            instance: crate::cli::Instance { config: Some(file.clone()) },
        };
        let mut config = Config::below(dir.path(), "n1");
        config.server.clone_from(&args.server);
        assert_eq!(write_config(&file, &args, &config, Path::new("/x/token")).unwrap(), file);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("token-file: \"/x/token\"") && text.contains("- \"a=b: c\""), "{text}");

        std::fs::write(&file, "# mine\nnode-label: [x=y]\n").unwrap();
        args.node_label.clear();
        assert!(write_config(&file, &args, &config, Path::new("/x/token")).unwrap().ends_with("config.yaml.d/90-join.yaml"));
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("# mine"));
        let (loaded, _) = load(Some(&file), &[]).unwrap();
        assert_eq!(loaded.server, "https://10.0.0.1:6443");
        assert_eq!(loaded.node_labels["x"], "y");
        assert_eq!(loaded.data_dir, Path::new("/x/data"));
    }

    #[test]
    fn what_waiting_may_heal_is_one_and_what_it_cannot_is_seventy_eight() {
        let address = ServerAddr::from_url("http://a").unwrap_err();
        assert_eq!(exit_code(&anyhow::Error::from(address)), 78);
        assert_eq!(exit_code(&anyhow::anyhow!("anything else")), 1);
    }
}
