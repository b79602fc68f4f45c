//! What idle pods cost: memory and processor time of the agent and of containerd.

use std::time::{Duration, Instant};

use crate::Choice;
use crate::api::{Admin, PODS, Pods, agent_pid, asynchronous, create, sleeper};
use crate::report::{line, note};
use crate::system::Machine;
use crate::system::cluster::{Cluster, Options};

/// Between the last start and the first look.
const SETTLE: Duration = Duration::from_secs(15);
/// Of PSS, the limit at every number of pods, in 10^6 bytes.
const LIMIT_MB: f64 = 8.0;

pub(crate) fn run(machine: &Machine, choice: &Choice) {
    let cluster = Cluster::start(machine, &Options { nodes: 1, ..Options::default() });
    let node = &cluster.nodes[0];
    let (agent, containerd) = (agent_pid(node), node.containerd());
    let admin = Admin::of(&cluster);
    let mut made = 0;
    for count in [0, 10, 50] {
        asynchronous().block_on(async {
            let client = admin.client();
            let mut pods = Pods::open(&client).await;
            for index in made..count {
                create(&client, PODS, &sleeper(&format!("idle-{index}"), &node.name)).await;
            }
            pods.until("pods run", |seen| Pods::running(seen) == count).await;
        });
        made = count;
        std::thread::sleep(SETTLE);
        let before = (ticks(agent), containerd.iter().map(|pid| ticks(*pid)).sum::<u64>());
        let began = Instant::now();
        std::thread::sleep(choice.window);
        let after = (ticks(agent), containerd.iter().map(|pid| ticks(*pid)).sum::<u64>());
        let percent = |spent: u64| spent as f64 / began.elapsed().as_secs_f64();
        line(&format!("edge-agent PSS, {count} pods"), memory(agent, "Pss:"), "MB", Some(LIMIT_MB));
        line(&format!("edge-agent RSS, {count} pods"), memory(agent, "Rss:"), "MB", None);
        line(&format!("edge-agent PSS anonymous, {count} pods"), memory(agent, "Pss_Anon:"), "MB", None);
        line(&format!("edge-agent processor, {count} pods"), percent(after.0 - before.0), "% core", None);
        line(&format!("containerd PSS, {count} pods"), containerd.iter().map(|pid| memory(*pid, "Pss:")).sum(), "MB", None);
        line(&format!("containerd processor, {count} pods"), percent(after.1 - before.1), "% core", None);
    }
    note(&format!(
        "watched {} s each; processor time is counted in ticks of 10 ms; PSS shares pages with other agents that run",
        choice.window.as_secs()
    ));
}

/// Processor time of a process in ticks of 10 ms: a hundred a second are one core.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |at: usize| fields[at].parse::<u64>().expect("a number");
    field(11) + field(12)
}

/// One line of `smaps_rollup`, which counts in units of 1024 bytes, in MB of 10^6 bytes.
fn memory(pid: i32, name: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process lives");
    let found = text.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    found.unwrap_or_else(|| panic!("{name} in {text}")) * 1024.0 / 1e6
}
