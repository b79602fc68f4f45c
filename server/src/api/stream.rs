//! Watches on the wire: one JSON line for each change, until the client or the time ends it.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::request::Format;
use super::rest::Context;
use super::status::ApiStatus;
use super::watch::{Event, EventType, Watch};
use super::{kind, meta, render, views};
use crate::http::Body;

/// Between bookmarks of a quiet watch, as the real server's.
const BOOKMARK: Duration = Duration::from_secs(60);
/// Watches without a limit of their own end after 30 to 60 minutes.
const LONGEST: u64 = 1800;

struct Stream {
    watch: Watch,
    context: Sender,
    stop: watch::Receiver<bool>,
    ends: Instant,
    bookmark: Instant,
    over: bool,
}

/// What is needed to write events.
struct Sender {
    context: Context,
    bookmarks: bool,
    /// The client asked for the present state first and wants to know its end.
    initial: bool,
    /// The client did not ask for a bookmark after the present state.
    synthetic: bool,
}

/// `GET ?watch`.
pub(super) fn watch(context: &Context, stop: watch::Receiver<bool>) -> Result<Response<Body>, ApiStatus> {
    let selectors = context.selectors()?;
    let query = &context.query;
    let bookmarks = query.flag("allowWatchBookmarks");
    let initial = query.flag("sendInitialEvents");
    if initial && query.get("resourceVersionMatch") != "NotOlderThan" {
        return Err(ApiStatus::bad_request(
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    let from = if initial { 0 } else { query.number("resourceVersion")?.unwrap_or(0) };
    let seconds = match query.number("timeoutSeconds")?.unwrap_or(0) {
        0 => {
            let mut random = [0_u8; 2];
            meta::fill(&mut random);
            LONGEST + u64::from(u16::from_le_bytes(random)) % LONGEST
        }
        seconds => seconds,
    };
    let opened = context.server.registry.watch(context.kind, context.namespace(), selectors, from);
    let now = Instant::now();
    let watch = match opened {
        Ok(watch) => watch,
        // Too old is told inside the stream, as by the real server's watch cache.
        Err(status) if status.code == 410 => return Ok(response(single(error_line(&status)))),
        Err(status) => return Err(status),
    };
    let sender = Sender { context: copy(context), bookmarks, initial, synthetic: from == 0 };
    let stream = Stream {
        watch,
        context: sender,
        stop,
        ends: now + Duration::from_secs(seconds.min(LONGEST * 4)),
        bookmark: now + BOOKMARK,
        over: false,
    };
    let frames = unfold(stream, |mut stream| async move {
        let line = stream.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), stream))
    });
    Ok(response(Body::new(StreamBody::new(frames).map_err(|never| match never {}))))
}

fn copy(context: &Context) -> Context {
    Context {
        server: std::sync::Arc::clone(&context.server),
        kind: context.kind,
        namespace: context.namespace.clone(),
        info: context.info.clone(),
        query: context.query.clone(),
        format: context.format,
        identity: context.identity.clone(),
    }
}

fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn single(line: Bytes) -> Body {
    crate::http::full(line)
}

fn error_line(status: &ApiStatus) -> Bytes {
    let body = status.body();
    let object = body.strip_suffix(b"\n").unwrap_or(&body);
    line("ERROR", object)
}

fn line(event: &str, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(event.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    Bytes::from(out)
}

impl Stream {
    /// The next bytes, or the end. Takes every change that is ready in one go.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.over {
                return None;
            }
            let bookmark = if self.context.bookmarks { self.bookmark } else { self.ends };
            tokio::select! {
                // Changes first: a bookmark must not overtake them.
                biased;
                () = crate::http::stopped(&mut self.stop) => return None,
                event = self.watch.next() => match event {
                    Ok(event) => {
                        if let Some(line) = self.context.write(&event) {
                            return Some(line);
                        }
                    }
                    Err(status) => {
                        self.over = true;
                        return Some(error_line(&status));
                    }
                },
                () = tokio::time::sleep_until(self.ends.min(bookmark)) => {
                    if Instant::now() >= self.ends {
                        return None;
                    }
                    self.bookmark = Instant::now() + BOOKMARK;
                    if let Ok(Some(event)) = self.watch.bookmark() {
                        return Some(self.context.bookmark(&event.object, false));
                    }
                }
            }
        }
    }
}

impl Sender {
    fn write(&mut self, event: &Event) -> Option<Bytes> {
        let word = event.kind.as_str();
        if event.kind == EventType::Bookmark {
            let wanted = self.initial && std::mem::take(&mut self.synthetic);
            return wanted.then(|| self.bookmark(&event.object, true));
        }
        let context = &self.context;
        let plain = context.format == Format::Json && context.kind != &kind::EVENT_V1;
        if plain {
            return Some(line(word, &event.json()));
        }
        let object = views::to_served(context.kind, &event.object);
        let value = match context.format {
            Format::Json => object.into_owned(),
            Format::Table(version) => render::one_row_table(context, version, &object),
            Format::Partial => render::partial(&object),
        };
        Some(line(word, &serde_json::to_vec(&value).unwrap_or_default()))
    }

    fn bookmark(&self, object: &Value, end_of_initial: bool) -> Bytes {
        let mut object = object.clone();
        if end_of_initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let value = match self.context.format {
            Format::Json => object,
            Format::Table(version) => {
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                super::table::table(self.context.kind, version, &metadata, Vec::new())
            }
            Format::Partial => render::partial(&object),
        };
        line("BOOKMARK", &serde_json::to_vec(&value).unwrap_or_default())
    }
}
