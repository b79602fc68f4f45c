//! The links to the servers and the bytes of all connections to them, read where they are counted at each scrape.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use tokio::sync::watch;
use tunnel::ServerAddr;
use tunnel::link::LinkState;
use tunnel::traffic::{Proof, Traffic};

/// Bytes by what they are for. The class names one connection each, but for the tunnel's.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// Links of the tunnel, with what goes through them.
    pub tunnel: Arc<Traffic>,
    /// Renewals of the node lease.
    pub lease: Arc<Traffic>,
    /// Watches, status, events: everything as the node.
    pub api: Arc<Traffic>,
    /// As the controller: routes and the list of servers.
    pub controller: Arc<Traffic>,
}

/// `edge_agent_tunnel_link_up`, `edge_agent_tunnel_last_proof_age_seconds`, `edge_agent_wire_bytes_total`.
#[derive(Debug)]
pub struct Links {
    /// State of every link.
    pub states: watch::Receiver<BTreeMap<ServerAddr, LinkState>>,
    /// Last sign of life of every server.
    pub proofs: watch::Receiver<BTreeMap<ServerAddr, Arc<Proof>>>,
    /// All bytes.
    pub wire: Wire,
}

impl Collector for Links {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help = "Whether the tunnel link to a server is up";
        let mut up = encoder.encode_descriptor("edge_agent_tunnel_link_up", help, None, MetricType::Gauge)?;
        for (server, state) in self.states.borrow().iter() {
            let server = server.to_string();
            up.encode_family(&[("server", server.as_str())])?.encode_gauge(&u64::from(*state == LinkState::Connected))?;
        }
        let help = "Time since a server last proved, by an answer of its session, that its tunnel link lives";
        let mut age = encoder.encode_descriptor("edge_agent_tunnel_last_proof_age_seconds", help, None, MetricType::Gauge)?;
        let now = Instant::now();
        for (server, proof) in self.proofs.borrow().iter() {
            let Some(seconds) = proof.age(now) else { continue };
            let server = server.to_string();
            age.encode_family(&[("server", server.as_str())])?.encode_gauge(&seconds.as_secs_f64())?;
        }
        let help = "Bytes of the connections to servers, TLS included, TCP and IP headers not";
        let mut bytes = encoder.encode_descriptor("edge_agent_wire_bytes", help, None, MetricType::Counter)?;
        let Wire { tunnel, lease, api, controller } = &self.wire;
        for (class, traffic) in [("tunnel", tunnel), ("lease", lease), ("api", api), ("controller", controller)] {
            let (received, sent) = traffic.bytes();
            for (direction, count) in [("in", received), ("out", sent)] {
                let labels = [("class", class), ("direction", direction)];
                bytes.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Format, Metrics};
    use tokio::io::AsyncWriteExt;
    use tunnel::traffic::Counted;

    #[tokio::test]
    async fn links_and_bytes_show_what_happened() {
        let server = ServerAddr::new("10.0.0.1", 6443);
        let states = watch::Sender::new(BTreeMap::from([(server.clone(), LinkState::Connecting)]));
        let proofs = watch::Sender::new(BTreeMap::from([(server.clone(), Arc::new(Proof::default()))]));
        let wire = Wire::default();
        let metrics = Metrics::new("0.1.0");
        metrics.collect(Box::new(Links { states: states.subscribe(), proofs: proofs.subscribe(), wire: wire.clone() }));
        let text = metrics.render(Format::Classic).expect("renders");
        assert!(text.contains("edge_agent_tunnel_link_up{server=\"10.0.0.1:6443\"} 0\n"), "{text}");
        assert!(!text.contains("edge_agent_tunnel_last_proof_age_seconds{"), "nothing was proven yet");
        assert!(text.contains("edge_agent_wire_bytes_total{class=\"lease\",direction=\"out\"} 0\n"), "{text}");

        let (ours, _theirs) = tokio::io::duplex(64);
        Counted::new(ours, Arc::clone(&wire.lease)).write_all(b"12345").await.expect("takes it");
        states.send_modify(|all| drop(all.insert(server, LinkState::Connected)));
        let text = metrics.render(Format::Classic).expect("renders");
        assert!(text.contains("edge_agent_tunnel_link_up{server=\"10.0.0.1:6443\"} 1\n"), "{text}");
        assert!(text.contains("edge_agent_wire_bytes_total{class=\"lease\",direction=\"out\"} 5\n"), "{text}");
    }
}
