//! Wiring: data directory -> keys -> store -> handlers and controllers -> listener. Read top to bottom, it is the tour.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;
use tracing::{info, warn};

use crate::api::Registry;
use crate::auth::{Actor, MASTERS};
use crate::controllers::events::Recorder;
use crate::controllers::{self, Context};
use crate::extra::Handlers;
use crate::http::{self, Server};
use crate::pki::{CertKey, Leaf, Pki, Usage, hex};
use crate::proxy::Proxy;
use crate::proxy::kubelet::Kubelets;
use crate::supervisor::Supervisor;
use crate::supervisor::config::Cluster;
use crate::tokens::{Tokens, token_file};
use crate::tunnel_server::Sessions;
use crate::{files, machine};

/// The embedded control plane of edge-agent: one server with K3s' wire protocol, for one site.
#[derive(clap::Parser, Debug, Clone)]
#[command(name = "edge-server", version)]
pub struct Options {
    /// Everything the server keeps; holds kubeconfig.yaml (for kubectl) and token (for edge-agent join)
    #[arg(long, default_value = "/var/lib/edge-server")]
    pub data_dir: PathBuf,
    /// Address and port of the API and the supervisor
    #[arg(long, default_value = "0.0.0.0:6443")]
    pub listen: SocketAddr,
    /// Address under which nodes reach this server [default: that of --listen, else that of the default route]
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// Further name or address of the serving certificate; may be repeated
    #[arg(long)]
    pub tls_san: Vec<String>,
    /// Log every step
    #[arg(long)]
    pub debug: bool,
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(options: Options) -> Result<()> {
    let (stop, stopped) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("signal handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signal handler")?;
    let serving = serve(options, stopped);
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return ended,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping");
    let _ = stop.send(true);
    serving.await
}

/// Serves until `stop` turns true.
pub async fn serve(options: Options, stop: watch::Receiver<bool>) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let data_dir = std::path::absolute(&options.data_dir).context("data directory")?;
    let tls_dir = data_dir.join("tls");
    private_dir(&data_dir)?;
    private_dir(&tls_dir)?;
    // Before anything is written: a second server on the same port should change nothing.
    let listener = bind(options.listen)
        .await
        .with_context(|| format!("listen on {}; is another server running? choose another with --listen", options.listen))?;
    let listen = listener.local_addr().context("listening address")?;

    let pki = Arc::new(Pki::open(&tls_dir, now)?);
    let token_path = data_dir.join("token");
    let password = token_file(&token_path, pki.server_ca.cert_pem()).with_context(|| format!("token file {}", token_path.display()))?;
    let cluster = Arc::new(cluster(&options, listen, data_dir.clone(), &pki));
    let kubeconfig = data_dir.join("kubeconfig.yaml");
    write_kubeconfig(&kubeconfig, listen, &pki)?;

    let database = data_dir.join("state.db");
    let registry = Registry::open(&database).with_context(|| format!("database {}", database.display()))?;
    let tokens = Arc::new(Tokens::new(password, &pki.service_key, registry.clone())?);
    let sessions = Arc::new(Sessions::default());
    let kubelets = Kubelets::new(registry.clone(), sessions.clone(), pki.clone());
    let handlers = Handlers {
        supervisor: Arc::new(Supervisor { pki: pki.clone(), registry: registry.clone(), sessions, cluster: cluster.clone() }),
        proxy: Arc::new(Proxy { registry: registry.clone(), kubelets }),
        tokens: tokens.clone(),
        registry: registry.clone(),
    };

    let context = Context {
        registry: registry.clone(),
        actor: Actor::system("kube-controller-manager"),
        events: Recorder::start(registry.clone()),
        cluster: cluster.clone(),
    };
    let client_ca_pem = pki.client_ca.cert_pem().as_bytes().to_vec();
    let root_ca = pki.server_ca.cert_pem().to_owned();
    controllers::bootstrap(&context, &root_ca).await.context("objects every cluster has")?;
    let mut running = controllers::start(&context, &root_ca, &stop);

    let certificates = Certificates { pki, cluster: cluster.clone(), asked: options.tls_san, listen, kubeconfig: kubeconfig.clone() };
    let (publish, tls) = watch::channel(certificates.serving(&machine::addresses())?);
    running.push(tokio::spawn(certificates.keep(publish, stop.clone())));
    let server = Arc::new(Server { registry, credentials: tokens, extra: Arc::new(handlers), client_ca_pem });
    info!(
        listen = %listen,
        nodes = %cluster.endpoint(),
        kubeconfig = %kubeconfig.display(),
        token = %token_path.display(),
        "serving"
    );
    http::serve(listener, tls, server, stop).await.context("listener")?;
    for task in running {
        let _ = task.await;
    }
    Ok(())
}

/// Binds; a server that was just killed may hold the port a moment longer.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let mut attempts = 0;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && attempts < 10 => attempts += 1,
            bound => return bound,
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

fn private_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("directory {}", path.display()))
}

fn cluster(options: &Options, listen: SocketAddr, data_dir: PathBuf, pki: &Pki) -> Cluster {
    let advertise =
        options.advertise_address.unwrap_or_else(|| if listen.ip().is_unspecified() { machine::main_address() } else { listen.ip() });
    // Derived, so that it stays the same without being stored.
    let psk = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA384, &pki.service_key), b"embedded registry");
    let mut cluster = Cluster {
        pods: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 42, 0, 0), 16),
        services: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 43, 0, 0), 16),
        domain: "cluster.local".to_owned(),
        advertise,
        port: listen.port(),
        server_name: machine::host_name(),
        sans: Vec::new(),
        data_dir,
        ipsec_psk: hex(psk.as_ref()),
    };
    cluster.sans = sans(&cluster, &options.tls_san, listen.ip(), &machine::addresses());
    cluster
}

/// Every name of the serving certificate, once.
fn sans(cluster: &Cluster, asked: &[String], listen: IpAddr, machine: &[IpAddr]) -> Vec<String> {
    let mut sans: Vec<String> = Vec::new();
    let short = cluster.server_name.split('.').next().unwrap_or_default();
    let fixed =
        ["127.0.0.1", "::1", "localhost", &cluster.server_name, short, "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let computed = [cluster.advertise.to_string(), format!("kubernetes.default.svc.{}", cluster.domain), cluster.service_ip(1).to_string()];
    let addresses = machine.iter().chain([&listen]).filter(|ip| !ip.is_unspecified()).map(ToString::to_string);
    let all = fixed.iter().map(|name| (*name).to_owned()).chain(computed).chain(addresses).chain(asked.iter().cloned());
    for san in all {
        if !san.is_empty() && !sans.contains(&san) {
            sans.push(san);
        }
    }
    sans
}

/// How often the machine's addresses are looked at: a bridge or a lease may come after the server.
const ADDRESS_LOOK: Duration = Duration::from_secs(30);
/// Certificates are good for a year and made anew after this.
const RENEWAL: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the server's own certificates are made from.
struct Certificates {
    pki: Arc<Pki>,
    cluster: Arc<Cluster>,
    asked: Vec<String>,
    listen: SocketAddr,
    kubeconfig: PathBuf,
}

impl Certificates {
    /// A new serving certificate for a machine with these addresses.
    fn serving(&self, machine: &[IpAddr]) -> Result<Arc<ServerConfig>> {
        let sans = sans(&self.cluster, &self.asked, self.listen.ip(), machine);
        let pair = self.pki.server_ca.issue(&serving_leaf(sans), OffsetDateTime::now_utc())?;
        http::tls_config(pair.cert_pem.as_bytes(), pair.key_pem.as_bytes())
            .map_err(anyhow::Error::from_boxed)
            .context("serving certificate")
    }

    /// Publishes a new serving certificate when the machine's addresses change, and with the admin's before they end.
    async fn keep(self, publish: watch::Sender<Arc<ServerConfig>>, mut stop: watch::Receiver<bool>) {
        let (mut known, mut since) = (machine::addresses(), Instant::now());
        loop {
            tokio::select! {
                () = tokio::time::sleep(ADDRESS_LOOK) => {}
                () = http::stopped(&mut stop) => return,
            }
            let addresses = machine::addresses();
            let old = since.elapsed() >= RENEWAL;
            if addresses == known && !old {
                continue;
            }
            let renewed = self.serving(&addresses).and_then(|tls| {
                publish.send_replace(tls);
                if old { write_kubeconfig(&self.kubeconfig, self.listen, &self.pki) } else { Ok(()) }
            });
            match renewed {
                Ok(()) => info!(addresses = addresses.len(), "serving certificate renewed"),
                Err(error) => warn!(error = format!("{error:#}"), "serving certificate not renewed"),
            }
            (known, since) = (addresses, if old { Instant::now() } else { since });
        }
    }
}

fn serving_leaf(sans: Vec<String>) -> Leaf {
    let (mut dns, mut ips) = (Vec::new(), Vec::new());
    for san in sans {
        match san.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) => dns.push(san),
        }
    }
    Leaf { common_name: "k3s".to_owned(), organization: Some("k3s".to_owned()), usage: Usage::Server, dns, ips }
}

/// Writes a kubeconfig with a new certificate for the administrator.
fn write_kubeconfig(path: &Path, listen: SocketAddr, pki: &Pki) -> Result<()> {
    let leaf = Leaf::client("system:admin", Some(MASTERS));
    let admin = pki.client_ca.issue(&leaf, OffsetDateTime::now_utc())?;
    files::write(path, kubeconfig_text(listen, pki, &admin).as_bytes(), 0o600).with_context(|| format!("kubeconfig {}", path.display()))
}

fn kubeconfig_text(listen: SocketAddr, pki: &Pki, admin: &CertKey) -> String {
    let host = match listen.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let ca = STANDARD.encode(pki.server_ca.cert_pem());
    let certificate = STANDARD.encode(&admin.cert_pem);
    let key = STANDARD.encode(&admin.key_pem);
    let port = listen.port();
    format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {ca}\n    server: https://{host}:{port}\n  name: default\n\
         contexts:\n- context:\n    cluster: default\n    user: default\n  name: default\ncurrent-context: default\nkind: Config\n\
         preferences: {{}}\nusers:\n- name: default\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::config::example;

    #[test]
    fn serving_certificate_has_every_name_k3s_has() {
        let machine = ["10.99.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let sans = sans(&example(), &["edge.example".to_owned()], "0.0.0.0".parse().unwrap(), &machine);
        for san in [
            "10.99.0.1",
            "127.0.0.1",
            "::1",
            "localhost",
            "server1",
            "10.43.0.1",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "fd00::1",
            "edge.example",
        ] {
            assert_eq!(sans.iter().filter(|present| *present == san).count(), 1, "{san}");
        }
        assert!(!sans.contains(&"0.0.0.0".to_owned()));
    }
}
