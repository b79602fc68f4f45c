//! `raw_start SOCKET IMAGE COUNT [PARALLEL]`: how long containerd itself takes to start a pod. Groups of PARALLEL (1) are
//! started at once and removed before the next one. Prints the median, the 99th percentile and the worst in milliseconds,
//! for each call and in all, and until the last of a group ran.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use runtime::bench::{RawPod, raw_remove, raw_start};
use runtime::{Client, cri, labels};

fn configs(image: &str, number: usize) -> (cri::PodSandboxConfig, cri::ContainerConfig) {
    let uid = format!("raw-{}-{number}", std::process::id());
    let labels = BTreeMap::from([
        (labels::POD_UID.to_owned(), uid.clone()),
        (labels::POD_NAME.to_owned(), uid.clone()),
        (labels::POD_NAMESPACE.to_owned(), "raw".to_owned()),
    ]);
    let sandbox = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata { name: uid.clone(), uid: uid.clone(), namespace: "raw".into(), attempt: 0 }),
        hostname: uid.clone(),
        log_directory: std::env::temp_dir().join(&uid).display().to_string(),
        labels: labels.clone(),
        linux: Some(cri::LinuxPodSandboxConfig { cgroup_parent: "/edge-raw".into(), ..Default::default() }),
        ..Default::default()
    };
    let container = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: vec!["sleep".into(), "3600".into()],
        log_path: "main/0.log".into(),
        labels,
        linux: Some(cri::LinuxContainerConfig::default()),
        ..Default::default()
    };
    (sandbox, container)
}

fn line(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!("{name:8} p50 {:7.1}  p99 {:7.1}  worst {:7.1}", at(0.5), at(0.99), at(1.0));
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, image, count, rest @ ..] = arguments.as_slice() else {
        return Err("usage: raw_start SOCKET IMAGE COUNT [PARALLEL]".into());
    };
    let count: usize = count.parse()?;
    let parallel: usize = rest.first().map_or(Ok(1), |n| n.parse())?;
    let client = Client::connect(Path::new(socket));
    let (mut pods, mut groups) = (Vec::new(), Vec::new());
    for first in (0..count).step_by(parallel.max(1)) {
        let wanted: Vec<_> = (first..count.min(first + parallel)).map(|number| configs(image, number)).collect();
        let directories: Vec<String> = wanted.iter().map(|(sandbox, _)| sandbox.log_directory.clone()).collect();
        let began = Instant::now();
        let started = join_all(wanted.into_iter().map(|(sandbox, container)| raw_start(&client, sandbox, container))).await;
        groups.push(began.elapsed());
        let started = started.into_iter().collect::<runtime::Result<Vec<RawPod>>>()?;
        try_join_all(started.iter().map(|pod| raw_remove(&client, pod))).await?;
        pods.extend(started);
        for directory in directories {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
    let times = |f: fn(&RawPod) -> Duration| pods.iter().map(f).collect::<Vec<_>>();
    line("sandbox", times(|p| p.took.sandbox));
    line("create", times(|p| p.took.create));
    line("start", times(|p| p.took.start));
    line("all", times(|p| p.took.total()));
    line("group", groups);
    Ok(())
}
