//! ContainerConfig.

use std::collections::BTreeMap;

use runtime::{cri, labels};

use super::security::{self, ImageUser};
use crate::api::pod::{Container, Pod};
use crate::pod::{NodeFacts, env, resources};

/// What a container needs beside the spec.
pub struct ContainerInputs<'a> {
    pub attempt: u32,
    /// Reference the runtime gave for the image.
    pub image: String,
    pub image_user: ImageUser,
    pub env: &'a BTreeMap<String, env::Value>,
    pub mounts: Vec<cri::Mount>,
    pub node: &'a NodeFacts,
    pub cgroup_v2: bool,
    /// `<root-dir>/seccomp`: where Localhost profiles are.
    pub seccomp_dir: &'a str,
}

/// `<container>/<attempt>.log`, below the pod's log directory.
pub fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// The configuration CreateContainer gets.
pub fn container_config(pod: &Pod, container: &Container, inputs: ContainerInputs<'_>) -> cri::ContainerConfig {
    let expanded = |words: &[String]| words.iter().map(|w| env::expand(w, inputs.env)).collect();
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: inputs.attempt }),
        image: Some(cri::ImageSpec { image: inputs.image, user_specified_image: container.image.clone(), ..Default::default() }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        envs: inputs.env.iter().map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone().into() }).collect(),
        mounts: inputs.mounts,
        labels: BTreeMap::from([
            (labels::POD_NAME.to_owned(), pod.metadata.name.clone()),
            (labels::POD_NAMESPACE.to_owned(), pod.metadata.namespace.clone()),
            (labels::POD_UID.to_owned(), pod.metadata.uid.clone()),
            (labels::CONTAINER_NAME.to_owned(), container.name.clone()),
        ]),
        annotations: annotations(pod, container, inputs.attempt),
        log_path: log_path(&container.name, inputs.attempt),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources::container_resources(pod, container, inputs.node, inputs.cgroup_v2)),
            security_context: Some(security::container(pod, container, &inputs.image_user, inputs.seccomp_dir)),
        }),
        ..Default::default()
    }
}

fn annotations(pod: &Pod, container: &Container, attempt: u32) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([
        (labels::CONTAINER_HASH.to_owned(), super::container_hash(container)),
        (labels::CONTAINER_RESTART_COUNT.to_owned(), attempt.to_string()),
        (labels::CONTAINER_TERMINATION_MESSAGE_PATH.to_owned(), or(&container.termination_message_path, "/dev/termination-log")),
        (labels::CONTAINER_TERMINATION_MESSAGE_POLICY.to_owned(), or(&container.termination_message_policy, "File")),
    ]);
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        all.insert(labels::POD_DELETION_GRACE_PERIOD.to_owned(), seconds.to_string());
    }
    if let Some(seconds) = pod.spec.termination_grace_period_seconds {
        all.insert(labels::POD_TERMINATION_GRACE_PERIOD.to_owned(), seconds.to_string());
    }
    if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
        all.insert(labels::CONTAINER_PRE_STOP.to_owned(), serde_json::to_string(hook).unwrap_or_default());
    }
    if !container.ports.is_empty() {
        all.insert(labels::CONTAINER_PORTS.to_owned(), serde_json::to_string(&container.ports).unwrap_or_default());
    }
    all
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text.to_owned() }
}
