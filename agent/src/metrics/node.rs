//! Numbers of the kernel, read at a scrape but once a second at most: the node's pressure, this process, the cgroup scopes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cgroup::psi::{self, Resource};
use cgroup::stat::Bounds;
use cgroup::{Hierarchy, Stats, stat};
use procfs::{Current, WithCurrentSystemInfo};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::cached::Cached;

type Outcome = Result<(), std::fmt::Error>;

/// `node_pressure_*`, named and described as node_exporter does, so that dashboards work without it.
#[derive(Debug, Default)]
pub(super) struct Pressure(Cached<([Option<psi::Pressure>; 3], Option<u64>)>);

const PRESSURE: [(Resource, bool, &str, &str); 5] = [
    (Resource::Cpu, false, "node_pressure_cpu_waiting_seconds", "Total time in seconds that processes have waited for CPU time"),
    (Resource::Io, false, "node_pressure_io_waiting_seconds", "Total time in seconds that processes have waited due to IO congestion"),
    (Resource::Io, true, "node_pressure_io_stalled_seconds", "Total time in seconds no process could make progress due to IO congestion"),
    (Resource::Memory, false, "node_pressure_memory_waiting_seconds", "Total time in seconds that processes have waited for memory"),
    (
        Resource::Memory,
        true,
        "node_pressure_memory_stalled_seconds",
        "Total time in seconds no process could make progress due to memory congestion",
    ),
];

impl Collector for Pressure {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Outcome {
        let (readings, irq) = self.0.get(|| (Resource::ALL.map(|resource| psi::read(resource).ok().flatten()), irq_total_us()));
        for (resource, full, name, help) in PRESSURE {
            let pressure = Resource::ALL.iter().zip(readings).find(|(read, _)| **read == resource).and_then(|(_, pressure)| pressure);
            let record = pressure.and_then(|pressure| if full { pressure.full } else { Some(pressure.some) });
            if let Some(record) = record {
                counter(&mut encoder, name, help, &(record.total_us as f64 / 1e6))?;
            }
        }
        if let Some(total_us) = irq {
            let help = "Total time in seconds no process could make progress due to IRQ congestion";
            counter(&mut encoder, "node_pressure_irq_stalled_seconds", help, &(total_us as f64 / 1e6))?;
        }
        Ok(())
    }
}

/// Kernels that account for interrupts have this file, with a line `full` only.
fn irq_total_us() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/pressure/irq").ok()?;
    text.lines().find(|line| line.starts_with("full "))?.split_once("total=")?.1.trim().parse().ok()
}

/// `process_*` under the names every client library uses.
#[derive(Debug)]
pub(super) struct Process {
    started: f64,
    read: Cached<Option<(procfs::process::Stat, Option<u64>)>>,
}

impl Default for Process {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: now.saturating_sub(age().unwrap_or_default()).as_secs_f64(), read: Cached::default() }
    }
}

/// Time since this process was started by the kernel.
fn age() -> Option<Duration> {
    let stat = procfs::process::Process::myself().ok()?.stat().ok()?;
    let up = procfs::Uptime::current().ok()?.uptime_duration();
    let start = Duration::from_millis(stat.starttime.saturating_mul(1000) / procfs::ticks_per_second().max(1));
    up.checked_sub(start)
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Outcome {
        gauge(&mut encoder, "process_start_time_seconds", "Start time of the process since unix epoch in seconds", &self.started)?;
        let read = || {
            let process = procfs::process::Process::myself().ok()?;
            Some((process.stat().ok()?, process.fd_count().ok().map(|count| count as u64)))
        };
        let Some((stat, descriptors)) = self.read.get(read) else { return Ok(()) };
        let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second().max(1) as f64;
        counter(&mut encoder, "process_cpu_seconds", "Total user and system CPU time spent in seconds", &seconds)?;
        gauge(&mut encoder, "process_resident_memory_bytes", "Resident memory size in bytes", &stat.rss_bytes().get())?;
        gauge(&mut encoder, "process_virtual_memory_bytes", "Virtual memory size in bytes", &stat.vsize)?;
        gauge(&mut encoder, "process_threads", "Number of OS threads in the process", &stat.num_threads)?;
        match descriptors {
            Some(count) => gauge(&mut encoder, "process_open_fds", "Number of open file descriptors", &count),
            None => Ok(()),
        }
    }
}

/// A group whose use is shown: `agent`, `runtime`, `kubepods`, `burstable`, `besteffort`.
#[derive(Clone, Debug)]
pub struct CgroupScope {
    /// Value of the label `scope`.
    pub name: &'static str,
    /// Path below each controller's root, `/kubepods/burstable`.
    pub group: String,
}

/// `edge_agent_cgroup_*` of a fixed set of groups. Groups that do not exist yet are left out.
#[derive(Debug)]
pub struct CgroupScopes {
    hierarchy: Hierarchy,
    scopes: Vec<CgroupScope>,
    read: Cached<Vec<(&'static str, Stats, Bounds)>>,
}

impl CgroupScopes {
    pub fn new(hierarchy: Hierarchy, scopes: Vec<CgroupScope>) -> Self {
        Self { hierarchy, scopes, read: Cached::default() }
    }
}

impl Collector for CgroupScopes {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Outcome {
        let scope = |scope: &CgroupScope| {
            let stats = stat::group(&self.hierarchy, &scope.group).ok()?;
            Some((scope.name, stats, stat::bounds(&self.hierarchy, &scope.group).unwrap_or_default()))
        };
        let read = self.read.get(|| self.scopes.iter().filter_map(scope).collect());
        let help = "Memory charged to a cgroup scope";
        let mut memory = encoder.encode_descriptor("edge_agent_cgroup_memory_bytes", help, None, MetricType::Gauge)?;
        for (scope, stats, bounds) in &read {
            let Some(use_of) = &stats.memory else { continue };
            for (kind, value) in [("current", Some(use_of.usage)), ("working_set", Some(use_of.working_set)), ("swap", bounds.swap)] {
                let Some(value) = value else { continue };
                memory.encode_family(&[("scope", *scope), ("kind", kind)])?.encode_gauge(&value)?;
            }
        }
        if read.iter().any(|(_, _, bounds)| bounds.events.is_some()) {
            let help = "Events of memory.events by cgroup scope";
            let mut events = encoder.encode_descriptor("edge_agent_cgroup_memory_events", help, None, MetricType::Counter)?;
            for (scope, _, bounds) in &read {
                let Some(seen) = &bounds.events else { continue };
                let counts = [("low", seen.low), ("high", seen.high), ("max", seen.max), ("oom", seen.oom), ("oom_kill", seen.oom_kill)];
                for (event, count) in counts {
                    events.encode_family(&[("scope", *scope), ("event", event)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        if read.iter().any(|(_, _, bounds)| bounds.refaults.is_some()) {
            let help = "File pages of a scope read again after eviction";
            let mut refaults = encoder.encode_descriptor("edge_agent_cgroup_workingset_refaults", help, None, MetricType::Counter)?;
            for (scope, _, bounds) in &read {
                let Some(count) = bounds.refaults else { continue };
                refaults.encode_family(&[("scope", *scope)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let help = "Processor time used by a cgroup scope";
        let mut cpu = encoder.encode_descriptor("edge_agent_cgroup_cpu_seconds", help, None, MetricType::Counter)?;
        for (scope, stats, _) in &read {
            if let Some(use_of) = &stats.cpu {
                cpu.encode_family(&[("scope", *scope)])?.encode_counter::<NoLabelSet, _, u64>(&(use_of.usage_ns as f64 / 1e9), None)?;
            }
        }
        let help = "Tasks in a cgroup scope";
        let mut tasks = encoder.encode_descriptor("edge_agent_tasks", help, None, MetricType::Gauge)?;
        for (scope, stats, _) in &read {
            if let Some(count) = stats.tasks {
                tasks.encode_family(&[("scope", *scope)])?.encode_gauge(&count)?;
            }
        }
        if read.iter().any(|(_, _, bounds)| bounds.tasks_max.is_some()) {
            let help = "The most tasks a cgroup scope may have";
            let mut most = encoder.encode_descriptor("edge_agent_tasks_max", help, None, MetricType::Gauge)?;
            for (scope, _, bounds) in &read {
                let Some(limit) = bounds.tasks_max else { continue };
                most.encode_family(&[("scope", *scope)])?.encode_gauge(&limit)?;
            }
        }
        let help = "Processes killed by the kernel for want of memory, by cgroup scope";
        let mut kills = encoder.encode_descriptor("edge_agent_cgroup_oom_kills", help, None, MetricType::Counter)?;
        for (scope, stats, _) in &read {
            if let Some(count) = stats.oom_kills {
                kills.encode_family(&[("scope", *scope)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let help = "Cumulative stall time of a cgroup scope";
        let mut stalls = encoder.encode_descriptor("edge_agent_cgroup_pressure_seconds", help, None, MetricType::Counter)?;
        for (scope, stats, _) in &read {
            let pressures = [("cpu", stats.pressure.cpu), ("memory", stats.pressure.memory), ("io", stats.pressure.io)];
            for (resource, pressure) in pressures {
                let Some(pressure) = pressure else { continue };
                for (kind, record) in [("waiting", Some(pressure.some)), ("stalled", pressure.full)] {
                    let Some(record) = record else { continue };
                    stalls
                        .encode_family(&[("scope", *scope), ("resource", resource), ("kind", kind)])?
                        .encode_counter::<NoLabelSet, _, u64>(&(record.total_us as f64 / 1e6), None)?;
                }
            }
        }
        Ok(())
    }
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: &impl EncodeCounterValue) -> Outcome {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)?.encode_counter::<NoLabelSet, _, u64>(value, None)
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: &impl EncodeGaugeValue) -> Outcome {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(value)
}
