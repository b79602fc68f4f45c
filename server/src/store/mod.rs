//! The store: every object in memory, every accepted write on disk before it is answered.
//!
//! One writer thread owns the database. It takes all writes that wait, puts them into one transaction and
//! commits once (group commit), then changes the memory image, wakes the watchers and answers. Readers never
//! touch the disk. The store knows keys and versions, nothing of what objects mean.

mod disk;
mod history;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use serde_json::Value;
use tokio::sync::{oneshot, watch};

pub use history::{Change, ChangeKind};
use history::{Collection, Expired};

/// Why the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open the database {path}; is another edge-server running on this data directory?")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("the database {path} holds an unreadable object {key}")]
    Corrupt { path: PathBuf, key: String, source: serde_json::Error },
    #[error("cannot start the writer thread")]
    Thread(#[source] std::io::Error),
}

/// Why a write was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the object exists")]
    Exists,
    #[error("the object does not exist")]
    Missing,
    #[error("the object has another version")]
    Changed,
    #[error("the database refused the write")]
    Disk,
    #[error("the store is closed")]
    Closed,
}

/// Where an object lives. `storage` is `Kind::storage`, `namespace` empty for cluster-wide kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub storage: &'static str,
    pub namespace: String,
    pub name: String,
}

/// An object and the version its last write got.
#[derive(Debug, Clone)]
pub struct Stored {
    pub value: Arc<Value>,
    pub version: u64,
}

/// One write, conditional on what the writer saw.
#[derive(Debug)]
pub enum Write {
    Create {
        key: Key,
        value: Value,
    },
    Replace {
        key: Key,
        expected: u64,
        value: Value,
    },
    /// `value`, when given, is the object's last state as watchers shall see it.
    Delete {
        key: Key,
        expected: u64,
        value: Option<Value>,
    },
}

struct Job {
    write: Write,
    reply: oneshot::Sender<Result<Stored, Refused>>,
}

/// The memory image.
struct State {
    version: u64,
    collections: BTreeMap<&'static str, Collection>,
}

/// Handle to the store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    state: Arc<RwLock<State>>,
    writes: std::sync::mpsc::Sender<Job>,
}

/// Objects of one collection and the version of that view.
pub struct Listing {
    pub objects: Vec<Stored>,
    pub version: u64,
}

impl Store {
    /// Opens or creates the database, adds those of `seeds` that are missing, and starts the writer thread.
    pub fn open(path: &Path, storages: &[&'static str], seeds: Vec<(Key, Value)>) -> Result<Self, Error> {
        let (database, mut state) = disk::open(path, storages)?;
        disk::seed(&database, &mut state, seeds).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        let state = Arc::new(RwLock::new(state));
        let (writes, jobs) = std::sync::mpsc::channel();
        let shared = Arc::clone(&state);
        std::thread::Builder::new().name("store".to_owned()).spawn(move || disk::run(&database, &shared, &jobs)).map_err(Error::Thread)?;
        Ok(Self { state, writes })
    }

    /// Does one write; returns when it is durable.
    pub async fn write(&self, write: Write) -> Result<Stored, Refused> {
        let (reply, answer) = oneshot::channel();
        self.writes.send(Job { write, reply }).map_err(|_| Refused::Closed)?;
        answer.await.map_err(|_| Refused::Closed)?
    }

    /// The version of the last write.
    pub fn version(&self) -> u64 {
        self.read().version
    }

    pub fn get(&self, storage: &'static str, namespace: &str, name: &str) -> Option<Stored> {
        let state = self.read();
        state.collections.get(storage)?.get(namespace, name)
    }

    /// All objects in key order, or those of one namespace, that `keep` accepts.
    pub fn list(&self, storage: &'static str, namespace: Option<&str>, keep: impl FnMut(&Value) -> bool) -> Listing {
        let state = self.read();
        let objects = state.collections.get(storage).map(|c| c.list(namespace, keep)).unwrap_or_default();
        Listing { objects, version: state.version }
    }

    /// Changes after `version`, and the version reached by reading them.
    pub fn changes(&self, storage: &'static str, version: u64) -> Result<(Vec<Arc<Change>>, u64), Expired> {
        let state = self.read();
        match state.collections.get(storage) {
            Some(collection) => Ok((collection.since(version)?, state.version.max(version))),
            None => Ok((Vec::new(), state.version.max(version))),
        }
    }

    /// Turns whenever the collection changes.
    pub fn subscribe(&self, storage: &'static str) -> Option<watch::Receiver<u64>> {
        self.read().collections.get(storage).map(Collection::subscribe)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const THINGS: &str = "things";

    fn key(name: &str) -> Key {
        Key { storage: THINGS, namespace: "ns".to_owned(), name: name.to_owned() }
    }

    fn create(name: &str) -> Write {
        Write::Create { key: key(name), value: json!({"metadata": {"name": name}}) }
    }

    #[tokio::test]
    async fn writes_are_conditional_and_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = Store::open(&path, &[THINGS], Vec::new()).unwrap();
        let first = store.write(create("a")).await.unwrap();
        assert_eq!(first.value["metadata"]["resourceVersion"], first.version.to_string());
        assert_eq!(store.write(create("a")).await.unwrap_err(), Refused::Exists);
        let replace = |expected| Write::Replace { key: key("a"), expected, value: json!({"metadata": {}, "x": 1}) };
        let second = store.write(replace(first.version)).await.unwrap();
        assert!(second.version > first.version);
        assert_eq!(store.write(replace(first.version)).await.unwrap_err(), Refused::Changed);
        store.write(create("b")).await.unwrap();
        let gone = store.get(THINGS, "ns", "b").unwrap();
        store.write(Write::Delete { key: key("b"), expected: gone.version, value: None }).await.unwrap();
        let version = store.version();
        drop(store);

        let store = loop {
            // The old writer thread lets go of the file when it sees its channel closed.
            match Store::open(&path, &[THINGS], Vec::new()) {
                Ok(store) => break store,
                Err(Error::Open { .. }) => std::thread::yield_now(),
                Err(other) => panic!("{other}"),
            }
        };
        assert_eq!(store.version(), version);
        assert_eq!(store.get(THINGS, "ns", "a").unwrap().value["x"], 1);
        assert!(store.get(THINGS, "ns", "b").is_none());
        assert!(store.changes(THINGS, version).unwrap().0.is_empty(), "nothing after the newest version");
        assert!(store.changes(THINGS, version - 1).is_err(), "history does not survive, so older is gone");
    }

    #[tokio::test]
    async fn concurrent_writers_of_one_object_get_one_winner_a_round() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db"), &[THINGS], Vec::new()).unwrap();
        let first = store.write(create("a")).await.unwrap();
        let attempts: Vec<_> = (0..20)
            .map(|n| {
                let store = store.clone();
                let write = Write::Replace { key: key("a"), expected: first.version, value: json!({"metadata": {}, "n": n}) };
                tokio::spawn(async move { store.write(write).await.is_ok() })
            })
            .collect();
        let mut won = 0;
        for attempt in attempts {
            won += usize::from(attempt.await.unwrap());
        }
        assert_eq!(won, 1);
    }

    #[tokio::test]
    async fn changes_carry_the_state_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db"), &[THINGS], Vec::new()).unwrap();
        let mut wake = store.subscribe(THINGS).unwrap();
        let first = store.write(create("a")).await.unwrap();
        wake.changed().await.unwrap();
        store.write(Write::Delete { key: key("a"), expected: first.version, value: None }).await.unwrap();
        let (changes, version) = store.changes(THINGS, 0).unwrap_or_else(|_| panic!("history is complete"));
        assert_eq!(changes.iter().map(|c| c.kind).collect::<Vec<_>>(), [ChangeKind::Created, ChangeKind::Deleted]);
        assert_eq!(changes[1].object["metadata"]["resourceVersion"], version.to_string());
        assert!(changes[1].before.is_some());
    }
}
