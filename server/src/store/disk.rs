//! The database and its writer thread.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rusqlite::{Connection, params};
use serde_json::Value;
use tokio::sync::oneshot;

use super::history::{Change, ChangeKind, Collection};
use super::{Error, Job, Key, Refused, State, Stored, Write};

/// Writes in one transaction at most, so that no write waits long for its neighbours.
const BATCH: usize = 256;

const SCHEMA: &str = "
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS objects (
        storage TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
        body BLOB NOT NULL, PRIMARY KEY (storage, namespace, name)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS changed (storage TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
";

pub(super) fn open(path: &Path, storages: &[&'static str]) -> Result<(Connection, State), Error> {
    let failed = |source| Error::Open { path: path.to_owned(), source };
    let database = Connection::open(path).map_err(failed)?;
    database.execute_batch(SCHEMA).map_err(failed)?;
    let mut state = State { version: 1, collections: BTreeMap::new() };
    for storage in storages {
        let mut query = database.prepare("SELECT version FROM changed WHERE storage = ?1").map_err(failed)?;
        let last = query.query_row([storage], |row| row.get::<_, i64>(0));
        let last = match last {
            Ok(version) => u64::try_from(version).unwrap_or(0),
            Err(rusqlite::Error::QueryReturnedNoRows) => 0,
            Err(source) => return Err(failed(source)),
        };
        state.version = state.version.max(last);
        let mut collection = Collection::new(last);
        let mut query = database.prepare("SELECT namespace, name, version, body FROM objects WHERE storage = ?1").map_err(failed)?;
        let mut rows = query.query([storage]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let (namespace, name): (String, String) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
            let version = u64::try_from(row.get::<_, i64>(2).map_err(failed)?).unwrap_or(0);
            let body: Vec<u8> = row.get(3).map_err(failed)?;
            let value: Value = serde_json::from_slice(&body).map_err(|source| Error::Corrupt {
                path: path.to_owned(),
                key: format!("{storage} {namespace}/{name}"),
                source,
            })?;
            collection.load(namespace, name, Stored { value: Arc::new(value), version });
        }
        state.collections.insert(storage, collection);
    }
    Ok((database, state))
}

/// Writes the objects every server starts with, where they are missing.
pub(super) fn seed(database: &Connection, state: &mut State, seeds: Vec<(Key, Value)>) -> rusqlite::Result<()> {
    for (key, mut value) in seeds {
        let Some(collection) = state.collections.get_mut(key.storage) else {
            continue;
        };
        if collection.get(&key.namespace, &key.name).is_some() {
            continue;
        }
        state.version += 1;
        value["metadata"]["resourceVersion"] = Value::String(state.version.to_string());
        let stored = Stored { value: Arc::new(value), version: state.version };
        let (reply, _) = oneshot::channel();
        let staged = Staged { key: key.clone(), stored: stored.clone(), before: None, kind: ChangeKind::Created, reply };
        commit(database, &[staged])?;
        collection.load(key.namespace, key.name, stored);
        collection.forget(state.version);
    }
    Ok(())
}

/// A write that will succeed once its transaction does.
struct Staged {
    key: Key,
    stored: Stored,
    before: Option<Arc<Value>>,
    kind: ChangeKind,
    reply: oneshot::Sender<Result<Stored, Refused>>,
}

/// The writer thread; ends when the last `Store` is gone.
pub(super) fn run(database: &Connection, state: &RwLock<State>, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match jobs.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        let staged = stage(state, batch);
        if staged.is_empty() {
            continue;
        }
        match commit(database, &staged) {
            Ok(()) => publish(state, staged),
            Err(error) => {
                tracing::error!(error = %error, writes = staged.len(), "database refused a transaction");
                if let Err(error) = database.execute_batch("ROLLBACK") {
                    tracing::debug!(error = %error, "nothing to roll back");
                }
                for write in staged {
                    drop(write.reply.send(Err(Refused::Disk)));
                }
            }
        }
    }
}

/// Checks each write's condition against memory and the writes before it in the batch.
fn stage(state: &RwLock<State>, batch: Vec<Job>) -> Vec<Staged> {
    let state = state.read().unwrap_or_else(PoisonError::into_inner);
    let mut version = state.version;
    let mut pending: HashMap<Key, Option<Stored>> = HashMap::new();
    let mut staged = Vec::with_capacity(batch.len());
    for Job { write, reply } in batch {
        let key = match &write {
            Write::Create { key, .. } | Write::Replace { key, .. } | Write::Delete { key, .. } => key.clone(),
        };
        let current = match pending.get(&key) {
            Some(current) => current.clone(),
            None => state.collections.get(key.storage).and_then(|c| c.get(&key.namespace, &key.name)),
        };
        let (mut value, kind) = match decide(write, current.as_ref()) {
            Ok(decided) => decided,
            Err(refused) => {
                drop(reply.send(Err(refused)));
                continue;
            }
        };
        version += 1;
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), Value::String(version.to_string()));
        }
        let stored = Stored { value: Arc::new(value), version };
        pending.insert(key.clone(), (kind != ChangeKind::Deleted).then(|| stored.clone()));
        staged.push(Staged { key, stored, before: current.map(|c| c.value), kind, reply });
    }
    staged
}

fn decide(write: Write, current: Option<&Stored>) -> Result<(Value, ChangeKind), Refused> {
    match (write, current) {
        (Write::Create { value, .. }, None) => Ok((value, ChangeKind::Created)),
        (Write::Create { .. }, Some(_)) => Err(Refused::Exists),
        (Write::Replace { .. } | Write::Delete { .. }, None) => Err(Refused::Missing),
        (Write::Replace { expected, value, .. }, Some(current)) if expected == current.version => Ok((value, ChangeKind::Replaced)),
        (Write::Delete { expected, value, .. }, Some(current)) if expected == current.version => {
            Ok((value.unwrap_or_else(|| (*current.value).clone()), ChangeKind::Deleted))
        }
        (Write::Replace { .. } | Write::Delete { .. }, Some(_)) => Err(Refused::Changed),
    }
}

fn commit(database: &Connection, staged: &[Staged]) -> rusqlite::Result<()> {
    database.execute_batch("BEGIN IMMEDIATE")?;
    {
        let mut put = database.prepare(
            "INSERT INTO objects (storage, namespace, name, version, body) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET version = excluded.version, body = excluded.body",
        )?;
        let mut remove = database.prepare("DELETE FROM objects WHERE storage = ?1 AND namespace = ?2 AND name = ?3")?;
        let mut changed = HashMap::new();
        for write in staged {
            let key = &write.key;
            let version = i64::try_from(write.stored.version).unwrap_or(i64::MAX);
            changed.insert(key.storage, version);
            if write.kind == ChangeKind::Deleted {
                remove.execute(params![key.storage, key.namespace, key.name])?;
            } else {
                let body =
                    serde_json::to_vec(&*write.stored.value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
                put.execute(params![key.storage, key.namespace, key.name, version, body])?;
            }
        }
        let mut mark = database.prepare(
            "INSERT INTO changed (storage, version) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET version = excluded.version",
        )?;
        for (storage, version) in changed {
            mark.execute(params![storage, version])?;
        }
    }
    database.execute_batch("COMMIT")
}

fn publish(state: &RwLock<State>, staged: Vec<Staged>) {
    let mut answers = Vec::with_capacity(staged.len());
    {
        let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        for Staged { key, stored, before, kind, reply } in staged {
            state.version = stored.version;
            if let Some(collection) = state.collections.get_mut(key.storage) {
                let change = Change { version: stored.version, kind, object: Arc::clone(&stored.value), before, json: OnceLock::new() };
                collection.apply(key, (kind != ChangeKind::Deleted).then(|| stored.clone()), change);
            }
            answers.push((reply, stored));
        }
        state.collections.values().for_each(Collection::wake_up);
    }
    for (reply, stored) in answers {
        drop(reply.send(Ok(stored)));
    }
}
