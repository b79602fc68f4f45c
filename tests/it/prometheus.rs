//! A real Prometheus scrapes the agent and answers a PromQL query; promtool finds nothing to complain about.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::system::cluster::{Cluster, Options};
use crate::system::process::Process;
use crate::system::{run, skip, wait_for};

const QUERY: &str = "http://127.0.0.1:19090/api/v1/query?query=";

#[test]
fn prometheus_scrapes_the_agent() {
    run("prometheus_scrapes_the_agent", |machine| {
        if Command::new("prometheus").arg("--version").output().is_err() || Command::new("promtool").arg("--version").output().is_err() {
            return skip("prometheus_scrapes_the_agent", "prometheus and promtool are not installed");
        }
        let cluster = Cluster::start(machine, &Options { nodes: 1, ..Options::default() });
        let node = &cluster.nodes[0];
        cluster.kubectl.apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: counted}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers: [{name: c, image: 'busybox:1.36', command: [sleep, '600']}]\n",
        );
        cluster.wait_pod("default", "counted", Duration::from_secs(60), |pod| pod["status"]["phase"] == "Running");

        let text = node.fetch("http://127.0.0.1:9470/metrics").expect("metrics");
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut checking = promtool.spawn().expect("promtool runs");
        checking.stdin.take().expect("piped").write_all(text.as_bytes()).expect("promtool reads");
        let checked = checking.wait_with_output().expect("promtool ends");
        let said = String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success() && said.trim().is_empty(), "promtool: {said}");

        // Every family that is declared has a value, and what has happened by now is counted.
        for family in [
            "edge_agent_build_info",
            "edge_agent_tunnel_links",
            "edge_agent_status_writes_total",
            "edge_agent_lease_renew_failures_total",
            "edge_agent_heartbeat_lag_seconds_count",
            "edge_agent_cgroup_memory_bytes",
            "edge_agent_cgroup_cpu_seconds_total",
            "edge_agent_tasks",
            "edge_agent_cgroup_oom_kills_total",
            "kubelet_node_name",
        ] {
            assert!(text.lines().any(|line| line.starts_with(family)), "{family} has no value in\n{text}");
        }
        for counted in [
            "edge_agent_lease_renew_seconds_count",
            "edge_agent_tunnel_connects_total",
            "edge_agent_tunnel_links{state=\"connected\"}",
            "edge_agent_pod_start_seconds_count",
            "edge_agent_status_writes_total{result=\"sent\"}",
            "edge_agent_capacity{resource=\"cpu_cores\"}",
            "edge_agent_allocatable{resource=\"memory_bytes\"}",
            "edge_agent_start_ready_seconds",
            "edge_agent_pods{phase=\"Running\"}",
            "kubelet_running_pods",
        ] {
            wait_for(Duration::from_secs(30), &format!("{counted} above 0"), || {
                let text = node.fetch("http://127.0.0.1:9470/metrics")?;
                let value = |line: &str| line.strip_prefix(counted)?.trim().parse::<f64>().ok();
                let value = text.lines().find_map(value).ok_or_else(|| text.clone())?;
                if value > 0.0 { Ok(()) } else { Err(format!("{counted} is {value}")) }
            });
        }

        let openmetrics = node.try_sh("curl", &["-sS", "-H", "Accept: application/openmetrics-text", "http://127.0.0.1:9470/metrics"]);
        assert!(openmetrics.expect("metrics").ends_with("# EOF\n"));

        let config = cluster.dir.join("prometheus.yaml");
        std::fs::write(
            &config,
            "global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: edge\n    static_configs: [{targets: ['127.0.0.1:9470']}]\n",
        )
        .expect("configuration is written");
        let mut command = node.command("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", cluster.dir.join("prometheus").display()));
        command.arg("--web.listen-address=127.0.0.1:19090");
        let mut prometheus = Process::start(command, &cluster.dir.join("prometheus.log"));
        let mut ask = |query: &str| {
            if let Some(status) = prometheus.ended() {
                return Err(format!("prometheus ended with {status}: {}", prometheus.tail()));
            }
            let answer = node.fetch(&format!("{QUERY}{query}"))?;
            let answer: serde_json::Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
            let value = answer["data"]["result"][0]["value"][1].as_str().and_then(|value| value.parse::<f64>().ok());
            value.ok_or_else(|| answer.to_string())
        };
        let limit = Duration::from_secs(60);
        let waited = wait_for(limit, "the query is answered", || ask("node_pressure_memory_waiting_seconds_total"));
        assert!(waited >= 0.0);
        assert_eq!(wait_for(limit, "the agent is up", || ask("up")), 1.0);
        let resident = wait_for(limit, "the agent's memory", || ask("process_resident_memory_bytes"));
        assert!(resident > 1e6, "{resident}");
        assert_eq!(wait_for(limit, "the count of pods", || ask("edge_agent_pods%7Bphase%3D%22Running%22%7D")), 1.0);
        assert_eq!(wait_for(limit, "the kubelet's count", || ask("kubelet_running_containers")), 1.0);
        let renewed = wait_for(limit, "the last renewal", || ask("time()-edge_agent_lease_last_renew_timestamp_seconds"));
        assert!((0.0..60.0).contains(&renewed), "{renewed}");
        let bound =
            wait_for(limit, "the limit of all pods", || ask("edge_agent_reservation_bytes%7Bscope%3D%22kubepods%22%2Ckind%3D%22max%22%7D"));
        assert!(bound > 1e6, "{bound}");
    });
}
