//! The reservation as `status` shows it: the plan beside what stands in the kernel's files and what is in use.

use std::collections::BTreeMap;

use cgroup::{Applied, Hierarchy, stat};

use super::ReservationLine;
use crate::reserve::Report;

/// Scopes in the order they are shown.
const PARTS: [&str; 6] = ["system", "runtime", "agent", "kubepods", "burstable", "besteffort"];

/// One line for each part of the node. Reads what the groups use.
pub fn reservations(report: &Report, hierarchy: &Hierarchy) -> Vec<ReservationLine> {
    let group =
        |scope: &&'static str| report.applied.iter().find(|value| value.scope == *scope).map(|value| (*scope, value.group.as_str()));
    // The slice of the system holds containerd too; what its services use is not what is planned for the kernel and them.
    let groups = PARTS.iter().filter(|scope| **scope != "system").filter_map(group);
    let used = groups.filter_map(|(scope, group)| Some((scope, stat::group(hierarchy, group).ok()?.memory?.working_set)));
    lines(report, &used.collect())
}

fn lines(report: &Report, used: &BTreeMap<&str, u64>) -> Vec<ReservationLine> {
    let plan = &report.plan;
    let of = |part: &str, kind: &str| {
        let is = |value: &&Applied| value.scope == part && value.kind == kind;
        report.applied.iter().find(is).map(|value| value.value)
    };
    let line = |part: &&'static str| {
        let part = *part;
        let (planned, measured) = match part {
            "system" => (plan.parts.system, plan.calibration.measured.system),
            "runtime" => (plan.parts.containerd + plan.parts.shims, plan.calibration.measured.containerd),
            "agent" => (plan.parts.agent, None),
            "kubepods" => (plan.pods_memory_limit, None),
            // Classes of pods are planned as far as they are braked.
            class => (of(class, "high")?, None),
        };
        let (min, high, max) = (of(part, "min"), of(part, "high"), of(part, "max"));
        Some(ReservationLine { part: part.to_owned(), planned, measured, min, high, max, used: used.get(part).copied() })
    };
    PARTS.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_plan_stands_beside_the_files_and_the_use() {
        let mut report = Report::default();
        report.plan.parts.system = 72 * MIB;
        report.plan.parts.agent = 24 * MIB;
        report.plan.pods_memory_limit = 212 * MIB;
        report.plan.calibration.measured.system = Some(61 * MIB);
        let applied = |scope: &'static str, kind: &'static str, value: u64| Applied {
            scope: scope.into(),
            group: format!("/{scope}"),
            kind: kind.into(),
            value: value * MIB,
            lent: false,
        };
        report.applied = vec![
            applied("kubepods", "max", 212),
            applied("kubepods", "pids", 9),
            applied("besteffort", "high", 195),
            applied("agent", "min", 24),
        ];
        let lines = lines(&report, &BTreeMap::from([("kubepods", 40 * MIB), ("agent", 7 * MIB)]));
        let parts: Vec<&str> = lines.iter().map(|line| line.part.as_str()).collect();
        assert_eq!(parts, ["system", "runtime", "agent", "kubepods", "besteffort"], "Burstable pods are not braked");
        let system = ReservationLine { part: "system".into(), planned: 72 * MIB, measured: Some(61 * MIB), ..ReservationLine::default() };
        assert_eq!(lines[0], system);
        assert_eq!((lines[2].min, lines[2].used), (Some(24 * MIB), Some(7 * MIB)));
        assert_eq!((lines[3].planned, lines[3].max, lines[3].used), (212 * MIB, Some(212 * MIB), Some(40 * MIB)));
        assert_eq!((lines[4].planned, lines[4].high), (195 * MIB, Some(195 * MIB)));
    }
}
