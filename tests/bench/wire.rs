//! Bytes an idle node sends and receives.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::Choice;
use crate::api::agent_pid;
use crate::report::{line, note};
use crate::system::Machine;
use crate::system::cluster::{Cluster, Options};

/// After the join: what belongs to it is not what a day costs.
const SETTLE: Duration = Duration::from_secs(30);
const LIMIT_MB: f64 = 12.5;
const DAY: f64 = 86_400.0;

pub(crate) fn run(machine: &Machine, choice: &Choice) {
    let cluster = Cluster::start(machine, &Options { nodes: 1, ..Options::default() });
    let agent = agent_pid(&cluster.nodes[0]);
    std::thread::sleep(SETTLE);
    let window = choice.window.max(Duration::from_secs(120));
    let (before, began) = (counters(agent), Instant::now());
    std::thread::sleep(window);
    let (after, took) = (counters(agent), began.elapsed().as_secs_f64());
    let per_day = |name: &str| (after[name] - before[name]) as f64 / took * DAY;
    line("wire of an idle node, both ways", (per_day("in") + per_day("out")) / 1e6, "MB/day", Some(LIMIT_MB));
    let packets = after["packets"] - before["packets"];
    note(&format!(
        "{} bytes in, {} out, {packets} packets in {took:.0} s over {} connections",
        after["in"] - before["in"],
        after["out"] - before["out"],
        connections(agent)
    ));
}

/// Counters of `eth0` in the network namespace of a process.
fn counters(pid: i32) -> BTreeMap<&'static str, u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).expect("the agent lives");
    let found = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("the node has eth0");
    let all: Vec<u64> = found.split_whitespace().map(|field| field.parse().expect("a number")).collect();
    BTreeMap::from([("in", all[0]), ("out", all[8]), ("packets", all[1] + all[9])])
}

/// Established connections to port 6443.
fn connections(pid: i32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("the agent lives");
    let to_server = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(2).is_some_and(|remote| remote.ends_with(":192B")) && fields.get(3) == Some(&"01")
    };
    text.lines().filter(to_server).count()
}
