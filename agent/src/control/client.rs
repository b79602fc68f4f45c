//! The asking side: `edge-agent status`, `edge-agent why POD`, `edge-agent governor release`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::watcher::client_watch;
use super::{ActionLine, GovernorStatus, Released, ReservationLine, Status, Why, socket_path};

/// The agent answers from memory: longer than this and it is stuck.
const ANSWER: Duration = Duration::from_secs(5);

/// It may have the groups of a hundred pods to write to.
const RELEASE: Duration = Duration::from_secs(10);

/// Why a client command got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent answers at {path}; is it running? (systemctl status edge-agent)")]
    NotRunning { path: PathBuf, source: io::Error },
    /// The socket is root's.
    #[error("{path} may be opened by root only; run this as root")]
    NotRoot { path: PathBuf },
    /// It took the connection but did not answer.
    #[error("the agent at {path} does not answer")]
    Stuck { path: PathBuf },
    /// It said no, in its own words.
    #[error("{0}")]
    Refused(String),
    /// Not what was expected.
    #[error("talking to the agent at {path}")]
    Protocol { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

pub(super) async fn get(run_dir: &Path, path_and_query: &str) -> Result<Bytes, ClientError> {
    ask(run_dir, Method::GET, path_and_query, ANSWER).await
}

async fn ask(run_dir: &Path, method: Method, path_and_query: &str, within: Duration) -> Result<Bytes, ClientError> {
    let path = socket_path(run_dir);
    let stuck = ClientError::Stuck { path: path.clone() };
    tokio::time::timeout(within, ask_unlimited(path, method, path_and_query)).await.unwrap_or(Err(stuck))
}

async fn ask_unlimited(path: PathBuf, method: Method, path_and_query: &str) -> Result<Bytes, ClientError> {
    let socket = match UnixStream::connect(&path).await {
        Ok(socket) => socket,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(ClientError::NotRoot { path }),
        Err(source) => return Err(ClientError::NotRunning { path, source }),
    };
    let broken = |error: hyper::Error| ClientError::Protocol { path: path.clone(), source: error.into() };
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(socket)).await.map_err(broken)?;
    let driver = crate::task::spawn(connection);
    let request = Request::builder().method(method).uri(path_and_query).header(HOST, "agent").body(Empty::new());
    let request = request.map_err(|error| ClientError::Protocol { path: path.clone(), source: error.into() })?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
    driver.abort();
    if status.is_success() { Ok(body) } else { Err(ClientError::Refused(String::from_utf8_lossy(&body).trim_end().to_owned())) }
}

/// `edge-agent status`: to `out` once; with `watch` to standard output until interrupted.
pub async fn client_status(run_dir: &Path, json: bool, watch: bool, out: &mut dyn io::Write) -> anyhow::Result<()> {
    if watch {
        return client_watch(run_dir, json).await;
    }
    let body = get(run_dir, "/status").await?;
    if json {
        out.write_all(&body)?;
        out.write_all(b"\n")?;
    } else {
        let status: Status = serde_json::from_slice(&body)?;
        out.write_all(render_status(&status).as_bytes())?;
    }
    out.flush()?;
    Ok(())
}

/// `edge-agent governor release` through the running agent; None where none answers, so that somebody else has to do it.
pub async fn client_release(run_dir: &Path) -> anyhow::Result<Option<Released>> {
    match ask(run_dir, Method::POST, "/governor/release", RELEASE).await {
        Ok(body) => Ok(Some(serde_json::from_slice(&body)?)),
        Err(ClientError::NotRunning { .. } | ClientError::Stuck { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `edge-agent why POD`, POD being `name` or `namespace/name`.
pub async fn client_why(run_dir: &Path, pod: &str, json: bool, out: &mut dyn io::Write) -> anyhow::Result<()> {
    let escaped: String = pod
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'/' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    let body = get(run_dir, &format!("/why?pod={escaped}")).await?;
    if json {
        out.write_all(&body)?;
        out.write_all(b"\n")?;
        return Ok(());
    }
    let found: Vec<Why> = serde_json::from_slice(&body)?;
    for why in &found {
        out.write_all(render_why(why).as_bytes())?;
    }
    Ok(())
}

fn render_status(status: &Status) -> String {
    let ready = match status.ready {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "not reported yet",
    };
    let mut text = format!("node      {} ({ready}), edge-agent {}\n", status.node, status.version);
    text += &format!("lease     {}\n", status.lease_age_seconds.map_or("never renewed".to_owned(), |age| format!("renewed {age} s ago")));
    for link in &status.links {
        let proof = link.last_proof_seconds.map_or(String::new(), |age| format!(", last proof of life {age} s ago"));
        text += &format!("tunnel    {} {}{proof}\n", link.server, link.state);
    }
    text += &format!("liveness  {}\n", status.liveness);
    text += &format!("runtime   {}\n", status.runtime);
    text += &render_governor(&status.governor);
    for line in &status.reservations {
        text += &render_reservation(line);
    }
    if let Some(limit) = status.kubepods_memory_limit {
        text += &format!("kubepods  {} MiB at most\n", limit / (1024 * 1024));
    }
    for line in &status.pressure {
        text += &format!(
            "pressure  {:<6} waiting {:>5.2} % (10 s) {:>5.2} % (60 s), stalled {:>5.2} % (10 s)\n",
            line.resource, line.waiting10, line.waiting60, line.stalled10
        );
    }
    text += &format!("pods      {}\n", status.pods.len());
    let width = status.pods.iter().map(|pod| pod.namespace.len() + 1 + pod.name.len()).max().unwrap_or(0);
    for pod in &status.pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let ready = if pod.ready { "ready" } else { "not ready" };
        text += &format!("  {name:<width$}  {:<9}  {ready:<9}  restarts {}  {}\n", pod.phase, pod.restarts, pod.ip);
    }
    text
}

fn render_governor(governor: &GovernorStatus) -> String {
    let mut text = format!("governor  {}", governor.mode);
    if !governor.state.is_empty() {
        text += &format!(", {} for {} s", governor.state, governor.state_seconds);
    }
    text += "\n";
    for why in &governor.degraded {
        text += &format!("degraded  {why}\n");
    }
    for signal in &governor.signals {
        text += &format!("signal    {} {} {}\n", signal.signal, signal.level, signal.value);
    }
    for pod in &governor.frozen {
        text += &format!("frozen    {pod}\n");
    }
    for pod in &governor.throttled {
        text += &format!("held      {pod}\n");
    }
    for action in &governor.actions {
        let ActionLine { seconds_ago, action, target, reason, result } = action;
        text += &format!("action    {seconds_ago} s ago: {action} {target}, {result}: {reason}\n");
    }
    text
}

fn render_reservation(line: &ReservationLine) -> String {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let mut text = format!("memory    {:<10} {:>9} planned", line.part, mib(line.planned));
    for (word, value) in
        [("measured", line.measured), ("promised", line.min), ("brake", line.high), ("limit", line.max), ("used", line.used)]
    {
        if let Some(value) = value {
            text += &format!(", {word} {}", mib(value));
        }
    }
    text + "\n"
}

fn render_why(why: &Why) -> String {
    let mut text = format!("{}/{} ({}): {}\n  decision  {}\n", why.namespace, why.name, why.uid, why.phase, why.decision);
    for line in &why.evidence {
        text += &format!("  because   {line}\n");
    }
    if let Some(seconds) = why.next_retry_seconds {
        text += &format!("  next      in {seconds} s\n");
    }
    text
}
