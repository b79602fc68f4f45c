//! Settings of the kernel.

use super::Root;

/// Values below `/proc/sys`.
#[derive(Debug, Clone, Default)]
pub struct Kernel {
    pub min_free_kib: Option<u64>,
    pub dirty_bytes: Option<u64>,
    pub overcommit: Option<u64>,
    pub threads_max: Option<u64>,
    pub pid_max: Option<u64>,
    pub inotify_instances: Option<u64>,
    pub inotify_watches: Option<u64>,
    /// None while connection tracking is not loaded.
    pub conntrack_max: Option<u64>,
}

pub(super) fn gather(root: &Root) -> Kernel {
    let setting = |name: &str| root.number(&format!("/proc/sys/{name}"));
    Kernel {
        min_free_kib: setting("vm/min_free_kbytes"),
        dirty_bytes: setting("vm/dirty_bytes"),
        overcommit: setting("vm/overcommit_memory"),
        threads_max: setting("kernel/threads-max"),
        pid_max: setting("kernel/pid_max"),
        inotify_instances: setting("fs/inotify/max_user_instances"),
        inotify_watches: setting("fs/inotify/max_user_watches"),
        conntrack_max: setting("net/netfilter/nf_conntrack_max"),
    }
}
