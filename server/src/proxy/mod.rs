//! What users ask of a pod or node and the node's kubelet server answers: logs, exec, attach, port-forward, proxy.
//!
//! Every request goes through the node's tunnel, as TLS client `system:apiserver` of the kubelet server behind it,
//! and the two byte streams are joined. Nothing here looks into the streams.

pub mod kubelet;
mod log;
mod node;
pub mod query;
mod stream;
mod target;

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, Response};

use crate::api::{ApiStatus, Registry};
use crate::auth::Identity;
use crate::http::{Body, Handled, RequestInfo, error_response};
use kubelet::Kubelets;
use stream::Streaming;

/// The streaming subresources.
pub struct Proxy {
    /// For pods and nodes.
    pub registry: Arc<Registry>,
    /// The way to the nodes.
    pub kubelets: Kubelets,
}

impl Proxy {
    /// Takes the request if its subresource is one of these.
    pub fn handle(self: &Arc<Self>, info: RequestInfo, request: Request<Incoming>, _: &Identity) -> Handled {
        let this = self.clone();
        match (info.resource.as_str(), info.subresource.as_str()) {
            ("pods", "log") => answer(async move { log::serve(&this, &info, request).await }),
            ("pods", "exec") => answer(async move { stream::serve(&this, Streaming::Exec, &info, request).await }),
            ("pods", "attach") => answer(async move { stream::serve(&this, Streaming::Attach, &info, request).await }),
            ("pods", "portforward") => answer(async move { stream::serve(&this, Streaming::PortForward, &info, request).await }),
            ("nodes", "proxy") => answer(async move { node::serve(&this, &info, request).await }),
            _ => Handled::NotMine(request),
        }
    }
}

fn answer(work: impl Future<Output = Result<Response<Body>, ApiStatus>> + Send + 'static) -> Handled {
    Handled::Response(Box::pin(async move {
        match work.await {
            Ok(response) => response,
            Err(status) => error_response(&status),
        }
    }))
}
