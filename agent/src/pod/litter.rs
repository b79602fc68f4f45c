//! What is dead and no longer of interest. Pure.

use runtime::observe::ObservedContainer;
use runtime::{ContainerId, SandboxId};

use super::decide::{Facts, ended, is_alive};

/// Dead containers beyond the newest and the one before it of each name, and sandboxes of former attempts that hold
/// nothing else. `current` is the sandbox in use, if any.
pub(super) fn litter(facts: &Facts<'_>, current: Option<&SandboxId>) -> (Vec<ContainerId>, Vec<SandboxId>) {
    let seen = facts.seen;
    let mut containers = Vec::new();
    let mut kept: Vec<&ObservedContainer> = Vec::new();
    let mut same = (String::new(), 0);
    for container in &seen.containers {
        if same.0 != container.name {
            same = (container.name.clone(), 0);
        }
        same.1 += 1;
        let known = facts.pod.every_container().any(|c| c.name == container.name);
        if same.1 > 2 && !is_alive(container) || !known && ended(container) {
            containers.push(container.id.clone());
        } else {
            kept.push(container);
        }
    }
    let newest = seen.sandbox().map(|s| &s.id);
    let sandboxes = seen
        .sandboxes
        .iter()
        .filter(|s| !s.ready && Some(&s.id) != current && Some(&s.id) != newest)
        .filter(|s| !kept.iter().any(|c| c.sandbox == s.id))
        .map(|s| s.id.clone())
        .collect();
    (containers, sandboxes)
}
