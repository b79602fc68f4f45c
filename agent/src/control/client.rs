//! The asking side: `edge-agent status` and `edge-agent why POD`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{Status, Why, socket_path};

/// The agent answers from memory: longer than this and it is stuck.
const ANSWER: Duration = Duration::from_secs(5);

/// Time between two looks of `status --watch`.
const WATCH: Duration = Duration::from_secs(2);

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

async fn get(run_dir: &Path, path_and_query: &str) -> Result<Bytes, ClientError> {
    let path = socket_path(run_dir);
    let stuck = ClientError::Stuck { path: path.clone() };
    tokio::time::timeout(ANSWER, get_unlimited(path, path_and_query)).await.unwrap_or(Err(stuck))
}

async fn get_unlimited(path: PathBuf, path_and_query: &str) -> Result<Bytes, ClientError> {
    let socket = match UnixStream::connect(&path).await {
        Ok(socket) => socket,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(ClientError::NotRoot { path }),
        Err(source) => return Err(ClientError::NotRunning { path, source }),
    };
    let broken = |error: hyper::Error| ClientError::Protocol { path: path.clone(), source: error.into() };
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(socket)).await.map_err(broken)?;
    let driver = crate::task::spawn(connection);
    let request = Request::get(path_and_query).header(HOST, "agent").body(Empty::new());
    let request = request.map_err(|error| ClientError::Protocol { path: path.clone(), source: error.into() })?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
    driver.abort();
    if status.is_success() { Ok(body) } else { Err(ClientError::Refused(String::from_utf8_lossy(&body).trim_end().to_owned())) }
}

/// `edge-agent status`: writes to `out` once, or every two seconds until interrupted with `watch`.
pub async fn client_status(run_dir: &Path, json: bool, watch: bool, out: &mut dyn io::Write) -> anyhow::Result<()> {
    loop {
        let body = get(run_dir, "/status").await?;
        if json {
            out.write_all(&body)?;
            out.write_all(b"\n")?;
        } else {
            let status: Status = serde_json::from_slice(&body)?;
            out.write_all(render_status(&status).as_bytes())?;
        }
        out.flush()?;
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH).await;
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
    text += &format!("governor  {}\n", status.governor.mode);
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
