//! A histogram of atomics. The registry's own takes a lock, which a scrape holds while it writes text: the two threads that may
//! never wait write into this one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Counts of durations by upper edge in seconds. Clones share the counts.
#[derive(Clone, Debug)]
pub(super) struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    edges: &'static [f64],
    /// One more than edges: the last is for what is above all of them.
    counts: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

impl Histogram {
    pub(super) fn new(edges: &'static [f64]) -> Self {
        Self(Arc::new(Inner { edges, counts: (0..=edges.len()).map(|_| AtomicU64::new(0)).collect(), nanos: AtomicU64::new(0) }))
    }

    pub(super) fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.0.edges.iter().position(|edge| seconds <= *edge).unwrap_or(self.0.edges.len());
        if let Some(count) = self.0.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.0.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        let inner = &self.0;
        let edges = inner.edges.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = edges.zip(inner.counts.iter().map(|count| count.load(Ordering::Relaxed))).collect();
        // From the same reading, so that the count and the last bucket agree.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = inner.nanos.load(Ordering::Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;

    #[test]
    fn durations_are_counted_at_or_below_their_edge() {
        let histogram = Histogram::new(&[0.005, 0.5]);
        for millis in [5, 6, 500, 501, 2000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut registry = Registry::default();
        registry.register("h_seconds", "H", histogram);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        let wanted = "# HELP h_seconds H.\n# TYPE h_seconds histogram\nh_seconds_sum 3.012\nh_seconds_count 5\n\
                      h_seconds_bucket{le=\"0.005\"} 1\nh_seconds_bucket{le=\"0.5\"} 3\nh_seconds_bucket{le=\"+Inf\"} 5\n# EOF\n";
        assert_eq!(text, wanted);
    }
}
