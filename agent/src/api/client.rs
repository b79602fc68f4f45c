//! Requests to the API server over one HTTP/2 connection.
//!
//! All watches and unary calls of the agent share one connection; the heartbeat has a client of its own.
//! A broken connection is replaced by the next request; which server it goes to is decided by [`Servers`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;
use tokio_rustls::rustls::ClientConfig;
use tunnel::ServerAddr;

use super::error::Error;
use super::gather::Gather;
use super::meta::Object;
use super::servers::Servers;
use super::watch::Watch;

/// How a patch body is to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Merge,
    Strategic,
    Json,
}

impl PatchType {
    fn content_type(self) -> &'static str {
        match self {
            PatchType::Merge => "application/merge-patch+json",
            PatchType::Strategic => "application/strategic-merge-patch+json",
            PatchType::Json => "application/json-patch+json",
        }
    }
}

/// Deadlines and pings of one connection.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For each unary call, from the first byte to the last.
    pub deadline: Duration,
    /// Ping after this much silence while requests are open; None where the traffic itself proves the link.
    pub keep_alive: Option<Duration>,
    /// Only the code of an answer is of interest: the server is given no room to send a body (HTTP/2 flow control) and is told
    /// to forget it. No request of such a client gets a body.
    pub code_only: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { deadline: Duration::from_secs(10), keep_alive: Some(Duration::from_secs(120)), code_only: false }
    }
}

const JSON: &str = "application/json";
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const AGENT: &str = concat!("edge-agent/", env!("CARGO_PKG_VERSION"));
const DIAL_DEADLINE: Duration = Duration::from_secs(10);

/// Cheap to clone; all clones share one connection.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    servers: Servers,
    settings: Settings,
    live: Mutex<Live>,
    /// Counts connections made: who waits for the server to come back is woken by it.
    made: watch::Sender<u64>,
}

#[derive(Default)]
struct Live {
    connection: Option<Connection>,
    /// Taken out of use while streams may still be open on them.
    former: Vec<Connection>,
}

#[derive(Clone)]
struct Connection {
    sender: http2::SendRequest<Full<Bytes>>,
    server: Arc<ServerAddr>,
    authority: Arc<str>,
    /// The identity it was made with.
    tls: Arc<ClientConfig>,
    number: u64,
    driver: Tasks,
}

/// Everything that runs for one connection. HTTP/2 keeps the connection open in a task of its own for as long as a stream is
/// open on it, whatever becomes of the future that drives it.
#[derive(Clone, Default)]
struct Tasks(Arc<std::sync::Mutex<Vec<AbortHandle>>>);

impl Tasks {
    fn all(&self) -> std::sync::MutexGuard<'_, Vec<AbortHandle>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn add(&self, task: AbortHandle) {
        let mut all = self.all();
        all.retain(|task| !task.is_finished());
        all.push(task);
    }

    /// Closes the connection and ends every stream on it.
    fn abort(&self) {
        for task in self.all().drain(..) {
            task.abort();
        }
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.add(crate::task::spawn(future).abort_handle());
    }
}

/// Status code and body of an answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub code: u16,
    pub body: Bytes,
}

impl Client {
    pub fn new(servers: Servers, settings: Settings) -> Client {
        Client { inner: Arc::new(Inner { servers, settings, live: Mutex::new(Live::default()), made: watch::Sender::new(0) }) }
    }

    /// `path` starts with `/api` or `/apis` and may carry a query.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let answer = match self.raw(Method::GET, path, "", Bytes::new()).await {
            Err(Error::Transport { .. }) => self.raw(Method::GET, path, "", Bytes::new()).await?,
            other => other?,
        };
        decode(path, &answer.body)
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let answer = self.raw(Method::POST, path, JSON, encode(path, body)?).await?;
        decode(path, &answer.body)
    }

    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let answer = self.raw(Method::PUT, path, JSON, encode(path, body)?).await?;
        decode(path, &answer.body)
    }

    /// A patch whose answer nobody looks at: servers that can leave out all but the metadata do.
    pub async fn patch_only(&self, path: &str, kind: PatchType, body: &impl Serialize) -> Result<(), Error> {
        let body = encode(path, body)?;
        self.raw_accepting(Method::PATCH, path, kind.content_type(), METADATA_ONLY, body).await?;
        Ok(())
    }

    pub async fn patch<T: DeserializeOwned>(&self, path: &str, kind: PatchType, body: &impl Serialize) -> Result<T, Error> {
        let answer = self.raw(Method::PATCH, path, kind.content_type(), encode(path, body)?).await?;
        decode(path, &answer.body)
    }

    pub async fn delete(&self, path: &str, body: &impl Serialize) -> Result<(), Error> {
        self.raw(Method::DELETE, path, JSON, encode(path, body)?).await?;
        Ok(())
    }

    /// Any request; answers of 400 and above are errors. `content_type` empty: no body.
    pub async fn raw(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Answer, Error> {
        self.raw_accepting(method, path, content_type, JSON, body).await
    }

    async fn raw_accepting(&self, method: Method, path: &str, content_type: &str, accept: &str, body: Bytes) -> Result<Answer, Error> {
        let after = self.inner.settings.deadline;
        let mut used = None;
        let call = async {
            let response = self.send(method, path, content_type, accept, body, &mut used).await?;
            let status = response.status();
            let code = status.as_u16();
            if self.inner.settings.code_only {
                let refused = status.is_client_error() || status.is_server_error();
                let reason = status.canonical_reason().unwrap_or_default().to_owned();
                return if refused {
                    Err(Error::Status { code, reason, message: "no details were asked for".to_owned() })
                } else {
                    Ok(Answer { code, body: Bytes::new() })
                };
            }
            let body = match response.into_body().collect().await {
                Ok(all) => all.to_bytes(),
                Err(error) => return Err(self.broken(used.as_ref(), &error).await),
            };
            if code >= 400 { Err(status_error(code, &body)) } else { Ok(Answer { code, body }) }
        };
        match tokio::time::timeout(after, call).await {
            Ok(result) => result,
            Err(_) => {
                let server = used.as_ref().map_or_else(|| self.inner.servers.describe(), |c| c.authority.to_string());
                self.forget(used.as_ref()).await;
                Err(Error::Deadline { server, after })
            }
        }
    }

    /// Endless list+watch of a collection; `path` without query, `selector` like `fieldSelector=spec.nodeName%3Dn`.
    pub fn watch<T: DeserializeOwned + Object>(&self, path: &str, selector: &str) -> Watch<T> {
        Watch::new(self.clone(), path, selector)
    }

    /// Closes the connection: what is on its way fails at once, the next request dials again.
    pub async fn reconnect(&self) {
        if let Some(connection) = self.inner.live.lock().await.connection.take() {
            connection.driver.abort();
            self.inner.servers.closed(&connection.server);
        }
    }

    /// What the tunnel to a server says about it: connections to servers that are down are given up.
    pub async fn health(&self, server: &ServerAddr, ok: bool) {
        if ok {
            self.inner.made.send_modify(|_| {});
        }
        let close = self.inner.servers.health(server, ok);
        self.close(&close).await;
        if !ok {
            // Watches on a connection given up earlier would wait for the dead server's answer.
            self.inner.live.lock().await.former.retain(|former| {
                let dead = *former.server == *server;
                if dead {
                    former.driver.abort();
                }
                !dead
            });
        }
    }

    /// The list of servers changed: connections to those that left are given up.
    pub async fn servers_changed(&self) {
        let gone = self.inner.servers.refresh();
        self.close(&gone).await;
    }

    async fn close(&self, servers: &[ServerAddr]) {
        let ours = self.inner.live.lock().await.connection.as_ref().map(|connection| Arc::clone(&connection.server));
        if ours.is_some_and(|ours| servers.contains(&ours)) {
            self.reconnect().await;
        }
    }

    /// Waits, but not longer than until a connection is made by somebody else or a tunnel comes up.
    pub async fn pause(&self, at_most: Duration) {
        let mut made = self.inner.made.subscribe();
        // Both arms end the wait; neither carries anything.
        tokio::select! {
            () = tokio::time::sleep(at_most) => {}
            _ = made.changed() => {}
        }
    }

    /// Opens a streaming GET; the deadline covers the head of the answer only.
    pub(super) async fn open(&self, path: &str) -> Result<Response<Incoming>, Error> {
        let after = self.inner.settings.deadline + Duration::from_secs(20);
        let mut used = None;
        match tokio::time::timeout(after, self.send(Method::GET, path, "", JSON, Bytes::new(), &mut used)).await {
            Ok(result) => {
                let response = result?;
                let code = response.status().as_u16();
                if code < 400 {
                    return Ok(response);
                }
                let body = match tokio::time::timeout(after, response.into_body().collect()).await {
                    Ok(Ok(all)) => all.to_bytes(),
                    Ok(Err(_)) | Err(_) => Bytes::new(),
                };
                Err(status_error(code, &body))
            }
            Err(_) => {
                self.forget(used.as_ref()).await;
                Err(Error::Deadline { server: self.inner.servers.describe(), after })
            }
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        accept: &str,
        body: Bytes,
        used: &mut Option<Connection>,
    ) -> Result<Response<Incoming>, Error> {
        let mut connection = self.connection().await?;
        *used = Some(connection.clone());
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", connection.authority))
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, accept);
        if !content_type.is_empty() {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Error::Transport { server: connection.authority.to_string(), cause: chain(&error) })?;
        let sent = async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        };
        match sent.await {
            Ok(response) => Ok(response),
            Err(error) => Err(self.broken(used.as_ref(), &error).await),
        }
    }

    /// The connection everybody shares; made here when there is none. Only one caller dials, the others wait for it.
    async fn connection(&self) -> Result<Connection, Error> {
        let mut live = self.inner.live.lock().await;
        // One made before the identity was renewed takes no new requests; what is under way on it ends by itself.
        let usable = |c: &&Connection| !c.sender.is_closed() && self.inner.servers.is_current(&c.tls);
        if let Some(connection) = live.connection.as_ref().filter(usable) {
            return Ok(connection.clone());
        }
        if let Some(ended) = live.connection.take() {
            self.inner.servers.closed(&ended.server);
        }
        let (candidates, tls) = self.inner.servers.choose();
        let mut failure =
            Error::Transport { server: "no server".to_owned(), cause: "none is asked before clock and certificates are right".to_owned() };
        let limit = dial_limit(candidates.len(), self.inner.settings.deadline);
        for server in candidates {
            let attempt = self.inner.servers.attempt(&server);
            match self.connect(&server, Arc::clone(&tls), limit).await {
                Ok((sender, driver)) => {
                    attempt.worked();
                    let mut number = 0;
                    self.inner.made.send_modify(|made| {
                        *made += 1;
                        number = *made;
                    });
                    let authority = server.to_string().into();
                    let connection = Connection { sender, authority, server: Arc::new(server), tls, number, driver };
                    live.connection = Some(connection.clone());
                    return Ok(connection);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn connect(
        &self,
        server: &ServerAddr,
        tls: Arc<ClientConfig>,
        limit: Duration,
    ) -> Result<(http2::SendRequest<Full<Bytes>>, Tasks), Error> {
        let transport = |cause: String| Error::Transport { server: server.to_string(), cause };
        let dialled = match tokio::time::timeout(limit, self.inner.servers.dial(server, tls)).await {
            Ok(dialled) => dialled.map_err(transport)?,
            Err(_) => return Err(Error::Deadline { server: server.to_string(), after: limit }),
        };
        let tasks = Tasks::default();
        let mut builder = http2::Builder::new(tasks.clone());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(if self.inner.settings.code_only { 0 } else { 64 * 1024 })
            .initial_connection_window_size(256 * 1024)
            .max_send_buf_size(64 * 1024)
            .keep_alive_interval(self.inner.settings.keep_alive)
            .keep_alive_timeout(Duration::from_secs(10));
        let (sender, driver) = builder.handshake(TokioIo::new(Gather::new(dialled))).await.map_err(|error| transport(chain(&error)))?;
        let driver = crate::task::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(error = %chain(&error), "api connection ended");
            }
        });
        tasks.add(driver.abort_handle());
        Ok((sender, tasks))
    }

    async fn broken(&self, used: Option<&Connection>, error: &hyper::Error) -> Error {
        self.forget(used).await;
        let server = used.map_or_else(|| self.inner.servers.describe(), |c| c.authority.to_string());
        Error::Transport { server, cause: chain(error) }
    }

    /// Later requests shall not use this connection. Streams on it go on until they end by themselves.
    async fn forget(&self, used: Option<&Connection>) {
        let Some(used) = used else { return };
        let mut live = self.inner.live.lock().await;
        if live.connection.as_ref().is_some_and(|c| c.number == used.number) {
            live.former.retain(|former| !former.sender.is_closed());
            let ended = live.connection.take();
            live.former.extend(ended);
            self.inner.servers.closed(&used.server);
        }
    }
}

/// Where there is another server to turn to, a dial leaves time for it within the same call.
fn dial_limit(candidates: usize, deadline: Duration) -> Duration {
    if candidates > 1 { deadline * 2 / 5 } else { DIAL_DEADLINE }
}

/// The cause chain of an error on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn encode(path: &str, body: &impl Serialize) -> Result<Bytes, Error> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| Error::Decode { path: path.to_owned(), cause: error.to_string() })
}

fn decode<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, Error> {
    from_json(body).map_err(|error| Error::Decode { path: path.to_owned(), cause: error.to_string() })
}

/// A Kubernetes Status, or the first line of whatever else the body is.
pub(super) fn status_error(code: u16, body: &[u8]) -> Error {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        code: u16,
        reason: String,
        message: String,
    }
    match serde_json::from_slice::<Status>(body) {
        Ok(status) => {
            Error::Status { code: if status.code >= 400 { status.code } else { code }, reason: status.reason, message: status.message }
        }
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            let line = text.lines().next().unwrap_or_default();
            Error::Status { code, reason: String::new(), message: line.chars().take(200).collect() }
        }
    }
}

/// Decodes as Go does: `null` means absent. Costs a second pass only where the plain one fails.
pub(super) fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    let first = match serde_json::from_slice(body) {
        Ok(object) => return Ok(object),
        Err(error) => error,
    };
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(body) else { return Err(first) };
    drop_nulls(&mut value);
    // Through text again: decoding from a `Value` would be a second copy of every type's decoder, a few hundred KB of code.
    let Ok(text) = serde_json::to_vec(&value) else { return Err(first) };
    serde_json::from_slice(&text).map_err(|_| first)
}

fn drop_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_body_is_read_and_other_bodies_are_quoted() {
        let body = br#"{"kind":"Status","status":"Failure","message":"nodes \"a\" not found","reason":"NotFound","code":404}"#;
        let error = status_error(404, body);
        assert!(error.is_not_found());
        assert_eq!(error.reason(), "NotFound");
        assert_eq!(error.to_string(), "server answered 404 NotFound: nodes \"a\" not found");
        let error = status_error(503, b"starting\nmore");
        assert!(error.is_retryable());
        assert_eq!(error.to_string(), "server answered 503 : starting");
    }
}
