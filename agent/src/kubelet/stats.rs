//! Usage of the node, its pods and containers: `/metrics/resource` for metrics-server, `/stats/summary` for people.
//!
//! Everything is read from the cgroup files when asked for; containerd is not bothered. Reading sleeps, so callers run
//! [`gather`] on a blocking thread.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use cgroup::psi::{Pressure, Record};
use cgroup::{PodTree, QosClass, Stats};
use procfs::{Current, CurrentSI};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::pod::View;

/// One running container.
#[derive(Clone, Debug)]
pub(crate) struct ContainerUse {
    pub(crate) name: String,
    pub(crate) id: String,
    /// As the status names it.
    pub(crate) image: String,
    /// RFC 3339, from the status.
    pub(crate) started: Option<String>,
    pub(crate) stats: Stats,
}

/// One pod with a cgroup.
#[derive(Clone, Debug)]
pub(crate) struct PodUse {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) started: Option<String>,
    pub(crate) stats: Stats,
    pub(crate) containers: Vec<ContainerUse>,
    /// Running containers that could not be read.
    pub(crate) unread: usize,
}

/// One reading of everything.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    /// Milliseconds since the epoch.
    pub(crate) at: u128,
    pub(crate) node: Option<Stats>,
    pub(crate) kubepods: Option<Stats>,
    pub(crate) pods: Vec<PodUse>,
    /// Something that should have been readable was not.
    pub(crate) incomplete: bool,
}

/// Reads the node and every pod of the view that has a cgroup.
pub(crate) fn gather(tree: &PodTree, view: &View) -> Usage {
    let node = tree.node_stats();
    let mut incomplete = node.is_err();
    let mut pods = Vec::new();
    for seen in view.list() {
        let meta = &seen.pod.metadata;
        let qos = QosClass::ALL.into_iter().find(|qos| qos.as_str() == seen.pod.status.qos_class);
        let Some(qos) = qos else { continue };
        let Ok(stats) = tree.pod_stats(&meta.uid, qos) else { continue };
        let mut found = PodUse {
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            started: seen.pod.status.start_time.clone(),
            stats,
            containers: Vec::new(),
            unread: 0,
        };
        for (name, container) in seen.containers.iter() {
            let Some(id) = container.id.as_ref().filter(|_| container.running) else { continue };
            match tree.container_stats(&meta.uid, qos, id.as_str()) {
                Ok(stats) => {
                    let status = seen.pod.status.container(name);
                    let started = status.and_then(|status| status.state.running.as_ref()).and_then(|r| r.started_at.clone());
                    let image = status.map(|status| status.image.clone()).unwrap_or_default();
                    found.containers.push(ContainerUse { name: name.clone(), id: id.as_str().to_owned(), image, started, stats });
                }
                // Between its end and the view saying so; a real failure shows as an incomplete pod.
                Err(_) => found.unread += 1,
            }
        }
        incomplete |= found.unread > 0;
        pods.push(found);
    }
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Usage { at, node: node.ok(), kubepods: tree.kubepods_stats().ok(), pods, incomplete }
}

/// `/metrics/resource`, written by hand: the samples carry timestamps, which metrics-server needs for its rates.
pub(crate) fn resource_metrics(usage: &Usage) -> String {
    let mut out = String::with_capacity(4096);
    let at = usage.at;
    let whole = |pod: &&PodUse| pod.unread == 0;
    let containers = || usage.pods.iter().filter(whole).flat_map(|pod| pod.containers.iter().map(move |c| (pod, c)));
    let label =
        |pod: &PodUse, c: &ContainerUse| format!("{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}}", c.name, pod.namespace, pod.name);
    let pod_label = |pod: &PodUse| format!("{{namespace=\"{}\",pod=\"{}\"}}", pod.namespace, pod.name);
    let cpu = |stats: &Stats| stats.cpu.map(|cpu| cpu.usage_ns as f64 / 1e9);
    let memory = |stats: &Stats| stats.memory.map(|memory| memory.working_set as f64);

    let mut family = |name: &str, kind: &str, help: &str, samples: &mut dyn Iterator<Item = (String, Option<f64>)>| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            if let Some(value) = value {
                let _ = writeln!(out, "{name}{labels} {value} {at}");
            }
        }
    };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        &mut containers().map(|(pod, c)| (label(pod, c), cpu(&c.stats))),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        &mut containers().map(|(pod, c)| (label(pod, c), memory(&c.stats))),
    );
    family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        &mut containers().map(|(pod, c)| (label(pod, c), c.started.as_deref().and_then(epoch_seconds))),
    );
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        &mut usage.node.iter().map(|node| (String::new(), cpu(node))),
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        &mut usage.node.iter().map(|node| (String::new(), memory(node))),
    );
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        &mut usage.pods.iter().filter(whole).map(|pod| (pod_label(pod), cpu(&pod.stats))),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        &mut usage.pods.iter().filter(whole).map(|pod| (pod_label(pod), memory(&pod.stats))),
    );
    let failed = u8::from(usage.incomplete);
    for name in ["resource_scrape_error", "scrape_error"] {
        let _ = write!(
            out,
            "# HELP {name} [STABLE] 1 if there was an error while getting container metrics, 0 otherwise\n\
             # TYPE {name} gauge\n{name} {failed}\n"
        );
    }
    out
}

pub(crate) fn epoch_seconds(time: &str) -> Option<f64> {
    let time = OffsetDateTime::parse(time, &Rfc3339).ok()?;
    Some(time.unix_timestamp_nanos() as f64 / 1e9)
}

/// CPU readings of the summary before, to compute cores in use now.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<HashMap<String, (u128, u64)>>);

impl Rates {
    /// Nanocores of each key since the last call; none for what was not there then.
    fn update(&self, at: u128, now: HashMap<String, u64>) -> HashMap<String, u64> {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let rate = |key: &String, used: u64| {
            let (before, then) = last.get(key)?;
            let millis = at.checked_sub(*before).filter(|millis| *millis > 0)?;
            u64::try_from(u128::from(used.checked_sub(*then)?) * 1000 / millis).ok()
        };
        let rates = now.iter().filter_map(|(key, used)| Some((key.clone(), rate(key, *used)?))).collect();
        *last = now.into_iter().map(|(key, used)| (key, (at, used))).collect();
        rates
    }
}

/// `/stats/summary`. `only_cpu_and_memory` leaves out what disks and networks would have to be asked for.
pub(crate) fn summary(usage: &Usage, node_name: &str, root_dir: &Path, rates: &Rates, only_cpu_and_memory: bool) -> Value {
    let time = rfc3339(usage.at);
    let mut cpu_now = HashMap::new();
    let mut note = |key: &str, stats: &Stats| {
        if let Some(cpu) = stats.cpu {
            cpu_now.insert(key.to_owned(), cpu.usage_ns);
        }
    };
    for (key, stats) in [("node", &usage.node), ("kubepods", &usage.kubepods)] {
        if let Some(stats) = stats {
            note(key, stats);
        }
    }
    for pod in &usage.pods {
        note(&pod.uid, &pod.stats);
        for container in &pod.containers {
            note(&container.id, &container.stats);
        }
    }
    let rates = rates.update(usage.at, cpu_now);
    let both = |key: &str, stats: &Stats| {
        let mut map = Map::new();
        map.insert("cpu".into(), cpu_json(&time, stats, rates.get(key).copied()));
        map.insert("memory".into(), memory_json(&time, stats));
        map
    };

    let mut node = usage.node.as_ref().map(|stats| both("node", stats)).unwrap_or_default();
    node.insert("nodeName".into(), node_name.into());
    node.insert("startTime".into(), boot_time(usage.at).into());
    if let Some(stats) = &usage.kubepods {
        let mut kubepods = both("kubepods", stats);
        kubepods.insert("name".into(), "pods".into());
        kubepods.insert("startTime".into(), boot_time(usage.at).into());
        node.insert("systemContainers".into(), json!([kubepods]));
    }
    if !only_cpu_and_memory {
        if let Some(network) = network_json(&time) {
            node.insert("network".into(), network);
        }
        if let Some(fs) = fs_json(&time, root_dir) {
            node.insert("runtime".into(), json!({"imageFs": fs, "containerFs": fs}));
            node.insert("fs".into(), fs);
        }
        if let Some(rlimit) = rlimit_json(&time) {
            node.insert("rlimit".into(), rlimit);
        }
        if let Ok(memory) = procfs::Meminfo::current() {
            let used = memory.swap_total.saturating_sub(memory.swap_free);
            node.insert("swap".into(), json!({"time": time, "swapAvailableBytes": memory.swap_free, "swapUsageBytes": used}));
        }
    }
    let pods: Vec<Value> = usage
        .pods
        .iter()
        .map(|pod| {
            let containers: Vec<Value> = pod
                .containers
                .iter()
                .map(|container| {
                    let mut map = both(&container.id, &container.stats);
                    map.insert("name".into(), container.name.as_str().into());
                    map.insert("startTime".into(), container.started.clone().into());
                    Value::Object(map)
                })
                .collect();
            let mut map = both(&pod.uid, &pod.stats);
            map.insert("podRef".into(), json!({"name": pod.name, "namespace": pod.namespace, "uid": pod.uid}));
            map.insert("startTime".into(), pod.started.clone().into());
            map.insert("containers".into(), containers.into());
            if let Some(tasks) = pod.stats.tasks {
                map.insert("process_stats".into(), json!({"process_count": tasks}));
            }
            Value::Object(map)
        })
        .collect();
    json!({"node": node, "pods": pods})
}

fn cpu_json(time: &str, stats: &Stats, nanocores: Option<u64>) -> Value {
    let mut map = Map::from_iter([("time".to_owned(), time.into())]);
    if let Some(cpu) = stats.cpu {
        map.insert("usageNanoCores".into(), nanocores.into());
        map.insert("usageCoreNanoSeconds".into(), cpu.usage_ns.into());
    }
    if let Some(pressure) = stats.pressure.cpu {
        map.insert("psi".into(), psi_json(&pressure));
    }
    map.retain(|_, value| !value.is_null());
    Value::Object(map)
}

fn memory_json(time: &str, stats: &Stats) -> Value {
    let mut map = Map::from_iter([("time".to_owned(), time.into())]);
    if let Some(memory) = stats.memory {
        if let Some(limit) = memory.limit.value() {
            map.insert("availableBytes".into(), limit.saturating_sub(memory.working_set).into());
        }
        map.insert("usageBytes".into(), memory.usage.into());
        map.insert("workingSetBytes".into(), memory.working_set.into());
        map.insert("rssBytes".into(), memory.rss.into());
        map.insert("pageFaults".into(), memory.page_faults.into());
        map.insert("majorPageFaults".into(), memory.major_page_faults.into());
    }
    if let Some(pressure) = stats.pressure.memory {
        map.insert("psi".into(), psi_json(&pressure));
    }
    Value::Object(map)
}

fn psi_json(pressure: &Pressure) -> Value {
    let line = |record: Option<Record>| {
        // Totals here are nanoseconds, the kernel's are microseconds.
        record.map(|r| json!({"total": r.total_us.saturating_mul(1000), "avg10": r.avg10, "avg60": r.avg60, "avg300": r.avg300}))
    };
    json!({"some": line(Some(pressure.some)), "full": line(pressure.full)})
}

fn network_json(time: &str) -> Option<Value> {
    let devices = procfs::net::dev_status().ok()?;
    let device = |device: &procfs::net::DeviceStatus| {
        json!({"name": device.name, "rxBytes": device.recv_bytes, "rxErrors": device.recv_errs,
               "txBytes": device.sent_bytes, "txErrors": device.sent_errs})
    };
    let routes = procfs::net::route().unwrap_or_default();
    let default = routes.iter().find(|route| route.destination.is_unspecified()).map(|route| route.iface.clone());
    let mut names: Vec<&String> = devices.keys().filter(|name| name.as_str() != "lo").collect();
    names.sort();
    let interfaces: Vec<Value> = names.iter().map(|name| device(&devices[*name])).collect();
    let main = default.and_then(|name| devices.get(&name)).map(device);
    let mut network = main.unwrap_or_else(|| json!({"name": ""}));
    network["time"] = time.into();
    network["interfaces"] = interfaces.into();
    Some(network)
}

fn fs_json(time: &str, path: &Path) -> Option<Value> {
    let fs = nix::sys::statvfs::statvfs(path).ok()?;
    let block = fs.fragment_size();
    let capacity = fs.blocks() * block;
    Some(json!({
        "time": time, "availableBytes": fs.blocks_available() * block, "capacityBytes": capacity,
        "usedBytes": capacity.saturating_sub(fs.blocks_free() * block),
        "inodesFree": fs.files_free(), "inodes": fs.files(), "inodesUsed": fs.files().saturating_sub(fs.files_free()),
    }))
}

fn rlimit_json(time: &str) -> Option<Value> {
    let most: i64 = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?;
    let load = procfs::LoadAverage::current().ok()?;
    Some(json!({"time": time, "maxpid": most, "curproc": load.max}))
}

fn boot_time(at: u128) -> Option<String> {
    let seconds = procfs::KernelStats::current().ok()?.btime;
    (at > 0).then(|| rfc3339(u128::from(seconds) * 1000))
}

fn rfc3339(millis: u128) -> String {
    let seconds = i64::try_from(millis / 1000).unwrap_or_default();
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
pub(crate) use tests::usage as example_usage;

#[cfg(test)]
mod tests {
    use super::*;
    use cgroup::Limit;
    use cgroup::stat::{Cpu, Memory, Pressures};

    fn stats(cpu_ns: u64, working_set: u64) -> Stats {
        let memory =
            Memory { usage: working_set + 10, working_set, rss: 5, page_faults: 1, major_page_faults: 0, limit: Limit::At(1 << 20) };
        Stats {
            memory: Some(memory),
            cpu: Some(Cpu { usage_ns: cpu_ns, throttled_ns: None }),
            tasks: Some(2),
            oom_kills: None,
            pressure: Pressures::default(),
        }
    }

    pub(crate) fn usage(at: u128, cpu_ns: u64) -> Usage {
        let container = ContainerUse {
            name: "c".into(),
            id: "abc".into(),
            image: "docker.io/library/busybox:1.36".into(),
            started: Some("2026-11-23T02:51:47.5Z".into()),
            stats: stats(cpu_ns, 1_687_552),
        };
        let pod = PodUse {
            namespace: "rec".into(),
            name: "plain".into(),
            uid: "u".into(),
            started: Some("2026-11-23T02:51:40Z".into()),
            stats: stats(cpu_ns, 2_000_000),
            containers: vec![container],
            unread: 0,
        };
        Usage {
            at,
            node: Some(stats(3_074_599_645_541, 974_675_968)),
            kubepods: Some(stats(cpu_ns, 7)),
            pods: vec![pod],
            incomplete: false,
        }
    }

    #[test]
    fn resource_metrics_read_as_a_kubelets() {
        let text = resource_metrics(&usage(1_795_402_353_588, 11_103_083));
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter",
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"rec\",pod=\"plain\"} 0.011103083 1795402353588",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"rec\",pod=\"plain\"} 1687552 1795402353588",
            "container_start_time_seconds{container=\"c\",namespace=\"rec\",pod=\"plain\"} 1795402307.5 1795402353588",
            "node_cpu_usage_seconds_total 3074.599645541 1795402353588",
            "pod_memory_working_set_bytes{namespace=\"rec\",pod=\"plain\"} 2000000 1795402353588",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn a_pod_with_an_unreadable_container_is_left_out() {
        let mut usage = usage(1, 1);
        usage.pods[0].unread = 1;
        usage.incomplete = true;
        let text = resource_metrics(&usage);
        assert!(!text.contains("plain") && text.contains("resource_scrape_error 1"), "{text}");
    }

    #[test]
    fn the_summary_knows_cores_in_use_from_the_second_time_on() {
        let rates = Rates::default();
        let root = Path::new("/");
        let first = summary(&usage(1_000, 100), "n1", root, &rates, false);
        assert_eq!(first["pods"][0]["containers"][0]["cpu"]["usageNanoCores"], Value::Null);
        let second = summary(&usage(3_000, 2_000_100), "n1", root, &rates, true);
        let container = &second["pods"][0]["containers"][0];
        assert_eq!(container["cpu"]["usageNanoCores"], 1_000_000);
        assert_eq!(container["memory"]["availableBytes"], 0);
        assert_eq!(second["pods"][0]["podRef"], json!({"name": "plain", "namespace": "rec", "uid": "u"}));
        assert_eq!(second["node"]["nodeName"], "n1");
        assert!(first["node"]["fs"]["capacityBytes"].as_u64().is_some_and(|bytes| bytes > 0));
        assert_eq!(second["node"]["fs"], Value::Null);
    }
}
