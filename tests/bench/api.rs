//! The administrator's API clients of a cluster under measurement, and what every benchmark does with pods.

use std::collections::BTreeMap;
use std::time::Duration;

use agent::api::client::Settings;
use agent::api::pod::Pod;
use agent::api::servers::Servers;
use agent::api::watch::{Change, Watch};
use agent::api::{Client, PatchType};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::watch;
use tunnel::ServerAddr;
use tunnel::tls::KeyPair;

use crate::system::cluster::{Cluster, Node};

pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";

/// A runtime for the asynchronous half of a benchmark.
pub(crate) fn asynchronous() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime starts")
}

/// What it takes to open connections as administrator.
pub(crate) struct Admin {
    server: ServerAddr,
    ca: Vec<u8>,
    pair: KeyPair,
}

impl Admin {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let config = cluster.kubectl.ok(&["config", "view", "--raw", "-o", "json"]);
        let config: Value = serde_json::from_str(&config).expect("json");
        let decoded = |value: &Value| STANDARD.decode(value.as_str().unwrap_or_default()).expect("base64");
        let user = &config["users"][0]["user"];
        Self {
            server: ServerAddr::from_url(&cluster.server_url).expect("address of the server"),
            ca: decoded(&config["clusters"][0]["cluster"]["certificate-authority-data"]),
            pair: KeyPair { cert_pem: decoded(&user["client-certificate-data"]), key_pem: decoded(&user["client-key-data"]) },
        }
    }

    /// A connection of its own.
    pub(crate) fn client(&self) -> Client {
        let tls = tunnel::tls::client_config(&self.ca, Some(&self.pair), &["h2"]).expect("the administrator's certificate");
        let (_, list) = watch::channel(vec![self.server.clone()]);
        let (_, tls) = watch::channel(tls);
        Client::new(Servers::new(&self.server, list, tls), Settings { deadline: Duration::from_secs(60), ..Settings::default() })
    }
}

/// A pod that sleeps, ends at once when told to, and is assigned to `node` without a scheduler.
pub(crate) fn sleeper(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "bench"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "busybox:1.36", "command": ["sh", "-c", "trap exit TERM; sleep 1000000 & wait"]}],
        },
    })
}

/// Pods of the namespace as a watcher sees them.
pub(crate) struct Pods {
    watch: Watch<Pod>,
    pub(crate) seen: BTreeMap<String, Pod>,
}

impl Pods {
    /// With the first list read.
    pub(crate) async fn open(client: &Client) -> Self {
        let mut pods = Self { watch: client.watch(PODS, ""), seen: BTreeMap::new() };
        pods.step().await;
        pods
    }

    async fn step(&mut self) {
        match self.watch.next().await {
            Change::Replaced(all) => self.seen = all.into_iter().map(|pod| (pod.metadata.name.clone(), pod)).collect(),
            Change::Applied(pod) => drop(self.seen.insert(pod.metadata.name.clone(), pod)),
            Change::Deleted(pod) => drop(self.seen.remove(&pod.metadata.name)),
        }
    }

    /// Until `done` holds of what is seen, five minutes at most.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&BTreeMap<String, Pod>) -> bool) {
        let waiting = async {
            while !done(&self.seen) {
                self.step().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(300), waiting).await;
        assert!(waited.is_ok(), "{what}: not within five minutes");
    }

    /// How many are Running.
    pub(crate) fn running(seen: &BTreeMap<String, Pod>) -> usize {
        seen.values().filter(|pod| pod.status.phase == "Running").count()
    }
}

pub(crate) async fn create(client: &Client, collection: &str, object: &Value) {
    client.post::<serde::de::IgnoredAny>(collection, object).await.expect("object is created");
}

pub(crate) async fn merge(client: &Client, path: &str, body: &Value) {
    client.patch_only(path, PatchType::Merge, body).await.expect("object is patched");
}

pub(crate) async fn delete_now(client: &Client, path: &str) {
    client
        .delete(path, &json!({"gracePeriodSeconds": 0}))
        .await
        .or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) })
        .expect("object is deleted");
}

/// The agent of a node: the process that was given its configuration.
pub(crate) fn agent_pid(node: &Node) -> i32 {
    let config = node.config.display().to_string();
    let entries = std::fs::read_dir("/proc").expect("processes are listed").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut ours = pids.filter(|pid| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        comm.trim() == "edge-agent" && String::from_utf8_lossy(&line).contains(&config)
    });
    ours.next().expect("the agent runs")
}
