//! The columns kubectl prints for each kind.
//!
//! Source: Kubernetes `pkg/printers/internalversion/printers.go`.

use super::kind::Kind;

/// Name, type, format, priority (1 shows with `-o wide` only).
pub(super) type Column = (&'static str, &'static str, &'static str, u8);

const NAME: Column = ("Name", "string", "name", 0);
const AGE: Column = ("Age", "string", "", 0);

/// The columns of a kind.
pub(super) fn columns(kind: &Kind) -> &'static [Column] {
    match (kind.group, kind.kind) {
        ("", "Pod") => &[
            NAME,
            ("Ready", "string", "", 0),
            ("Status", "string", "", 0),
            ("Restarts", "string", "", 0),
            AGE,
            ("IP", "string", "", 1),
            ("Node", "string", "", 1),
            ("Nominated Node", "string", "", 1),
            ("Readiness Gates", "string", "", 1),
        ],
        ("", "Node") => &[
            NAME,
            ("Status", "string", "", 0),
            ("Roles", "string", "", 0),
            AGE,
            ("Version", "string", "", 0),
            ("Internal-IP", "string", "", 1),
            ("External-IP", "string", "", 1),
            ("OS-Image", "string", "", 1),
            ("Kernel-Version", "string", "", 1),
            ("Container-Runtime", "string", "", 1),
        ],
        ("", "Namespace") => &[NAME, ("Status", "string", "", 0), AGE],
        ("", "ConfigMap") => &[NAME, ("Data", "string", "", 0), AGE],
        ("", "Secret") => &[NAME, ("Type", "string", "", 0), ("Data", "string", "", 0), AGE],
        ("", "Service") => &[
            NAME,
            ("Type", "string", "", 0),
            ("Cluster-IP", "string", "", 0),
            ("External-IP", "string", "", 0),
            ("Port(s)", "string", "", 0),
            AGE,
            ("Selector", "string", "", 1),
        ],
        ("", "Endpoints") => &[NAME, ("Endpoints", "string", "", 0), AGE],
        (_, "Event") => &[
            ("Last Seen", "string", "", 0),
            ("Type", "string", "", 0),
            ("Reason", "string", "", 0),
            ("Object", "string", "", 0),
            ("Subobject", "string", "", 1),
            ("Source", "string", "", 1),
            ("Message", "string", "", 0),
            ("First Seen", "string", "", 1),
            ("Count", "string", "", 1),
            ("Name", "string", "name", 1),
        ],
        ("apps", "Deployment") => &[
            NAME,
            ("Ready", "string", "", 0),
            ("Up-to-date", "string", "", 0),
            ("Available", "string", "", 0),
            AGE,
            ("Containers", "string", "", 1),
            ("Images", "string", "", 1),
            ("Selector", "string", "", 1),
        ],
        ("apps", "ReplicaSet") => &[
            NAME,
            ("Desired", "integer", "", 0),
            ("Current", "integer", "", 0),
            ("Ready", "integer", "", 0),
            AGE,
            ("Containers", "string", "", 1),
            ("Images", "string", "", 1),
            ("Selector", "string", "", 1),
        ],
        ("discovery.k8s.io", "EndpointSlice") => {
            &[NAME, ("AddressType", "string", "", 0), ("Ports", "string", "", 0), ("Endpoints", "string", "", 0), AGE]
        }
        ("coordination.k8s.io", "Lease") => &[NAME, ("Holder", "string", "", 0), AGE],
        ("node.k8s.io", "RuntimeClass") => &[NAME, ("Handler", "string", "", 0), AGE],
        ("storage.k8s.io", "CSINode") => &[NAME, ("Drivers", "integer", "", 0), AGE],
        ("autoscaling", "Scale") => &[NAME, ("Desired", "integer", "", 0), ("Available", "integer", "", 0), AGE],
        _ => &[NAME, AGE],
    }
}
