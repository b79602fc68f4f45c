//! What each good and bad configuration gives.

use super::*;

fn load_text(text: &str, environment: &[(&str, &str)], flags: &[(&'static str, String)]) -> Result<(Config, Vec<String>), Problems> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, text).unwrap();
    load_file(&file, environment, flags)
        .map_err(|problems| Problems(problems.0.into_iter().map(|line| line.replace(&format!("{}/", dir.path().display()), "")).collect()))
}

fn load_file(file: &Path, environment: &[(&str, &str)], flags: &[(&'static str, String)]) -> Result<(Config, Vec<String>), Problems> {
    let environment: Vec<(String, String)> = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let lookup = |name: &str| environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    Config::load(&Input { config: Some(file), environment: &lookup, flags, hostname: "Pi-4" })
}

#[test]
fn a_plain_k3s_file_works_and_defaults_are_k3s_own() {
    let text = "server: https://10.0.0.1:6443/\ntoken: secret\nnode-label:\n  - zone=a\n  - topology.kubernetes.io/zone=b\nnode-taint: [k=v:NoSchedule]\nnode-ip: 10.0.0.2\nlb-server-port: 6444\n";
    let (config, warnings) = load_text(text, &[], &[]).unwrap();
    assert_eq!(config.server, "https://10.0.0.1:6443");
    assert_eq!(config.node_name, "pi-4");
    assert_eq!(config.node_labels.len(), 2);
    assert_eq!(config.node_taints[0].effect, "NoSchedule");
    assert_eq!(config.kubelet_port, 10250);
    assert_eq!(config.root_dir, Path::new("/var/lib/kubelet"));
    assert_eq!(config.eviction_hard["nodefs.available"], "5%");
    assert_eq!(warnings.len(), 1);
    assert!(!format!("{config:?}").contains("secret"));
    assert_eq!(config.public_args[..5], ["agent", "--server", "https://10.0.0.1:6443/", "--token", "********"].map(str::to_owned));
}

#[test]
fn drop_ins_replace_and_append_in_name_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let drop = dir.path().join("config.yaml.d");
    std::fs::create_dir(&drop).unwrap();
    std::fs::write(&file, "server: https://a:1\nnode-label: [a=1]\nnode-name: one\n").unwrap();
    std::fs::write(drop.join("20.yaml"), "node-label+: c=3\n").unwrap();
    std::fs::write(drop.join("10.YML"), "node-label+: [b=2]\nnode-name: two\n").unwrap();
    std::fs::write(drop.join("30.txt"), "nonsense").unwrap();
    let (config, _) = load_file(&file, &[("K3S_URL", "https://env:1"), ("K3S_TOKEN", "t")], &[("node-label", "d=4".to_owned())]).unwrap();
    assert_eq!(config.node_labels.keys().cloned().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    assert_eq!(config.node_name, "two");
    assert_eq!(config.server, "https://a:1", "files win over the environment");
    assert_eq!(config.token, Some(Redacted("t".to_owned())));
    assert_eq!(config.public_env["K3S_TOKEN"], "********");
    assert_eq!(config.sources.len(), 3);
}

#[test]
fn every_bad_line_is_named_with_its_value_and_a_remedy() {
    let cases: &[(&str, &str)] = &[
        ("node-nmae: a", "config.yaml: unknown key node-nmae; did you mean node-name?"),
        (
            "tunnel-ping-interval: 55s",
            "config.yaml: tunnel-ping-interval: 55s is not a duration from 1s to 50s, for example 7s; a server waits 60s for a ping",
        ),
        ("tunnel-ping-wait: soon", "config.yaml: tunnel-ping-wait: soon is not a duration from 1s to 60s, for example 3s"),
        ("metered: perhaps", "config.yaml: metered: perhaps is not true or false"),
        ("frobnicate: a", "config.yaml: unknown key frobnicate; remove it"),
        ("tls-san: a", "config.yaml: tls-san: is a key of `k3s server`, an agent has no use for it; remove it"),
        ("selinux: true", "config.yaml: selinux: true: is not supported here; it would label containers for SELinux; remove it"),
        ("node-name: A_B", "config.yaml: node-name: A_B is not a DNS name (letters, digits, `-` and `.`, at most 253)"),
        ("node-ip: 10.0.0", "config.yaml: node-ip: 10.0.0 is not an IP address"),
        (
            "node-ip: 127.0.0.1",
            "config.yaml: node-ip: 127.0.0.1 cannot be reached from other nodes; give an address of a network interface",
        ),
        (
            "node-label: node-role.kubernetes.io/worker=true",
            "config.yaml: node-label: node-role.kubernetes.io/worker=true is one the server lets no node set on itself; let an administrator set it with kubectl label",
        ),
        (
            "node-taint: a=b:Never",
            "config.yaml: node-taint: a=b:Never is not KEY=VALUE:EFFECT with effect NoSchedule, PreferNoSchedule or NoExecute",
        ),
        (
            "metrics-address: here",
            "config.yaml: metrics-address: here is not ADDRESS:PORT, for example 127.0.0.1:9470; leave it empty to switch it off",
        ),
        ("data-dir: here", "config.yaml: data-dir: here is not an absolute path"),
        ("containerd: docker", "config.yaml: containerd: docker is none of auto, managed, system"),
        ("governor: loud", "config.yaml: governor: loud is none of enforce, observe, static"),
        ("reserve-scale: double", "config.yaml: reserve-scale: double is not a number such as 1.5"),
        ("reserve-scale: 30", "config.yaml: reserve-scale: 30 is not between 0.5 and 3; 1 is what the board's size asks for"),
        ("reserve-scale: NaN", "config.yaml: reserve-scale: NaN is not between 0.5 and 3; 1 is what the board's size asks for"),
        ("reserved-scale: 2", "config.yaml: unknown key reserved-scale; did you mean reserve-scale?"),
        ("allow-unprotected: perhaps", "config.yaml: allow-unprotected: perhaps is not true or false"),
        ("debug: perhaps", "config.yaml: debug: perhaps is not true or false"),
        ("kubelet-arg: max-pods=many", "config.yaml: kubelet-arg max-pods=many: is not a number of pods"),
        ("kubelet-arg: maxpods=3", "config.yaml: unknown kubelet-arg maxpods; did you mean max-pods?"),
        (
            "kubelet-arg: feature-gates=A=true",
            "config.yaml: kubelet-arg feature-gates=A=true: is not supported here; it would switch kubelet features; remove it",
        ),
        (
            "kubelet-arg: system-reserved=memory=150Mx",
            "config.yaml: kubelet-arg system-reserved=memory=150Mx: is not a quantity such as 200m, 150Mi or 1G",
        ),
        (
            "kubelet-arg: eviction-hard=memory.available<many",
            "config.yaml: kubelet-arg eviction-hard=memory.available<many: is neither a quantity such as 100Mi nor a percentage",
        ),
        ("node-name: [a, b]", "config.yaml: node-name: takes one value, not 2"),
        ("node-name: {a: b}", "config.yaml: node-name: has to be a value or a list of values"),
    ];
    for (line, expected) in cases {
        let problems = load_text(&format!("server: https://a:6443\n{line}\n"), &[], &[]).unwrap_err();
        assert_eq!(problems.0, [(*expected).to_owned()], "{line}");
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let problems = load_text("sever: https://a\nnode-ip: x\nkubelet-arg: port=0\n", &[], &[]).unwrap_err();
    assert_eq!(problems.0.len(), 4, "{problems}");
}

#[test]
fn a_missing_named_file_and_broken_yaml_are_errors() {
    let problems = load_file(Path::new("/nonexistent/config.yaml"), &[("K3S_URL", "https://a:1")], &[]).unwrap_err();
    assert!(problems.0[0].starts_with("/nonexistent/config.yaml: "), "{problems}");
    assert!(load_text("a: [", &[], &[]).is_err());
    assert!(load_text("- a\n", &[], &[]).unwrap_err().0[0].contains("is not a list of `key: value` lines"));
}

#[test]
fn instances_differ_in_every_path_and_port() {
    let text = "server: https://a:6443\ndata-dir: /x/data\nrun-dir: /x/run\npod-logs-dir: /x/log/pods\nmetrics-address: ''\nbridge: cni1\nkubelet-arg:\n  - root-dir=/x/kubelet\n  - cgroup-root=/edge-node-1\n  - port=20250\n  - healthz-port=0\n";
    let (config, _) = load_text(text, &[], &[]).unwrap();
    assert_eq!(config.control_socket(), Path::new("/x/run/agent.sock"));
    assert_eq!(config.container_logs_dir.as_deref(), Some(Path::new("/x/log/containers")));
    assert_eq!(config.cgroup_root, "/edge-node-1");
    assert_eq!((config.kubelet_port, config.healthz_address, config.metrics_address), (20250, None, None));
    assert!(config.cni_state_dir.starts_with("/x/data"));
}

#[test]
fn a_bad_flag_is_named_as_it_was_typed() {
    let flags = [("server", "http://a".to_owned()), ("node-name", "A_b".to_owned())];
    let problems = load_text("", &[], &flags).unwrap_err();
    assert!(problems.0[0].starts_with("--server: server address \"http://a\" is not valid"), "{problems}");
    assert!(problems.0[1].starts_with("--node-name: A_b is not a DNS name"), "{problems}");
}

#[test]
fn the_shipped_example_is_valid_and_changes_what_it_says() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/config.yaml");
    let (config, warnings) = load_file(&shipped, &[], &[]).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.node_name, "shed-pi-1");
    assert_eq!(config.max_pods, Some(30));
    assert_eq!(config.eviction_hard["memory.available"], "32Mi");
    assert_eq!(config.cgroup_root, "/");
}

/// The example is also the manual page: what it leaves out nobody learns of.
#[test]
fn the_shipped_example_has_every_key_that_is_acted_on() {
    let text = include_str!("../../../systemd/config.yaml");
    let there = |start: String| text.lines().any(|line| line.trim_start().trim_start_matches("# ").starts_with(&start));
    let acted_on = |list: &[(&'static str, keys::Use)]| -> Vec<&str> {
        list.iter().filter(|(_, meaning)| matches!(meaning, keys::Use::Yes | keys::Use::List)).map(|(name, _)| *name).collect()
    };
    // The example says in prose why a file is better.
    for key in acted_on(keys::KEYS).into_iter().filter(|key| *key != "token") {
        assert!(there(format!("{key}:")), "{key}");
    }
    for flag in acted_on(keys::KUBELET_ARGS) {
        assert!(there(format!("- {flag}=")), "kubelet-arg {flag}");
    }
}

#[test]
fn metered_stretches_what_no_key_sets() {
    let seconds = |text: &str| {
        let liveness = load_text(&format!("server: https://a:1\n{text}"), &[], &[]).unwrap().0.liveness;
        (liveness.ping_interval.as_secs(), liveness.ping_wait.as_secs(), liveness.lease_every.as_secs())
    };
    assert_eq!(seconds(""), (7, 3, 10));
    assert_eq!(seconds("metered: true"), (20, 5, 20));
    assert_eq!(seconds("metered: true\ntunnel-ping-interval: 30s"), (30, 5, 20));
    assert_eq!(seconds("tunnel-ping-interval: 5s\ntunnel-ping-wait: 2500ms"), (5, 3, 10));
}

/// k3s-agent.md 10.1, every flag but `--config`, with a value that changes something.
#[test]
fn every_flag_of_a_k3s_agent_is_acted_on_or_named_with_what_it_would_do() {
    enum Then {
        Taken,
        Told(&'static str),
        Refused(&'static str),
    }
    use Then::{Refused, Taken, Told};
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "secret").unwrap();
    let token_file = token_file.display().to_string();
    let rows = [
        ("debug", "true", Taken),
        ("v", "4", Told("`debug`")),
        ("vmodule", "a=4", Told("`debug`")),
        ("log", "/x", Told("standard error")),
        ("alsologtostderr", "true", Told("standard error")),
        ("token", "secret", Taken),
        ("token-file", &token_file, Taken),
        ("server", "https://b:6443", Taken),
        ("data-dir", "/x", Taken),
        ("node-name", "a", Taken),
        ("with-node-id", "true", Refused("append a generated identifier")),
        ("node-label", "a=b", Taken),
        ("node-taint", "a=b:NoSchedule", Taken),
        ("image-credential-provider-bin-dir", "/x", Refused("credential helpers")),
        ("image-credential-provider-config", "/x", Refused("credential helpers")),
        ("selinux", "true", Refused("SELinux")),
        ("lb-server-port", "7000", Told("load balancer is inside")),
        ("protect-kernel-defaults", "true", Refused("kernel settings")),
        ("container-runtime-endpoint", "unix:///x.sock", Taken),
        ("default-runtime", "crun", Refused("OCI runtime")),
        ("image-service-endpoint", "unix:///x.sock", Refused("another socket")),
        ("pause-image", "pause:1", Taken),
        ("snapshotter", "native", Refused("snapshotter")),
        ("private-registry", "/x.yaml", Taken),
        ("disable-default-registry-endpoint", "true", Refused("registry's own endpoint")),
        ("nonroot-devices", "true", Refused("device ownership")),
        ("airgap-extra-registry", "a", Refused("preloaded images")),
        ("node-ip", "10.0.0.2", Taken),
        ("bind-address", "10.0.0.2", Taken),
        ("node-external-ip", "1.2.3.4", Taken),
        ("node-internal-dns", "a.b", Taken),
        ("node-external-dns", "a.b", Taken),
        ("resolv-conf", "/etc/resolv.conf", Taken),
        ("flannel-iface", "lo", Taken),
        ("flannel-conf", "/x", Refused("flannel's configuration")),
        ("flannel-cni-conf", "/x", Refused("CNI configuration")),
        ("kubelet-arg", "max-pods=3", Taken),
        ("kube-proxy-arg", "a=b", Told("kube-proxy")),
        ("enable-pprof", "true", Told("profile")),
        ("rootless", "true", Refused("without root")),
        ("prefer-bundled-bin", "true", Told("bundled")),
        ("docker", "true", Refused("Docker")),
        ("vpn-auth", "joinKey=k3y", Refused("VPN")),
        ("vpn-auth-file", "/x", Refused("VPN")),
        ("disable-apiserver-lb", "true", Told("load balancer is inside")),
    ];
    for (key, value, then) in rows {
        let server = if key == "server" { "" } else { "server: https://a:6443\n" };
        let got = load_text(&format!("{server}{key}: '{value}'\n"), &[], &[]);
        match (then, got) {
            (Taken, Ok((_, warnings))) => assert_eq!(warnings, Vec::<String>::new(), "{key}"),
            (Told(why), Ok((_, warnings))) => {
                assert!(warnings.len() == 1 && warnings[0].contains(&format!(": {key}: has no effect: ")), "{key}: {warnings:?}");
                assert!(warnings[0].contains(why), "{warnings:?}");
            }
            (Refused(effect), Err(problems)) => {
                let text = problems.to_string();
                assert!(text.contains(&format!("config.yaml: {key}: ")) && text.contains("it would ") && text.contains(effect), "{text}");
                assert!(!text.contains("k3y"), "{text}");
            }
            (_, got) => panic!("{key}: {got:?}"),
        }
    }
    // What K3s reads from the environment counts as well.
    for (variable, value, named) in
        [("K3S_SELINUX", "true", "SELinux"), ("K3S_VPN_AUTH", "joinKey=k3y", "VPN"), ("K3S_VPN_AUTH_FILE", "/x", "VPN")]
    {
        let text = load_text("server: https://a:6443\n", &[(variable, value)], &[]).unwrap_err().to_string();
        assert!(text.contains(variable) && text.contains(named) && !text.contains("k3y"), "{text}");
    }
}
