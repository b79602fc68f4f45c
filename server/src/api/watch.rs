//! Watches: a filtered view of the store's change history.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::kind::Kind;
use super::selector::Selectors;
use super::status::ApiStatus;
use crate::store::{Change, ChangeKind, Store};

/// What a watcher is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
}

impl EventType {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
        }
    }
}

/// One change as a watcher sees it; `object` of a bookmark has only kind and resourceVersion.
#[derive(Debug, Clone)]
pub struct Event {
    pub kind: EventType,
    pub object: Arc<Value>,
    pub resource_version: u64,
    change: Option<Arc<Change>>,
}

impl Event {
    /// The object as JSON; written once however many watchers there are.
    pub fn json(&self) -> Bytes {
        let write = || Bytes::from(serde_json::to_vec(&*self.object).unwrap_or_default());
        match &self.change {
            Some(change) if Arc::ptr_eq(&change.object, &self.object) => change.json.get_or_init(write).clone(),
            _ => write(),
        }
    }
}

/// An open watch. Holds no queue: it remembers how far it has read.
pub struct Watch {
    store: Store,
    kind: &'static Kind,
    namespace: Option<String>,
    selectors: Selectors,
    position: u64,
    ready: VecDeque<Event>,
    wake: Option<watch::Receiver<u64>>,
}

impl Watch {
    /// `from` 0 begins with the present objects as `Added`, ended by a `Bookmark`.
    pub(super) fn open(
        store: &Store,
        kind: &'static Kind,
        namespace: Option<&str>,
        selectors: Selectors,
        from: u64,
    ) -> Result<Self, ApiStatus> {
        let wake = store.subscribe(kind.storage);
        let mut watch = Self {
            store: store.clone(),
            kind,
            namespace: namespace.map(str::to_owned),
            selectors,
            position: from,
            ready: VecDeque::new(),
            wake,
        };
        if from == 0 {
            let selectors = &watch.selectors;
            let listing = store.list(kind.storage, namespace, |object| selectors.matches(object));
            watch.position = listing.version;
            watch.ready.extend(listing.objects.into_iter().map(|s| Event {
                kind: EventType::Added,
                object: s.value,
                resource_version: s.version,
                change: None,
            }));
            watch.ready.push_back(watch.bookmark_event());
        } else if from > store.version() {
            return Err(ApiStatus::timeout(format!("Too large resource version: {from}, current: {}", store.version())));
        } else {
            watch.read()?;
        }
        Ok(watch)
    }

    /// The next change; waits for one. Dropping the future loses nothing.
    ///
    /// # Errors
    /// 410 Expired when the watcher fell behind the kept history: list again.
    pub async fn next(&mut self) -> Result<Event, ApiStatus> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if let Some(wake) = &mut self.wake {
                wake.borrow_and_update();
            }
            self.read()?;
            if !self.ready.is_empty() {
                continue;
            }
            let open = match &mut self.wake {
                Some(wake) => wake.changed().await.is_ok(),
                None => false,
            };
            if !open {
                std::future::pending::<()>().await;
            }
        }
    }

    /// A bookmark for how far this watch has come, unless changes wait.
    pub fn bookmark(&mut self) -> Result<Option<Event>, ApiStatus> {
        self.read()?;
        Ok(self.ready.is_empty().then(|| self.bookmark_event()))
    }

    fn bookmark_event(&self) -> Event {
        let object = json!({
            "kind": self.kind.kind,
            "apiVersion": self.kind.api_version(),
            "metadata": { "resourceVersion": self.position.to_string(), "creationTimestamp": null },
        });
        Event { kind: EventType::Bookmark, object: Arc::new(object), resource_version: self.position, change: None }
    }

    fn read(&mut self) -> Result<(), ApiStatus> {
        let (changes, position) = self
            .store
            .changes(self.kind.storage, self.position)
            .map_err(|expired| ApiStatus::expired(format!("too old resource version: {} ({})", expired.asked, expired.oldest)))?;
        self.position = position;
        for change in changes {
            if let Some(kind) = self.sees(&change) {
                self.ready.push_back(Event {
                    kind,
                    object: Arc::clone(&change.object),
                    resource_version: change.version,
                    change: Some(change),
                });
            }
        }
        Ok(())
    }

    /// An object that begins to match is added, one that ceases to is deleted, whatever happened in the store.
    fn sees(&self, change: &Change) -> Option<EventType> {
        if let Some(namespace) = &self.namespace {
            if change.object["metadata"]["namespace"] != namespace.as_str() {
                return None;
            }
        }
        let before = change.before.as_ref().is_some_and(|b| self.selectors.matches(b));
        let after = change.kind != ChangeKind::Deleted && self.selectors.matches(&change.object);
        match (before, after) {
            (false, true) => Some(EventType::Added),
            (true, true) => Some(EventType::Modified),
            (true, false) => Some(EventType::Deleted),
            (false, false) => None,
        }
    }
}
