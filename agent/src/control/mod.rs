//! The local control socket: what `edge-agent status` and `edge-agent why` ask the running agent.
//!
//! HTTP/1.1 with JSON on a unix socket that only root may open (`curl --unix-socket` works too). Everything is answered
//! from memory, so it also works while the server is away.

mod client;
mod live;
mod reserved;
mod screen;
mod watcher;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::kubelet::serve::{self, Body};

pub use client::{ClientError, client_release, client_status, client_why};
pub use live::{Governor, Live};
pub use reserved::reservations;

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
    /// How often servers are asked for a sign of life and the lease is renewed, and what `metered` relaxes.
    pub liveness: String,
    pub runtime: String,
    pub pods: Vec<PodLine>,
    pub pressure: Vec<PressureLine>,
    /// What the governor sees and does.
    pub governor: GovernorStatus,
    /// What each part of the node is promised and held to, and what it uses.
    pub reservations: Vec<ReservationLine>,
    /// Kubepods memory limit in force, bytes.
    pub kubepods_memory_limit: Option<u64>,
}

/// The governor now and lately.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GovernorStatus {
    /// `enforce`, `observe`, `static`.
    pub mode: String,
    /// One of [`crate::metrics::governor::STATES`]; empty where no loop runs.
    pub state: String,
    /// For how long.
    pub state_seconds: u64,
    /// Signals at `warn` or above, worst first.
    pub signals: Vec<SignalLine>,
    /// The last actions, newest first.
    pub actions: Vec<ActionLine>,
    /// `namespace/name` of pods frozen now.
    pub frozen: Vec<String>,
    /// `namespace/name` of pods that carry a limit of the governor's, with the limit: `default/a memory.high 64 MiB`.
    pub throttled: Vec<String>,
    /// What this machine does not offer, each with its remedy.
    pub degraded: Vec<String>,
}

/// A signal that is not calm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SignalLine {
    /// One of [`crate::metrics::governor::SIGNALS`].
    pub signal: String,
    /// `warn`, `act`, `emergency`.
    pub level: String,
    /// In words with unit: `12 %`, `340 ms`.
    pub value: String,
}

/// One thing the governor did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ActionLine {
    /// How long ago.
    pub seconds_ago: u64,
    /// `freeze`, `evict`, …
    pub action: String,
    /// `namespace/name`, or the slice.
    pub target: String,
    /// The signal with its numbers.
    pub reason: String,
    /// `ok`, `failed`, `suppressed: rate_limit`.
    pub result: String,
}

/// One part of the node: bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReservationLine {
    /// `system`, `runtime`, `agent`, `kubepods`, `burstable`, `besteffort`.
    pub part: String,
    /// What the plan sets aside for it, or allows it.
    pub planned: u64,
    /// What was measured at the start, where that decided.
    pub measured: Option<u64>,
    /// What the kernel promises it (`memory.min`), if anything.
    pub min: Option<u64>,
    /// Where it is braked (`memory.high`).
    pub high: Option<u64>,
    /// What the kernel holds it to (`memory.max`).
    pub max: Option<u64>,
    /// What it uses now (working set).
    pub used: Option<u64>,
}

/// One tunnel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Link {
    pub server: String,
    /// `connected`, or why not.
    pub state: String,
    /// Seconds since the server last proved that it lives; none before the first time.
    pub last_proof_seconds: Option<u64>,
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
    /// Undoes every brake and freeze of the governor now. Says what was undone, or why that is not known.
    fn release(&self) -> Result<Released, String>;
}

/// What `governor release` undid.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Released {
    /// Groups or pods, each with what was undone on it.
    pub undone: Vec<String>,
    /// What could not be undone, and why.
    pub failed: Vec<String>,
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
                crate::task::spawn(serve::connection(socket, handler, stop.clone()));
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
            if found.is_empty() { serve::text(StatusCode::NOT_FOUND, format!("no pod {pod} on this node\n")) } else { serve::json(&found) }
        }
        (&Method::POST, "/governor/release") => match source.release() {
            Ok(released) => serve::json(&released),
            Err(why) => serve::text(StatusCode::INTERNAL_SERVER_ERROR, why + "\n"),
        },
        (_, "/status" | "/why" | "/governor/release") => serve::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed\n"),
        _ => serve::text(StatusCode::NOT_FOUND, "404: Page Not Found\n"),
    }
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
                links: vec![Link { server: "10.0.0.1:6443".into(), state: "connected".into(), last_proof_seconds: Some(4) }],
                pods: vec![PodLine {
                    namespace: "default".into(),
                    name: "web".into(),
                    phase: "Running".into(),
                    ready: true,
                    ..PodLine::default()
                }],
                ..Status::default()
            }
        }

        fn why(&self, pod: &str) -> Vec<Why> {
            let known = pod == "web" || pod == "default/web";
            let why = Why { namespace: "default".into(), name: "web".into(), decision: "nothing to do".into(), ..Why::default() };
            known.then_some(why).into_iter().collect()
        }

        fn release(&self) -> Result<Released, String> {
            Ok(Released { undone: vec!["default/web memory.high".into()], failed: Vec::new() })
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
        let server = crate::task::spawn(serve(listener, Arc::new(Fixed), stopped));

        let mut out = Vec::new();
        client_status(dir.path(), true, false, &mut out).await.expect("answers");
        assert_eq!(serde_json::from_slice::<Status>(&out).expect("json"), Fixed.status());
        let mut out = Vec::new();
        client_status(dir.path(), false, false, &mut out).await.expect("answers");
        let text = String::from_utf8(out).expect("utf-8");
        assert!(
            text.contains("n1 (Ready)")
                && text.contains("default/web")
                && text.contains("10.0.0.1:6443 connected, last proof of life 4 s ago"),
            "{text}"
        );
        let mut out = Vec::new();
        client_why(dir.path(), "default/web", false, &mut out).await.expect("answers");
        assert!(String::from_utf8(out).expect("utf-8").contains("nothing to do"));
        let refused = client_why(dir.path(), "other pod&x", false, &mut Vec::new()).await.expect_err("no such pod");
        assert_eq!(refused.to_string(), "no pod other pod&x on this node");

        let released = client_release(dir.path()).await.expect("answers").expect("an agent runs");
        assert_eq!(released.undone, ["default/web memory.high"]);

        stop.send(true).expect("server listens");
        server.await.expect("joins");
    }

    #[tokio::test]
    async fn no_agent_is_said_so() {
        let dir = tempfile::tempdir().expect("tempdir");
        let error = client_status(dir.path(), false, false, &mut Vec::new()).await.expect_err("nobody there");
        assert!(error.to_string().contains("is it running?"), "{error}");
        assert_eq!(client_release(dir.path()).await.expect("no error"), None, "somebody else has to undo it");
    }
}
