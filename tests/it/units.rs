//! What `systemd/` ships: the example configuration, the units, containerd's configuration.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn systemd() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").canonicalize().unwrap()
}

fn there(program: &str, test: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("\nSKIP units::{test}: no {program}");
    }
    found
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_example_configuration_is_accepted_without_a_warning() {
    let file = systemd().join("config.yaml");
    let input = agent::config::Input { config: Some(&file), environment: &|_| None, flags: &[], hostname: "pi" };
    let (config, warnings) = agent::config::Config::load(&input).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.node_name, "shed-pi-1");
    assert_eq!(config.max_pods, Some(30));
}

#[test]
fn every_commented_key_of_the_example_is_a_key() {
    let text = std::fs::read_to_string(systemd().join("config.yaml")).unwrap();
    // `# key: value` is a key that is left out; prose has a capital letter or no colon after its first word.
    let commented: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| {
            line.split_once(": ").is_some_and(|(key, _)| !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'))
        })
        .filter(|line| !line.starts_with("managed:") && !line.starts_with("auto:"))
        .map(str::to_owned)
        .collect();
    assert!(commented.len() >= 5, "{commented:?}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, format!("server: https://10.0.0.1:6443\ntoken: t\n{}\n", commented.join("\n"))).unwrap();
    let input = agent::config::Input { config: Some(&file), environment: &|_| None, flags: &[], hostname: "pi" };
    if let Err(problems) = agent::config::Config::load(&input) {
        assert!(!problems.to_string().contains("unknown key"), "{problems}");
    }
}

#[test]
fn the_units_say_what_keeps_pods_alive() {
    let read = |name: &str| std::fs::read_to_string(systemd().join(name)).unwrap();
    let unit = read("edge-agent.service");
    for line in [
        "Type=notify",
        "WatchdogSec=20",
        "KillMode=process",
        "Restart=always",
        "RestartPreventExitStatus=78",
        "Slice=edge.slice",
        "OOMScoreAdjust=-999",
        "MemoryMin=24M",
        "OOMPolicy=continue",
        "ManagedOOMPreference=omit",
        "ExecStopPost=-/usr/bin/edge-agent governor release",
    ] {
        assert!(unit.lines().any(|found| found == line), "edge-agent.service lacks {line}");
    }
    // Any of these gives the agent mounts of its own, and what it mounts for pods is not where containerd looks.
    for line in unit.lines() {
        let apart = [
            "Protect",
            "Private",
            "ReadOnlyPaths",
            "ReadWritePaths",
            "InaccessiblePaths",
            "BindPaths",
            "TemporaryFileSystem",
            "RootDirectory",
        ];
        assert!(!apart.iter().any(|option| line.starts_with(option)) && !line.starts_with("MountFlags"), "{line}");
    }
    // What the agent sets at run time systemd keeps in 50-MemoryMin.conf and its like: read after ours, so that it counts.
    let drop_ins =
        std::fs::read_dir(systemd()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "d"));
    let names: Vec<_> = drop_ins.flat_map(|dir| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name())).collect();
    assert!(names.len() >= 5 && names.iter().all(|name| name.as_encoded_bytes() < &b"50-"[..]), "{names:?}");
    // A promise to a group is worth what its parent's is.
    assert!(read("edge.slice").contains("MemoryMin=24M"));
    assert!(read("containerd.service.d/40-edge-agent.conf").contains("KillMode=process"));
}

#[test]
fn systemd_accepts_the_units() {
    if !there("systemd-analyze", "systemd_accepts_the_units") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for name in ["edge-agent.service", "edge-server.service", "edge.slice", "kubepods.slice"] {
        // Verifying wants the program to exist; every machine has this one.
        let unit = std::fs::read_to_string(systemd().join(name)).unwrap();
        let unit = unit.replace("/usr/bin/edge-agent", "/bin/true").replace("/usr/bin/edge-server", "/bin/true");
        let path = root.path().join(name);
        std::fs::write(&path, unit).unwrap();
        files.push(path);
    }
    for unit in ["ssh.service", "dbus.service"] {
        // With a unit of that name around it, a drop-in is read and judged like the rest.
        let source = if unit == "ssh.service" { "ssh.service.d" } else { "daemon.service.d" };
        let drop_ins = root.path().join(format!("{unit}.d"));
        std::fs::create_dir(&drop_ins).unwrap();
        std::fs::copy(systemd().join(source).join("40-edge-agent.conf"), drop_ins.join("40-edge-agent.conf")).unwrap();
        let path = root.path().join(unit);
        std::fs::write(&path, "[Unit]\nDescription=edge test\n[Service]\nExecStart=/bin/true\n").unwrap();
        files.push(path);
    }
    let hardened = root.path().join("edge-agent.service.d");
    std::fs::create_dir(&hardened).unwrap();
    std::fs::copy(systemd().join("hardened.conf"), hardened.join("60-hardened.conf")).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&files).output().unwrap();
    let said = text(&output);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("edge") || line.contains("kubepods")).collect();
    assert_eq!(ours, Vec::<&str>::new(), "{said}");
}

/// Runs the drop-in's script on a user's configuration and asks containerd what it makes of the result.
fn containerd_with(user: &str, agent: &str) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("user.toml"), user).unwrap();
    std::fs::write(at("agent.yaml"), agent).unwrap();
    let output = Command::new(systemd().join("containerd-config"))
        .args([at("out/config.toml"), at("user.toml"), at("agent.yaml")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(std::fs::metadata(at("out/config.toml")).unwrap().permissions().mode() & 0o077, 0, "for root alone");
    let written = std::fs::read_to_string(at("out/config.toml")).unwrap();
    let dump = Command::new("containerd").arg("--config").arg(at("out/config.toml")).args(["config", "dump"]).output().unwrap();
    if dump.status.success() { (output, String::from_utf8(dump.stdout).unwrap()) } else { (output, written) }
}

fn value<'a>(dump: &'a str, key: &str) -> Option<&'a str> {
    dump.lines().find_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('=').map(str::trim))
}

#[test]
fn containerd_keeps_the_users_settings_and_gets_ours() {
    if !there("containerd", "containerd_keeps_the_users_settings_and_gets_ours") {
        return;
    }
    let user = r#"
version = 2
oom_score = -5
disabled_plugins = [
  "io.containerd.internal.v1.restart",
  "io.containerd.grpc.v1.cri",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "example.org/pause:1"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
  endpoint = ["http://mirror.local"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  BinaryName = "/usr/bin/crun"
"#;
    let (_, dump) = containerd_with(user, "data-dir: \"/data/edge\"  # here\nkubelet-arg:\n  - cgroup-driver=systemd\n");
    for (key, wanted) in [
        ("oom_score", "-5"),
        ("disabled_plugins", r#"["io.containerd.internal.v1.restart"]"#),
        ("sandbox_image", r#""example.org/pause:1""#),
        ("BinaryName", r#""/usr/bin/crun""#),
        ("endpoint", r#"["http://mirror.local"]"#),
        ("conf_dir", r#""/data/edge/agent/etc/cni/net.d""#),
        ("SystemdCgroup", "true"),
    ] {
        assert_eq!(value(&dump, key), Some(wanted), "{key}");
    }
    let (_, dump) = containerd_with("version = 2\n", "server: https://a:6443\n");
    assert_eq!(value(&dump, "SystemdCgroup"), Some("false"));
    assert_eq!(value(&dump, "conf_dir"), Some(r#""/var/lib/edge-agent/agent/etc/cni/net.d""#));
}

#[test]
fn a_configuration_containerd_refuses_is_handed_on_unchanged_and_named() {
    if !there("containerd", "a_configuration_containerd_refuses_is_handed_on_unchanged_and_named") {
        return;
    }
    let broken = "version = \"x\n";
    let (output, written) = containerd_with(broken, "");
    assert_eq!(written, broken);
    assert!(text(&output).contains("user.toml unchanged"), "{}", text(&output));
}
