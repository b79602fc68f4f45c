//! The labels and annotations every Kubernetes node agent puts on sandboxes and containers. With them an agent finds
//! its own pods again after a restart, and `crictl` and log collectors name them. The keys are the kubelet's.

/// Pod name. On sandboxes and containers.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Pod namespace. On sandboxes and containers.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Pod UID. On sandboxes and containers; the key all observation groups by.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Container name in the pod spec. On containers.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// Annotation: hash of what forces a container to be replaced (name and image), hexadecimal.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// Annotation: number of restarts before this container, decimal. Equals the attempt of the container's metadata.
pub const CONTAINER_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: where in the container its last words are read from.
pub const CONTAINER_TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: `File` or `FallbackToLogsOnError`.
pub const CONTAINER_TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: the container's preStop hook as JSON, so that it can run when the spec is no longer known.
pub const CONTAINER_PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
/// What is asked of a container later; the other annotations are for whoever looks at the runtime.
pub const READ_BACK: [&str; 2] = [CONTAINER_HASH, CONTAINER_PRE_STOP];
/// Annotation: the container's declared ports as JSON.
pub const CONTAINER_PORTS: &str = "io.kubernetes.container.ports";
/// Annotation: `deletionGracePeriodSeconds` at creation, decimal seconds.
pub const POD_DELETION_GRACE_PERIOD: &str = "io.kubernetes.pod.deletionGracePeriod";
/// Annotation: `terminationGracePeriodSeconds` at creation, decimal seconds.
pub const POD_TERMINATION_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
