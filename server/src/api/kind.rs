//! The static table of the kinds this server keeps, with everything that differs between them.
//!
//! Called by every part of the API and by the controllers; never holds state.

use std::fmt;

/// How a kind behaves on the wire.
pub struct Kind {
    /// API group, empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    /// CamelCase name, for example `Pod`.
    pub kind: &'static str,
    /// The resource name in paths, for example `pods`.
    pub plural: &'static str,
    pub singular: &'static str,
    pub short: &'static [&'static str],
    /// `kubectl get all` and friends.
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// Has a `/status` subresource; the main endpoint then ignores `status`.
    pub status: bool,
    /// Has a `/scale` subresource.
    pub scale: bool,
    /// `metadata.generation` follows changes of everything but metadata and status.
    pub generation: bool,
    /// Name in the store; kinds that are two views of one thing share it.
    pub storage: &'static str,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.qualified())
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.group == other.group && self.plural == other.plural
    }
}

impl Eq for Kind {}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `deployments.apps`, as error messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Path of the collection, for example `/apis/apps/v1/namespaces/NS/deployments`.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { format!("/api/{}", self.version) } else { format!("/apis/{}/{}", self.group, self.version) };
        match namespace {
            Some(namespace) if self.namespaced => {
                format!("{root}/namespaces/{namespace}/{}", self.plural)
            }
            _ => format!("{root}/{}", self.plural),
        }
    }
}

const BASE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short: &[],
    categories: &[],
    namespaced: true,
    status: false,
    scale: false,
    generation: false,
    storage: "",
};

pub static NAMESPACE: Kind = Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short: &["ns"],
    namespaced: false,
    status: true,
    storage: "namespaces",
    ..BASE
};
pub static NODE: Kind =
    Kind { kind: "Node", plural: "nodes", singular: "node", short: &["no"], namespaced: false, status: true, storage: "nodes", ..BASE };
pub static POD: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short: &["po"],
    categories: &["all"],
    status: true,
    generation: true,
    storage: "pods",
    ..BASE
};
pub static CONFIG_MAP: Kind =
    Kind { kind: "ConfigMap", plural: "configmaps", singular: "configmap", short: &["cm"], storage: "configmaps", ..BASE };
pub static SECRET: Kind = Kind { kind: "Secret", plural: "secrets", singular: "secret", storage: "secrets", ..BASE };
pub static SERVICE: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short: &["svc"],
    categories: &["all"],
    status: true,
    storage: "services",
    ..BASE
};
pub static ENDPOINTS: Kind =
    Kind { kind: "Endpoints", plural: "endpoints", singular: "endpoints", short: &["ep"], storage: "endpoints", ..BASE };
pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short: &["sa"],
    storage: "serviceaccounts",
    ..BASE
};
pub static EVENT: Kind = Kind { kind: "Event", plural: "events", singular: "event", short: &["ev"], storage: "events", ..BASE };
/// The `events.k8s.io` view of the same events.
pub static EVENT_V1: Kind =
    Kind { group: "events.k8s.io", kind: "Event", plural: "events", singular: "event", short: &["ev"], storage: "events", ..BASE };
pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short: &["deploy"],
    categories: &["all"],
    status: true,
    scale: true,
    generation: true,
    storage: "deployments.apps",
    ..BASE
};
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short: &["rs"],
    categories: &["all"],
    status: true,
    scale: true,
    generation: true,
    storage: "replicasets.apps",
    ..BASE
};
pub static ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    generation: true,
    storage: "endpointslices.discovery.k8s.io",
    ..BASE
};
pub static LEASE: Kind = Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    storage: "leases.coordination.k8s.io",
    ..BASE
};
pub static RUNTIME_CLASS: Kind = Kind {
    group: "node.k8s.io",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    namespaced: false,
    storage: "runtimeclasses.node.k8s.io",
    ..BASE
};
pub static CSI_NODE: Kind = Kind {
    group: "storage.k8s.io",
    kind: "CSINode",
    plural: "csinodes",
    singular: "csinode",
    namespaced: false,
    storage: "csinodes.storage.k8s.io",
    ..BASE
};

/// Every kind served, in the order discovery prints them.
pub static KINDS: &[&Kind] = &[
    &CONFIG_MAP,
    &ENDPOINTS,
    &EVENT,
    &NAMESPACE,
    &NODE,
    &POD,
    &SECRET,
    &SERVICE_ACCOUNT,
    &SERVICE,
    &DEPLOYMENT,
    &REPLICA_SET,
    &LEASE,
    &ENDPOINT_SLICE,
    &EVENT_V1,
    &RUNTIME_CLASS,
    &CSI_NODE,
];

/// The kind behind a path's group, version and resource.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().copied().find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// The kind an object or an owner reference names by `apiVersion` and `kind`.
pub fn by_object(api_version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().copied().find(|k| k.kind == kind && k.api_version() == api_version)
}
