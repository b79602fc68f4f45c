//! What has to survive an offline reboot: the assigned pods and the objects they refer to, in one file written whole.
//!
//! `data-dir/agent/assignments.json`, 0600, tmp + fsync + rename on a blocking thread, only when the content changed. What a
//! start without the server would miss (a new pod or the end of one, an object or token a pod waits for) is written at once, a
//! burst of it as few writes; everything else at most once in ten seconds. Of a pod's status only what decides is kept, so that an idle node
//! never writes.

use std::collections::{BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::api::core::{ConfigMap, Secret, Service, Token};
use crate::api::pod::{EnvVar, Pod, PodStatus};
use crate::assignments::{Assignments, Pods};
use crate::objects::{Known, Objects, TokenKey};

const VERSION: u32 = 1;
/// A burst of changes is one write.
const SETTLE: Duration = Duration::from_millis(100);
/// Least time between two writes that bring something new.
const BETWEEN_NEW: Duration = Duration::from_secs(1);
/// Least time between two writes of which the second only changes or removes what the first held.
const BETWEEN: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    version: u32,
    node_name: String,
    pods: Vec<Arc<Pod>>,
    config_maps: Vec<Arc<ConfigMap>>,
    secrets: Vec<Arc<Secret>>,
    services: Option<Vec<Arc<Service>>>,
    tokens: Vec<StoredToken>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredToken {
    key: TokenKey,
    token: String,
    expires_at: String,
}

/// Where the ledger of an instance is.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/assignments.json")
}

/// What the ledger says; None when there is none for this node. An unreadable file is reported and set aside, never fatal.
pub fn load(path: &Path, node_name: &str) -> Option<(Pods, Known)> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %error, "ledger cannot be read, starting without it");
            return None;
        }
    };
    let file: File = match serde_json::from_slice(&text) {
        Ok(file) => file,
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %error, "ledger does not decode, starting without it");
            return None;
        }
    };
    if file.version != VERSION || file.node_name != node_name {
        tracing::warn!(path = %path.display(), node = %file.node_name, version = file.version, "ledger is of another node or version, starting without it");
        return None;
    }
    let pods = file.pods.into_iter().map(|pod| (pod.uid(), pod)).collect();
    let tokens = file.tokens.into_iter().map(|t| (t.key, Token { token: t.token, expires_at: t.expires_at })).collect();
    Some((pods, Known { config_maps: file.config_maps, secrets: file.secrets, services: file.services, tokens }))
}

/// Keeps the file up to date for ever.
pub async fn run(path: PathBuf, node_name: String, mut assignments: watch::Receiver<Assignments>, objects: Objects) {
    let mut written: Option<u64> = std::fs::read(&path).ok().map(|bytes| fingerprint(&bytes));
    let mut held = Held::default();
    let mut wrote_at: Option<Instant> = None;
    loop {
        tokio::select! {
            changed = assignments.changed() => if changed.is_err() { return },
            () = objects.changed() => {}
        }
        tokio::time::sleep(SETTLE).await;
        loop {
            let Assignments::Known(pods) = assignments.borrow_and_update().clone() else { break };
            let references = references(&pods);
            objects.retain(
                |uid| pods.contains_key(uid),
                |namespace, name| references.config_maps.contains(&(namespace.to_owned(), name.to_owned())),
                |namespace, name| references.secrets.contains(&(namespace.to_owned(), name.to_owned())),
            );
            let known = objects.known();
            let now = Held::of(&pods, &known);
            let between = if now.brings_more_than(&held) { BETWEEN_NEW } else { BETWEEN };
            if let Some(wait) = wrote_at.and_then(|at| between.checked_sub(at.elapsed())).filter(|wait| !wait.is_zero()) {
                // Until then something may come that must not wait as long.
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    changed = assignments.changed() => if changed.is_err() { return },
                    () = objects.changed() => {}
                }
                continue;
            }
            let bytes = match serialize(&node_name, &pods, known) {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::error!(error = %error, "ledger cannot be written down");
                    break;
                }
            };
            let print = fingerprint(&bytes);
            if written == Some(print) {
                held = now;
                break;
            }
            let target = path.clone();
            wrote_at = Some(Instant::now());
            match tokio::task::spawn_blocking(move || write_whole(&target, &bytes)).await {
                Ok(Ok(())) => {
                    written = Some(print);
                    held = now;
                }
                Ok(Err(error)) => {
                    tracing::warn!(path = %path.display(), error = %format!("{error:#}"), "ledger not written, an offline reboot would start older pods")
                }
                Err(error) => tracing::warn!(error = %error, "ledger writer ended"),
            }
            break;
        }
    }
}

/// What a file holds, by name: enough to tell whether a start without the server would miss something.
#[derive(Default)]
struct Held(HashSet<u64>);

impl Held {
    fn of(pods: &Pods, known: &Known) -> Held {
        let name = |kind: &str, parts: &dyn std::fmt::Debug| {
            let mut hasher = std::hash::DefaultHasher::new();
            (kind, format!("{parts:?}")).hash(&mut hasher);
            hasher.finish()
        };
        let pods = pods.iter().map(|(uid, pod)| name("pod", &(uid, pod.is_deleting())));
        let config_maps = known.config_maps.iter().map(|o| name("map", &(&o.metadata.namespace, &o.metadata.name)));
        let secrets = known.secrets.iter().map(|o| name("secret", &(&o.metadata.namespace, &o.metadata.name)));
        let tokens = known.tokens.iter().map(|(key, _)| name("token", key));
        let services = known.services.iter().map(|_| name("services", &()));
        Held(pods.chain(config_maps).chain(secrets).chain(tokens).chain(services).collect())
    }

    fn brings_more_than(&self, before: &Held) -> bool {
        !self.0.is_subset(&before.0)
    }
}

fn serialize(node_name: &str, pods: &Pods, known: Known) -> serde_json::Result<Vec<u8>> {
    let mut config_maps = known.config_maps;
    config_maps.sort_by(|a, b| (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name)));
    let mut secrets = known.secrets;
    secrets.sort_by(|a, b| (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name)));
    let mut tokens: Vec<_> =
        known.tokens.into_iter().map(|(key, token)| StoredToken { key, token: token.token, expires_at: token.expires_at }).collect();
    tokens.sort_by(|a, b| a.key.cmp(&b.key));
    serde_json::to_vec(&File {
        version: VERSION,
        node_name: node_name.to_owned(),
        pods: pods.values().map(|pod| Arc::new(trimmed(pod))).collect(),
        config_maps,
        secrets,
        services: known.services,
        tokens,
    })
}

/// A pod without what changes all the time: of its status only phase and start survive, which decide whether it runs.
fn trimmed(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    let status = Arc::unwrap_or_clone(std::mem::take(&mut pod.status));
    pod.metadata.resource_version = String::new();
    pod.status = Arc::new(PodStatus {
        phase: status.phase,
        reason: status.reason,
        start_time: status.start_time,
        qos_class: status.qos_class,
        ..PodStatus::default()
    });
    pod
}

/// Names pods refer to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct References {
    pub config_maps: BTreeSet<(String, String)>,
    pub secrets: BTreeSet<(String, String)>,
}

/// Everything the pods need from the server to start.
pub fn references(pods: &Pods) -> References {
    let mut found = References::default();
    for pod in pods.values() {
        let namespace = &pod.metadata.namespace;
        let config_map = |found: &mut References, name: &str| {
            found.config_maps.insert((namespace.clone(), name.to_owned()));
        };
        let secret = |found: &mut References, name: &str| {
            found.secrets.insert((namespace.clone(), name.to_owned()));
        };
        for volume in &pod.spec.volumes {
            if let Some(source) = &volume.config_map {
                config_map(&mut found, &source.name);
            }
            if let Some(source) = &volume.secret {
                secret(&mut found, &source.secret_name);
            }
            for source in volume.projected.iter().flat_map(|projected| &projected.sources) {
                if let Some(source) = &source.config_map {
                    config_map(&mut found, &source.name);
                }
                if let Some(source) = &source.secret {
                    secret(&mut found, &source.name);
                }
            }
        }
        for reference in &pod.spec.image_pull_secrets {
            secret(&mut found, &reference.name);
        }
        for container in pod.every_container() {
            for source in &container.env_from {
                if let Some(source) = &source.config_map_ref {
                    config_map(&mut found, &source.name);
                }
                if let Some(source) = &source.secret_ref {
                    secret(&mut found, &source.name);
                }
            }
            for EnvVar { value_from, .. } in &container.env {
                let Some(source) = value_from else { continue };
                if let Some(key) = &source.config_map_key_ref {
                    config_map(&mut found, &key.name);
                }
                if let Some(key) = &source.secret_key_ref {
                    secret(&mut found, &key.name);
                }
            }
        }
    }
    found
}

/// 0600, complete or not there at all, also after a power cut.
pub fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Short and stable, to tell whether two contents are the same.
fn fingerprint(bytes: &[u8]) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    fn pods() -> Pods {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "7"},
            "spec": {
                "containers": [{"name": "c", "image": "i", "env": [
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "env-map", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "env-secret", "key": "k"}}},
                ], "envFrom": [{"configMapRef": {"name": "from-map"}}]}],
                "volumes": [
                    {"name": "v", "secret": {"secretName": "vol-secret"}},
                    {"name": "kube-api-access", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}},
                ],
                "imagePullSecrets": [{"name": "pull"}],
                "futureField": {"x": 1},
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        }))
        .unwrap();
        [(pod.uid(), Arc::new(pod))].into()
    }

    #[test]
    fn references_are_found_wherever_they_stand() {
        let found = references(&pods());
        let names = |set: &BTreeSet<(String, String)>| set.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found.config_maps), ["env-map", "from-map", "kube-root-ca.crt"]);
        assert_eq!(names(&found.secrets), ["env-secret", "pull", "vol-secret"]);
    }

    #[test]
    fn what_was_written_comes_back_and_only_root_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let mut secret = Secret::default();
        secret.metadata.name = "env-secret".to_owned();
        let token = (("ns".into(), "default".into(), vec![], 3600, "u".into()), Token { token: "t".into(), expires_at: "e".into() });
        let known = Known { secrets: vec![Arc::new(secret)], tokens: vec![token], ..Known::default() };
        write_whole(&path, &serialize("n1", &pods(), known).unwrap()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (back, known) = load(&path, "n1").unwrap();
        let pod = back.values().next().unwrap();
        assert_eq!(pod.status.phase, "Running");
        assert_eq!(pod.status.pod_ip, "");
        assert_eq!(pod.spec.unknown["futureField"]["x"], 1);
        assert_eq!(known.secrets[0].metadata.name, "env-secret");
        assert_eq!(known.tokens[0].1.token, "t");
        assert!(load(&path, "another").is_none());
    }

    #[test]
    fn an_idle_pod_changes_nothing_worth_writing() {
        let before = serialize("n", &pods(), Known::default()).unwrap();
        let mut pod = (**pods().values().next().unwrap()).clone();
        pod.metadata.resource_version = "8".to_owned();
        Arc::make_mut(&mut pod.status).pod_ip = "10.0.0.9".to_owned();
        let after = serialize("n", &[(pod.uid(), Arc::new(pod))].into(), Known::default()).unwrap();
        assert_eq!(fingerprint(&before), fingerprint(&after));
    }

    #[test]
    fn what_a_start_without_the_server_would_miss_is_new() {
        let map = |name: &str| {
            let mut map = ConfigMap::default();
            map.metadata.name = name.to_owned();
            Arc::new(map)
        };
        let known = |names: &[&str]| Known { config_maps: names.iter().map(|name| map(name)).collect(), ..Known::default() };
        let none = Pods::new();
        for (before, after, expected) in [
            ((&none, &[][..]), (&pods(), &[][..]), true),
            ((&pods(), &[]), (&pods(), &["a"]), true),
            ((&pods(), &["a"]), (&pods(), &["b"]), true),
            ((&pods(), &["a"]), (&pods(), &["a"]), false),
            ((&pods(), &["a"]), (&none, &[]), false),
        ] {
            let (before, after) = (Held::of(before.0, &known(before.1)), Held::of(after.0, &known(after.1)));
            assert_eq!(after.brings_more_than(&before), expected);
        }
    }

    #[test]
    fn a_pod_that_is_being_deleted_is_written_at_once() {
        let before = Held::of(&pods(), &Known::default());
        let ending: Pods = pods()
            .into_iter()
            .map(|(uid, pod)| {
                let mut pod = (*pod).clone();
                pod.metadata.deletion_timestamp = Some("2026-01-01T00:00:00Z".to_owned());
                (uid, Arc::new(pod))
            })
            .collect();
        let after = Held::of(&ending, &Known::default());
        assert!(after.brings_more_than(&before));
        assert!(!Held::of(&ending, &Known::default()).brings_more_than(&after));
    }

    #[test]
    fn a_broken_ledger_is_not_fatal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(load(&path, "n").is_none());
        std::fs::write(&path, "{").unwrap();
        assert!(load(&path, "n").is_none());
    }
}
