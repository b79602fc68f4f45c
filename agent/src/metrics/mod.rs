//! The agent's own metrics: one registry, written by the parts, read by two listeners.
//!
//! Parts get an `Arc<Metrics>` and call the method that names what happened; nobody else knows metric names.
//! Names follow the proposed set of the governor notes: base units, `edge_agent_` in front, no pod names in labels,
//! every enumerated label there from the start at 0.

mod board;
mod cached;
mod expose;
pub mod governor;
mod histogram;
mod links;
mod node;
mod pods;
mod probes;
mod pulse;

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::heartbeat::Lag;

use histogram::Histogram;

pub(crate) use expose::answer;
pub use expose::{Format, serve};
pub use governor::GovernorMetrics;
pub use links::{Links, Wire};
pub use node::{CgroupScope, CgroupScopes};
pub use pods::Pods;
pub use probes::{ProbeResult, Probed, Probes};
pub use pulse::{Loop, Pulse};

/// What a preflight check may say.
const PREFLIGHT: [&str; 4] = ["skipped", "pass", "warning", "blocked"];

/// One label with values known at compile time.
type One = [(&'static str, &'static str); 1];
/// Two such labels.
type Two = [(&'static str, &'static str); 2];
type Seconds = Gauge<f64, AtomicU64>;

/// Why a lease renewal did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseFailure {
    /// No answer within the deadline.
    Timeout,
    /// No connection, or it broke.
    Network,
    /// Somebody else changed the lease.
    Conflict,
    /// The server refused (401, 403).
    Refused,
    /// Any other answer of the server.
    Server,
}

impl LeaseFailure {
    const ALL: [Self; 5] = [Self::Timeout, Self::Network, Self::Conflict, Self::Refused, Self::Server];

    fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Network => "network",
            Self::Conflict => "conflict",
            Self::Refused => "refused",
            Self::Server => "server",
        }
    }
}

/// Node amounts published once the reservation is planned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NodeAmounts {
    /// Processors and bytes of the machine.
    pub capacity_cores: f64,
    pub capacity_memory: u64,
    /// What pods may ask for.
    pub allocatable_cores: f64,
    pub allocatable_memory: u64,
    /// Most pods at a time.
    pub pods: u64,
}

/// All metrics of this process. Cheap to write from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    lease_renew: Histogram,
    lease_failures: Family<One, Counter>,
    lease_last: Seconds,
    heartbeat_lag: Histogram,
    tunnel_links: Family<One, Gauge>,
    tunnel_reconnects: Counter,
    pod_start: Histogram,
    status_writes: Family<One, Counter>,
    reservation: Family<Two, Gauge<u64, AtomicU64>>,
    capacity: Family<One, Seconds>,
    allocatable: Family<One, Seconds>,
    ready_seconds: Seconds,
    preflight: Family<Two, Gauge>,
    probes: Probes,
    pulse: Pulse,
    lag: Arc<Lag>,
    governor: Arc<GovernorMetrics>,
}

impl Metrics {
    /// Registers everything, with the node's pressure and this process' own numbers.
    pub fn new(version: &str) -> Self {
        Self::of_board(version, Path::new("/"))
    }

    /// The same, with heat, power and connections of the machine whose root directory is `root`.
    pub fn of_board(version: &str, root: &Path) -> Self {
        let mut registry = Registry::default();
        registry.register("edge_agent_build", "Version of the running agent, constant 1", Info::new([("version", version.to_owned())]));
        registry.register_collector(Box::new(node::Pressure::default()));
        registry.register_collector(Box::new(node::Process::default()));
        registry.register_collector(Box::new(board::BoardState::below(root)));
        registry.register_collector(Box::new(DroppedLines));
        let metrics = Self {
            lease_renew: Histogram::new(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]),
            lease_failures: Family::default(),
            lease_last: Seconds::default(),
            heartbeat_lag: Histogram::new(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]),
            tunnel_links: Family::default(),
            tunnel_reconnects: Counter::default(),
            pod_start: Histogram::new(&[0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0]),
            status_writes: Family::default(),
            reservation: Family::default(),
            capacity: Family::default(),
            allocatable: Family::default(),
            ready_seconds: Seconds::default(),
            preflight: Family::default(),
            probes: Probes::default(),
            pulse: Pulse::default(),
            lag: Arc::default(),
            governor: Arc::default(),
            registry: Mutex::new(registry),
        };
        metrics.register();
        metrics
    }

    /// Gives every field its name. Counters get `_total` from the encoder.
    fn register(&self) {
        let mut registry = self.registry();
        let r = &mut *registry;
        r.register("edge_agent_lease_renew_seconds", "Round trip of a Lease renewal", self.lease_renew.clone());
        r.register("edge_agent_lease_renew_failures", "Lease renewals that failed", self.lease_failures.clone());
        r.register(
            "edge_agent_lease_last_renew_timestamp_seconds",
            "Unix time of the last successful Lease renewal",
            self.lease_last.clone(),
        );
        r.register(
            "edge_agent_heartbeat_lag_seconds",
            "Delay between the planned and the actual start of a heartbeat",
            self.heartbeat_lag.clone(),
        );
        r.register("edge_agent_tunnel_links", "Tunnel links to servers by state", self.tunnel_links.clone());
        r.register("edge_agent_tunnel_connects", "Tunnel links established", self.tunnel_reconnects.clone());
        r.register("edge_agent_pod_start_seconds", "Time from first seeing a pod to sending its Running status", self.pod_start.clone());
        r.register("edge_agent_status_writes", "Pod status updates sent, by result", self.status_writes.clone());
        r.register("edge_agent_reservation_bytes", "Memory values applied to a cgroup scope", self.reservation.clone());
        r.register("edge_agent_capacity", "Resources of the machine", self.capacity.clone());
        r.register("edge_agent_allocatable", "Resources that pods may ask for", self.allocatable.clone());
        r.register(
            "edge_agent_start_ready_seconds",
            "Time from the start of the process to the first Ready status sent",
            self.ready_seconds.clone(),
        );
        let help = "Result of a preflight check, 1 for the reported status";
        r.register("edge_agent_preflight_check", help, self.preflight.clone());
        self.governor.register(r);
        r.register_collector(Box::new(governor::Published(Arc::clone(&self.governor))));
        drop(registry);
        for failure in LeaseFailure::ALL {
            drop(self.lease_failures.get_or_create(&[("reason", failure.label())]));
        }
        for state in ["connected", "disconnected"] {
            drop(self.tunnel_links.get_or_create(&[("state", state)]));
        }
        for result in ["sent", "failed"] {
            drop(self.status_writes.get_or_create(&[("result", result)]));
        }
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds numbers that are gathered at each scrape, such as [`CgroupScopes`].
    pub fn collect(&self, collector: Box<dyn Collector>) {
        self.registry().register_collector(collector);
    }

    /// A lease renewal was answered after `took`.
    pub fn lease_renewed(&self, took: Duration) {
        self.lease_renew.observe(took);
        self.lease_last.set(unix_now());
        self.pulse.turned(Loop::Lease);
    }

    /// A lease renewal failed.
    pub fn lease_failed(&self, why: LeaseFailure) {
        self.lease_failures.get_or_create(&[("reason", why.label())]).inc();
        self.pulse.turned(Loop::Lease);
    }

    /// Unix time of the last renewal, none before the first.
    pub fn lease_last_renewed(&self) -> Option<SystemTime> {
        let seconds = self.lease_last.get();
        (seconds > 0.0).then(|| UNIX_EPOCH + Duration::from_secs_f64(seconds))
    }

    /// A heartbeat began this much later than planned.
    pub fn heartbeat_lag(&self, lag: Duration) {
        self.heartbeat_lag.observe(lag);
    }

    /// Links now connected, of `total`.
    pub fn tunnel_links(&self, connected: usize, total: usize) {
        let set = |state, count: usize| {
            self.tunnel_links.get_or_create(&[("state", state)]).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set("connected", connected);
        set("disconnected", total.saturating_sub(connected));
    }

    /// A link was established.
    pub fn tunnel_connected(&self) {
        self.tunnel_reconnects.inc();
    }

    /// A pod's Running status was sent this long after the agent first saw the pod.
    pub fn pod_started(&self, took: Duration) {
        self.pod_start.observe(took);
    }

    /// A pod status was sent, or could not be.
    pub fn status_written(&self, sent: bool) {
        self.status_writes.get_or_create(&[("result", if sent { "sent" } else { "failed" })]).inc();
    }

    /// A memory value in force: scope `kubepods`, `agent`, `runtime`…, kind `min`, `low`, `high`, `max`.
    pub fn reservation(&self, scope: &'static str, kind: &'static str, bytes: u64) {
        self.reservation.get_or_create(&[("scope", scope), ("kind", kind)]).set(bytes);
    }

    /// What the machine has and what pods may use.
    pub fn node_amounts(&self, amounts: &NodeAmounts) {
        let pods = u32::try_from(amounts.pods).map_or(f64::from(u32::MAX), f64::from);
        for (family, cores, memory) in [
            (&self.capacity, amounts.capacity_cores, amounts.capacity_memory),
            (&self.allocatable, amounts.allocatable_cores, amounts.allocatable_memory),
        ] {
            family.get_or_create(&[("resource", "cpu_cores")]).set(cores);
            family.get_or_create(&[("resource", "memory_bytes")]).set(memory as f64);
            family.get_or_create(&[("resource", "pods")]).set(pods);
        }
    }

    /// The first Ready status was sent this long after the process began.
    pub fn first_ready(&self, after: Duration) {
        self.ready_seconds.set(after.as_secs_f64());
    }

    /// A preflight check said `status`: one of `skipped`, `pass`, `warning`, `blocked`.
    pub fn preflight(&self, check: &'static str, status: &'static str) {
        for possible in PREFLIGHT {
            self.preflight.get_or_create(&[("check", check), ("status", possible)]).set(i64::from(possible == status));
        }
    }

    /// Results of the containers' probes.
    pub fn probes(&self) -> &Probes {
        &self.probes
    }

    /// Whether the agent's loops turn.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// How late the heartbeat's thread wakes: the governor's `hb_lag`.
    pub fn lag(&self) -> &Arc<Lag> {
        &self.lag
    }

    /// What the governor writes.
    pub fn governor(&self) -> &Arc<GovernorMetrics> {
        &self.governor
    }

    /// The whole exposition in one of the two text formats.
    pub fn render(&self, format: Format) -> Result<String, std::fmt::Error> {
        expose::render(&self.registry(), format)
    }
}

/// Counted where lines are written, which is before there are metrics.
#[derive(Debug)]
struct DroppedLines;

impl Collector for DroppedLines {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help = "Log lines dropped because nobody took them";
        let mut lines = encoder.encode_descriptor("edge_agent_log_lines_dropped", help, None, MetricType::Counter)?;
        lines.encode_counter::<NoLabelSet, _, u64>(&crate::telemetry::dropped(), None)
    }
}

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
