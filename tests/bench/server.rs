//! `edge-server`: accepted writes per second, and how soon a watcher sees one, with 100 pods on 2 nodes.

use std::time::{Duration, Instant};

use agent::api::core::ConfigMap;
use agent::api::watch::Change;
use futures_util::future::join_all;
use serde_json::json;

use crate::Choice;
use crate::api::{Admin, PODS, Pods, asynchronous, create, merge, sleeper};
use crate::report::{line, millis, p50, p99};
use crate::system::Machine;
use crate::system::cluster::{Cluster, Options};

const PODS_EACH: usize = 50;
const CONNECTIONS: usize = 8;
const LOAD: Duration = Duration::from_secs(10);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub(crate) fn run(machine: &Machine, _: &Choice) {
    let cluster = Cluster::start(machine, &Options::default());
    let admin = Admin::of(&cluster);
    asynchronous().block_on(async {
        let client = admin.client();
        let mut pods = Pods::open(&client).await;
        for index in 0..PODS_EACH {
            for node in &cluster.nodes {
                create(&client, PODS, &sleeper(&format!("{}-{index}", node.name), &node.name)).await;
            }
        }
        pods.until("pods run", |seen| Pods::running(seen) == PODS_EACH * cluster.nodes.len()).await;
        drop(pods);
        for index in 0..=CONNECTIONS {
            create(&client, MAPS, &json!({"metadata": {"name": format!("m{index}")}, "data": {"n": "0"}})).await;
        }

        let idle = latencies(&admin, LOAD, Duration::from_millis(20)).await;
        tell("one writer, 50 a second", &idle);
        let writers = (0..CONNECTIONS).map(|index| load(admin.client(), index));
        let (written, loaded) = tokio::join!(join_all(writers), latencies(&admin, LOAD, Duration::from_millis(20)));
        let all: Vec<f64> = written.iter().flatten().copied().collect();
        line(&format!("edge-server writes, {CONNECTIONS} connections"), all.len() as f64 / LOAD.as_secs_f64(), "1/s", None);
        line("edge-server write answered, p50", p50(&all), "ms", None);
        line("edge-server write answered, p99", p99(&all), "ms", None);
        tell("under that load", &loaded);
    });
}

fn tell(when: &str, sample: &[f64]) {
    line(&format!("write to watcher, {when}, p50"), p50(sample), "ms", None);
    line(&format!("write to watcher, {when}, p99"), p99(sample), "ms", None);
}

/// One connection's updates, one after the other; what each took.
async fn load(client: agent::api::Client, index: usize) -> Vec<f64> {
    let (path, end) = (format!("{MAPS}/m{index}"), Instant::now() + LOAD);
    let mut took = Vec::new();
    while Instant::now() < end {
        let began = Instant::now();
        merge(&client, &path, &json!({"data": {"n": took.len().to_string()}})).await;
        took.push(millis(began.elapsed()));
    }
    took
}

/// Writes at a steady pace, each with the time it was sent, and how long a watcher on another connection took to see it.
async fn latencies(admin: &Admin, span: Duration, pause: Duration) -> Vec<f64> {
    let (writer, watcher) = (admin.client(), admin.client());
    let path = format!("{MAPS}/m{CONNECTIONS}");
    let mut maps = watcher.watch::<ConfigMap>(MAPS, &format!("fieldSelector=metadata.name%3Dm{CONNECTIONS}"));
    maps.next().await;
    let zero = Instant::now();
    let mut sample = Vec::new();
    let writing = async {
        while zero.elapsed() < span {
            merge(&writer, &path, &json!({"data": {"sent": zero.elapsed().as_nanos().to_string()}})).await;
            tokio::time::sleep(pause).await;
        }
    };
    let watching = async {
        loop {
            if let Change::Applied(map) = maps.next().await {
                let sent = map.data.get("sent").and_then(|text| text.parse().ok()).map(Duration::from_nanos);
                sample.extend(sent.map(|sent| millis(zero.elapsed().saturating_sub(sent))));
            }
        }
    };
    // The watch has no end.
    tokio::select! {
        () = writing => {}
        () = watching => {}
    }
    sample
}
