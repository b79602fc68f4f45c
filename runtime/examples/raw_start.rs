//! `raw_start SOCKET IMAGE COUNT [PARALLEL]`: how long containerd itself takes to start a pod. Prints the median, the
//! 99th percentile and the worst in milliseconds, for each call and in all, and removes the pods again.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use runtime::bench::{RawPod, raw_remove, raw_start};
use runtime::{Client, cri, labels};
use tokio::task::JoinSet;

async fn one(client: Client, image: String, number: usize) -> runtime::Result<RawPod> {
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
        image: Some(cri::ImageSpec { image, ..Default::default() }),
        log_path: "main/0.log".into(),
        labels,
        linux: Some(cri::LinuxContainerConfig::default()),
        ..Default::default()
    };
    let directory = sandbox.log_directory.clone();
    let pod = raw_start(&client, sandbox, container).await?;
    raw_remove(&client, &pod).await?;
    let _ = std::fs::remove_dir_all(directory);
    Ok(pod)
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
    let began = Instant::now();
    let mut work = JoinSet::new();
    let mut pods = Vec::new();
    for number in 0..count {
        while work.len() >= parallel {
            pods.extend(work.join_next().await.transpose()?.transpose()?);
        }
        work.spawn(one(client.clone(), image.clone(), number));
    }
    while let Some(done) = work.join_next().await {
        pods.push(done??);
    }
    let times = |f: fn(&RawPod) -> Duration| pods.iter().map(f).collect::<Vec<_>>();
    line("sandbox", times(|p| p.took.sandbox));
    line("create", times(|p| p.took.create));
    line("start", times(|p| p.took.start));
    line("all", times(|p| p.took.total()));
    println!("{count} pods, {parallel} at a time, removed again, in {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}
