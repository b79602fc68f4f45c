//! Machine and configuration to the reservation, and the amounts the Node shows.

use std::collections::BTreeMap;

use anyhow::Context;
use cgroup::Measured;
use cgroup::reservation::{Amounts, Capacity, Overrides, Reservation, plan};

use super::machine::Machine;
use crate::api::pod::ResourceList;
use crate::api::quantity::Quantity;
use crate::config::Config;

/// The plan for this machine, operator's values included.
pub fn reservation(machine: &Machine, config: &Config, measured: &Measured) -> anyhow::Result<Reservation> {
    let capacity = Capacity {
        memory: machine.memory,
        cpu_millis: machine.cpus * 1000,
        threads_max: machine.threads_max,
        disk_swap: machine.disk_swap,
    };
    let overrides = Overrides {
        system_reserved: amounts(&config.system_reserved),
        kube_reserved: amounts(&config.kube_reserved),
        eviction_hard_memory: config.eviction_hard.get("memory.available").map(|text| threshold(text, machine.memory)),
        max_pods: config.max_pods.map(u64::from),
        pod_pids: config.pod_pids_limit.and_then(|limit| u64::try_from(limit).ok()),
        scale_millis: Some((config.reserve_scale * 1000.0).round() as u64),
    };
    plan(&capacity, &overrides, measured).context("planning the reservation from system-reserved, kube-reserved and reserve-scale")
}

fn amounts(reserved: &BTreeMap<String, String>) -> Amounts {
    let quantity = |name: &str| reserved.get(name).and_then(|text| text.parse::<Quantity>().ok());
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    Amounts {
        memory: quantity("memory").map(|q| positive(q.value())),
        cpu_millis: quantity("cpu").map(|q| positive(q.milli())),
        pids: quantity("pid").map(|q| positive(q.value())),
    }
}

/// A quantity, or a percentage of the capacity.
pub(crate) fn threshold(text: &str, capacity: u64) -> u64 {
    match text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok()) {
        Some(percent) => (capacity as f64 * percent / 100.0) as u64,
        None => text.parse::<Quantity>().map_or(0, |q| u64::try_from(q.value()).unwrap_or(0)),
    }
}

/// `capacity` and `allocatable` as the Node shows them. `storage` is the size of the file system of the pods; None while it is not known.
pub fn amounts_of_node(
    machine: &Machine,
    config: &Config,
    reservation: &Reservation,
    storage: Option<u64>,
) -> (ResourceList, ResourceList) {
    let kib = |bytes: u64| Quantity::from(format!("{}Ki", bytes / 1024).as_str());
    let plain = |number: u64| Quantity::from(number.to_string().as_str());
    let mut capacity: ResourceList = [
        ("cpu".to_owned(), plain(machine.cpus)),
        ("memory".to_owned(), kib(machine.memory)),
        ("pods".to_owned(), plain(reservation.max_pods)),
    ]
    .into();
    let huge: u64 = machine.hugepages.values().sum();
    let cpu = Quantity::from_milli(i64::try_from(reservation.allocatable_cpu_millis).unwrap_or(i64::MAX));
    let mut allocatable: ResourceList = [
        ("cpu".to_owned(), cpu),
        ("memory".to_owned(), kib(reservation.allocatable_memory.saturating_sub(huge))),
        ("pods".to_owned(), plain(reservation.max_pods)),
    ]
    .into();
    for (size, bytes) in &machine.hugepages {
        let amount = if *bytes == 0 { plain(0) } else { kib(*bytes) };
        capacity.insert(format!("hugepages-{size}"), amount.clone());
        allocatable.insert(format!("hugepages-{size}"), amount);
    }
    if let Some(size) = storage {
        let reserved: u64 = [&config.system_reserved, &config.kube_reserved]
            .iter()
            .filter_map(|map| map.get("ephemeral-storage")?.parse::<Quantity>().ok())
            .map(|q| u64::try_from(q.value()).unwrap_or(0))
            .sum();
        let kept = config.eviction_hard.get("nodefs.available").map_or(0, |text| threshold(text, size));
        capacity.insert("ephemeral-storage".to_owned(), kib(size));
        allocatable.insert("ephemeral-storage".to_owned(), plain(size.saturating_sub(reserved + kept)));
    }
    (capacity, allocatable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_amounts_and_thresholds_reach_the_node() {
        let machine =
            Machine { memory: 4 << 30, cpus: 4, threads_max: 30000, hugepages: [("2Mi".to_owned(), 0)].into(), ..Machine::default() };
        let mut config = Config::below(std::path::Path::new("/x"), "n");
        config.system_reserved = [("memory".to_owned(), "512Mi".to_owned()), ("cpu".to_owned(), "200m".to_owned())].into();
        config.kube_reserved = [("memory".to_owned(), "512Mi".to_owned())].into();
        config.eviction_hard =
            [("memory.available".to_owned(), "100Mi".to_owned()), ("nodefs.available".to_owned(), "10%".to_owned())].into();
        let plan = reservation(&machine, &config, &Measured::default()).unwrap();
        assert_eq!(plan.pods_memory_limit, 3 << 30);
        let (capacity, allocatable) = amounts_of_node(&machine, &config, &plan, Some(1000 << 20));
        assert_eq!(capacity["memory"].to_string(), "4194304Ki");
        assert_eq!(allocatable["memory"].value(), (3 << 30) - (100 << 20));
        assert_eq!(allocatable["cpu"].milli(), 3800);
        assert_eq!(allocatable["ephemeral-storage"].value(), 900 << 20);
        assert_eq!(capacity["hugepages-2Mi"].to_string(), "0");
        config.kube_reserved = [("memory".to_owned(), "8Gi".to_owned())].into();
        assert!(reservation(&machine, &config, &Measured::default()).is_err());
    }
}
