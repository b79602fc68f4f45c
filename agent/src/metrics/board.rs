//! Heat and power of the board, and how full the table of connections is.

use std::fs;
use std::path::{Path, PathBuf};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::cached::Cached;
use crate::board::{Board, Reading, Throttled};

/// `edge_agent_board_*` and `edge_agent_conntrack_usage_ratio`. What the machine does not tell has no series.
#[derive(Debug)]
pub(super) struct BoardState {
    board: Board,
    conntrack: PathBuf,
    read: Cached<(Reading, Option<f64>)>,
}

impl BoardState {
    /// Of the machine whose root directory this is.
    pub(super) fn below(root: &Path) -> Self {
        Self { board: Board::find(root), conntrack: root.join("proc/sys/net/netfilter"), read: Cached::default() }
    }

    fn read(&self) -> (Reading, Option<f64>) {
        let number = |file: &str| fs::read_to_string(self.conntrack.join(file)).ok()?.trim().parse::<f64>().ok();
        let used = number("nf_conntrack_count").zip(number("nf_conntrack_max").filter(|most| *most > 0.0));
        (self.board.read(), used.map(|(count, most)| count / most))
    }
}

impl Collector for BoardState {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let (reading, conntrack) = self.read.get(|| self.read());
        let mut gauge = |name: &str, help: &str, value: Option<f64>| match value {
            Some(value) => encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value),
            None => Ok(()),
        };
        gauge("edge_agent_conntrack_usage_ratio", "Used share of the connection tracking table", conntrack)?;
        let undervoltage = reading.undervoltage.map(|low| f64::from(u8::from(low)));
        gauge("edge_agent_board_undervoltage", "Whether the firmware reports undervoltage now", undervoltage)?;
        gauge("edge_agent_board_temperature_celsius", "SoC temperature", reading.celsius)?;
        if !reading.clocks.is_empty() {
            let help = "CPU frequency";
            let mut clocks = encoder.encode_descriptor("edge_agent_board_cpu_frequency_hertz", help, None, MetricType::Gauge)?;
            for clock in &reading.clocks {
                clocks.encode_family(&[("policy", clock.policy.as_str())])?.encode_gauge(&clock.now)?;
            }
        }
        if let Some(bits) = reading.throttled {
            let help = "Firmware throttling conditions";
            let mut throttled = encoder.encode_descriptor("edge_agent_board_throttled", help, None, MetricType::Gauge)?;
            for (bit, condition) in Throttled::CONDITIONS.into_iter().enumerate() {
                for (when, holds) in [("now", bits.now(bit)), ("since_boot", bits.since_boot(bit))] {
                    throttled.encode_family(&[("condition", condition), ("when", when)])?.encode_gauge(&u64::from(holds))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;

    #[test]
    fn what_the_machine_tells_has_a_series() {
        let root = tempfile::tempdir().expect("tempdir");
        for (file, content) in [
            ("proc/sys/net/netfilter/nf_conntrack_count", "52\n"),
            ("proc/sys/net/netfilter/nf_conntrack_max", "208\n"),
            ("sys/class/thermal/thermal_zone0/temp", "48312\n"),
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("below root")).expect("created");
            fs::write(path, content).expect("written");
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(BoardState::below(root.path())));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        assert!(text.contains("edge_agent_conntrack_usage_ratio 0.25\n"), "{text}");
        assert!(text.contains("edge_agent_board_temperature_celsius 48.312\n"), "{text}");
        assert!(!text.contains("undervoltage") && !text.contains("throttled") && !text.contains("hertz"), "{text}");
    }
}
