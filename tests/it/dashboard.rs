//! The Grafana dashboard: everything it asks for is something the agent tells, and a real Prometheus answers each of its queries.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent::board::Throttled;
use agent::metrics::governor::{Info, Ratios, SIGNALS, Snapshot};
use agent::metrics::{CgroupScope, CgroupScopes, Format, LeaseFailure, Links, Metrics, NodeAmounts, Wire};
use agent::reserve::{Exposed, Report};
use fakes::cgroupfs::{FakeCgroupfs, Kind};
use serde_json::Value;
use tokio::sync::watch;

use crate::system::process::Process;
use crate::system::{skip, wait_for};

/// Range that takes the place of Grafana's; the scrapes below are a second apart.
const RANGE: &str = "15s";

fn dashboard() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/grafana-dashboard.json");
    serde_json::from_slice(&fs::read(file).expect("dashboard")).expect("JSON")
}

/// Every query with its place, variables replaced as Grafana does.
pub(crate) fn queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let mut found = Vec::new();
    collect(&dashboard, "", &mut found);
    assert!(found.len() >= 40, "{} queries", found.len());
    let replaced = |query: String| query.replace("$node", ".*").replace("$__rate_interval", RANGE);
    let found: Vec<(String, String)> = found.into_iter().map(|(place, query)| (place, replaced(query))).collect();
    for (place, query) in &found {
        assert!(!query.contains('$'), "{place}: a variable nobody knows: {query}");
    }
    found
}

fn collect(value: &Value, place: &str, found: &mut Vec<(String, String)>) {
    let place = value["title"].as_str().or(value["name"].as_str()).unwrap_or(place);
    match value {
        Value::Object(members) => {
            if let Some(query) = value["expr"].as_str() {
                found.push((place.to_owned(), query.to_owned()));
            }
            members.values().for_each(|member| collect(member, place, found));
        }
        Value::Array(members) => members.iter().for_each(|member| collect(member, place, found)),
        _ => {}
    }
}

/// Words of a query that are names of series.
fn series(query: &str) -> BTreeSet<&str> {
    query
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| ["edge_agent_", "node_pressure_", "process_"].iter().any(|prefix| word.starts_with(prefix)))
        .collect()
}

/// A board on which everything can be read, and the metrics of the agent on it.
struct OnBoard {
    metrics: Metrics,
    drifted: Arc<AtomicU64>,
    // Read at each scrape.
    _files: (tempfile::TempDir, FakeCgroupfs),
}

impl OnBoard {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("temporary directory");
        for (file, content) in [
            ("proc/sys/net/netfilter/nf_conntrack_count", "52"),
            ("proc/sys/net/netfilter/nf_conntrack_max", "208"),
            ("sys/class/thermal/thermal_zone0/temp", "48312"),
            ("sys/class/hwmon/hwmon1/name", "rpi_volt"),
            ("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0"),
            ("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "600000"),
            ("sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "1500000"),
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("below root")).expect("created");
            fs::write(path, format!("{content}\n")).expect("written");
        }
        let metrics = Metrics::of_board("0.1.0", root.path());
        let tree = FakeCgroupfs::new(Kind::V2);
        let scopes =
            [("agent", "/edge.slice"), ("runtime", "/containerd"), ("kubepods", "/kubepods"), ("burstable", "/kubepods/burstable")];
        for (_, group) in scopes {
            tree.group(group).set("unified", group, "pids.max", "512").set("unified", group, "memory.swap.max", "0");
            tree.set("unified", group, "memory.stat", "anon 0\npgfault 0\npgmajfault 0\ninactive_file 0\nworkingset_refault_file 3");
            for file in ["cpu.pressure", "io.pressure"] {
                tree.set("unified", group, file, &tree.get("unified", group, "memory.pressure"));
            }
        }
        let hierarchy = cgroup::Hierarchy::detect_in(&tree.proc_root()).expect("a v2 tree");
        let scopes = scopes.map(|(name, group)| CgroupScope { name, group: group.to_owned() });
        metrics.collect(Box::new(CgroupScopes::new(hierarchy, scopes.to_vec())));
        let (states, proofs) = (watch::channel(Default::default()).1, watch::channel(Default::default()).1);
        metrics.collect(Box::new(Links { states, proofs, wire: Wire::default() }));
        for scope in ["kubepods", "runtime", "agent", "burstable"] {
            for kind in ["min", "high", "max"] {
                metrics.reservation(scope, kind, 64 << 20);
            }
        }
        metrics.node_amounts(&NodeAmounts::default());
        metrics.preflight("psi", "warning");
        let drifted = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&drifted);
        metrics.collect(Box::new(Exposed::new(move || {
            Arc::new(Report { drift: [("kubepods".to_owned(), seen.load(Ordering::Relaxed))].into(), ..Report::default() })
        })));
        metrics.tunnel_links(1, 1);
        Self { metrics, drifted, _files: (root, tree) }
    }

    /// One turn in which everything that is counted happens once.
    fn turn(&self) {
        let took = Duration::from_millis(20);
        let governor = self.metrics.governor();
        self.metrics.lease_renewed(took);
        self.metrics.lease_failed(LeaseFailure::Timeout);
        self.metrics.heartbeat_lag(took);
        self.drifted.fetch_add(1, Ordering::Relaxed);
        governor.action("freeze", "memory", "besteffort", "ok");
        governor.evicted("memory", "besteffort");
        governor.observe_reaction(took);
        governor.observe_loop(took);
        governor.observe_storage_probe(took);
        governor.set_snapshot(&Snapshot {
            info: Some(Info { cgroup_mode: "v2", cgroup_driver: "systemd", psi: "trigger", io_control: "io_max", profile: "enforce" }),
            state: 2,
            levels: [1; SIGNALS.len()],
            ratios: [Some(Ratios::default()); 3],
            ..Snapshot::default()
        });
    }

    /// What a scrape gets. The firmware's mailbox is a device, so what it says is added.
    fn exposition(&self) -> String {
        let mut text = self.metrics.render(Format::Classic).expect("renders");
        assert!(!text.contains("edge_agent_board_throttled"), "a mailbox in a temporary directory");
        for condition in Throttled::CONDITIONS {
            text += &format!("edge_agent_board_throttled{{condition=\"{condition}\",when=\"now\"}} 0\n");
        }
        text
    }
}

#[test]
fn everything_the_dashboard_shows_is_something_the_agent_tells() {
    let board = OnBoard::new();
    board.turn();
    let text = board.exposition();
    let told: BTreeSet<&str> =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(['{', ' ']).next()).collect();
    for (place, query) in queries() {
        let names = series(&query);
        assert!(!names.is_empty(), "{place}: {query}");
        for name in names {
            assert!(told.contains(name), "{place}: the agent tells no {name}");
        }
    }
}

/// With Node at All, lines of several nodes are told apart by their legends, unless the query makes one of them.
#[test]
fn a_legend_names_the_node_where_there_is_a_line_for_each() {
    let dashboard = dashboard();
    let targets = dashboard["panels"].as_array().expect("panels").iter().flat_map(|panel| panel["targets"].as_array()).flatten();
    let mut checked = 0;
    for target in targets.filter(|target| target["format"] != "table") {
        let (query, legend) = (target["expr"].as_str().expect("query"), target["legendFormat"].as_str().expect("legend"));
        let groups: Vec<&str> = query.split(" by (").skip(1).filter_map(|rest| rest.split(')').next()).collect();
        let one_a_node = groups.is_empty() || groups.iter().any(|labels| labels.contains("instance"));
        assert!(!one_a_node || legend.contains("{{instance}}"), "{legend:?} of {query}");
        checked += usize::from(one_a_node);
    }
    assert!(checked >= 30, "{checked}");
}

/// A check that passed has series of 0 for every status but its own.
#[test]
fn the_table_of_checks_shows_what_is_true() {
    let checks = queries().into_iter().find(|(_, query)| query.contains("edge_agent_preflight_check")).expect("a table of checks").1;
    assert!(checks.ends_with(" == 1") && checks.contains("warning|blocked"), "{checks}");
}

#[test]
fn a_real_prometheus_answers_every_query_of_the_dashboard() {
    if Command::new("prometheus").arg("--version").output().is_err() {
        return skip("a_real_prometheus_answers_every_query_of_the_dashboard", "prometheus is not installed");
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let board = Arc::new(OnBoard::new());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let scraped = listener.local_addr().expect("bound");
    let served = Arc::clone(&board);
    // Ends with the test's process; each scrape is a turn, so that every rate is above zero.
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| answer(stream, &served)));

    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()).expect("a port").port();
    let config = dir.path().join("prometheus.yaml");
    let text =
        format!("global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: edge\n    static_configs: [{{targets: ['{scraped}']}}]\n");
    fs::write(&config, text).expect("configuration is written");
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let mut prometheus = Process::start(command, &dir.path().join("log"));

    for (place, query) in queries() {
        wait_for(Duration::from_secs(60), &format!("{place}: {query}"), || {
            if let Some(status) = prometheus.ended() {
                return Err(format!("prometheus ended with {status}: {}", prometheus.tail()));
            }
            answered(&ask(port, &query)?)
        });
    }
    // What makes the above worth something: a name nobody tells has no answer.
    let empty = ask(port, "edge_agent_no_such_thing").and_then(|answer| answered(&answer));
    assert!(empty.is_err(), "{empty:?}");
}

/// At least one series, and a number in each.
fn answered(answer: &Value) -> Result<(), String> {
    let result = answer["data"]["result"].as_array().filter(|result| !result.is_empty()).ok_or_else(|| answer.to_string())?;
    let number =
        |series: &Value| series["value"][1].as_str().and_then(|value| value.parse::<f64>().ok()).is_some_and(|value| !value.is_nan());
    // A quantile of what did not happen yet is no number.
    if result.iter().all(number) { Ok(()) } else { Err(answer.to_string()) }
}

fn answer(mut stream: TcpStream, board: &OnBoard) {
    board.turn();
    let mut asked = [0; 4096];
    let _ = stream.read(&mut asked);
    let text = board.exposition();
    // A scraper that is gone needs no answer.
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
}

fn ask(port: u16, query: &str) -> Result<Value, String> {
    let query: String = query
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(|error| error.to_string())?;
    write!(stream, "GET /api/v1/query?query={query} HTTP/1.0\r\nHost: localhost\r\n\r\n").map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(|error| format!("{error}: {text}"))
}
