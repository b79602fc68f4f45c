//! `/metrics/cadvisor`: what the common dashboards ask cAdvisor for, as far as the cgroup files and `/proc` say it for
//! nothing: processor, memory, pressure, tasks and network of the machine, all pods, each pod, each container.
//!
//! Not here, because nobody could tell it truthfully without walking disks: `container_fs_*` and `container_blkio_*`.

use std::fmt::Write as _;
use std::path::PathBuf;

use cgroup::psi::{Pressure, Record};
use cgroup::{PodTree, QosClass, Stats};

use super::stats::{Usage, epoch_seconds};
use crate::pod::View;

/// Bytes, packets, errors and drops of one interface: received, then sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Interface {
    name: String,
    numbers: [u64; 8],
}

/// The interfaces of one pod's own network.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodNetwork {
    namespace: String,
    pod: String,
    id: String,
    sandbox: String,
    interfaces: Vec<Interface>,
}

/// Reads `/proc/<pause>/net/dev` of every pod with a network of its own. Blocks.
pub(crate) fn networks(tree: &PodTree, view: &View) -> Vec<PodNetwork> {
    let mut found = Vec::new();
    for seen in view.list() {
        let meta = &seen.pod.metadata;
        let qos = QosClass::ALL.into_iter().find(|qos| qos.as_str() == seen.pod.status.qos_class);
        let (Some(qos), Some(sandbox), false) = (qos, &seen.sandbox, seen.pod.spec.host_network) else { continue };
        let Ok(Some(pid)) = tree.container_process(&meta.uid, qos, sandbox.as_str()) else { continue };
        let Ok(text) = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/net/dev"))) else { continue };
        let parent = tree.cgroup_parent(&meta.uid, qos).unwrap_or_default();
        found.push(PodNetwork {
            namespace: meta.namespace.clone(),
            pod: meta.name.clone(),
            id: format!("{parent}/{sandbox}"),
            sandbox: sandbox.to_string(),
            interfaces: interfaces(&text),
        });
    }
    found
}

/// `/proc/net/dev` without loopback.
fn interfaces(text: &str) -> Vec<Interface> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let all: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let numbers = [0, 1, 2, 3, 8, 9, 10, 11].map(|at| all.get(at).copied());
        let numbers = numbers.into_iter().collect::<Option<Vec<u64>>>()?.try_into().ok()?;
        Some(Interface { name: name.trim().to_owned(), numbers })
    };
    text.lines().filter_map(line).filter(|interface| interface.name != "lo").collect()
}

/// One family read from a cgroup.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    /// Labels beside those of every row.
    labels: &'static str,
    value: fn(&Stats) -> Option<f64>,
}

const fn family(name: &'static str, kind: &'static str, help: &'static str, value: fn(&Stats) -> Option<f64>) -> Family {
    Family { name, kind, help, labels: "", value }
}

fn seconds(record: Option<Record>) -> Option<f64> {
    record.map(|record| record.total_us as f64 / 1e6)
}

fn some(pressure: Option<Pressure>) -> Option<f64> {
    seconds(pressure.map(|pressure| pressure.some))
}

fn full(pressure: Option<Pressure>) -> Option<f64> {
    seconds(pressure.and_then(|pressure| pressure.full))
}

const FAMILIES: [Family; 14] = [
    Family {
        name: "container_cpu_usage_seconds_total",
        kind: "counter",
        help: "Cumulative cpu time consumed in seconds.",
        labels: "cpu=\"total\",",
        value: |stats| stats.cpu.map(|cpu| cpu.usage_ns as f64 / 1e9),
    },
    family("container_cpu_cfs_throttled_seconds_total", "counter", "Total time duration the container has been throttled.", |stats| {
        stats.cpu.and_then(|cpu| cpu.throttled_ns).map(|ns| ns as f64 / 1e9)
    }),
    family(
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |stats| stats.memory.map(|memory| memory.usage as f64),
    ),
    family("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |stats| {
        stats.memory.map(|memory| memory.working_set as f64)
    }),
    family("container_memory_rss", "gauge", "Size of RSS in bytes.", |stats| stats.memory.map(|memory| memory.rss as f64)),
    family("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", |stats| {
        stats.memory.map(|memory| memory.limit.value().unwrap_or(0) as f64)
    }),
    family("container_oom_events_total", "counter", "Count of out of memory events observed for the container", |stats| {
        stats.oom_kills.map(|count| count as f64)
    }),
    family("container_threads", "gauge", "Number of threads running inside the container", |stats| stats.tasks.map(|count| count as f64)),
    family(
        "container_pressure_cpu_waiting_seconds_total",
        "counter",
        "Total time duration tasks in the container have waited due to CPU congestion.",
        |stats| some(stats.pressure.cpu),
    ),
    family(
        "container_pressure_cpu_stalled_seconds_total",
        "counter",
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
        |stats| full(stats.pressure.cpu),
    ),
    family(
        "container_pressure_memory_waiting_seconds_total",
        "counter",
        "Total time duration tasks in the container have waited due to memory congestion.",
        |stats| some(stats.pressure.memory),
    ),
    family(
        "container_pressure_memory_stalled_seconds_total",
        "counter",
        "Total time duration no tasks in the container could make progress due to memory congestion.",
        |stats| full(stats.pressure.memory),
    ),
    family(
        "container_pressure_io_waiting_seconds_total",
        "counter",
        "Total time duration tasks in the container have waited due to IO congestion.",
        |stats| some(stats.pressure.io),
    ),
    family(
        "container_pressure_io_stalled_seconds_total",
        "counter",
        "Total time duration no tasks in the container could make progress due to IO congestion.",
        |stats| full(stats.pressure.io),
    ),
];

/// In the order of [`Interface::numbers`].
const NETWORK: [(&str, &str); 8] = [
    ("receive_bytes", "Cumulative count of bytes received"),
    ("receive_packets", "Cumulative count of packets received"),
    ("receive_errors", "Cumulative count of errors encountered while receiving"),
    ("receive_packets_dropped", "Cumulative count of packets dropped while receiving"),
    ("transmit_bytes", "Cumulative count of bytes transmitted"),
    ("transmit_packets", "Cumulative count of packets transmitted"),
    ("transmit_errors", "Cumulative count of errors encountered while transmitting"),
    ("transmit_packets_dropped", "Cumulative count of packets dropped while transmitting"),
];

/// Classic text; each sample carries the time of its reading. `kubepods` and `parent` name groups, `pause_image` is the
/// image of the containers that hold the networks.
pub(crate) fn render(usage: &Usage, networks: &[PodNetwork], kubepods: &str, pause_image: &str, parent: impl Fn(&str) -> String) -> String {
    let at = usage.at;
    let mut rows: Vec<(String, &Stats)> = Vec::new();
    let plain = |id: &str| format!("container=\"\",id=\"{id}\",image=\"\",name=\"\",namespace=\"\",pod=\"\"");
    rows.extend(usage.node.iter().map(|stats| (plain("/"), stats)));
    rows.extend(usage.kubepods.iter().map(|stats| (plain(kubepods), stats)));
    let mut starts = Vec::new();
    for pod in &usage.pods {
        let (id, whose) = (parent(&pod.uid), format!("namespace=\"{}\",pod=\"{}\"", pod.namespace, pod.name));
        rows.push((format!("container=\"\",id=\"{id}\",image=\"\",name=\"\",{whose}"), &pod.stats));
        for c in &pod.containers {
            let labels = format!("container=\"{}\",id=\"{id}/{}\",image=\"{}\",name=\"{}\",{whose}", c.name, c.id, c.image, c.id);
            starts.extend(c.started.as_deref().and_then(epoch_seconds).map(|seconds| (labels.clone(), seconds)));
            rows.push((labels, &c.stats));
        }
    }
    let mut out = String::with_capacity(16 * 1024);
    // Writing to a String cannot fail.
    for Family { name, kind, help, labels: more, value } in &FAMILIES {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, stats) in &rows {
            if let Some(value) = value(stats) {
                let _ = writeln!(out, "{name}{{{more}{labels}}} {value} {at}");
            }
        }
    }
    let name = "container_start_time_seconds";
    let _ = writeln!(out, "# HELP {name} Start time of the container since unix epoch in seconds.\n# TYPE {name} gauge");
    for (labels, seconds) in &starts {
        let _ = writeln!(out, "{name}{{{labels}}} {seconds} {at}");
    }
    for (index, (what, help)) in NETWORK.iter().enumerate() {
        let name = format!("container_network_{what}_total");
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
        for network in networks {
            let PodNetwork { namespace, pod, id, sandbox, interfaces } = network;
            for Interface { name: interface, numbers } in interfaces {
                let _ = writeln!(
                    out,
                    "{name}{{container=\"\",id=\"{id}\",image=\"{pause_image}\",interface=\"{interface}\",name=\"{sandbox}\",namespace=\"{namespace}\",pod=\"{pod}\"}} {} {at}",
                    numbers[index]
                );
            }
        }
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let _ = writeln!(
        out,
        "# HELP machine_cpu_cores Number of logical CPU cores.\n# TYPE machine_cpu_cores gauge\nmachine_cpu_cores {cores} {at}"
    );
    if let Ok(memory) = <procfs::Meminfo as procfs::Current>::current() {
        let name = "machine_memory_bytes";
        let _ = writeln!(
            out,
            "# HELP {name} Amount of memory installed on the machine.\n# TYPE {name} gauge\n{name} {} {at}",
            memory.mem_total
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::stats::example_usage;
    use super::*;

    #[test]
    fn rows_carry_the_labels_dashboards_join_on() {
        let network = PodNetwork {
            namespace: "rec".into(),
            pod: "plain".into(),
            id: "/kubepods/podu/s".into(),
            sandbox: "s".into(),
            interfaces: vec![Interface { name: "eth0".into(), numbers: [1, 2, 3, 4, 5, 6, 7, 8] }],
        };
        let usage = example_usage(1_795_402_353_588, 11_103_083);
        let text = render(&usage, &[network], "/kubepods", "pause:3", |uid| format!("/kubepods/pod{uid}"));
        let whose = "id=\"/kubepods/podu/abc\",image=\"docker.io/library/busybox:1.36\",name=\"abc\",namespace=\"rec\",pod=\"plain\"";
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter".to_owned(),
            format!("container_cpu_usage_seconds_total{{cpu=\"total\",container=\"c\",{whose}}} 0.011103083 1795402353588"),
            format!("container_memory_working_set_bytes{{container=\"c\",{whose}}} 1687552 1795402353588"),
            "container_memory_rss{container=\"\",id=\"/kubepods/podu\",image=\"\",name=\"\",namespace=\"rec\",pod=\"plain\"} 5 1795402353588".to_owned(),
            "container_memory_usage_bytes{container=\"\",id=\"/\",image=\"\",name=\"\",namespace=\"\",pod=\"\"} 974675978 1795402353588".to_owned(),
            "container_network_transmit_packets_dropped_total{container=\"\",id=\"/kubepods/podu/s\",image=\"pause:3\",interface=\"eth0\",name=\"s\",namespace=\"rec\",pod=\"plain\"} 8 1795402353588".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} not in\n{text}");
        }
        assert!(!text.contains("container_pressure_cpu_waiting_seconds_total{"), "what was not measured is not told");
    }

    #[test]
    fn interfaces_are_read_as_the_kernel_writes_them() {
        let text = "Inter-|   Receive   |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
                    \x20   lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n\
                    \x20 eth0: 1286       15    2    3    0     0          0         0      866      11    4    5    0     0       0          0\n";
        assert_eq!(interfaces(text), [Interface { name: "eth0".into(), numbers: [1286, 15, 2, 3, 866, 11, 4, 5] }]);
    }
}
