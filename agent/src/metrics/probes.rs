//! `/metrics/probes`: results of the probes of this node's containers under the kubelet's names. Pod names in labels
//! are the point here, so these series stay out of `/metrics` and end with their pod.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Upper edges in seconds, as client libraries have them by default.
const EDGES: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How one try ended. Tries that could not be made at all are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeResult {
    Successful,
    Failed,
}

/// Whose probe it is.
#[derive(Debug, Clone, Copy)]
pub struct Probed<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
    pub uid: &'a str,
    pub container: &'a str,
    /// `Liveness`, `Readiness` or `Startup`.
    pub kind: &'static str,
}

#[derive(Debug, Default)]
struct Series {
    namespace: String,
    pod: String,
    successful: u64,
    failed: u64,
    /// Successful tries by the edge they stayed below.
    below: [u64; EDGES.len()],
    seconds: f64,
}

/// UID, container, kind.
type Key = (String, String, &'static str);

/// Counts of every probe since its pod came to this agent.
#[derive(Debug, Default)]
pub struct Probes(Mutex<BTreeMap<Key, Series>>);

impl Probes {
    /// Counts a try that took `took`.
    pub fn add(&self, of: Probed<'_>, result: ProbeResult, took: Duration) {
        let mut all = self.lock();
        let series = all.entry((of.uid.to_owned(), of.container.to_owned(), of.kind)).or_insert_with(|| Series {
            namespace: of.namespace.to_owned(),
            pod: of.pod.to_owned(),
            ..Series::default()
        });
        match result {
            ProbeResult::Failed => series.failed += 1,
            // Only these are timed, as in a kubelet.
            ProbeResult::Successful => {
                series.successful += 1;
                let seconds = took.as_secs_f64();
                series.seconds += seconds;
                EDGES.iter().zip(&mut series.below).filter(|(edge, _)| seconds <= **edge).for_each(|(_, count)| *count += 1);
            }
        }
    }

    /// The pod is gone, and its series with it.
    pub fn forget(&self, uid: &str) {
        self.lock().retain(|(of, _, _), _| of != uid);
    }

    /// Classic text format.
    pub fn render(&self) -> String {
        let all = self.lock();
        let mut out = String::new();
        // Writing to a String cannot fail.
        let name = "prober_probe_duration_seconds";
        let _ = writeln!(out, "# HELP {name} [ALPHA] Duration in seconds for a probe response.\n# TYPE {name} histogram");
        for ((_, container, kind), series) in all.iter().filter(|(_, series)| series.successful > 0) {
            let labels =
                format!("container=\"{container}\",namespace=\"{}\",pod=\"{}\",probe_type=\"{kind}\"", series.namespace, series.pod);
            for (edge, count) in EDGES.iter().zip(series.below) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{edge}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.successful);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {}", series.seconds, series.successful);
        }
        let name = "prober_probe_total";
        let help = "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
        for ((uid, container, kind), series) in all.iter() {
            let (namespace, pod) = (&series.namespace, &series.pod);
            for (result, count) in [("failed", series.failed), ("successful", series.successful)] {
                if count > 0 {
                    let _ = writeln!(
                        out,
                        "{name}{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\",pod_uid=\"{uid}\",probe_type=\"{kind}\",result=\"{result}\"}} {count}"
                    );
                }
            }
        }
        out
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Series>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_read_as_a_kubelets_and_end_with_the_pod() {
        let probes = Probes::default();
        let of = |pod: &'static str, uid: &'static str, kind| Probed { namespace: "rec", pod, uid, container: "web", kind };
        let millis = Duration::from_millis;
        probes.add(of("ready-http", "u1", "Readiness"), ProbeResult::Successful, millis(4));
        probes.add(of("ready-http", "u1", "Readiness"), ProbeResult::Successful, millis(7));
        probes.add(of("live-fails", "u2", "Liveness"), ProbeResult::Failed, millis(7));
        let text = probes.render();
        for line in [
            "prober_probe_duration_seconds_bucket{container=\"web\",namespace=\"rec\",pod=\"ready-http\",probe_type=\"Readiness\",le=\"0.005\"} 1",
            "prober_probe_duration_seconds_bucket{container=\"web\",namespace=\"rec\",pod=\"ready-http\",probe_type=\"Readiness\",le=\"1\"} 2",
            "prober_probe_duration_seconds_count{container=\"web\",namespace=\"rec\",pod=\"ready-http\",probe_type=\"Readiness\"} 2",
            "# TYPE prober_probe_total counter",
            "prober_probe_total{container=\"web\",namespace=\"rec\",pod=\"live-fails\",pod_uid=\"u2\",probe_type=\"Liveness\",result=\"failed\"} 1",
            "prober_probe_total{container=\"web\",namespace=\"rec\",pod=\"ready-http\",pod_uid=\"u1\",probe_type=\"Readiness\",result=\"successful\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} not in\n{text}");
        }
        assert!(!text.contains("_count{container=\"web\",namespace=\"rec\",pod=\"live-fails\""), "failures are not timed");
        probes.forget("u1");
        assert!(!probes.render().contains("ready-http"));
        assert!(probes.render().contains("live-fails"));
    }
}
