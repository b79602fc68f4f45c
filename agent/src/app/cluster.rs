//! Who we are to the cluster, and which servers there are: joined or loaded, kept fresh while the agent runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio_rustls::rustls::ClientConfig;
use tunnel::link::LinkState;
use tunnel::renewal::{self, Clock};
use tunnel::{Identity, JoinOptions, ServerAddr, Token, balancer, identity, tls};

use crate::api::Client;
use crate::backoff::jitter;
use crate::clock;
use crate::config::Config;
use crate::join::token_text;
use crate::kubelet::Credentials;
use crate::node::address;

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
    start: Start,
    /// The list of servers comes from a watch: nobody needs to fetch it.
    followed: Arc<AtomicBool>,
}

/// What the identity is worth at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Just joined.
    Fresh,
    /// From disk and valid. The server is asked again soon: its configuration may have changed.
    Stored,
    /// From disk and ran out. No server is asked for anything else before it is renewed; pods run.
    Expired,
    /// From disk, and the clock shows a time before it was made. No server is asked for anything before the clock is set.
    ClockBehind { made: SystemTime },
}

impl Start {
    /// An identity from disk: when it was made and when it ends, if that can be read.
    fn judge(made: SystemTime, ends: Option<SystemTime>, now: SystemTime) -> Start {
        if now < made {
            Start::ClockBehind { made }
        } else if ends.is_some_and(|ends| ends > now) {
            Start::Stored
        } else {
            Start::Expired
        }
    }

    /// Whether servers may be asked and linked to from the first moment. Links and API clients wait for a list of servers.
    fn asks_at_once(self) -> bool {
        match self {
            Start::Fresh | Start::Stored => true,
            Start::Expired | Start::ClockBehind { .. } => false,
        }
    }

    /// One line for whoever wonders why the node is silent.
    fn tell(self, identity: &Identity) {
        let text = |time: SystemTime| clock::seconds(OffsetDateTime::from(time));
        match self {
            Start::Fresh | Start::Stored => {}
            Start::Expired => {
                let ended = identity.expires().map(text).unwrap_or_default();
                tracing::warn!(ended, "the certificates of this node ran out; it joins again with its token, known pods run meanwhile");
            }
            Start::ClockBehind { made } => {
                let (clock, made) = (text(SystemTime::now()), text(made));
                tracing::warn!(
                    clock,
                    made,
                    "the clock is behind the time this node joined: waiting for it to be set, known pods run meanwhile"
                );
            }
        }
    }
}

impl Cluster {
    /// The identity on disk where there is one, so that a start needs no network; else joins, for as long as trying again can
    /// help.
    pub(super) async fn join(config: &Config) -> anyhow::Result<Cluster> {
        let configured = ServerAddr::from_url(&config.server)?;
        let stored = match identity::load(&config.data_dir) {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!(error = %crate::telemetry::chain(&error), "identity on disk cannot be used, joining anew");
                None
            }
        };
        let (identity, node_ips, start) = match stored {
            Some(identity) => {
                let start = Start::judge(identity.not_before(), identity.expires().ok(), SystemTime::now());
                start.tell(&identity);
                (identity, address::find(config, Some(&configured)), start)
            }
            None => {
                let (identity, ips) = join_patiently(config, &configured).await?;
                (identity, ips, Start::Fresh)
            }
        };
        if !node_ips.is_empty() {
            identity.config.check(&node_ips).map_err(|text| crate::config::Problems(vec![text]))?;
        }
        let servers = if start.asks_at_once() { known_servers(config, &configured) } else { Vec::new() };
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
            start,
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

    /// Renews certificates and the list of servers for ever. `clients` have connections that shall not outlive the identity they
    /// were made with.
    pub(super) async fn keep(self, config: Arc<Config>, links: watch::Receiver<BTreeMap<ServerAddr, LinkState>>, clients: Vec<Client>) {
        match self.start {
            Start::Fresh | Start::Stored => tokio::time::sleep(jitter(Duration::from_secs(10))).await,
            Start::Expired => {}
            Start::ClockBehind { made } => {
                clock::reached(made, &SystemTime::now).await;
                tracing::info!("the clock was set");
                self.admit(&config);
            }
        }
        let identity = watch::Sender::new(self.identity.clone());
        let options = renewal::Options {
            fraction: config.certificate_renewal,
            clock: Clock::system(),
            at_once: self.start != Start::Fresh,
            fresh: self.start == Start::Fresh,
            wake: Arc::new(Notify::new()),
            // A node whose certificates count for nothing does not wait long; the others have weeks.
            retry: (Duration::from_secs(5), Duration::from_secs(if self.start == Start::Expired { 30 } else { 600 })),
        };
        let wake = Arc::clone(&options.wake);
        let certificates = self.identity.validities().unwrap_or_default();
        let renew = || async {
            let renewed = self.join_again(&config, &clients).await.map_err(|error| format!("{error:#}"))?;
            if renewed.config != identity.borrow().config {
                tracing::warn!("the server's configuration changed; restart the agent to use it (pods keep running)");
            }
            let validities = renewed.validities().map_err(|error| error.to_string())?;
            let until = validities.iter().map(|v| v.until).min().map(|until| clock::seconds(OffsetDateTime::from(until)));
            tracing::info!(until = until.unwrap_or_default(), "certificates renewed");
            identity.send_replace(renewed);
            self.admit(&config);
            Ok(validities)
        };
        tokio::join!(
            renewal::keep(options, certificates, renew),
            self.keep_servers(&config, &identity, links, &wake),
            self.follow_clock(&wake),
        );
    }

    /// From now on servers may be asked.
    fn admit(&self, config: &Config) {
        self.servers.send_if_modified(|servers| {
            let closed = servers.is_empty();
            if closed {
                *servers = known_servers(config, &self.configured);
            }
            closed
        });
    }

    /// Certificates that ran out by a clock that is ahead are good again once it is set.
    async fn follow_clock(&self, wake: &Notify) {
        while self.servers.borrow().is_empty() {
            if clock::set_within(Duration::from_secs(60)).await {
                wake.notify_one();
            }
        }
    }

    /// The list of servers: after the start, when a link changes, and every hour.
    async fn keep_servers(
        &self,
        config: &Config,
        identity: &watch::Sender<Identity>,
        mut links: watch::Receiver<BTreeMap<ServerAddr, LinkState>>,
        wake: &Notify,
    ) {
        loop {
            if !self.servers.borrow().is_empty() && !self.followed.load(Ordering::Relaxed) {
                let identity = identity.borrow().clone();
                self.refresh_servers(config, &identity).await;
            }
            tokio::select! {
                () = tokio::time::sleep(jitter(SERVERS_EVERY)) => {}
                changed = links.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // A lost link may mean that the list is old; one that came back, that it can be asked.
                    tokio::time::sleep(jitter(Duration::from_secs(2))).await;
                    links.mark_unchanged();
                    wake.notify_one();
                }
            }
        }
    }

    async fn join_again(&self, config: &Config, clients: &[Client]) -> anyhow::Result<Identity> {
        let ips = if self.node_ips.is_empty() { address::find(config, Some(&self.configured)) } else { self.node_ips.clone() };
        let renewed = identity::join(&options(config, &self.configured, &ips)?).await?;
        let (node, tunnel, controller) = tls_of(&renewed)?;
        self.credentials.send_replace(Credentials::new(&renewed.kubelet_serving, &renewed.client_ca)?);
        self.node_tls.send_replace(node);
        self.controller_tls.send_replace(controller);
        // The links open anew with this; watches begin again where they were.
        self.tunnel_tls.send_replace(tunnel);
        for client in clients {
            client.reconnect().await;
        }
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

fn known_servers(config: &Config, configured: &ServerAddr) -> Vec<ServerAddr> {
    let known = balancer::load(&config.data_dir, configured).unwrap_or_default();
    if known.is_empty() { vec![configured.clone()] } else { known }
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
        let mut clock_is_wrong = false;
        let problem = if ips.is_empty() {
            "this machine has no address yet that other nodes could reach; connect it, or set node-ip".to_owned()
        } else {
            match identity::join(&options(config, server, &ips)?).await {
                Ok(identity) => return Ok((identity, ips)),
                Err(error) if error.is_retryable() => {
                    clock_is_wrong = error.is_clock();
                    crate::telemetry::chain(&error)
                }
                Err(error) => return Err(error.into()),
            }
        };
        // K3s waits 5 to 10 s, for ever; the same words are not logged twice in a row.
        if problem != last {
            if clock_is_wrong {
                tracing::warn!(server = %server, error = %problem, "not joined yet, waiting for the clock to be set");
            } else {
                tracing::warn!(server = %server, error = %problem, "not joined yet, retrying");
            }
            last = problem;
        }
        if clock_is_wrong {
            // The server's clock may be the wrong one, so it is asked again now and then.
            clock::set_within(Duration::from_secs(300)).await;
        } else {
            tokio::time::sleep(jitter(Duration::from_secs(8))).await;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_asked_with_an_identity_that_is_not_valid_by_the_clock() {
        let day = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(n * 86_400);
        let (made, ends) = (day(100), day(465));
        let behind = Start::ClockBehind { made };
        for (now, ends, start, asks) in [
            (day(0), Some(ends), behind, false),
            (day(99), Some(ends), behind, false),
            (day(99), None, behind, false),
            (day(100), Some(ends), Start::Stored, true),
            (day(464), Some(ends), Start::Stored, true),
            (day(465), Some(ends), Start::Expired, false),
            (day(9000), Some(ends), Start::Expired, false),
            (day(200), None, Start::Expired, false),
        ] {
            let seen = Start::judge(made, ends, now);
            assert_eq!((seen, seen.asks_at_once()), (start, asks), "{now:?}");
        }
        assert!(Start::Fresh.asks_at_once());
    }
}
