//! The pods bound to this node, always as one whole snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtime::ids::PodUid;

use crate::api::pod::Pod;

/// What the server wants on this node.
#[derive(Debug, Clone, Default)]
pub enum Assignments {
    /// No full list was seen yet, neither from the server nor from the ledger. Never to be read as "no pods".
    #[default]
    Unknown,
    /// Every pod bound to this node. A pod that left the server is absent.
    Known(Arc<BTreeMap<PodUid, Arc<Pod>>>),
}
