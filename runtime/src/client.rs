//! The connection to the runtime. One lazy HTTP/2 channel over a unix socket, shared by CRI and by containerd's own
//! services; it reconnects by itself, so the agent may start before containerd and survives its restarts.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use crate::cri;
use crate::cri::image_service_client::ImageServiceClient;
use crate::cri::runtime_service_client::RuntimeServiceClient;
use crate::starts::{Place, Starts};
use crate::{Error, Result};

/// Deadline of a plain call; the kubelet's `runtimeRequestTimeout`.
pub const CALL: Duration = Duration::from_secs(120);
/// Deadline of RunPodSandbox: twice the plain one, because the network plugins run inside it.
pub const RUN_SANDBOX: Duration = Duration::from_secs(240);
/// Largest message in either direction; the kubelet's limit.
const MESSAGE_LIMIT: usize = 16 << 20;

/// A cheap handle on the runtime behind one socket. Every verb has a deadline except `pull_image`.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    socket: Arc<Path>,
    starts: Starts,
}

impl Client {
    /// A client of the runtime listening on the unix socket `socket`. Connects on first use and again after every
    /// break; never fails here. Must be called inside a tokio runtime, which drives the connection.
    pub fn connect(socket: &Path) -> Self {
        let target = socket.to_path_buf();
        // The address is never used: the connector below knows the way.
        let channel = Endpoint::from_static("http://[::]").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let target: PathBuf = target.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(target).await?)) }
        }));
        Self { channel, socket: socket.into(), starts: Starts::new() }
    }

    /// The unix socket this client talks to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The shared channel, for containerd's own services.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Leave to start a command in a container, as soon as not too many others are starting.
    pub async fn place_to_start(&self) -> Place {
        self.starts.place().await
    }

    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT)
    }

    pub(crate) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// Name and version of the runtime, and the CRI version it speaks.
    pub async fn version(&self) -> Result<cri::VersionResponse> {
        let request = cri::VersionRequest { version: "v1".into() };
        unary("Version", "", CALL, request, |r| async move { self.runtime().version(r).await }).await
    }

    /// Readiness of the runtime and of its network, with conditions `RuntimeReady` and `NetworkReady`.
    pub async fn status(&self) -> Result<cri::StatusResponse> {
        let request = cri::StatusRequest { verbose: false };
        unary("Status", "", CALL, request, |r| async move { self.runtime().status(r).await }).await
    }

    /// The directory containerd reads network configuration from; `None` for a runtime that does not say.
    pub async fn cni_conf_dir(&self) -> Result<Option<PathBuf>> {
        let request = cri::StatusRequest { verbose: true };
        let answer = unary("Status", "", CALL, request, |r| async move { self.runtime().status(r).await }).await?;
        Ok(answer.info.get("config").and_then(|config| conf_dir_of(config)))
    }

    /// Tells the runtime this node's pod address range. containerd uses it only with a CNI template configured.
    pub async fn update_runtime_config(&self, pod_cidr: &str) -> Result<()> {
        let request = cri::UpdateRuntimeConfigRequest {
            runtime_config: Some(cri::RuntimeConfig { network_config: Some(cri::NetworkConfig { pod_cidr: pod_cidr.to_owned() }) }),
        };
        unary("UpdateRuntimeConfig", pod_cidr, CALL, request, |r| async move { self.runtime().update_runtime_config(r).await }).await?;
        Ok(())
    }

    /// The cgroup driver the runtime uses; `None` where it does not say (containerd before 2.0).
    pub async fn cgroup_driver(&self) -> Result<Option<cri::CgroupDriver>> {
        let answer =
            unary("RuntimeConfig", "", CALL, cri::RuntimeConfigRequest {}, |r| async move { self.runtime().runtime_config(r).await }).await;
        match answer {
            Ok(config) => Ok(config.linux.map(|linux| linux.cgroup_driver())),
            Err(e) if e.code() == Some(Code::Unimplemented) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// `cni.confDir` in the configuration containerd shows of itself.
fn conf_dir_of(config: &str) -> Option<PathBuf> {
    let config: serde_json::Value = serde_json::from_str(config).ok()?;
    let dir = config.get("cni")?.get("confDir")?.as_str()?;
    (!dir.is_empty()).then(|| PathBuf::from(dir))
}

/// What containerd's CRI service says of itself until it has loaded its sandboxes and containers.
pub(crate) const STARTING: &str = "server is not initialized yet";

/// Sends one request with a deadline, which the runtime is told as well, so that it stops working for nobody.
pub(crate) async fn unary<Q, A, F>(
    verb: &'static str,
    subject: &str,
    limit: Duration,
    request: Q,
    send: impl FnOnce(Request<Q>) -> F,
) -> Result<A>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let mut request = Request::new(request);
    request.set_timeout(limit);
    // Ours ends a little later: the runtime's own answer says more.
    match tokio::time::timeout(limit.saturating_add(Duration::from_secs(1)), send(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(failed(verb, subject, status)),
        Err(_) => Err(Error::Deadline { verb, subject: subject.to_owned(), limit }),
    }
}

pub(crate) fn failed(verb: &'static str, subject: &str, status: Status) -> Error {
    let status = match connection_trouble(&status) {
        Some(trouble) => Status::unavailable(trouble),
        // containerd answers so between opening its socket and loading what it has; the code it gives is Unknown.
        None if status.message().contains(STARTING) => Status::unavailable(format!("the runtime is starting: {STARTING}")),
        None => status,
    };
    Error::Call { verb, subject: subject.to_owned(), status: Box::new(status) }
}

/// A status made on this side, because the connection could not be made or broke, has a cause; one the runtime sent has
/// none. tonic gives the former various codes and the words "transport error".
fn connection_trouble(status: &Status) -> Option<String> {
    let mut cause = std::error::Error::source(status)?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(format!("no connection to the runtime: {cause}"))
}

/// A request of one of containerd's own services, to the namespace that its CRI service works in.
pub(crate) fn in_namespace<T>(mut request: Request<T>) -> Request<T> {
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static("k8s.io"));
    request
}

/// Stopping or removing what is gone is done.
pub(crate) fn gone_is_done<T: Default>(answer: Result<T>) -> Result<()> {
    match answer {
        Ok(_) => Ok(()),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_directory_is_what_containerd_says() {
        let shown = r#"{"containerd":{"snapshotter":"overlayfs"},"cni":{"binDir":"/usr/lib/cni","confDir":"/var/lib/edge-agent/agent/etc/cni/net.d","maxConfNum":1}}"#;
        assert_eq!(conf_dir_of(shown), Some(PathBuf::from("/var/lib/edge-agent/agent/etc/cni/net.d")));
        for other in ["", "{}", r#"{"cni":{}}"#, r#"{"cni":{"confDir":""}}"#, r#"{"cni":{"confDir":1}}"#] {
            assert_eq!(conf_dir_of(other), None, "{other}");
        }
    }
}
