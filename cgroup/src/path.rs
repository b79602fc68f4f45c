//! Names of the groups below the cgroup root, as the kubelet spells them for either driver (kubelet contract, section 8.2).
//!
//! With the systemd driver a group is a chain of slices: `a`, `b` below the root become `a.slice/a-b.slice`, and a dash
//! inside a name becomes an underscore.

use crate::value::QosClass;
use crate::{Error, Result};

/// Who makes the groups of containers, and hence how groups are named. Agent and containerd must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Plain directories: containerd's `SystemdCgroup = false`.
    Cgroupfs,
    /// systemd units: containerd's `SystemdCgroup = true`.
    Systemd,
}

/// The names of one instance's groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    root: Vec<String>,
    driver: Driver,
}

const KUBEPODS: &str = "kubepods";

impl Names {
    /// `cgroup_root` is the kubelet's: `/`, or `/a/b` to keep everything of this instance below it.
    pub(crate) fn new(cgroup_root: &str, driver: Driver) -> Result<Names> {
        let refuse = |reason| Error::Name { what: "cgroup-root", value: cgroup_root.to_owned(), reason };
        if !cgroup_root.starts_with('/') {
            return Err(refuse("it must start with /"));
        }
        let root: Vec<String> = cgroup_root.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        for name in &root {
            if name.starts_with('.') {
                return Err(refuse("no part may start with a dot"));
            }
            if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte)) {
                return Err(refuse("only letters, digits and -_.:@ are allowed"));
            }
        }
        Ok(Names { root, driver })
    }

    /// The group that is everything of this instance, `/` when it has no root of its own.
    pub(crate) fn root(&self) -> String {
        self.join(&[])
    }

    /// The group of one of the agent's own parts beside `kubepods`.
    pub(crate) fn beside(&self, name: &str) -> String {
        match self.driver {
            Driver::Cgroupfs => self.join(&[name]),
            // A plain directory: systemd leaves groups it did not make alone as long as no unit claims the name.
            Driver::Systemd => format!("{}/{name}", self.root().trim_end_matches('/')),
        }
    }

    /// The group of all pods.
    pub(crate) fn kubepods(&self) -> String {
        self.join(&[KUBEPODS])
    }

    /// The group of all pods of a class; that of Guaranteed pods is the group of all pods.
    pub(crate) fn qos(&self, qos: QosClass) -> String {
        match qos_name(qos) {
            None => self.kubepods(),
            Some(name) => self.join(&[KUBEPODS, name]),
        }
    }

    /// The group of a pod.
    pub(crate) fn pod(&self, uid: &str, qos: QosClass) -> Result<String> {
        check_plain("pod UID", uid)?;
        let pod = format!("pod{uid}");
        Ok(match qos_name(qos) {
            None => self.join(&[KUBEPODS, &pod]),
            Some(class) => self.join(&[KUBEPODS, class, &pod]),
        })
    }

    /// The group that containerd makes for a container of a pod.
    pub(crate) fn container(&self, pod: &str, id: &str) -> Result<String> {
        check_plain("container id", id)?;
        Ok(match self.driver {
            Driver::Cgroupfs => format!("{pod}/{id}"),
            Driver::Systemd => format!("{pod}/cri-containerd-{id}.scope"),
        })
    }

    /// The pod UID that a directory name inside a class's group stands for, if it is a pod's.
    pub(crate) fn uid_of(&self, qos: QosClass, directory: &str) -> Option<String> {
        let uid = match self.driver {
            Driver::Cgroupfs => directory.strip_prefix("pod")?.to_owned(),
            Driver::Systemd => {
                let class = self.qos(qos);
                let class = class.rsplit('/').next()?.strip_suffix(".slice")?;
                directory.strip_suffix(".slice")?.strip_prefix(class)?.strip_prefix("-pod")?.replace('_', "-")
            }
        };
        check_plain("pod UID", &uid).is_ok().then_some(uid)
    }

    /// The container id that a directory name inside a pod's group stands for.
    pub(crate) fn container_of(&self, directory: &str) -> Option<String> {
        let id = match self.driver {
            Driver::Cgroupfs => directory,
            Driver::Systemd => directory.strip_prefix("cri-containerd-")?.strip_suffix(".scope")?,
        };
        check_plain("container id", id).is_ok().then(|| id.to_owned())
    }

    fn join(&self, names: &[&str]) -> String {
        let all = self.root.iter().map(String::as_str).chain(names.iter().copied());
        let (mut path, mut chain) = (String::new(), String::new());
        for name in all {
            path.push('/');
            match self.driver {
                Driver::Cgroupfs => path.push_str(name),
                Driver::Systemd => {
                    if !chain.is_empty() {
                        chain.push('-');
                    }
                    chain.push_str(&name.replace('-', "_"));
                    path.push_str(&chain);
                    path.push_str(".slice");
                }
            }
        }
        if path.is_empty() { "/".to_owned() } else { path }
    }
}

fn qos_name(qos: QosClass) -> Option<&'static str> {
    match qos {
        QosClass::Guaranteed => None,
        QosClass::Burstable => Some("burstable"),
        QosClass::BestEffort => Some("besteffort"),
    }
}

fn check_plain(what: &'static str, value: &str) -> Result<()> {
    let plain = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if value.is_empty() || value.len() > 128 || !plain {
        return Err(Error::Name {
            what,
            value: value.to_owned(),
            reason: "only letters, digits and dashes are allowed, at most 128 of them",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_where_the_kubelet_puts_them() {
        use Driver::{Cgroupfs, Systemd};
        use QosClass::{BestEffort, Burstable, Guaranteed};
        for (root, driver, qos, wanted) in [
            ("/", Cgroupfs, Guaranteed, "/kubepods/poda-1"),
            ("/", Cgroupfs, Burstable, "/kubepods/burstable/poda-1"),
            ("/", Cgroupfs, BestEffort, "/kubepods/besteffort/poda-1"),
            ("/edge-node-1", Cgroupfs, Burstable, "/edge-node-1/kubepods/burstable/poda-1"),
            ("/", Systemd, Guaranteed, "/kubepods.slice/kubepods-poda_1.slice"),
            ("/", Systemd, Burstable, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_1.slice"),
            (
                "/edge-node-1",
                Systemd,
                BestEffort,
                "/edge_node_1.slice/edge_node_1-kubepods.slice/edge_node_1-kubepods-besteffort.slice/\
                 edge_node_1-kubepods-besteffort-poda_1.slice",
            ),
        ] {
            let names = Names::new(root, driver).unwrap();
            let pod = names.pod("a-1", qos).unwrap();
            assert_eq!(pod, wanted);
            let directory = pod.rsplit('/').next().unwrap();
            assert_eq!(names.uid_of(qos, directory).as_deref(), Some("a-1"), "{wanted}");
            let container = names.container(&pod, "c0ffee").unwrap();
            let directory = container.rsplit('/').next().unwrap();
            assert_eq!(names.container_of(directory).as_deref(), Some("c0ffee"));
        }
    }

    #[test]
    fn other_directories_are_nobodys_pod() {
        let names = Names::new("/", Driver::Cgroupfs).unwrap();
        for directory in ["burstable", "pod", "pod..", "podx/y"] {
            assert_eq!(names.uid_of(QosClass::Guaranteed, directory), None, "{directory}");
        }
        let names = Names::new("/", Driver::Systemd).unwrap();
        for directory in ["kubepods-burstable.slice", "kubepods-burstable-poda.slice", "poda", "kubepods-pod.slice"] {
            assert_eq!(names.uid_of(QosClass::Guaranteed, directory), None, "{directory}");
        }
    }

    #[test]
    fn names_that_leave_the_tree_are_refused() {
        for root in ["", "edge", "/../etc", "/a b", "/a\n", "/.hidden"] {
            assert!(Names::new(root, Driver::Cgroupfs).is_err(), "{root:?}");
        }
        let names = Names::new("/", Driver::Cgroupfs).unwrap();
        for uid in ["", "..", "a/b", "a b", "a\0"] {
            assert!(names.pod(uid, QosClass::Burstable).is_err(), "{uid:?}");
        }
    }
}
