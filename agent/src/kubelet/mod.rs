//! The kubelet port: what the API server, metrics-server and people ask of a node.
//!
//! ```text
//! API server ──(tunnel)──┐ door
//! metrics-server ────────┴─► TLS ─► who? (tls, auth) ─► may they? (auth) ─► which? (router) ─► answer
//!                                              pods: View · logs: files · usage: cgroups · exec…: splice to the runtime
//! ```
//!
//! HTTP/1.1 only, kept alive. Beside it a plain listener on loopback answers `/healthz` to anybody.

pub mod auth;
mod cadvisor;
mod door;
mod health;
mod log_stream;
pub mod logs;
mod pods;
pub mod router;
pub mod serve;
pub mod stats;
pub mod stream;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tunnel::link::BoxStream;

use self::auth::{Attributes, Authority, Refusal};
use self::router::{Miss, Route};
use self::serve::Body;
use crate::config::Config;
use crate::metrics::{self, Metrics};
use crate::{api, pod};

pub use door::Door;
pub use tls::Credentials;

/// A client that does not finish the TLS handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Health checks at a time.
const HEALTH_CONNECTIONS: usize = 16;

/// What the server works with.
pub struct Deps {
    pub config: Arc<Config>,
    /// The node's own identity, for reviews.
    pub api: api::Client,
    pub runtime: runtime::Client,
    pub view: pod::View,
    pub pod_tree: Arc<cgroup::PodTree>,
    pub metrics: Arc<Metrics>,
    /// Replaced when certificates are renewed.
    pub credentials: watch::Receiver<Credentials>,
}

/// Both listeners, bound.
pub struct Server {
    /// Where the kubelet port really is.
    pub addr: SocketAddr,
    /// Where health is, if anywhere.
    pub health_addr: Option<SocketAddr>,
    /// For what comes through the tunnel.
    pub door: Door,
    guests: mpsc::Receiver<DuplexStream>,
    listener: TcpListener,
    health: Option<TcpListener>,
    inner: Arc<Inner>,
}

/// What every request may use.
pub(crate) struct Inner {
    pub(crate) config: Arc<Config>,
    pub(crate) runtime: runtime::Client,
    pub(crate) view: pod::View,
    pub(crate) pod_tree: Arc<cgroup::PodTree>,
    metrics: Arc<Metrics>,
    credentials: watch::Receiver<Credentials>,
    authority: Authority,
    pub(crate) rates: stats::Rates,
}

async fn listen(what: &str, addr: SocketAddr, key: &str) -> Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .with_context(|| format!("{what} cannot listen on {addr}; is another kubelet running? choose another with {key}"))
}

impl Server {
    /// Binds the addresses that the configuration names; port 0 lets the kernel choose.
    pub async fn bind(deps: Deps) -> Result<Self> {
        let config = &deps.config;
        let addr = SocketAddr::new(config.kubelet_address, config.kubelet_port);
        let listener = listen("kubelet server", addr, "kubelet-arg: port=").await?;
        let health = match config.healthz_address {
            Some(addr) => Some(listen("health check", addr, "kubelet-arg: healthz-port=").await?),
            None => None,
        };
        let health_addr = health.as_ref().map(TcpListener::local_addr).transpose()?;
        let addr = listener.local_addr()?;
        deps.metrics.collect(Box::new(metrics::Pods::new(&config.node_name, deps.view.clone())));
        let authority = Authority::new(&config.node_name, deps.api);
        let inner = Inner {
            config: deps.config,
            runtime: deps.runtime,
            view: deps.view,
            pod_tree: deps.pod_tree,
            metrics: deps.metrics,
            credentials: deps.credentials,
            authority,
            rates: stats::Rates::default(),
        };
        let (door, guests) = Door::new(addr.port());
        Ok(Self { addr, health_addr, door, guests, listener, health, inner: Arc::new(inner) })
    }

    /// Serves until `stop`; open streams end with the process.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let Self { listener, guests, health, inner, .. } = self;
        let metrics = Arc::clone(&inner.metrics);
        let health = async {
            if let Some(health) = health {
                let handler = move |request: Request<Incoming>| std::future::ready(health::answer(metrics.pulse(), &request));
                serve::plain(health, HEALTH_CONNECTIONS, handler, stop.clone()).await;
            }
        };
        tokio::join!(health, door::accept(listener, guests, inner, stop.clone()));
    }
}

async fn serve_tls(stream: BoxStream, inner: Arc<Inner>, stop: watch::Receiver<bool>) -> Result<()> {
    let server = Arc::clone(&inner.credentials.borrow().server);
    let stream = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(server).accept(stream)).await??;
    let chain: Arc<[CertificateDer<'static>]> =
        stream.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|der| der.clone().into_owned()).collect();
    let handler = move |request| handle(Arc::clone(&inner), Arc::clone(&chain), request);
    serve::connection(stream, handler, stop).await;
    Ok(())
}

async fn handle(inner: Arc<Inner>, chain: Arc<[CertificateDer<'static>]>, request: Request<Incoming>) -> Response<Body> {
    let ca = inner.credentials.borrow().clients.clone();
    let checked = async {
        let caller = inner.authority.authenticate(&ca, &chain, request.headers()).await?;
        let attributes = Attributes::of(request.method(), request.uri().path());
        inner.authority.authorize(&caller, &attributes).await?;
        Ok(caller)
    };
    match checked.await {
        Ok(caller) => tracing::debug!(user = caller.user, method = %request.method(), path = request.uri().path(), "request"),
        Err(refusal) => {
            tracing::debug!(?refusal, path = request.uri().path(), "request refused");
            return match refusal {
                Refusal::Unauthenticated => serve::text(StatusCode::UNAUTHORIZED, "Unauthorized"),
                Refusal::Forbidden(words) => serve::text(StatusCode::FORBIDDEN, words),
                Refusal::Undecided(words) => serve::text(StatusCode::INTERNAL_SERVER_ERROR, words),
            };
        }
    }
    match router::route(request.method(), request.uri().path()) {
        Ok(route) => dispatch(inner, route, request).await,
        Err(Miss::NoSuchPath) => serve::text(StatusCode::NOT_FOUND, "404: Page Not Found"),
        Err(Miss::WrongMethod) => serve::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"),
    }
}

async fn dispatch(inner: Arc<Inner>, route: Route, request: Request<Incoming>) -> Response<Body> {
    match route {
        Route::Health => health::answer(inner.metrics.pulse(), &request),
        Route::Pods => inner.pods(),
        Route::RunningPods => inner.running_pods().await,
        Route::Metrics => metrics::answer(&inner.metrics, request.headers()),
        Route::MetricsResource => inner.resource_metrics().await,
        Route::MetricsProbes => serve::answer(StatusCode::OK, metrics::Format::Classic.content_type(), inner.metrics.probes().render()),
        Route::MetricsCadvisor => inner.cadvisor_metrics().await,
        Route::StatsSummary => inner.summary(request.uri().query()).await,
        Route::Configz => inner.configz(),
        Route::ContainerLogs { pod, container } => inner.container_logs(&pod, &container, request.uri().query()).await,
        Route::Exec { pod, container } => inner.exec(&pod, &container, request).await,
        Route::Attach { pod, container } => inner.attach(&pod, &container, request).await,
        Route::PortForward { pod } => inner.port_forward(&pod, request).await,
        Route::Run { pod, container } => inner.run(&pod, &container, request.uri().query()).await,
    }
}
