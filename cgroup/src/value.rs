//! Values of control files and the conversions Kubernetes defines for them (kubelet contract, sections 8.2, 8.3, 8.5).

use std::fmt;

/// The CPU quota period Kubernetes uses, microseconds.
pub const CPU_PERIOD_US: u64 = 100_000;

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const MIN_QUOTA_US: u64 = 1_000;

/// A limit as a control file holds it. v1 answers "none" for memory with the largest page-aligned number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// No limit.
    None,
    /// So many bytes, tasks or whatever the file counts.
    At(u64),
}

impl Limit {
    /// Reads `max`, `-1`, a number, or v1's "so large that it means none"; `None` for anything else.
    pub fn parse(text: &str) -> Option<Limit> {
        match text.trim() {
            "max" | "-1" => Some(Limit::None),
            number => number.parse::<u64>().ok().map(|value| if value >= 1 << 62 { Limit::None } else { Limit::At(value) }),
        }
    }

    /// The number, if there is a limit.
    pub fn value(self) -> Option<u64> {
        match self {
            Limit::None => None,
            Limit::At(value) => Some(value),
        }
    }
}

impl From<Option<u64>> for Limit {
    fn from(value: Option<u64>) -> Limit {
        value.map_or(Limit::None, Limit::At)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::None => f.write_str("max"),
            Limit::At(value) => write!(f, "{value}"),
        }
    }
}

/// Kubernetes' three classes; the kernel sees them as three levels of the tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum QosClass {
    /// Every container's limits equal its requests.
    Guaranteed,
    /// Anything between.
    Burstable,
    /// No requests and no limits at all.
    #[default]
    BestEffort,
}

impl QosClass {
    /// All of them.
    pub const ALL: [QosClass; 3] = [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort];

    /// As it is spelled in a pod's status.
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// CPU shares for a request in millicores: between 2 and 262144, 2 for none.
pub fn milli_cpu_to_shares(millis: u64) -> u64 {
    (millis.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// CPU quota in microseconds per `period_us` for a limit in millicores; `None` when there is no limit (0).
/// The kernel refuses less than 1 ms.
pub fn milli_cpu_to_quota(millis: u64, period_us: u64) -> Option<u64> {
    (millis > 0).then(|| (millis.saturating_mul(period_us) / 1000).max(MIN_QUOTA_US))
}

/// The v2 weight the kubelet computes for pod and QoS groups: linear, 1 to 10000.
pub fn shares_to_weight(shares: u64) -> u64 {
    let shares = shares.clamp(MIN_SHARES, MAX_SHARES);
    (1 + (shares - MIN_SHARES) * 9999 / (MAX_SHARES - MIN_SHARES)).min(10_000)
}

/// `oom_score_adj` of a container. Burstable: 1000 less the share of the node's memory it requests, within 3..=999.
pub fn oom_score_adj(qos: QosClass, node_critical: bool, memory_request: u64, node_memory: u64) -> i32 {
    match qos {
        _ if node_critical => -997,
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let part = u128::from(memory_request) * 1000 / u128::from(node_memory.max(1));
            let adjust = 1000 - i32::try_from(part.min(1000)).expect("at most 1000");
            adjust.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_both_versions() {
        for (text, wanted) in [
            ("max", Some(Limit::None)),
            ("-1", Some(Limit::None)),
            ("9223372036854771712", Some(Limit::None)),
            ("9223372036854759424", Some(Limit::None)),
            ("4096\n", Some(Limit::At(4096))),
            ("0", Some(Limit::At(0))),
            ("", None),
            ("4k", None),
        ] {
            assert_eq!(Limit::parse(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn shares_and_weights_as_the_kubelet_computes_them() {
        for (millis, shares, weight) in
            [(0, 2, 1), (1, 2, 1), (100, 102, 4), (1000, 1024, 39), (2000, 2048, 79), (4000, 4096, 157), (1_000_000, 262_144, 10_000)]
        {
            assert_eq!(milli_cpu_to_shares(millis), shares, "{millis}m");
            assert_eq!(shares_to_weight(shares), weight, "{shares} shares");
        }
    }

    #[test]
    fn quota_has_a_floor_and_no_limit_is_no_quota() {
        for (millis, quota) in [(0, None), (1, Some(1000)), (10, Some(1000)), (500, Some(50_000)), (2000, Some(200_000))] {
            assert_eq!(milli_cpu_to_quota(millis, CPU_PERIOD_US), quota, "{millis}m");
        }
    }

    #[test]
    fn oom_scores() {
        let gib = 1 << 30;
        for (name, qos, critical, request, wanted) in [
            ("guaranteed", QosClass::Guaranteed, false, gib, -997),
            ("critical", QosClass::BestEffort, true, 0, -997),
            ("best effort", QosClass::BestEffort, false, 0, 1000),
            ("burstable without request", QosClass::Burstable, false, 0, 999),
            ("burstable half", QosClass::Burstable, false, 4 * gib, 500),
            ("burstable all", QosClass::Burstable, false, 8 * gib, 3),
            ("burstable more than all", QosClass::Burstable, false, 99 * gib, 3),
        ] {
            assert_eq!(oom_score_adj(qos, critical, request, 8 * gib), wanted, "{name}");
        }
    }
}
