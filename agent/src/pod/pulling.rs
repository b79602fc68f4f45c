//! The image of a container: on the node already, pulled, or a reason why not (kubelet-contract 7.1).

use runtime::cri;

use super::history::{Failure, RETRY};
use super::images::{self, PullPolicy};
use super::reasons;
use super::time::{self, SECOND};
use super::worker::Worker;
use crate::api::pod::Container;
use crate::events::Type;
use crate::reserve::Pulling;

impl Worker {
    /// The image of a container, pulled where the policy says so.
    pub(super) async fn image(&mut self, container: &Container) -> Result<cri::Image, ()> {
        let name = container.name.as_str();
        let image = match images::with_tag(&container.image) {
            Ok(image) => image,
            Err(message) => {
                self.event(Some(name), Type::Warning, "InspectFailed", &message);
                self.event(Some(name), Type::Warning, "Failed", &format!("Error: {}", reasons::INVALID_IMAGE_NAME));
                self.history.failed(name, Failure { reason: reasons::INVALID_IMAGE_NAME, message, retry_at: time::now() + RETRY });
                return Err(());
            }
        };
        let policy = images::policy(&container.image_pull_policy, &image);
        if policy != PullPolicy::Always {
            let found = match self.images.remove(&image) {
                Some(found) => Ok(Some(found)),
                None => self.deps().runtime.image_status(&image).await,
            };
            match found {
                Ok(Some(found)) => {
                    self.event(
                        Some(name),
                        Type::Normal,
                        "Pulled",
                        &format!("Container image \"{}\" already present on machine and can be accessed by the pod", container.image),
                    );
                    return Ok(found);
                }
                Ok(None) if policy == PullPolicy::Never => {
                    let message = format!("Container image \"{}\" is not present with pull policy of Never", container.image);
                    self.event(Some(name), Type::Warning, reasons::ERR_IMAGE_NEVER_PULL, &message);
                    self.event(Some(name), Type::Warning, "Failed", &format!("Error: {}", reasons::ERR_IMAGE_NEVER_PULL));
                    self.history.failed(name, Failure { reason: reasons::ERR_IMAGE_NEVER_PULL, message, retry_at: time::now() + RETRY });
                    return Err(());
                }
                Ok(None) => {}
                Err(error) => {
                    let message = format!("Failed to inspect image \"{}\": {}", container.image, error.event_message());
                    self.event(Some(name), Type::Warning, "InspectFailed", &message);
                    self.history.failed(name, Failure { reason: reasons::IMAGE_INSPECT_ERROR, message, retry_at: time::now() + RETRY });
                    return Err(());
                }
            }
        }
        self.pull(container, &image).await
    }

    async fn pull(&mut self, container: &Container, image: &str) -> Result<cri::Image, ()> {
        let name = container.name.as_str();
        if let Some(until) = self.history.pull_wait(image, time::now()) {
            let text = format!("Back-off pulling image \"{}\"", container.image);
            let message = match self.history.failure(name) {
                Some(failure) if failure.reason == reasons::ERR_IMAGE_PULL => {
                    format!("{text}: {}: {}", reasons::ERR_IMAGE_PULL, failure.message)
                }
                // Looked at again within the same wait.
                Some(failure) if failure.reason == reasons::IMAGE_PULL_BACK_OFF => failure.message.clone(),
                _ => text.clone(),
            };
            self.event(Some(name), Type::Normal, "BackOff", &text);
            self.event(Some(name), Type::Warning, "Failed", &format!("Error: {}", reasons::IMAGE_PULL_BACK_OFF));
            self.history.failed(name, Failure { reason: reasons::IMAGE_PULL_BACK_OFF, message, retry_at: until });
            return Err(());
        }
        self.tell_now("pull");
        let shared = self.shared.clone();
        let mut inbox = self.inbox();
        let pod = self.pod.clone();
        // Before the queue: a server that is away must not keep the pulls of others waiting.
        let (credentials, missing) = tokio::select! {
            got = images::credentials(&shared.deps.objects, &shared.deps.logins, &pod, image) => got,
            () = Worker::told_to_stop(&mut inbox) => return Err(()),
        };
        if !missing.is_empty() {
            self.event(
                None,
                Type::Warning,
                "FailedToRetrieveImagePullSecret",
                &format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    missing.join(", ")
                ),
            );
        }
        self.event(Some(name), Type::Normal, "Pulling", &format!("Pulling image \"{}\"", container.image));
        let asked = time::now();
        let config = self.seen.sandbox().map(|s| cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                namespace: pod.metadata.namespace.clone(),
                attempt: s.attempt,
            }),
            ..Default::default()
        });
        let work = async {
            // A board short of memory has none for unpacking.
            let _ = shared.deps.orders.clone().wait_for(|orders| !orders.no_pulls).await;
            let permit = shared.pulls.acquire().await;
            let _limited = Pulling::begin(shared.deps.pod_tree.standing());
            let began = time::now();
            let mut last = None;
            for auth in credentials {
                match shared.deps.runtime.pull_image(image, auth, config.clone()).await {
                    Ok(reference) => {
                        drop(permit);
                        let found = shared.deps.runtime.image_status(&reference).await.ok().flatten();
                        return Ok((found.unwrap_or(cri::Image { id: reference, ..Default::default() }), began));
                    }
                    Err(error) => last = Some(error),
                }
            }
            Err(last)
        };
        let pulled = tokio::select! {
            done = work => done,
            () = Worker::told_to_stop(&mut inbox) => return Err(()),
        };
        let now = time::now();
        match pulled {
            Ok((found, began)) => {
                self.history.pulled(image);
                let message = format!(
                    "Successfully pulled image \"{}\" in {} ({} including waiting). Image size: {} bytes.",
                    container.image,
                    time::go_millis(now - began),
                    time::go_millis(now - asked),
                    found.size
                );
                self.event(Some(name), Type::Normal, "Pulled", &message);
                Ok(found)
            }
            Err(error) => {
                let message = error.map_or_else(String::new, |e| e.runtime_message().map_or_else(|| e.to_string(), str::to_owned));
                self.event(Some(name), Type::Warning, "Failed", &format!("Failed to pull image \"{}\": {message}", container.image));
                self.event(Some(name), Type::Warning, "Failed", &format!("Error: {}", reasons::ERR_IMAGE_PULL));
                self.history.pull_failed(image, now);
                // Shown for a moment, then as ImagePullBackOff.
                self.history.failed(name, Failure { reason: reasons::ERR_IMAGE_PULL, message, retry_at: now + 2 * SECOND });
                Err(())
            }
        }
    }
}
