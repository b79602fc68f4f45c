//! List and watch as one endless sequence of changes.
//!
//! The first fill is a list in pages of 50, then one watch without bookmarks: on an idle cluster nothing but pings is on the
//! wire (a bookmark a minute for each watch costs about half a megabyte a day). When the version got too old (410), the list
//! is taken again. The reader sees whole collections and single changes, never a gap.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::client::{Client, status_error};
use super::error::Error;
use super::meta::{List, Object, ObjectMeta};
use crate::backoff::{Backoff, random_fraction};

/// One change of a watched collection.
#[derive(Debug, Clone, PartialEq)]
pub enum Change<T> {
    /// The whole collection, after the first fill and after every refill.
    Replaced(Vec<T>),
    Applied(T),
    Deleted(T),
}

/// See [`Client::watch`].
pub struct Watch<T> {
    client: Client,
    path: String,
    selector: String,
    state: State,
    backoff: Backoff,
    line: Vec<u8>,
    ready: VecDeque<Change<T>>,
    failing: bool,
    opened: Instant,
}

enum State {
    /// Nothing is known: list.
    Fill,
    /// Known up to this version: watch.
    Resume(String),
    Streaming(String, Incoming),
}

const PAGE: u32 = 50;
/// Buffers above this are given back after a large line.
const KEEP_LINE: usize = 16 * 1024;

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct OnlyMeta {
    #[serde(default)]
    metadata: ObjectMeta,
}

impl<T: DeserializeOwned + Object> Watch<T> {
    pub(crate) fn new(client: Client, path: &str, selector: &str) -> Watch<T> {
        Watch {
            client,
            path: path.to_owned(),
            selector: selector.to_owned(),
            state: State::Fill,
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(30)),
            line: Vec::new(),
            ready: VecDeque::new(),
            failing: false,
            opened: Instant::now(),
        }
    }

    /// The next change; reconnects, backs off and refills by itself, so it never ends.
    /// May be dropped and called again: at worst a request is repeated.
    pub async fn next(&mut self) -> Change<T> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return change;
            }
            match self.step().await {
                Ok(()) => {}
                Err(error) => {
                    // An error inside a stream may have swallowed a change: only a new list is safe.
                    if error.is_gone() || matches!(self.state, State::Streaming(..)) {
                        self.state = State::Fill;
                    }
                    if error.is_gone() {
                        tracing::debug!(path = %self.path, "watch version too old, listing again");
                    } else if self.failing {
                        tracing::debug!(path = %self.path, error = %error, "watch attempt ended");
                    } else {
                        self.failing = true;
                        tracing::warn!(path = %self.path, error = %error, "watch interrupted, retrying");
                    }
                    let wait = self.backoff.next_wait();
                    self.client.pause(wait).await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<(), Error> {
        match &mut self.state {
            State::Fill => {
                let (items, version) = self.list().await?;
                if self.failing {
                    self.failing = false;
                    tracing::info!(path = %self.path, "watch works again");
                }
                self.ready.push_back(Change::Replaced(items));
                self.state = State::Resume(version);
                Ok(())
            }
            State::Resume(version) => {
                let version = version.clone();
                // Long, so that a quiet watch is rarely opened anew; spread, so that they are not opened in step.
                let seconds = 1800 + (random_fraction() * 1800.0) as u64;
                let and = if self.selector.is_empty() { "" } else { "&" };
                let path = format!("{}?{}{and}watch=true&resourceVersion={version}&timeoutSeconds={seconds}", self.path, self.selector);
                let response = self.client.open(&path).await?;
                self.line.clear();
                self.opened = Instant::now();
                self.state = State::Streaming(version, response.into_body());
                if self.failing {
                    self.failing = false;
                    tracing::info!(path = %self.path, "watch works again");
                }
                Ok(())
            }
            State::Streaming(version, body) => {
                let frame = body.frame().await;
                let data = match frame {
                    Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                    Some(Err(error)) => {
                        let cause = error.to_string();
                        self.state = State::Resume(std::mem::take(version));
                        return Err(Error::Transport { server: "watch".to_owned(), cause });
                    }
                    None => {
                        self.state = State::Resume(std::mem::take(version));
                        if self.opened.elapsed() < Duration::from_secs(1) {
                            let cause = "ended as soon as it began".to_owned();
                            return Err(Error::Transport { server: "watch".to_owned(), cause });
                        }
                        return Ok(());
                    }
                };
                self.backoff.reset();
                let mut rest = data.as_ref();
                while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                    let (head, tail) = rest.split_at(end);
                    rest = &tail[1..];
                    if self.line.is_empty() {
                        take_line(head, version, &mut self.ready)?;
                    } else {
                        self.line.extend_from_slice(head);
                        let result = take_line(&self.line, version, &mut self.ready);
                        self.line.clear();
                        self.line.shrink_to(KEEP_LINE);
                        result?;
                    }
                }
                self.line.extend_from_slice(rest);
                Ok(())
            }
        }
    }

    async fn list(&self) -> Result<(Vec<T>, String), Error> {
        let mut items = Vec::new();
        let mut token = String::new();
        loop {
            let and = if self.selector.is_empty() { "" } else { "&" };
            let mut path = format!("{}?{}{and}limit={PAGE}", self.path, self.selector);
            if !token.is_empty() {
                path.push_str("&continue=");
                path.push_str(&query_escape(&token));
            }
            let mut page: List<T> = self.client.get(&path).await?;
            items.append(&mut page.items);
            if page.metadata.continue_token.is_empty() {
                return Ok((items, page.metadata.resource_version));
            }
            token = page.metadata.continue_token;
        }
    }
}

/// One line of a watch answer. Errors of 410 ask for a new list.
fn take_line<T: DeserializeOwned + Object>(line: &[u8], version: &mut String, ready: &mut VecDeque<Change<T>>) -> Result<(), Error> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(());
    }
    let bad = |error: serde_json::Error| Error::Decode { path: "watch".to_owned(), cause: error.to_string() };
    let parsed: Line<'_> = serde_json::from_slice(line).map_err(bad)?;
    match parsed.kind {
        "ADDED" | "MODIFIED" | "DELETED" => {
            let object: T = match super::client::from_json(parsed.object.get().as_bytes()) {
                Ok(object) => object,
                Err(error) => {
                    // One object nobody can read must not stop the others; its version still counts.
                    let only: OnlyMeta = serde_json::from_str(parsed.object.get()).map_err(bad)?;
                    tracing::error!(name = %only.metadata.name, namespace = %only.metadata.namespace, error = %error, "object does not decode, ignored");
                    *version = only.metadata.resource_version;
                    return Ok(());
                }
            };
            version.clone_from(&object.meta().resource_version);
            ready.push_back(if parsed.kind == "DELETED" { Change::Deleted(object) } else { Change::Applied(object) });
            Ok(())
        }
        "BOOKMARK" => {
            let only: OnlyMeta = serde_json::from_str(parsed.object.get()).map_err(bad)?;
            *version = only.metadata.resource_version;
            Ok(())
        }
        "ERROR" => Err(status_error(500, parsed.object.get().as_bytes())),
        other => Err(Error::Decode { path: "watch".to_owned(), cause: format!("unknown event type {other}") }),
    }
}

/// Percent-escapes what may not stand in a query value.
pub fn query_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::core::ConfigMap;

    fn lines(text: &str) -> (String, Vec<Change<ConfigMap>>, Result<(), Error>) {
        let mut version = "1".to_owned();
        let mut ready = VecDeque::new();
        let mut result = Ok(());
        for line in text.lines() {
            result = take_line(line.as_bytes(), &mut version, &mut ready);
        }
        (version, ready.into(), result)
    }

    #[test]
    fn events_move_the_version_and_give_changes() {
        let (version, changes, result) = lines(concat!(
            r#"{"type":"ADDED","object":{"kind":"ConfigMap","metadata":{"name":"a","resourceVersion":"5"},"data":{"k":"v"}}}"#,
            "\n",
            r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}"#,
            "\n",
            r#"{"type":"DELETED","object":{"metadata":{"name":"a","resourceVersion":"9"}}}"#,
        ));
        assert!(result.is_ok());
        assert_eq!(version, "9");
        assert_eq!(changes.len(), 2);
        assert!(matches!(&changes[0], Change::Applied(map) if map.data["k"] == "v"));
        assert!(matches!(&changes[1], Change::Deleted(map) if map.metadata.name == "a"));
    }

    #[test]
    fn an_object_that_does_not_decode_is_skipped_but_its_version_counts() {
        let (version, changes, result) = lines(r#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"5"},"data":[]}}"#);
        assert!(result.is_ok());
        assert_eq!(version, "5");
        assert!(changes.is_empty());
    }

    #[test]
    fn gone_is_told_apart_from_other_errors() {
        let (_, _, result) = lines(r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#);
        assert!(result.is_err_and(|error| error.is_gone()));
        let (_, _, result) = lines(r#"{"type":"ERROR","object":{"kind":"Status","code":500,"message":"x"}}"#);
        assert!(result.is_err_and(|error| !error.is_gone()));
    }

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(query_escape("a b=c/1+~"), "a%20b%3Dc%2F1%2B~");
    }
}
