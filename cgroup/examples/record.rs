//! Records what the governor sees, one JSON object a line: `{"sample": …, "pods": […], "read_us": …, "pods_us": …}`.
//!
//! `record SECONDS [CGROUP_ROOT [cgroupfs|systemd [AGENT_GROUP [RUNTIME_GROUP]]]]`, every 50 ms, to the standard output. A recording can be
//! replayed through the control law.

use std::io::Write;
use std::time::{Duration, Instant};

use cgroup::governor::{Inputs, PodFacts, PodReader, Scopes, Sensor, SensorOptions};
use cgroup::{Driver, Hierarchy, PodTree};

const PERIOD: Duration = Duration::from_millis(50);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |n: usize, default: &'static str| arguments.get(n).map_or(default, String::as_str);
    let seconds: u64 = argument(0, "10").parse()?;
    let driver = match argument(2, "systemd") {
        "cgroupfs" => Driver::Cgroupfs,
        _ => Driver::Systemd,
    };
    let tree = PodTree::new(Hierarchy::detect()?, argument(1, "/"), driver)?;
    let scopes = Scopes::of(&tree, argument(3, "/edge.slice"), argument(4, "/system.slice/containerd.service"));
    let options = SensorOptions { sys_root: "/sys".into(), state_dir: "/var/lib".into() };
    let mut sensor = Sensor::new(tree.hierarchy(), &scopes, &options);
    let mut reader = PodReader::new(tree.clone());
    let mut out = std::io::stdout().lock();
    let start = Instant::now();
    let mut beat = start;
    while start.elapsed() < Duration::from_secs(seconds) {
        let before = Instant::now();
        let sample = sensor.read(Inputs::default());
        let read_us = before.elapsed().as_micros();
        let facts: Vec<PodFacts> =
            tree.list_pods()?.into_iter().map(|pod| PodFacts { uid: pod.uid, qos: pod.qos, ..PodFacts::default() }).collect();
        let before = Instant::now();
        let pods = reader.read(&facts);
        let pods_us = before.elapsed().as_micros();
        let line = serde_json::json!({ "sample": sample, "pods": pods, "read_us": read_us, "pods_us": pods_us });
        writeln!(out, "{line}")?;
        beat += PERIOD;
        std::thread::sleep(beat.saturating_duration_since(Instant::now()));
    }
    Ok(())
}
