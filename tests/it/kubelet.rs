//! The kubelet port over the network: who gets in, who does not, and what is there.

use std::time::Duration;

use crate::system::cluster::{Cluster, Options};
use crate::system::process::output;
use crate::system::{run, wait_for};

const SOON: Duration = Duration::from_secs(60);

/// Status code and body of a request to the kubelet port of the first node.
fn ask(cluster: &Cluster, args: &[&str], path: &str) -> (String, String) {
    let node = &cluster.nodes[0];
    let mut command = std::process::Command::new("curl");
    command.args(["-sS", "-k", "--http1.1", "--max-time", "20", "-w", "\n%{http_code}"]).args(args);
    command.arg(format!("https://{}:10250{path}", node.ip));
    let text = output(command, SOON).ok().unwrap_or_else(|seen| panic!("{path}: {seen}"));
    let (body, code) = text.rsplit_once('\n').expect("code behind the body");
    (code.to_owned(), body.to_owned())
}

#[test]
fn the_port_knows_its_clients() {
    run("the_port_knows_its_clients", |machine| {
        let cluster = Cluster::start(machine, &Options { nodes: 1, ..Options::default() });
        let k = &cluster.kubectl;
        k.apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: seen}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n    - {name: c, image: 'busybox:1.36', command: [sh, -c, 'echo hello; sleep 600'], livenessProbe: {exec: {command: ['true']}, periodSeconds: 1}}\n",
        );
        cluster.wait_pod("default", "seen", SOON, |pod| pod["status"]["phase"] == "Running");

        let nobody = |path: &str| ask(&cluster, &[], path);
        assert_eq!(nobody("/pods"), ("401".to_owned(), "Unauthorized".to_owned()));
        assert_eq!(nobody("/nothing").0, "401", "who is unknown learns nothing");
        assert_eq!(ask(&cluster, &["-H", "Authorization: Bearer nonsense"], "/pods").0, "401");

        // A service account is known but may not.
        let review = cluster.dir.join("token-request.json");
        std::fs::write(&review, r#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}"#).expect("written");
        let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
        let made = wait_for(SOON, "a token", || k.get(&["create", "--raw", path, "-f", &review.display().to_string()]));
        let made: serde_json::Value = serde_json::from_str(&made).expect("json");
        let bearer = format!("Authorization: Bearer {}", made["status"]["token"].as_str().unwrap_or_default());
        let (code, words) = ask(&cluster, &["-H", &bearer], "/metrics/resource");
        assert_eq!(
            (code.as_str(), words.as_str()),
            ("403", "Forbidden (user=system:serviceaccount:default:default, verb=get, resource=nodes, subresource(s)=[metrics])")
        );

        // The administrator's certificate is in system:masters.
        let (cert, key) = cluster.admin_files();
        let admin = |path: &str| ask(&cluster, &["--cert", &cert, "--key", &key], path);
        assert_eq!(admin("/healthz"), ("200".to_owned(), "ok".to_owned()));
        for check in ["ping", "log", "syncloop", "lease"] {
            assert_eq!(admin(&format!("/healthz/{check}")), ("200".to_owned(), "ok".to_owned()));
            assert!(admin("/healthz?verbose").1.contains(&format!("[+]{check} ok\n")));
        }
        let json = |path: &str| {
            let (code, body) = admin(path);
            assert_eq!(code, "200", "{path}: {body}");
            serde_json::from_str::<serde_json::Value>(&body).expect("json")
        };
        for path in ["/pods", "/runningpods/"] {
            let list = json(path);
            assert_eq!((&list["kind"], &list["items"][0]["metadata"]["name"]), (&"PodList".into(), &"seen".into()), "{path}");
        }
        let summary = json("/stats/summary");
        assert_eq!(summary["node"]["nodeName"], cluster.nodes[0].name.as_str());
        assert!(summary["pods"][0]["containers"][0]["memory"]["workingSetBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{summary}");
        assert_eq!(json("/configz")["kubeletconfig"]["kind"], "KubeletConfiguration");
        let (code, metrics) = admin("/metrics/resource");
        assert_eq!(code, "200");
        for series in [
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"default\",pod=\"seen\"} ",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"default\",pod=\"seen\"} ",
            "container_start_time_seconds{container=\"c\",namespace=\"default\",pod=\"seen\"} ",
            "node_cpu_usage_seconds_total ",
            "node_memory_working_set_bytes ",
            "pod_memory_working_set_bytes{namespace=\"default\",pod=\"seen\"} ",
            "resource_scrape_error 0",
        ] {
            assert!(metrics.lines().any(|line| line.starts_with(series)), "{series} not in\n{metrics}");
        }
        let (code, metrics) = admin("/metrics/cadvisor");
        assert_eq!(code, "200");
        for (series, label) in [
            ("container_cpu_usage_seconds_total{cpu=\"total\",container=\"c\",", "namespace=\"default\",pod=\"seen\"} "),
            ("container_memory_working_set_bytes{container=\"c\",", "image=\"docker.io/library/busybox:1.36\""),
            ("container_network_receive_bytes_total{container=\"\",", "interface=\"eth0\""),
            ("container_memory_rss{container=\"\",id=\"/\",", ""),
            ("machine_memory_bytes ", ""),
        ] {
            assert!(metrics.lines().any(|line| line.starts_with(series) && line.contains(label)), "{series} not in\n{metrics}");
        }
        let probed = "prober_probe_total{container=\"c\",namespace=\"default\",pod=\"seen\",pod_uid=\"";
        wait_for(SOON, "a counted probe", || {
            let (_, metrics) = admin("/metrics/probes");
            let good = |line: &str| line.starts_with(probed) && line.contains("probe_type=\"Liveness\",result=\"successful\"} ");
            if metrics.lines().any(good) { Ok(()) } else { Err(metrics) }
        });
        assert!(admin("/metrics").1.contains("node_pressure_memory_waiting_seconds_total "));
        assert_eq!(admin("/containerLogs/default/seen/c"), ("200".to_owned(), "hello\n".to_owned()));
        assert_eq!(admin("/containerLogs/default/absent/c"), ("404".to_owned(), "pod \"absent\" does not exist".to_owned()));
        assert_eq!(admin("/containerLogs/default/seen/d"), ("404".to_owned(), "container \"d\" not found in pod \"seen\"".to_owned()));
        assert_eq!(admin("/containerLogs/default/seen/c?tailLines=-1").0, "422");
        assert_eq!(admin("/containerLogs/default/seen/c?tailLines=x").0, "400");
        assert_eq!(admin("/nothing").0, "404");
        let post = ask(&cluster, &["--cert", &cert, "--key", &key, "-X", "POST"], "/pods");
        assert_eq!(post.0, "405");
        let plain = ask(&cluster, &["--cert", &cert, "--key", &key, "-X", "POST"], "/exec/default/seen/c?command=true&output=1");
        assert_eq!(plain.0, "400", "exec needs an upgrade: {plain:?}");
        assert_eq!(ask(&cluster, &["--cert", &cert, "--key", &key, "-X", "POST"], "/exec/default/seen/c?command=true").0, "400");
        let ran = ask(&cluster, &["--cert", &cert, "--key", &key, "-X", "POST"], "/run/default/seen/c?cmd=echo%20there");
        assert_eq!(ran, ("200".to_owned(), "there\n".to_owned()));

        // Health is plain and open, but on loopback only.
        assert_eq!(cluster.nodes[0].fetch("http://127.0.0.1:10248/healthz").as_deref(), Ok("ok"));
        assert!(cluster.nodes[0].fetch(&format!("http://{}:10248/healthz", cluster.nodes[0].ip)).is_err());
        // The serving certificate names the node's address and leads to the server's CA.
        let ca = cluster.nodes[0].dir.join("agent/server-ca.crt").display().to_string();
        let url = format!("https://{}:10250/healthz", cluster.nodes[0].ip);
        let mut command = std::process::Command::new("curl");
        command.args(["-sS", "--cacert", &ca, "--cert", &cert, "--key", &key, &url]);
        assert_eq!(output(command, SOON).ok().as_deref(), Ok("ok"));

        let why = cluster.nodes[0].edge_agent(&["why", "default/seen"]);
        assert!(why.code == Some(0) && why.stdout.contains("default/seen") && why.stdout.contains("container c"), "{why:?}");
        let absent = cluster.nodes[0].edge_agent(&["why", "absent"]);
        assert!(absent.code != Some(0) && absent.stderr.contains("no pod absent"), "{absent:?}");
    });
}
