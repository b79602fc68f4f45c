//! Telling what was seen: status to the server, view to the other parts, events that belong to a state.

use std::path::PathBuf;
use std::sync::Arc;

use runtime::cri;

use super::status::{self, Cause};
use super::step::{self, Step};
use super::view::{ContainerView, PodView};
use super::worker::Worker;
use super::{decide, governed, reasons, time};
use crate::api::pod::{Pod, PodStatus};
use crate::events::Type;

impl Worker {
    fn derive(&self) -> PodStatus {
        let now = time::now();
        if let Some(rejection) = &self.rejection {
            return status::rejected(&self.pod, &rejection.reason, &rejection.message, now);
        }
        let facts = self.facts();
        let cause = decide::past_deadline(&facts).then_some(Cause {
            reason: reasons::DEADLINE_EXCEEDED,
            message: "Pod was active on the node longer than the specified deadline",
        });
        let eviction = self.governed.evicted.as_ref();
        let cause = eviction.map(|eviction| Cause { reason: governed::EVICTED, message: &eviction.message }).or(cause);
        // A pod that ended by itself is not over while it is still to be deleted.
        let stopping = self.removed || self.pod.is_deleting() || cause.is_some();
        status::derive(&status::Facts {
            pod: &self.pod,
            before: &self.last,
            seen: &self.seen,
            history: &self.history,
            health: facts.health,
            messages: &self.messages,
            host_ips: &self.shared.host_ips,
            start_time: self.start_time,
            cause,
            stopping,
            frozen: self.governed.frozen.as_deref(),
            now,
        })
    }

    /// Publishes what was seen: status, view, and events that belong to a state rather than to a step.
    pub(super) fn tell(&mut self, step: &Step) {
        if !self.is_passing(step) {
            let status = self.derive();
            self.publish(status);
        }
        self.tell_back_offs();
        if !self.told_deadline && decide::past_deadline(&self.facts()) && !self.pod.status.is_terminal() {
            self.told_deadline = true;
            self.deps().recorder.pod_event(
                &self.pod,
                None,
                Type::Normal,
                reasons::DEADLINE_EXCEEDED,
                "Pod was active on the node longer than the specified deadline",
            );
        }
        self.show(step);
    }

    /// A state that the step ends within moments, and that says nothing the next one does not: between the containers of
    /// a new pod, and between the end of a deleted pod's containers and of its sandbox.
    fn is_passing(&self, step: &Step) -> bool {
        match step {
            Step::Start { container, attempt: 0 } => {
                self.pod.spec.containers.iter().any(|c| c.name != *container && self.seen.container(&c.name).is_some())
            }
            // A start that was given up is made again: that it ended is nobody's business.
            Step::Discard { .. } => self.seen.containers.iter().any(runtime::observe::ObservedContainer::never_began),
            Step::StopSandboxes { .. } => self.pod.is_deleting() && !self.stop_tried,
            _ => false,
        }
    }

    fn tell_back_offs(&mut self) {
        let meta = &self.pod.metadata;
        let all = self.last.init_container_statuses.iter().chain(&self.last.container_statuses);
        let waiting = all.filter(|s| s.state.waiting.as_ref().is_some_and(|w| w.reason == reasons::CRASH_LOOP_BACK_OFF));
        for status in waiting {
            let key = (status.name.clone(), u32::try_from(status.restart_count).unwrap_or(0));
            if self.told.insert(key) {
                let message =
                    format!("Back-off restarting failed container {} in pod {}_{}({})", status.name, meta.name, meta.namespace, meta.uid);
                let path = super::hooks::field_path(&self.pod, &status.name);
                self.shared.deps.recorder.pod_event(&self.pod, Some(&path), Type::Warning, "BackOff", &message);
            }
        }
    }

    fn show(&self, step: &Step) {
        let told = Arc::ptr_eq(&self.pod.status, &self.last);
        let pod = if told { self.pod.clone() } else { Arc::new(Pod { status: self.last.clone(), ..Pod::clone(&self.pod) }) };
        let containers = self.pod.every_container().map(|c| (c.name.clone(), self.container_view(&c.name))).collect();
        let view = PodView {
            pod,
            sandbox: self.seen.sandbox().map(|s| s.id.clone()),
            containers,
            log_dir: self.dirs.logs.clone(),
            last_step: step::describe(step),
            next_try: match step {
                Step::Wait { until } => *until,
                _ => None,
            },
        };
        self.shared.view.put(self.uid.clone(), view);
    }

    fn container_view(&self, name: &str) -> ContainerView {
        let waiting = self.last.container(name).and_then(|s| s.state.waiting.as_ref()).map(|w| w.reason.clone());
        let mut instances = self.seen.containers.iter().filter(|c| c.name == name);
        let Some(newest) = instances.next() else {
            return ContainerView { waiting_reason: waiting, ..Default::default() };
        };
        let path = |c: &runtime::observe::ObservedContainer| (!c.log_path.is_empty()).then(|| PathBuf::from(&c.log_path));
        ContainerView {
            id: Some(newest.id.clone()),
            attempt: newest.attempt,
            running: newest.state == cri::ContainerState::ContainerRunning,
            log_path: path(newest),
            waiting_reason: waiting,
            previous_log_path: instances.find(|c| c.state == cri::ContainerState::ContainerExited).and_then(path),
        }
    }

    /// Publishes in the middle of a step.
    pub(super) fn tell_now(&mut self, step: &str) {
        let status = self.derive();
        self.publish(status);
        tracing::trace!(pod = %self.pod.full_name(), step, "told");
    }

    fn publish(&mut self, status: PodStatus) {
        if status == *self.last {
            return;
        }
        let status = Arc::new(status);
        if !self.removed {
            tracing::debug!(pod = %self.pod.full_name(), phase = %status.phase, ready = status.condition("Ready").is_some_and(|c| c.status == "True"), "status told");
            self.deps().status.publish(&self.pod, status.clone());
        }
        self.last = status;
    }
}
