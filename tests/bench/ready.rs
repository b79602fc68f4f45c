//! From the start of the agent's process to a Ready that is true, as a watcher of the API sees it; containerd runs.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent::api::node::Node as NodeObject;
use agent::api::watch::Change;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Choice;
use crate::api::{Admin, asynchronous};
use crate::report::{line, p50, quantile};
use crate::system::Machine;
use crate::system::cluster::{Cluster, Node, Options};

const TIMES: usize = 5;
const LIMIT_SECONDS: f64 = 1.0;

pub(crate) fn run(machine: &Machine, _: &Choice) {
    let mut cluster = Cluster::start(machine, &Options { nodes: 1, ..Options::default() });
    let admin = Admin::of(&cluster);
    for (what, fresh) in [("new node", true), ("warm restart", false)] {
        let mut took = Vec::new();
        for _ in 0..TIMES {
            cluster.nodes[0].kill_agent();
            if fresh {
                forget(&cluster);
            }
            took.push(start_until_ready(&admin, &mut cluster.nodes[0]));
        }
        line(&format!("exec to Ready seen, {what}, p50 of {TIMES}"), p50(&took), "s", Some(LIMIT_SECONDS));
        line(&format!("exec to Ready seen, {what}, worst"), quantile(&took, 1.0), "s", None);
    }
}

/// Server and disk know nothing of the node any more; containerd and its images stay.
fn forget(cluster: &Cluster) {
    let node = &cluster.nodes[0];
    cluster.kubectl.ok(&["delete", "node", &node.name]);
    empty(&node.dir.join("agent"));
}

/// Files only: containerd watches one of these directories.
fn empty(dir: &Path) {
    for entry in std::fs::read_dir(dir).expect("the agent's directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            empty(&path);
        } else if entry.file_name() != "imported-images" {
            std::fs::remove_file(path).expect("removed");
        }
    }
}

/// A condition of the dead agent says Ready, too: only one that was said after the start counts. Its time has whole
/// seconds, so the start waits for a second in which nothing was said before.
fn start_until_ready(admin: &Admin, node: &mut Node) -> f64 {
    std::thread::sleep(Duration::from_millis(1100));
    asynchronous().block_on(async {
        let client = admin.client();
        let name = node.name.clone();
        let mut nodes = client.watch::<NodeObject>("/api/v1/nodes", "");
        nodes.next().await;
        let (began, since) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        node.start();
        let truthful = |seen: &NodeObject| {
            let ready = seen.status.conditions.iter().find(|c| c.kind == "Ready" && c.status == "True");
            let said = ready.and_then(|c| OffsetDateTime::parse(c.last_heartbeat_time.as_deref()?, &Rfc3339).ok());
            seen.metadata.name == name && said.is_some_and(|said| u64::try_from(said.unix_timestamp()).is_ok_and(|said| said >= since))
        };
        let waiting = async {
            loop {
                if let Change::Applied(seen) = nodes.next().await {
                    if truthful(&seen) {
                        return began.elapsed().as_secs_f64();
                    }
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(120), waiting).await.expect("Ready within two minutes")
    })
}
