//! Undoing all of it, for a node that leaves its cluster.

use std::path::PathBuf;

use crate::routes::PROTOCOL;
use crate::{Error, Firewall, Routes, cni, delete_interface, vxlan};

/// What an instance made, by the names it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The name given to [`Firewall::new`].
    pub firewall: String,
    /// The bridge of its pods, made by the CNI plugin on its behalf.
    pub bridge: String,
    /// Where its CNI configuration is.
    pub cni_conf_dir: PathBuf,
    /// Where `host-local` remembered addresses: a directory of this instance alone.
    pub cni_data_dir: PathBuf,
    /// It used vxlan, so that the devices are its own.
    pub vxlan: bool,
}

/// Removes the CNI configuration, routes, rules and devices of an instance whose pods are gone. Goes on after a failure and returns all of
/// them. Kernel settings stay: others may rely on them by now.
pub fn remove(instance: &Instance) -> Vec<Error> {
    let mut failures = Vec::new();
    let mut note = |done: Result<(), Error>| failures.extend(done.err());
    note(cni::remove_conflist(&instance.cni_conf_dir));
    note(Routes::open(PROTOCOL).and_then(|mut routes| routes.remove().map(drop)));
    note(Firewall::new(&instance.firewall).remove());
    note(delete_interface(&instance.bridge));
    if instance.vxlan {
        note(delete_interface(vxlan::DEVICE));
        note(delete_interface(vxlan::DEVICE_V6));
    }
    note(match std::fs::remove_dir_all(&instance.cni_data_dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Write { path: instance.cni_data_dir.clone(), source }),
        Ok(()) | Err(_) => Ok(()),
    });
    failures
}
