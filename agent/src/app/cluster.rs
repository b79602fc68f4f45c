//! Who we are to the cluster, and which servers there are: joined or loaded, kept fresh while the agent runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tokio::sync::watch;
use tokio_rustls::rustls::ClientConfig;
use tunnel::link::LinkState;
use tunnel::{Identity, JoinOptions, ServerAddr, Token, balancer, identity, tls};

use crate::api::Client;
use crate::backoff::{Backoff, jitter};
use crate::config::Config;
use crate::join::token_text;
use crate::kubelet::Credentials;
use crate::node::address;

/// Certificates are renewed this long before the first ends; K3s' live a year.
const RENEW_BEFORE: Duration = Duration::from_secs(90 * 24 * 3600);
/// A look at the list of servers when nothing has happened.
const SERVERS_EVERY: Duration = Duration::from_secs(3600);

/// The identity, and channels that carry its renewals.
pub(super) struct Cluster {
    pub identity: Identity,
    pub node_ips: Vec<IpAddr>,
    pub servers: watch::Sender<Vec<ServerAddr>>,
    /// `system:node`, HTTP/2.
    pub node_tls: watch::Sender<Arc<ClientConfig>>,
    /// `system:node`, HTTP/1.1 for the tunnel's upgrade.
    pub tunnel_tls: watch::Sender<Arc<ClientConfig>>,
    /// `system:k3s-controller`, HTTP/2.
    pub controller_tls: watch::Sender<Arc<ClientConfig>>,
    pub credentials: watch::Sender<Credentials>,
    pub configured: ServerAddr,
    fresh: bool,
    /// The list of servers comes from a watch: nobody needs to fetch it.
    followed: Arc<AtomicBool>,
}

impl Cluster {
    /// The identity on disk where there is one that is valid, so that a start needs no network; else joins, for as long as
    /// trying again can help.
    pub(super) async fn join(config: &Config) -> anyhow::Result<Cluster> {
        let configured = ServerAddr::from_url(&config.server)?;
        let stored = match identity::load(&config.data_dir) {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!(error = %crate::telemetry::chain(&error), "identity on disk cannot be used, joining anew");
                None
            }
        };
        let valid = stored.filter(|identity| identity.expires().is_ok_and(|until| until > SystemTime::now()));
        let (identity, node_ips, fresh) = match valid {
            Some(identity) => (identity, address::find(config, Some(&configured)), false),
            None => {
                let (identity, ips) = join_patiently(config, &configured).await?;
                (identity, ips, true)
            }
        };
        if !node_ips.is_empty() {
            identity.config.check(&node_ips).map_err(|text| crate::config::Problems(vec![text]))?;
        }
        let known = balancer::load(&config.data_dir, &configured).unwrap_or_default();
        let servers = if known.is_empty() { vec![configured.clone()] } else { known };
        let (node, tunnel, controller) = tls_of(&identity)?;
        let credentials = Credentials::new(&identity.kubelet_serving, &identity.client_ca)?;
        Ok(Cluster {
            identity,
            node_ips,
            servers: watch::Sender::new(servers),
            node_tls: watch::Sender::new(node),
            tunnel_tls: watch::Sender::new(tunnel),
            controller_tls: watch::Sender::new(controller),
            credentials: watch::Sender::new(credentials),
            configured,
            fresh,
            followed: Arc::default(),
        })
    }

    /// Fills in what only the server knows.
    pub(super) fn complete(&self, config: &mut Config) {
        let server = &self.identity.config;
        if config.cluster_dns.is_empty() {
            config.cluster_dns.clone_from(&server.cluster_dns);
        }
        if config.cluster_domain.is_empty() {
            config.cluster_domain.clone_from(&server.cluster_domain);
        }
        if config.node_ips.is_empty() {
            config.node_ips.clone_from(&self.node_ips);
        }
        if config.resolv_conf.as_os_str().is_empty() {
            config.resolv_conf = crate::node::resolver::choose(&config.data_dir);
        }
        if !server.system_default_registry.is_empty() && config.pause_image == crate::config::DEFAULT_PAUSE_IMAGE {
            config.pause_image = format!("{}/{}", server.system_default_registry, config.pause_image);
        }
    }

    /// What following the list of servers needs.
    pub(super) fn server_list(&self, config: &Config, controller: Client) -> super::server_list::Deps {
        let server = &self.identity.config;
        super::server_list::Deps {
            controller,
            servers: self.servers.clone(),
            followed: Arc::clone(&self.followed),
            data_dir: config.data_dir.clone(),
            configured: self.configured.clone(),
            port: (server.supervisor_port != server.https_port).then_some(server.supervisor_port),
        }
    }

    /// Renews certificates and the list of servers for ever.
    pub(super) async fn keep(self, config: Arc<Config>, mut links: watch::Receiver<BTreeMap<ServerAddr, LinkState>>) {
        let mut identity = self.identity.clone();
        // After a start from disk the server is asked again soon: its configuration may have changed.
        let mut join_due = !self.fresh;
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(600));
        let mut settled = jitter(Duration::from_secs(10));
        loop {
            tokio::select! {
                () = tokio::time::sleep(settled) => {}
                changed = links.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // A lost link may mean that the list is old; one that came back, that it can be asked.
                    tokio::time::sleep(jitter(Duration::from_secs(2))).await;
                    links.mark_unchanged();
                }
            }
            settled = jitter(SERVERS_EVERY);
            let ends_soon = identity.expires().is_ok_and(|until| until < SystemTime::now() + RENEW_BEFORE);
            if join_due || ends_soon {
                match self.join_again(&config).await {
                    Ok(renewed) => {
                        backoff.reset();
                        join_due = false;
                        if renewed.config != identity.config {
                            tracing::warn!("the server's configuration changed; restart the agent to use it (pods keep running)");
                        }
                        identity = renewed;
                    }
                    Err(error) => {
                        tracing::debug!(error = %format!("{error:#}"), "not joined again yet");
                        settled = backoff.next_wait();
                        continue;
                    }
                }
            }
            if !self.followed.load(Ordering::Relaxed) {
                self.refresh_servers(&config, &identity).await;
            }
        }
    }

    async fn join_again(&self, config: &Config) -> anyhow::Result<Identity> {
        let ips = if self.node_ips.is_empty() { address::find(config, Some(&self.configured)) } else { self.node_ips.clone() };
        let renewed = identity::join(&options(config, &self.configured, &ips)?).await?;
        let (node, tunnel, controller) = tls_of(&renewed)?;
        self.credentials.send_replace(Credentials::new(&renewed.kubelet_serving, &renewed.client_ca)?);
        self.node_tls.send_replace(node);
        self.tunnel_tls.send_replace(tunnel);
        self.controller_tls.send_replace(controller);
        tracing::info!("identity renewed");
        Ok(renewed)
    }

    async fn refresh_servers(&self, config: &Config, identity: &Identity) {
        let known = self.servers.borrow().clone();
        for server in known.iter().chain([&self.configured]) {
            let Ok(supervisor) = identity.supervisor(server) else { continue };
            match supervisor.apiservers().await {
                Ok(list) if !list.is_empty() => {
                    if known != list {
                        tracing::info!(servers = ?list, "list of servers changed");
                        if let Err(error) = balancer::save(&config.data_dir, &self.configured, &list) {
                            tracing::warn!(error = %crate::telemetry::chain(&error), "list of servers not saved");
                        }
                        self.servers.send_replace(list);
                    }
                    return;
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(server = %server, error = %error, "list of servers not fetched"),
            }
        }
    }
}

fn options(config: &Config, server: &ServerAddr, node_ips: &[IpAddr]) -> anyhow::Result<JoinOptions> {
    let token = match token_text(config) {
        Ok(text) => Some(Token::parse(&text).context("reading the token")?),
        // A joined node proves itself with its certificate.
        Err(_) if config.token.is_none() && config.token_file.is_none() => None,
        Err(error) => return Err(error),
    };
    Ok(JoinOptions {
        server: server.clone(),
        token,
        data_dir: config.data_dir.clone(),
        node_name: config.node_name.clone(),
        node_ips: node_ips.iter().chain(&config.node_external_ips).copied().collect(),
        node_password_file: config.node_password_file.clone(),
    })
}

async fn join_patiently(config: &Config, server: &ServerAddr) -> anyhow::Result<(Identity, Vec<IpAddr>)> {
    let mut last = String::new();
    loop {
        let ips = address::find(config, Some(server));
        let problem = if ips.is_empty() {
            "this machine has no address yet that other nodes could reach; connect it, or set node-ip".to_owned()
        } else {
            match identity::join(&options(config, server, &ips)?).await {
                Ok(identity) => return Ok((identity, ips)),
                Err(error) if error.is_retryable() => crate::telemetry::chain(&error),
                Err(error) => return Err(error.into()),
            }
        };
        // K3s waits 5 to 10 s, for ever; the same words are not logged twice in a row.
        if problem != last {
            tracing::warn!(server = %server, error = %problem, "not joined yet, retrying");
            last = problem;
        }
        tokio::time::sleep(jitter(Duration::from_secs(8))).await;
    }
}

type TlsConfigs = (Arc<ClientConfig>, Arc<ClientConfig>, Arc<ClientConfig>);

fn tls_of(identity: &Identity) -> anyhow::Result<TlsConfigs> {
    Ok((
        tls::client_config(&identity.server_ca, Some(&identity.kubelet_client), &["h2"])?,
        tls::client_config(&identity.server_ca, Some(&identity.kubelet_client), &["http/1.1"])?,
        tls::client_config(&identity.server_ca, Some(&identity.controller), &["h2"])?,
    ))
}
