//! `edge-agent join`: checks the machine, verifies server and token by really joining, then writes down what `run` needs.
//!
//! With `--yes` what `preflight` can repair is repaired after that, and where it needs a reboot the service is enabled first: then
//! the machine boots into a node that finishes the join by itself.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tunnel::{Identity, JoinOptions, ServerAddr, Token};

use crate::cli::Join;
use crate::commands::load;
use crate::config::{Config, ContainerdMode, DEFAULT_FILE, Problems};
use crate::ledger::write_whole;
use crate::node::address;
use crate::preflight::{self, Answer, Applied, Depth, Facts, Finding, Level, judge};

/// A server that has just been started answers 503 for a while.
const STARTING: Duration = Duration::from_secs(90);
/// What the package adds to containerd's unit.
const CONTAINERD_DROP_IN: &str = "/usr/lib/systemd/system/containerd.service.d/40-edge-agent.conf";
/// Not with `--yes` alone: a stall of the card longer than the watchdog waits would reboot the board.
const ONLY_BY_HAND: &str = "watchdog";

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
    check_machine(&judge(&Facts::gather(&config, Depth::Look)), args.yes)?;
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
    let identity = join_server(&options).await?;
    identity.config.check(&node_ips).map_err(anyhow::Error::msg)?;
    say("server and token are right; certificates are in place");

    let token_file = config.data_dir.join("token");
    write_whole(&token_file, format!("{}\n", text.trim()).as_bytes())?;
    let written = write_config(&file, &args, &config, &token_file)?;
    say(&format!("wrote {} and {}", written.display(), token_file.display()));
    let applied = if args.yes { repair(&config)? } else { Applied::default() };
    // Measures the disk, now that there is a place to keep the result and nothing else runs yet.
    let findings = judge(&Facts::gather(&config, Depth::Full));
    let needs_reboot = findings.iter().any(|finding| finding.pending);
    let left: Vec<&Finding> = findings.iter().filter(|finding| finding.level == Level::Blocked && !finding.pending).collect();
    for finding in &left {
        say(&preflight::line(finding));
    }
    if let Some(first) = left.first() {
        let failed = applied.failed.iter().find(|(check, _)| *check == first.check);
        let why = failed.map_or_else(|| "it was not repaired".to_owned(), |(_, why)| why.clone());
        anyhow::bail!("{}: {why}; when it is, start the agent: systemctl enable --now edge-agent", first.check);
    }
    if needs_reboot && args.yes { boot(&file).await } else { start(&file, &config).await }
}

/// Asks for an identity; a server that says it is still starting is asked again, for a while.
async fn join_server(options: &JoinOptions) -> anyhow::Result<Identity> {
    let until = tokio::time::Instant::now() + STARTING;
    let mut told = false;
    loop {
        match tunnel::identity::join(options).await {
            Err(error @ tunnel::Error::Refused { code: 503, .. }) if tokio::time::Instant::now() < until => {
                if !told {
                    told = true;
                    say(&format!("the server is still starting ({error}); asking again for up to {} s", STARTING.as_secs()));
                }
                tokio::time::sleep(error.retry_after().unwrap_or(Duration::from_secs(1)).min(Duration::from_secs(10))).await;
            }
            other => return Ok(other?),
        }
    }
}

/// Says what keeps pods from running, which ends the join unless it can be repaired and may be; warnings only by name.
fn check_machine(findings: &[Finding], yes: bool) -> anyhow::Result<()> {
    let blocked: Vec<&Finding> = findings.iter().filter(|finding| finding.level == Level::Blocked).collect();
    for finding in &blocked {
        say(&preflight::line(finding));
    }
    let warnings: Vec<&str> = findings.iter().filter(|finding| finding.level == Level::Warning).map(|finding| finding.check).collect();
    if !warnings.is_empty() {
        say(&format!("warnings (see them with: edge-agent preflight): {}", warnings.join(", ")));
    }
    let hopeless = blocked.iter().filter(|finding| !finding.is_repairable() && !finding.pending).count();
    anyhow::ensure!(hopeless == 0, "{hopeless} of the checks above keep pods from running; look at: edge-agent preflight");
    if blocked.is_empty() || yes {
        return Ok(());
    }
    let pending = blocked.iter().all(|finding| finding.pending);
    anyhow::ensure!(
        !pending,
        "the checks above keep pods from running until this machine reboots; reboot it and join again, or join with --yes"
    );
    let reboots = if blocked.iter().any(|finding| finding.reboot) { " and reboots" } else { "" };
    anyhow::bail!(
        "{} of the checks above keep pods from running; join with --yes, which repairs them{reboots}, or run: edge-agent preflight --fix",
        blocked.len()
    )
}

/// What `preflight --fix --yes` would do, but for what deserves a decision of its own.
fn repair(config: &Config) -> anyhow::Result<Applied> {
    let facts = Facts::gather(config, Depth::Look);
    let findings: Vec<Finding> = judge(&facts).into_iter().filter(|finding| finding.check != ONLY_BY_HAND).collect();
    preflight::repair(config, &facts, &findings, Answer::Yes, &mut std::io::stdout())
}

/// Whether the service of this machine runs this configuration.
fn is_service(file: &Path) -> bool {
    Path::new("/run/systemd/system").exists() && file == Path::new(DEFAULT_FILE)
}

/// The service is there after the boot and finishes what is left: an identity, a configuration and a token it has already.
async fn boot(file: &Path) -> anyhow::Result<()> {
    if !is_service(file) {
        let program = program();
        say(&format!("reboot this machine, then start the agent with:\n  {program} run --config {}", file.display()));
        return Ok(());
    }
    systemctl(&["enable", "edge-agent.service"]).await?;
    say("rebooting to put the repairs into effect; the node joins by itself after that (look at: edge-agent status)");
    systemctl(&["reboot"]).await
}

async fn systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    let status = tokio::process::Command::new("systemctl").args(arguments).status().await.context("running systemctl")?;
    anyhow::ensure!(status.success(), "systemctl {} failed; see: journalctl -u edge-agent", arguments.join(" "));
    Ok(())
}

fn program() -> String {
    std::env::current_exe().map_or_else(|_| "edge-agent".to_owned(), |path| path.display().to_string())
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
    let program = program();
    if !Path::new("/run/systemd/system").exists() {
        say(&format!("there is no systemd here; start the agent with:\n  {program} run --config {}", file.display()));
        return Ok(());
    }
    if !is_service(file) {
        say(&format!("the service reads {DEFAULT_FILE}; start this instance with:\n  {program} run --config {}", file.display()));
        return Ok(());
    }
    // containerd reads what the package and this configuration say of it only when it starts.
    if config.containerd != ContainerdMode::Managed && Path::new(CONTAINERD_DROP_IN).exists() {
        say("restarting containerd with the node's configuration; containers keep running");
        systemctl(&["try-restart", "containerd.service"]).await?;
    }
    systemctl(&["enable", "edge-agent.service"]).await?;
    // One that runs already would go on with what it read before; pods outlive it.
    systemctl(&["restart", "edge-agent.service"]).await?;
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
    asked.is_ok() && says_ready(&answer, &config.node_name)
}

fn says_ready(answer: &[u8], node: &str) -> bool {
    serde_json::from_slice::<crate::control::Status>(answer).is_ok_and(|status| status.ready == Some(true) && status.node == node)
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

    fn finding(check: &'static str, level: Level, fixes: Vec<preflight::Fix>, pending: bool) -> Finding {
        let fix = if fixes.is_empty() { preflight::Consent::No } else { preflight::Consent::Yes };
        let (found, remedy) = ("x".to_owned(), String::new());
        Finding { number: None, check, level, found, remedy, fix, reboot: true, pending, fixes }
    }

    #[test]
    fn what_blocks_ends_the_join_unless_it_may_be_repaired() {
        let hopeless = || finding("network-plugins", Level::Blocked, Vec::new(), false);
        let repairable = || finding("memory-controller", Level::Blocked, vec![preflight::Fix::BootLineWith("cgroup_enable=memory")], false);
        let pending = || finding("memory-controller", Level::Blocked, Vec::new(), true);
        let warning = || finding("psi", Level::Warning, Vec::new(), false);
        let cases = [
            (vec![warning()], false, None),
            (vec![hopeless()], true, Some("look at: edge-agent preflight")),
            (vec![repairable(), hopeless()], true, Some("1 of the checks above keep pods from running")),
            (vec![repairable()], false, Some("join with --yes, which repairs them and reboots")),
            (vec![repairable(), warning()], true, None),
            (vec![pending()], false, Some("until this machine reboots")),
            (vec![pending()], true, None),
        ];
        for (findings, yes, complaint) in cases {
            let result = check_machine(&findings, yes).map_err(|error| error.to_string());
            match complaint {
                None => assert_eq!(result, Ok(()), "{findings:?}"),
                Some(words) => assert!(result.unwrap_err().contains(words), "{findings:?}"),
            }
        }
    }

    #[test]
    fn ready_is_what_the_agent_says_of_this_node() {
        let cases = [
            (r#"{"node": "new", "ready": true}"#, true),
            (r#"{"node": "old", "ready": true}"#, false),
            (r#"{"node": "new", "ready": false}"#, false),
            (r#"{"node": "new"}"#, false),
            ("", false),
        ];
        for (answer, ready) in cases {
            assert_eq!(says_ready(answer.as_bytes(), "new"), ready, "{answer}");
        }
    }

    #[test]
    fn what_waiting_may_heal_is_one_and_what_it_cannot_is_seventy_eight() {
        let address = ServerAddr::from_url("http://a").unwrap_err();
        assert_eq!(exit_code(&anyhow::Error::from(address)), 78);
        assert_eq!(exit_code(&anyhow::anyhow!("anything else")), 1);
    }
}
