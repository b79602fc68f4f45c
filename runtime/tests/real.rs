//! Against a real containerd, private to each test: import, a pod with an address that answers, events, adoption,
//! clean-up. Skips aloud where containerd, the network plugins, the images or root are missing.

mod machine;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use machine::{Machine, PAUSE, images, missing, processes_naming};
use runtime::container::Streams;
use runtime::cri::{self, ContainerState};
use runtime::events::{Change, Events, RuntimeEvent};
use runtime::import::import_tar;
use runtime::managed::Managed;
use runtime::observe::{ObservedContainer, observe, observe_pod};
use runtime::{Client, PodUid, SandboxId, bench};

const NGINX: &str = "docker.io/library/nginx:alpine";
const BUSYBOX: &str = "docker.io/library/busybox:latest";

macro_rules! or_skip {
    () => {
        if let Some(what) = missing() {
            eprintln!("SKIPPED: needs {what}");
            return;
        }
    };
}

fn get(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&format!("{address}:80").parse().expect("an address"), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

async fn subscribed(events: &mut Events) {
    let first = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
    assert_eq!(first.expect("a subscription"), RuntimeEvent::LookAgain);
}

async fn next_of(events: &mut Events, wanted: Change) -> RuntimeEvent {
    let search = async {
        loop {
            match events.next().await {
                event @ RuntimeEvent::Task { change, .. } if change == wanted => return event,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), search).await.unwrap_or_else(|_| panic!("no {wanted:?} event"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_and_dies() {
    or_skip!();
    let machine = Machine::new(1);
    let client = machine.with_images().await;
    let version = client.version().await.unwrap();
    assert_eq!(version.runtime_api_version, "v1");
    let pause = client.image_status(PAUSE).await.unwrap().expect("pause image");
    assert!(pause.repo_tags.contains(&format!("docker.io/{PAUSE}")));
    assert!(client.image_status("nosuch:1").await.unwrap().is_none());

    let mut events = Events::subscribe(&client);
    subscribed(&mut events).await;

    // nginx by its image's own command, seen from the node.
    let config = machine.sandbox("u1");
    let pod = bench::raw_start(&client, config, machine.container("u1", NGINX, &[])).await.expect("nginx");
    next_of(&mut events, Change::Started).await;
    let uid = PodUid::from("u1");
    let seen = observe_pod(&client, &uid).await.unwrap();
    assert_eq!((seen.namespace.as_str(), seen.name.as_str()), ("default", "pod-u1"));
    let sandbox = seen.sandbox().unwrap();
    assert!(sandbox.ready);
    assert_eq!(sandbox.host_network, Some(false));
    let ip = sandbox.ips[0].clone();
    let container = seen.container("main").unwrap();
    assert_eq!(container.state, ContainerState::ContainerRunning);
    assert_eq!(client.ended_unnoticed().await.unwrap(), [], "sandbox and container are tasks of containerd, and they run");
    assert!(container.log_path.ends_with("u1/main/0.log"));
    let limit = Instant::now() + Duration::from_secs(10);
    let page = loop {
        match get(&ip) {
            Ok(page) => break page,
            Err(e) if Instant::now() > limit => panic!("{ip}: {e}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert!(page.contains("Welcome to nginx!"), "{page}");
    let limit = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_to_string(&container.log_path).unwrap().contains("GET / HTTP/1.0") {
        assert!(Instant::now() < limit, "the request is not in {}", container.log_path);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // A command inside, by exec: its exit is no event.
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let out = client.exec_sync(&pod.container, &words("test -e /nosuch"), Duration::from_secs(5)).await.unwrap();
    assert_eq!(out.exit_code, 1);
    let out = client.exec_sync(&pod.container, &words("nginx -v"), Duration::from_secs(5)).await.unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("nginx/"));
    let stdout = Streams { stdout: true, ..Default::default() };
    let url = client.exec(&pod.container, &words("ls"), stdout).await.unwrap();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");

    // When an exit is reported, the status shows it.
    client.stop_container(&pod.container, Duration::from_secs(10)).await.unwrap();
    let event = next_of(&mut events, Change::Exited).await;
    let RuntimeEvent::Task { container, pod: of, .. } = event else { unreachable!() };
    assert_eq!((container, of), (pod.container.clone(), Some(uid.clone())));
    let status = client.container_status(&pod.container).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 0, "nginx ends cleanly on SIGQUIT");

    // Everything twice: the second time it is gone, and that is fine.
    for _ in 0..2 {
        client.stop_container(&pod.container, Duration::ZERO).await.unwrap();
        client.stop_pod_sandbox(&pod.sandbox).await.unwrap();
        client.remove_container(&pod.container).await.unwrap();
        client.remove_pod_sandbox(&pod.sandbox).await.unwrap();
    }
    let gone = client.pod_sandbox_status(&pod.sandbox).await.unwrap_err();
    assert!(gone.is_not_found(), "{gone}");
    assert!(observe(&client).await.unwrap().is_empty());
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exits_and_memory_kills_are_told_truthfully() {
    or_skip!();
    let machine = Machine::new(2);
    let client = machine.with_images().await;
    let mut events = Events::subscribe(&client);
    subscribed(&mut events).await;

    // 30 short lives: at each exit event the status must already be the final one.
    let sandbox = client.run_pod_sandbox(machine.sandbox("u2"), "").await.unwrap();
    for attempt in 0..30 {
        let mut config = machine.container("u2", BUSYBOX, &["sh", "-c", "exit 7"]);
        config.metadata.as_mut().unwrap().attempt = attempt;
        let id = client.create_container(&sandbox, config, machine.sandbox("u2")).await.unwrap();
        client.start_container(&id).await.unwrap();
        loop {
            let RuntimeEvent::Task { container, .. } = next_of(&mut events, Change::Exited).await else { unreachable!() };
            if container == id {
                break;
            }
        }
        let status = client.container_status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited, "attempt {attempt}");
        assert_eq!(status.exit_code, 7);
    }
    let seen = observe_pod(&client, &PodUid::from("u2")).await.unwrap();
    assert_eq!(seen.containers.len(), 30);
    assert_eq!(seen.container("main").unwrap().attempt, 29, "newest first");

    // More memory than allowed.
    let mut config = machine.container("u2", BUSYBOX, &["sh", "-c", "tail /dev/zero"]);
    config.metadata.as_mut().unwrap().attempt = 30;
    config.linux = Some(cri::LinuxContainerConfig {
        resources: Some(cri::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() }),
        ..Default::default()
    });
    let id = client.create_container(&sandbox, config, machine.sandbox("u2")).await.unwrap();
    client.start_container(&id).await.unwrap();
    next_of(&mut events, Change::Exited).await;
    let status = client.container_status(&id).await.unwrap();
    assert_eq!(status.reason, "OOMKilled", "{status:?}");
    machine.end().await;
}

/// Drops a start after `patience`, as a killed agent does, and returns what became of the container.
async fn start_given_up(client: &Client, machine: &Machine, sandbox: &SandboxId, patience: Duration) -> ObservedContainer {
    let config = machine.container("u9", BUSYBOX, &["sleep", "1000"]);
    let id = client.create_container(sandbox, config, machine.sandbox("u9")).await.expect("a container");
    // A client of its own: its connection goes with it.
    let hasty = Client::connect(client.socket());
    let _ = tokio::time::timeout(patience, hasty.start_container(&id)).await;
    drop(hasty);
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let seen = observe_pod(client, &PodUid::from("u9")).await.expect("the runtime answers");
        let container = seen.container("main").expect("it was made");
        // The given-up call may go on for a moment; one that never got there leaves it created.
        if container.state != ContainerState::ContainerCreated || Instant::now() >= limit {
            return container.clone();
        }
        match client.start_container(&id).await {
            Ok(()) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_was_given_up_is_told_from_one_that_ran() {
    or_skip!();
    let machine = Machine::new(9);
    let client = machine.with_images().await;
    let sandbox = client.run_pod_sandbox(machine.sandbox("u9"), "").await.unwrap();
    let mut given_up = 0;
    for millis in (5..200).step_by(15) {
        let container = start_given_up(&client, &machine, &sandbox, Duration::from_millis(millis)).await;
        let ran = container.started_at > 0;
        assert_eq!(container.never_began(), !ran, "after {millis} ms: {container:?}");
        given_up += u32::from(!ran);
        // The same attempt can be made again once it is removed.
        client.stop_container(&container.id, Duration::ZERO).await.unwrap();
        client.remove_container(&container.id).await.unwrap();
        if ran && given_up > 2 {
            break;
        }
    }
    assert!(given_up > 0, "no start was cut short");
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_is_adopted_and_its_death_ends_no_pod() {
    or_skip!();
    let machine = Machine::new(3);
    let client = machine.with_images().await;
    let pod =
        bench::raw_start(&client, machine.sandbox("u3"), machine.container("u3", BUSYBOX, &["sleep", "1000"])).await.expect("a sleeper");
    let mut events = Events::subscribe(&client);
    subscribed(&mut events).await;

    let mut first = Managed::start(&machine.options).await.unwrap();
    assert!(first.adopted, "a second start adopts");

    // Killed: pods live on, a new one takes over, the same client finds it again, and the stream says so.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first.pid as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    tokio::time::timeout(Duration::from_secs(10), first.ended()).await.expect("its end is noticed");
    let second = Managed::start(&machine.options).await.unwrap();
    assert!(!second.adopted);
    assert_ne!(second.pid, first.pid);
    let again = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
    assert_eq!(again.expect("a sign"), RuntimeEvent::LookAgain);
    let seen = observe_pod(&client, &PodUid::from("u3")).await.unwrap();
    assert!(seen.sandbox().unwrap().ready);
    assert_eq!(seen.container("main").unwrap().id, pod.container);
    assert_eq!(seen.container("main").unwrap().state, ContainerState::ContainerRunning);

    // A lost pid file hides it from nobody.
    std::fs::remove_file(machine.options.state.join("containerd.pid")).unwrap();
    let found = Managed::start(&machine.options).await.unwrap();
    assert_eq!((found.adopted, found.pid), (true, second.pid));

    // Kept: it comes back by itself, also when it was adopted and is nobody's child.
    let keeper = tokio::spawn(found.keep(machine.options.clone()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(second.pid as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    drop(second);
    let again = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
    assert_eq!(again.expect("a sign"), RuntimeEvent::LookAgain);
    let status = client.container_status(&pod.container).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    Managed::start(&machine.options).await.unwrap();
    keeper.abort();
    let _ = keeper.await;

    // A changed configuration restarts it, and again no pod ends.
    let mut changed = machine.options.clone();
    changed.registry_config = Some(machine.dir.path().join("certs.d"));
    let third = Managed::start(&changed).await.unwrap();
    assert!(!third.adopted);
    let status = client.container_status(&pod.container).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clean_up_works_without_the_daemon() {
    or_skip!();
    let machine = Machine::new(4);
    let client = machine.with_images().await;
    bench::raw_start(&client, machine.sandbox("u4"), machine.container("u4", BUSYBOX, &["sleep", "1000"])).await.expect("a sleeper");
    let managed = Managed::start(&machine.options).await.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(managed.pid as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    drop(managed);
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_import_once_and_bad_ones_are_refused() {
    or_skip!();
    let machine = Machine::new(5);
    let client = machine.client().await;
    let images = images().unwrap();
    let first = import_tar(&client, &images.join("nginx.tar")).await.unwrap();
    assert_eq!(first, [NGINX]);
    let began = Instant::now();
    assert_eq!(import_tar(&client, &images.join("nginx.tar")).await.unwrap(), first);
    assert!(began.elapsed() < Duration::from_secs(2), "a repetition sends nothing");
    let image = client.image_status("nginx:alpine").await.unwrap().unwrap();
    assert!(image.size > 1 << 20);

    // docker save's form, made from the same layer.
    let saved = machine.dir.path().join("saved");
    std::fs::create_dir(&saved).unwrap();
    let unpack = Command::new("tar").args([Path::new("-C"), &saved, Path::new("-xf"), &images.join("busybox.tar")]).status().unwrap();
    assert!(unpack.success());
    let blobs = saved.join("blobs/sha256");
    let mut by_size: Vec<(u64, PathBuf)> =
        std::fs::read_dir(&blobs).unwrap().map(|e| e.unwrap()).map(|e| (e.metadata().unwrap().len(), e.path())).collect();
    by_size.sort();
    let layer = by_size.pop().unwrap().1;
    let config = by_size.into_iter().map(|(_, path)| path).find(|path| std::fs::read_to_string(path).unwrap().contains("rootfs")).unwrap();
    std::fs::rename(layer, saved.join("layer.tar")).unwrap();
    std::fs::rename(config, saved.join("config.json")).unwrap();
    std::fs::remove_file(saved.join("index.json")).unwrap();
    std::fs::write(saved.join("manifest.json"), r#"[{"Config":"config.json","RepoTags":["saved:1"],"Layers":["layer.tar"]}]"#).unwrap();
    let tar = machine.dir.path().join("saved.tar");
    let pack = |tar: &Path| {
        let done = Command::new("tar").args([Path::new("-C"), &saved, Path::new("-cf"), tar, Path::new(".")]).status().unwrap();
        assert!(done.success());
    };
    pack(&tar);
    let names = import_tar(&client, &tar).await.unwrap();
    assert_eq!(names, ["docker.io/library/saved:1"]);

    // A layer that is not what its name says.
    let good = std::fs::read(images.join("pause.tar")).unwrap();
    let spot = good.len() / 2;
    let mut bad = good;
    bad[spot] ^= 0xff;
    let file = machine.dir.path().join("bad.tar");
    std::fs::write(&file, bad).unwrap();
    let error = import_tar(&client, &file).await.unwrap_err().to_string();
    assert!(error.contains("bad.tar") && error.contains("damaged"), "{error}");
    assert!(client.image_status(PAUSE).await.unwrap().is_none());

    let tags: Vec<String> = client.list_images().await.unwrap().into_iter().flat_map(|image| image.repo_tags).collect();
    assert_eq!(tags.len(), 2, "{tags:?}");
    machine.end().await;
}

#[tokio::test]
async fn a_runtime_that_is_away_is_worth_a_retry() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::connect(&dir.path().join("none.sock"));
    let error = client.version().await.unwrap_err();
    assert!(error.is_retryable() && error.is_unavailable(), "{error:?}");
    let error = client.stop_pod_sandbox(&SandboxId::from("x")).await.unwrap_err();
    assert!(!error.is_not_found());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_cri_knows_nothing_of_keeps_no_container() {
    or_skip!();
    let machine = Machine::new(10);
    let client = machine.with_images().await;
    let sandbox = client.run_pod_sandbox(machine.sandbox("u10"), "").await.unwrap();
    let id =
        client.create_container(&sandbox, machine.container("u10", BUSYBOX, &["sleep", "1000"]), machine.sandbox("u10")).await.unwrap();
    // What is left where a start is given up in the wrong moment, made with containerd's own tool.
    let mut tool = std::process::Command::new("ctr");
    tool.arg("-a").arg(client.socket()).args(["-n", "k8s.io", "task", "start", "--detach", "--null-io", &id]);
    let started = tool.output().expect("containerd brings ctr");
    assert!(started.status.success(), "{started:?}");
    let seen = observe_pod(&client, &PodUid::from("u10")).await.unwrap();
    assert_eq!(seen.container("main").map(|c| c.state), Some(ContainerState::ContainerCreated), "CRI knows nothing of it");
    client.remove_container(&id).await.expect("goes with its task");
    assert!(observe_pod(&client, &PodUid::from("u10")).await.unwrap().containers.is_empty());
    client.stop_pod_sandbox(&sandbox).await.unwrap();
    client.remove_pod_sandbox(&sandbox).await.unwrap();
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_given_up_half_way_leave_nothing() {
    or_skip!();
    let machine = Machine::new(6);
    let client = machine.with_images().await;
    // A first one, whole: unpacks the image, and says how long it takes.
    let began = Instant::now();
    let first = client.run_pod_sandbox(machine.sandbox("whole"), "").await.unwrap();
    client.stop_pod_sandbox(&first).await.unwrap();
    client.remove_pod_sandbox(&first).await.unwrap();
    let whole = began.elapsed();

    // An agent killed at some moment is, to containerd, a call given up. Each at another moment.
    let rounds = 24;
    for round in 0..rounds {
        let limit = whole * round / rounds;
        let config = machine.sandbox(&format!("cut{round}"));
        let _ = tokio::time::timeout(limit, client.run_pod_sandbox(config, "")).await;
    }
    // What did come into being is found by its labels, and goes as usual; the rest containerd clears away, nearly.
    let netns = machine.options.state.join("netns");
    let leases = machine.dir.path().join("ipam").join(&machine.bridge);
    let left = || {
        let count = |dir: &Path, what: fn(&str) -> bool| {
            std::fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| what(&e.file_name().to_string_lossy())).count()
        };
        (
            processes_naming("containerd-shim").iter().filter(|line| line.contains(machine.options.socket.to_str().unwrap())).count(),
            count(&netns, |_| true),
            count(&leases, |name| name.starts_with("10.")),
        )
    };
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        for sandbox in client.list_sandboxes(BTreeMap::new()).await.unwrap() {
            let id = SandboxId::from(sandbox.id);
            client.stop_pod_sandbox(&id).await.unwrap();
            client.remove_pod_sandbox(&id).await.unwrap();
        }
        if left() == (0, 0, 0) {
            break;
        }
        // A shim or so containerd does lose; the agent ends those.
        Managed::sweep(&machine.options, Duration::from_secs(1)).await;
        assert!(Instant::now() < limit, "shims, network namespaces, addresses left: {:?}", left());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    machine.end().await;
}
