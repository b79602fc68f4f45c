//! The reservation in force: planned once, applied to every group of this node, and kept standing.
//!
//! What the kernel enforces outlives the agent. While it runs, every value is read back each half minute, what others changed is set
//! again and counted, and what does not hold is told: in `status`, in the metrics, and as the node's condition.

mod calibrate;
mod groups;
mod pulls;
mod storage;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cgroup::{Applied, Calibration, GovernorMode, Held, Reservation, Standing};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use serde::{Deserialize, Serialize};

pub(crate) use calibrate::of_this_boot;
pub(crate) use groups::{Owner, held};
pub(crate) use pulls::Pulling;
pub(crate) use storage::of_pods;

use crate::metrics::Metrics;

/// Between two readings of all values.
const EVERY: Duration = Duration::from_secs(30);
/// Before the first one: containerd's group is made meanwhile.
const FIRST: Duration = Duration::from_secs(2);

/// Everything there is to show of the reservation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// `full`, `degraded`, `hybrid` or `legacy`.
    pub mode: String,
    /// What the machine lacks and what to do about it.
    pub lacks: Vec<String>,
    /// What was planned, with formula and measurement.
    pub plan: Reservation,
    /// What stands in the kernel's files.
    pub applied: Vec<Applied>,
    /// What was asked for and does not hold, a sentence each.
    pub unheld: Vec<String>,
    /// The disks pods are limited on and where the numbers are from, or why there is no limit.
    pub disks: String,
    /// Values found changed by others and set again since the agent started, by scope.
    pub drift: BTreeMap<String, u64>,
}

/// The values in force. Cheap to share.
#[derive(Debug)]
pub struct Reservations {
    standing: Arc<Standing>,
    mode: GovernorMode,
    /// Of the operating system's groups, set when the agent runs: until then the unit files hold.
    later: Mutex<Vec<Held>>,
    report: Mutex<Arc<Report>>,
    metrics: Arc<Metrics>,
}

/// What [`Reservations::new`] is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub standing: Arc<Standing>,
    pub later: Vec<Held>,
    pub plan: Reservation,
    pub mode: GovernorMode,
    pub lacks: Vec<String>,
    pub disks: String,
    pub metrics: Arc<Metrics>,
}

impl Reservations {
    pub(crate) fn new(parts: Parts) -> Reservations {
        let report = Report {
            mode: parts.mode.as_str().to_owned(),
            lacks: parts.lacks,
            plan: parts.plan,
            disks: parts.disks,
            applied: parts.standing.applied(),
            ..Report::default()
        };
        Reservations {
            standing: parts.standing,
            mode: parts.mode,
            later: Mutex::new(parts.later),
            report: Mutex::new(Arc::new(report)),
            metrics: parts.metrics,
        }
    }

    /// The report as of the last reading. Reads no file.
    pub fn report(&self) -> Arc<Report> {
        Arc::clone(&self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What stands in the kernel's files as of the last reading.
    pub fn applied(&self) -> Vec<Applied> {
        self.report().applied.clone()
    }

    /// What the governor can do on this machine.
    pub fn mode(&self) -> &GovernorMode {
        &self.mode
    }

    /// The values and who has borrowed which.
    pub fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    /// Reads all values, sets again what others changed, and returns how many those were. Blocks.
    pub fn check(&self) -> usize {
        let later = std::mem::take(&mut *self.later.lock().unwrap_or_else(PoisonError::into_inner));
        for held in later {
            let group = held.group.clone();
            if let Err(error) = self.standing.hold(held) {
                tracing::warn!(group, error = %crate::telemetry::chain(&error), "limits of a group not set");
            }
        }
        let drift = self.standing.verify();
        for found in &drift {
            let error = found.failed.as_deref();
            tracing::warn!(group = %found.group, file = found.file, found = %found.found, error, "a reservation was changed by others");
        }
        self.publish(&drift);
        drift.len()
    }

    fn publish(&self, drift: &[cgroup::Drift]) {
        let (applied, unheld) = (self.standing.applied(), self.standing.unheld());
        for value in &applied {
            if let (std::borrow::Cow::Borrowed(scope), std::borrow::Cow::Borrowed(kind)) = (&value.scope, &value.kind) {
                if matches!(*kind, "min" | "low" | "high" | "max" | "swap_max") {
                    self.metrics.reservation(scope, kind, value.value);
                }
            }
        }
        let before = self.report();
        for line in unheld.iter().filter(|line| !before.unheld.contains(line)) {
            tracing::warn!("{line}");
        }
        if drift.is_empty() && before.applied == applied && before.unheld == unheld {
            return;
        }
        let mut report = (*before).clone();
        for found in drift {
            *report.drift.entry(found.scope.to_owned()).or_default() += 1;
        }
        (report.applied, report.unheld) = (applied, unheld);
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(report);
    }

    /// Checks for ever.
    pub async fn run(self: Arc<Self>) {
        tokio::time::sleep(FIRST).await;
        loop {
            let this = Arc::clone(&self);
            // Raising a limit makes the kernel reclaim before the write returns, and systemd is asked by a process.
            if let Err(error) = tokio::task::spawn_blocking(move || this.check()).await {
                tracing::warn!(%error, "reservations not checked");
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}

/// `edge_agent_reservation_drift_total` and what was measured, from the last report.
pub struct Exposed(Box<dyn Fn() -> Arc<Report> + Send + Sync>);

impl Exposed {
    /// Of the report that `newest` gives at each scrape.
    pub fn new(newest: impl Fn() -> Arc<Report> + Send + Sync + 'static) -> Self {
        Self(Box::new(newest))
    }
}

impl std::fmt::Debug for Exposed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exposed")
    }
}

const SCOPES: [&str; 9] = ["agent", "ancestor", "besteffort", "burstable", "edge", "kubepods", "runtime", "system", "user"];

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let report = (self.0)();
        let help = "Times a reservation was found changed by others and set again";
        let mut drift = encoder.encode_descriptor("edge_agent_reservation_drift", help, None, MetricType::Counter)?;
        for scope in SCOPES {
            let count = report.drift.get(scope).copied().unwrap_or(0);
            drift.encode_family(&[("scope", scope)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        let help = "Reservations that were asked for and do not hold";
        encoder
            .encode_descriptor("edge_agent_reservation_unheld", help, None, MetricType::Gauge)?
            .encode_gauge(&(report.unheld.len() as u64))?;
        let Calibration { measured, system_formula, system, containerd_formula, containerd, .. } = report.plan.calibration;
        let help = "What the formula gives a part of the node, what was measured, and what is reserved for it";
        let mut bytes = encoder.encode_descriptor("edge_agent_calibration_bytes", help, None, MetricType::Gauge)?;
        for (scope, kind, value) in [
            ("system", "formula", Some(system_formula)),
            ("system", "measured", measured.system),
            ("system", "reserved", Some(system)),
            ("runtime", "formula", Some(containerd_formula)),
            ("runtime", "measured", measured.containerd),
            ("runtime", "reserved", Some(containerd)),
        ] {
            let Some(value) = value else { continue };
            bytes.encode_family(&[("scope", scope), ("kind", kind)])?.encode_gauge(&value)?;
        }
        Ok(())
    }
}
