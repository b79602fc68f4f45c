//! One collection in memory: its objects, and the recent changes that watches are served from.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use super::{Key, Stored};

/// Changes kept for watches that ask for an older version, for each collection.
const KEPT: usize = 1024;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Created,
    Replaced,
    Deleted,
}

/// One committed write.
#[derive(Debug)]
pub struct Change {
    pub version: u64,
    pub kind: ChangeKind,
    /// The new state; of a deleted object its last one, with the version of the deletion.
    pub object: Arc<Value>,
    pub before: Option<Arc<Value>>,
    /// `object` as JSON, written once for all watchers.
    pub json: OnceLock<Bytes>,
}

/// The asked version is older than the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("version {asked} is older than the oldest kept one ({oldest})")]
pub struct Expired {
    pub asked: u64,
    pub oldest: u64,
}

pub(super) struct Collection {
    objects: BTreeMap<String, BTreeMap<String, Stored>>,
    history: VecDeque<Arc<Change>>,
    /// Version of the newest change that is no longer in `history`.
    forgotten: u64,
    wake: watch::Sender<u64>,
}

impl Collection {
    /// `last` is the version of the collection's last change before this process.
    pub(super) fn new(last: u64) -> Self {
        Self { objects: BTreeMap::new(), history: VecDeque::new(), forgotten: last, wake: watch::Sender::new(last) }
    }

    /// Changes up to `version` are not in the history.
    pub(super) fn forget(&mut self, version: u64) {
        self.forgotten = version;
    }

    pub(super) fn load(&mut self, namespace: String, name: String, stored: Stored) {
        self.objects.entry(namespace).or_default().insert(name, stored);
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Stored> {
        self.objects.get(namespace)?.get(name).cloned()
    }

    pub(super) fn list(&self, namespace: Option<&str>, mut keep: impl FnMut(&Value) -> bool) -> Vec<Stored> {
        let mut found = Vec::new();
        let mut take = |objects: &BTreeMap<String, Stored>| {
            found.extend(objects.values().filter(|s| keep(&s.value)).cloned());
        };
        match namespace {
            Some(namespace) => self.objects.get(namespace).into_iter().for_each(&mut take),
            None => self.objects.values().for_each(&mut take),
        }
        found
    }

    pub(super) fn since(&self, version: u64) -> Result<Vec<Arc<Change>>, Expired> {
        if version < self.forgotten {
            return Err(Expired { asked: version, oldest: self.forgotten });
        }
        let start = self.history.partition_point(|c| c.version <= version);
        Ok(self.history.range(start..).cloned().collect())
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.wake.subscribe()
    }

    /// Takes a committed change; `stored` is `None` for a deletion. Watchers are woken by `wake_up`.
    pub(super) fn apply(&mut self, key: Key, stored: Option<Stored>, change: Change) {
        match stored {
            Some(stored) => self.load(key.namespace, key.name, stored),
            None => {
                if let Some(objects) = self.objects.get_mut(&key.namespace) {
                    objects.remove(&key.name);
                    if objects.is_empty() {
                        self.objects.remove(&key.namespace);
                    }
                }
            }
        }
        self.history.push_back(Arc::new(change));
        if self.history.len() > KEPT {
            if let Some(oldest) = self.history.pop_front() {
                self.forgotten = oldest.version;
            }
        }
    }

    pub(super) fn wake_up(&self) {
        if let Some(last) = self.history.back() {
            self.wake.send_if_modified(|seen| std::mem::replace(seen, last.version) != last.version);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_older_than_the_kept_changes_are_expired() {
        let mut collection = Collection::new(0);
        let key = || Key { storage: "things", namespace: String::new(), name: "a".to_owned() };
        let last = KEPT as u64 + 10;
        for version in 1..=last {
            let object = Arc::new(json!({"version": version}));
            let stored = Stored { value: Arc::clone(&object), version };
            let change = Change { version, kind: ChangeKind::Replaced, object, before: None, json: OnceLock::new() };
            collection.apply(key(), Some(stored), change);
        }
        assert_eq!(collection.since(9).unwrap_err(), Expired { asked: 9, oldest: 10 });
        assert_eq!(collection.since(10).unwrap().len(), KEPT);
        assert_eq!(collection.since(last - 1).unwrap().len(), 1);
        assert!(collection.since(last).unwrap().is_empty());
    }
}
