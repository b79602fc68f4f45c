//! The local control socket: what `edge-agent status` and `edge-agent why` ask the running agent.
//!
//! HTTP/1.1 with JSON on a unix socket that only root may open (`curl --unix-socket` works too). Everything is answered
//! from memory, so it also works while the server is away.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::kubelet::serve::{self, Body};

/// The agent answers from memory: longer than this and it is stuck.
const ANSWER: Duration = Duration::from_secs(5);

/// Time between two looks of `status --watch`.
const WATCH: Duration = Duration::from_secs(2);

/// Where the socket is, below the run directory.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// What `status` shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub version: String,
    pub node: String,
    /// Whether the last node status sent said Ready; none before the first.
    pub ready: Option<bool>,
    /// Seconds since the lease was last renewed; none before the first.
    pub lease_age_seconds: Option<u64>,
    pub links: Vec<Link>,
    pub runtime: String,
    pub pods: Vec<PodLine>,
    pub pressure: Vec<PressureLine>,
    /// Mode of the governor and what it does now.
    pub governor: String,
    /// Kubepods memory limit in force, bytes.
    pub kubepods_memory_limit: Option<u64>,
}

/// One tunnel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Link {
    pub server: String,
    /// `connected`, or why not.
    pub state: String,
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodLine {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub phase: String,
    pub ready: bool,
    pub restarts: u32,
    pub ip: String,
}

/// Shares of the last 10 and 60 seconds in per cent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PressureLine {
    pub resource: String,
    pub waiting10: f32,
    pub waiting60: f32,
    pub stalled10: f32,
}

/// What `why POD` shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Why {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub phase: String,
    /// What the worker decided last.
    pub decision: String,
    /// What it decided that on, one fact a line.
    pub evidence: Vec<String>,
    /// When it looks again, if that is known.
    pub next_retry_seconds: Option<u64>,
}

/// Where the answers come from.
pub trait Source: Send + Sync + 'static {
    /// All there is to tell, now.
    fn status(&self) -> Status;
    /// About the pod `name` or `namespace/name`; empty when there is none.
    fn why(&self, pod: &str) -> Vec<Why>;
}

/// This node's pressure as `status` shows it; empty where the kernel does not measure it.
pub fn pressure() -> Vec<PressureLine> {
    let read = |resource: cgroup::psi::Resource| {
        let pressure = cgroup::psi::read(resource).ok().flatten()?;
        Some(PressureLine {
            resource: resource.as_str().to_owned(),
            waiting10: pressure.some.avg10,
            waiting60: pressure.some.avg60,
            stalled10: pressure.full.map_or(0.0, |full| full.avg10),
        })
    };
    cgroup::psi::Resource::ALL.into_iter().filter_map(read).collect()
}

/// Makes the socket, readable and writable for its owner only. What an earlier process left is replaced.
pub fn bind(run_dir: &Path) -> io::Result<UnixListener> {
    let path = socket_path(run_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::create_dir_all(run_dir)?;
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until `stop`.
pub async fn serve(listener: UnixListener, source: Arc<dyn Source>, mut stop: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            // accept() is cancel safe.
            accepted = listener.accept() => accepted,
            () = serve::stopped(&mut stop) => return,
        };
        match accepted {
            Ok((socket, _)) => {
                let source = Arc::clone(&source);
                let handler = move |request: Request<Incoming>| std::future::ready(answer(&*source, &request));
                tokio::spawn(serve::connection(socket, handler, stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "control socket closed");
                return;
            }
        }
    }
}

fn answer(source: &dyn Source, request: &Request<Incoming>) -> Response<Body> {
    let pairs = serve::query_pairs(request.uri().query());
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/status") => serve::json(&source.status()),
        (&Method::GET, "/why") => {
            let pod = pairs.iter().find(|(key, _)| key == "pod").map_or("", |(_, value)| value.as_str());
            let found = source.why(pod);
            if found.is_empty() {
                serve::text(StatusCode::NOT_FOUND, format!("no pod {pod} on this node\n"))
            } else {
                serve::json(&found)
            }
        }
        (_, "/status" | "/why") => serve::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed\n"),
        _ => serve::text(StatusCode::NOT_FOUND, "404: Page Not Found\n"),
    }
}

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
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(socket)).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path_and_query).header(HOST, "agent").body(Empty::new());
    let request = request.map_err(|error| ClientError::Protocol { path: path.clone(), source: error.into() })?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
    driver.abort();
    if status.is_success() {
        Ok(body)
    } else {
        Err(ClientError::Refused(String::from_utf8_lossy(&body).trim_end().to_owned()))
    }
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
        text += &format!("tunnel    {} {}\n", link.server, link.state);
    }
    text += &format!("runtime   {}\n", status.runtime);
    text += &format!("governor  {}\n", status.governor);
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Source for Fixed {
        fn status(&self) -> Status {
            Status {
                version: "0.1.0".into(),
                node: "n1".into(),
                ready: Some(true),
                lease_age_seconds: Some(3),
                links: vec![Link { server: "10.0.0.1:6443".into(), state: "connected".into() }],
                pods: vec![PodLine { namespace: "default".into(), name: "web".into(), phase: "Running".into(), ready: true, ..PodLine::default() }],
                ..Status::default()
            }
        }

        fn why(&self, pod: &str) -> Vec<Why> {
            let known = pod == "web" || pod == "default/web";
            let why = Why { namespace: "default".into(), name: "web".into(), decision: "nothing to do".into(), ..Why::default() };
            known.then_some(why).into_iter().collect()
        }
    }

    #[tokio::test]
    async fn clients_get_what_the_agent_knows() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (stop, stopped) = watch::channel(false);
        std::fs::write(socket_path(dir.path()), "left over").expect("write");
        let listener = bind(dir.path()).expect("binds");
        let mode = std::fs::metadata(socket_path(dir.path())).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let server = tokio::spawn(serve(listener, Arc::new(Fixed), stopped));

        let mut out = Vec::new();
        client_status(dir.path(), true, false, &mut out).await.expect("answers");
        assert_eq!(serde_json::from_slice::<Status>(&out).expect("json"), Fixed.status());
        let mut out = Vec::new();
        client_status(dir.path(), false, false, &mut out).await.expect("answers");
        let text = String::from_utf8(out).expect("utf-8");
        assert!(text.contains("n1 (Ready)") && text.contains("default/web") && text.contains("10.0.0.1:6443 connected"), "{text}");
        let mut out = Vec::new();
        client_why(dir.path(), "default/web", false, &mut out).await.expect("answers");
        assert!(String::from_utf8(out).expect("utf-8").contains("nothing to do"));
        let refused = client_why(dir.path(), "other pod&x", false, &mut Vec::new()).await.expect_err("no such pod");
        assert_eq!(refused.to_string(), "no pod other pod&x on this node");

        stop.send(true).expect("server listens");
        server.await.expect("joins");
    }

    #[tokio::test]
    async fn no_agent_is_said_so() {
        let dir = tempfile::tempdir().expect("tempdir");
        let error = client_status(dir.path(), false, false, &mut Vec::new()).await.expect_err("nobody there");
        assert!(error.to_string().contains("is it running?"), "{error}");
    }
}
