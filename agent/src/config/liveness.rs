//! How often the servers hear of this node and are asked for a sign of life.

use std::fmt;
use std::time::Duration;

use super::resolve::go_duration;
use super::values::Resolver;

/// How long a lease counts without renewal, as a kubelet has it.
pub const LEASE: Duration = Duration::from_secs(40);

/// Intervals of the lease and of the tunnel's checks. `Display` is what an operator is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// `metered`: every byte costs.
    pub metered: bool,
    /// `tunnel-ping-interval`: silence after which a server is asked for a sign of life.
    pub ping_interval: Duration,
    /// `tunnel-ping-wait`: how long it may take to answer.
    pub ping_wait: Duration,
    /// Between renewals of the node lease.
    pub lease_every: Duration,
    /// Silence after which a connection to the API is pinged; the tunnel to the same server is what finds it dead sooner.
    pub api_ping: Duration,
    /// Between confirmations of an unchanged node status. Each comes back as a whole Node through two watches and in its answer,
    /// 15 kB together: 4.5 MB a day at a kubelet's 5 minutes, 1.5 MB at 15. The lease is what says that the node lives.
    pub report_every: Duration,
}

impl Liveness {
    /// The defaults, metered or not.
    pub fn new(metered: bool) -> Liveness {
        let s = Duration::from_secs;
        match metered {
            false => Liveness { metered, ping_interval: s(7), ping_wait: s(3), lease_every: s(10), api_ping: s(120), report_every: s(900) },
            true => {
                Liveness { metered, ping_interval: s(20), ping_wait: s(5), lease_every: s(20), api_ping: s(300), report_every: s(3600) }
            }
        }
    }

    /// The tunnel's part.
    pub fn timing(&self) -> tunnel::session::Timing {
        tunnel::session::Timing::client(self.ping_interval, self.ping_wait)
    }
}

impl Default for Liveness {
    fn default() -> Liveness {
        Liveness::new(false)
    }
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = (self.ping_interval + self.ping_wait).as_secs();
        let spare = LEASE.as_secs() / self.lease_every.as_secs().max(1) - 1;
        let (every, lease) = (self.ping_interval.as_secs(), self.lease_every.as_secs());
        if self.metered {
            let usual = Liveness::new(false);
            let was = (usual.ping_interval + usual.ping_wait).as_secs();
            write!(
                f,
                "metered: tunnels are checked every {every} s, so that a dead one is found within {found} s instead of {was} s; \
                 the lease is renewed every {lease} s, so that it survives {spare} lost renewal instead of {}",
                LEASE.as_secs() / usual.lease_every.as_secs() - 1
            )
        } else {
            write!(f, "tunnels are checked every {every} s, a dead one is found within {found} s; the lease is renewed every {lease} s")
        }
    }
}

pub(super) fn resolve(r: &mut Resolver<'_>) -> Liveness {
    let mut all = Liveness::new(r.parsed::<bool>("metered", "true or false").unwrap_or(false));
    // A server forgets a session 60 s after the last ping, which has to fit with one question lost (k3s-agent.md 4.5).
    let limits = [("tunnel-ping-interval", 50, "7s; a server waits 60s for a ping"), ("tunnel-ping-wait", 60, "3s")];
    for (key, high, example) in limits {
        let Some(text) = r.text(key).filter(|text| !text.is_empty()) else { continue };
        match go_duration(&text).filter(|seconds| (1..=high).contains(seconds)) {
            Some(seconds) if key == "tunnel-ping-interval" => all.ping_interval = Duration::from_secs(seconds),
            Some(seconds) => all.ping_wait = Duration::from_secs(seconds),
            None => r.bad(key, &text, &format!("is not a duration from 1s to {high}s, for example {example}")),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_metered_relaxes_is_said() {
        let text = Liveness::new(true).to_string();
        assert!(text.contains("found within 25 s instead of 10 s") && text.contains("survives 1 lost renewal instead of 3"), "{text}");
        assert!(Liveness::default().to_string().contains("found within 10 s"));
        assert_eq!(Liveness::default().timing(), tunnel::session::Timing::default());
    }
}
