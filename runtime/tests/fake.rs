//! The client against the fake runtime: what is hard to make a real containerd do. Also the fake's own test: where
//! both are asked the same, they must answer the same (`real.rs`).

#[path = "../../tests/fakes/cri/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod cri_fake;

use std::collections::BTreeMap;
use std::time::Duration;

use cri_fake::FakeCri;
use runtime::cri::{self, ContainerState};
use runtime::events::{Change, Events, RuntimeEvent};
use runtime::observe::{observe, observe_pod};
use runtime::{Client, PodUid, SandboxId, labels};
use tonic::Status;

async fn fake() -> (tempfile::TempDir, FakeCri, Client) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let fake = FakeCri::start(dir.path()).await.expect("a socket");
    fake.add_image("nginx:alpine");
    let client = Client::connect(fake.socket());
    (dir, fake, client)
}

fn sandbox(uid: &str, attempt: u32) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata { name: "web".into(), uid: uid.into(), namespace: "default".into(), attempt }),
        labels: BTreeMap::from([
            (labels::POD_UID.to_owned(), uid.to_owned()),
            (labels::POD_NAME.to_owned(), "web".to_owned()),
            (labels::POD_NAMESPACE.to_owned(), "default".to_owned()),
        ]),
        ..Default::default()
    }
}

fn container(uid: &str, attempt: u32) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt }),
        image: Some(cri::ImageSpec { image: "nginx:alpine".into(), ..Default::default() }),
        labels: BTreeMap::from([(labels::POD_UID.to_owned(), uid.to_owned()), (labels::CONTAINER_NAME.to_owned(), "main".to_owned())]),
        ..Default::default()
    }
}

#[tokio::test]
async fn pods_are_grouped_and_the_newest_comes_first() {
    let (_dir, fake, client) = fake().await;
    for uid in ["a", "b"] {
        let first = client.run_pod_sandbox(sandbox(uid, 0), "").await.unwrap();
        client.stop_pod_sandbox(&first).await.unwrap();
        let second = client.run_pod_sandbox(sandbox(uid, 1), "").await.unwrap();
        for attempt in 0..2 {
            let id = client.create_container(&second, container(uid, attempt), sandbox(uid, 1)).await.unwrap();
            client.start_container(&id).await.unwrap();
            if attempt == 0 {
                fake.exit(&id, 3);
            }
        }
    }
    let mut foreign = sandbox("c", 0);
    foreign.labels.clear();
    client.run_pod_sandbox(foreign, "").await.unwrap();

    let all = observe(&client).await.unwrap();
    assert_eq!(all.keys().map(PodUid::as_str).collect::<Vec<_>>(), ["a", "b"]);
    let pod = observe_pod(&client, &PodUid::from("a")).await.unwrap();
    assert_eq!(pod, all["a"]);
    let attempts: Vec<_> = pod.sandboxes.iter().map(|s| (s.attempt, s.ready)).collect();
    assert_eq!(attempts, [(1, true), (0, false)]);
    assert!(pod.sandboxes[1].ips.is_empty() && pod.sandboxes[0].ips.len() == 1);
    let states: Vec<_> = pod.containers.iter().map(|c| (c.attempt, c.state, c.exit_code)).collect();
    assert_eq!(states, [(1, ContainerState::ContainerRunning, 0), (0, ContainerState::ContainerExited, 3)]);
    assert!(observe_pod(&client, &PodUid::from("z")).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_vanishes_between_list_and_status_was_not_there() {
    let (_dir, fake, client) = fake().await;
    client.run_pod_sandbox(sandbox("a", 0), "").await.unwrap();
    fake.fail_next("PodSandboxStatus", Status::not_found("gone"));
    assert!(observe(&client).await.unwrap().is_empty());
    // Any other failure is one: half an observation must not pass for a whole one.
    fake.fail_next("PodSandboxStatus", Status::unavailable("busy"));
    let error = observe(&client).await.unwrap_err();
    assert!(error.is_retryable());
}

#[tokio::test]
async fn errors_keep_the_runtimes_words() {
    let (_dir, fake, client) = fake().await;
    client.run_pod_sandbox(sandbox("a", 0), "").await.unwrap();
    let taken = client.run_pod_sandbox(sandbox("a", 0), "").await.unwrap_err();
    assert!(taken.event_message().contains("is reserved for"), "{taken}");
    let absent = client.pull_image("nosuch:1", None, None).await.unwrap_err();
    assert!(absent.is_not_found());
    assert_eq!(
        absent.event_message(),
        "rpc error: code = NotFound desc = failed to pull and unpack image \"docker.io/library/nosuch:1\": failed to \
         resolve reference \"docker.io/library/nosuch:1\": docker.io/library/nosuch:1: not found"
    );
    for verb in ["StopPodSandbox", "RemovePodSandbox"] {
        fake.fail_next(verb, Status::internal("disk"));
    }
    let id = SandboxId::from("x");
    assert!(client.stop_pod_sandbox(&id).await.is_err());
    assert!(client.remove_pod_sandbox(&id).await.is_err());
    // Gone is done.
    client.stop_pod_sandbox(&id).await.unwrap();
    client.remove_pod_sandbox(&id).await.unwrap();
}

#[tokio::test]
async fn a_restarted_runtime_is_found_again_and_said_so() {
    let (_dir, fake, client) = fake().await;
    let mut events = Events::subscribe(&client);
    assert_eq!(events.next().await, RuntimeEvent::LookAgain);
    let box_id = client.run_pod_sandbox(sandbox("a", 0), "").await.unwrap();
    fake.stop().await;
    assert!(client.version().await.unwrap_err().is_unavailable());
    fake.serve().unwrap();
    let again = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
    assert_eq!(again.unwrap(), RuntimeEvent::LookAgain);
    client.version().await.unwrap();

    let id = client.create_container(&box_id, container("a", 0), sandbox("a", 0)).await.unwrap();
    client.start_container(&id).await.unwrap();
    fake.kill_for_memory(&id);
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
        let RuntimeEvent::Task { change, container, pod } = event.unwrap() else {
            continue;
        };
        assert_eq!(container, id);
        if change != Change::Started {
            assert_eq!(pod, Some(PodUid::from("a")));
        }
        seen.push(change);
    }
    assert!(seen.contains(&Change::Started) && seen.contains(&Change::Exited));
    assert!(seen.contains(&Change::OutOfMemory));
    let status = client.container_status(&id).await.unwrap();
    assert_eq!(status.reason, "OOMKilled");
}

#[tokio::test]
async fn an_end_that_was_told_before_anybody_listened_is_found_once_it_shows() {
    let (_dir, fake, client) = fake().await;
    let box_id = client.run_pod_sandbox(sandbox("a", 0), "").await.unwrap();
    let id = client.create_container(&box_id, container("a", 0), sandbox("a", 0)).await.unwrap();
    client.start_container(&id).await.unwrap();
    fake.exit_unnoted(&id, 137);
    let mut events = Events::subscribe(&client);
    assert_eq!(events.next().await, RuntimeEvent::LookAgain);
    // Whoever looks now is told that it runs.
    assert_eq!(client.container_status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    let asked = fake.count("ContainerStatus");
    let waiting = tokio::spawn(async move { events.next().await });
    while fake.count("ContainerStatus") < asked + 3 {
        assert!(!waiting.is_finished(), "it has not ended by its status");
        tokio::task::yield_now().await;
    }
    fake.note_exit(&id, 137);
    let event = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert_eq!(event, RuntimeEvent::Task { change: Change::Exited, container: id.clone(), pod: Some(PodUid::from("a")) });
    assert_eq!(client.container_status(&id).await.unwrap().state(), ContainerState::ContainerExited);
}

#[tokio::test]
async fn a_held_call_waits_and_others_do_not() {
    let (_dir, fake, client) = fake().await;
    fake.hold("RunPodSandbox");
    let held = tokio::spawn({
        let client = client.clone();
        async move { client.run_pod_sandbox(sandbox("a", 0), "").await }
    });
    while fake.count("RunPodSandbox") == 0 {
        client.version().await.unwrap();
    }
    assert!(fake.sandboxes().is_empty() && !held.is_finished());
    fake.release("RunPodSandbox");
    held.await.unwrap().unwrap();
    assert_eq!(fake.sandboxes().len(), 1);
    let verbs: Vec<_> = fake.changes().iter().map(|c| c.verb).collect();
    assert_eq!(verbs, ["RunPodSandbox"]);
}
