//! containerd's event stream as "look there" signals. Between events nothing is asked, so idle pods cost containerd
//! nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use containerd_client::events as payload;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use prost::Message;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::{Request, Streaming};

use crate::client::in_namespace;
use crate::cri::{ContainerState, PodSandboxState};
use crate::{Client, ContainerId, PodUid, SandboxId, labels};

/// Something happened in the runtime. The truth is still to be asked: an event only says where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// One container or sandbox changed.
    Task {
        /// What happened.
        change: Change,
        /// Id of the container; for a sandbox's pause process, the sandbox's id.
        container: ContainerId,
        /// The pod it belongs to: for exits and lack of memory, where the runtime could still tell.
        pod: Option<PodUid>,
    },
    /// Events may have been missed (first connection, containerd restarted, stream broken): look at everything.
    LookAgain,
}

/// What happened to a container's main process. Commands run inside it (probes, exec) are not reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It started.
    Started,
    /// It ended, and the runtime's status says so by now.
    Exited,
    /// The kernel killed a process of it for lack of memory.
    OutOfMemory,
    /// The container or sandbox was removed.
    Removed,
}

/// Topic of the event we send ourselves.
const HELLO: &str = "/edge-agent/hello";
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long an exit may take to show in the container's status before it is reported all the same. CRI tries again for as long
/// as it takes to clean up after a process, and nobody looks a second time.
const SETTLE: Duration = Duration::from_secs(600);
const LONGEST_SETTLING_PAUSE: Duration = Duration::from_secs(2);

/// An endless subscription: reconnects with back-off and says [`RuntimeEvent::LookAgain`] after each gap.
pub struct Events {
    client: Client,
    stream: Option<Streaming<Envelope>>,
    settling: JoinSet<RuntimeEvent>,
    pause: Duration,
    not_before: Instant,
}

impl Events {
    /// Subscribes on the first call of [`Events::next`].
    pub fn subscribe(client: &Client) -> Self {
        Self { client: client.clone(), stream: None, settling: JoinSet::new(), pause: FIRST_PAUSE, not_before: Instant::now() }
    }

    /// The next event. Never ends; may be dropped and called again without losing any.
    pub async fn next(&mut self) -> RuntimeEvent {
        loop {
            let Some(stream) = self.stream.as_mut() else {
                tokio::time::sleep_until(self.not_before).await;
                // If this is dropped half way the next call starts it over.
                match open(&self.client).await {
                    Ok(stream) => {
                        // Whoever looks now is answered. What happens meanwhile waits in the stream.
                        while self.client.status().await.is_err_and(|error| error.is_starting()) {
                            tokio::time::sleep(FIRST_PAUSE).await;
                        }
                        // What ended before this stream began is told by none of its events.
                        match self.client.ended_unnoticed().await {
                            Ok(ended) => ended.into_iter().for_each(|container| self.settle(Change::Exited, container)),
                            Err(error) => tracing::warn!(%error, "tasks could not be compared with what CRI says of them"),
                        }
                        self.stream = Some(stream);
                        self.pause = FIRST_PAUSE;
                        return RuntimeEvent::LookAgain;
                    }
                    Err(status) => {
                        tracing::debug!(error = %status, "runtime events not available");
                        self.not_before = Instant::now() + self.pause;
                        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                        continue;
                    }
                }
            };
            // Both arms are cancel-safe: a message or a joined task is taken whole or not at all.
            tokio::select! {
                Some(settled) = self.settling.join_next() => {
                    if let Ok(event) = settled {
                        return event;
                    }
                }
                message = stream.message() => match message {
                    Ok(Some(envelope)) => match sort(&envelope) {
                        // These are nearly always our own doing: no call is spent on them.
                        Some((change @ (Change::Started | Change::Removed), container)) => {
                            return RuntimeEvent::Task { change, container, pod: None };
                        }
                        Some((change, container)) => self.settle(change, container),
                        None => continue,
                    },
                    Ok(None) | Err(_) => {
                        tracing::debug!("runtime event stream ended");
                        self.stream = None;
                        self.not_before = Instant::now() + self.pause;
                        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                    }
                },
            }
        }
    }

    fn settle(&mut self, change: Change, container: ContainerId) {
        let client = self.client.clone();
        self.settling.spawn(async move {
            let pod = match change {
                Change::Exited => settled(&client, &container).await,
                Change::OutOfMemory | Change::Started | Change::Removed => look(&client, &container).await.1,
            };
            RuntimeEvent::Task { change, container, pod }
        });
    }
}

/// Opens the stream and makes sure it flows. containerd answers a subscription with nothing at all until the first
/// event, so we send one of our own until it comes back: from then on none is missed.
async fn open(client: &Client) -> Result<Streaming<Envelope>, tonic::Status> {
    let filters = ["/tasks/start", "/tasks/exit", "/tasks/oom", "/containers/delete", HELLO]
        .iter()
        .map(|topic| format!("namespace==\"k8s.io\",topic==\"{topic}\""))
        .collect();
    let mut events = EventsClient::new(client.channel());
    let subscription = events.subscribe(SubscribeRequest { filters });
    let hello = async {
        let mut events = EventsClient::new(client.channel());
        let mut pause = Duration::from_millis(1);
        loop {
            let request = in_namespace(Request::new(PublishRequest {
                topic: HELLO.to_owned(),
                event: Some(containerd_client::to_any(&payload::ContainerDelete::default())),
            }));
            if let Err(status) = events.publish(request).await {
                return status;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    // The hello only ends by failing, and then the subscription is worth nothing either.
    tokio::select! {
        answer = subscription => Ok(answer?.into_inner()),
        status = hello => Err(status),
    }
}

/// Which change of which container an envelope tells of. Type URLs come without the slash the well-known form has,
/// so the topic decides what the bytes are.
fn sort(envelope: &Envelope) -> Option<(Change, ContainerId)> {
    let value = envelope.event.as_ref()?.value.as_slice();
    let (change, id) = match envelope.topic.as_str() {
        "/tasks/start" => (Change::Started, payload::TaskStart::decode(value).ok()?.container_id),
        "/tasks/exit" => {
            let exit = payload::TaskExit::decode(value).ok()?;
            if exit.id != exit.container_id {
                return None; // a command run inside the container
            }
            (Change::Exited, exit.container_id)
        }
        "/tasks/oom" => (Change::OutOfMemory, payload::TaskOom::decode(value).ok()?.container_id),
        "/containers/delete" => (Change::Removed, payload::ContainerDelete::decode(value).ok()?.id),
        _ => return None,
    };
    Some((change, ContainerId::from(id)))
}

/// Waits until the runtime's own status shows the end: its CRI part learns of an exit from the same stream we do, and
/// who asks too early still reads "running".
async fn settled(client: &Client, id: &ContainerId) -> Option<PodUid> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let (open, pod) = look(client, id).await;
        if !open || began.elapsed() >= SETTLE {
            return pod;
        }
        tokio::time::sleep(pause).await;
        let longest = if began.elapsed() < LONGEST_PAUSE { Duration::from_millis(200) } else { LONGEST_SETTLING_PAUSE };
        pause = (pause * 2).min(longest);
    }
}

/// Whether the end of a container or sandbox of this id does not show yet, and whose it is.
async fn look(client: &Client, id: &ContainerId) -> (bool, Option<PodUid>) {
    let uid = |found: &BTreeMap<String, String>| found.get(labels::POD_UID).map(PodUid::from);
    match client.container_status(id).await {
        Ok(status) => {
            // An end told before CRI has noted the start finds the container still created: that is not settled.
            let ended = matches!(status.state(), ContainerState::ContainerExited | ContainerState::ContainerUnknown);
            return (!ended, uid(&status.labels));
        }
        Err(e) if e.is_not_found() => {}
        Err(_) => return (false, None),
    }
    match client.pod_sandbox_status(&SandboxId::from(id.as_str())).await {
        Ok(status) => (status.state() == PodSandboxState::SandboxReady, uid(&status.labels)),
        Err(_) => (false, None),
    }
}
