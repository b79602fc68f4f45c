//! Kernel settings pod traffic needs (k3s-agent reference, section 6.2). They belong to the whole network namespace, so they are never set back:
//! switching forwarding off could cut off somebody else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A setting, relative to `/proc/sys`.
struct Setting {
    path: &'static str,
    /// Without it only the feature it belongs to is lost; it is absent when a module is not loaded.
    optional: bool,
}

const V4: &[Setting] = &[
    Setting { path: "net/ipv4/conf/all/forwarding", optional: false },
    Setting { path: "net/ipv4/conf/default/forwarding", optional: false },
    Setting { path: "net/bridge/bridge-nf-call-iptables", optional: true },
];

const V6: &[Setting] = &[
    Setting { path: "net/ipv6/conf/all/forwarding", optional: false },
    Setting { path: "net/ipv6/conf/default/forwarding", optional: false },
    Setting { path: "net/bridge/bridge-nf-call-ip6tables", optional: true },
    Setting { path: "net/core/devconf_inherit_init_net", optional: true },
];

/// Switches on forwarding, and filtering of bridged traffic where the kernel can. Writes only what differs.
/// Returns the optional settings that this kernel does not have, for a warning.
pub fn enable_forwarding(ipv6: bool) -> Result<Vec<PathBuf>> {
    enable_in(Path::new("/proc/sys"), ipv6)
}

fn enable_in(proc_sys: &Path, ipv6: bool) -> Result<Vec<PathBuf>> {
    let mut missing = Vec::new();
    for setting in V4.iter().chain(V6.iter().filter(|_| ipv6)) {
        let path = proc_sys.join(setting.path);
        let done = match fs::read_to_string(&path) {
            Ok(text) if text.trim() == "1" => Ok(()),
            Ok(_) => fs::write(&path, "1"),
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => {}
            // Some settings can be seen but not set from inside a network namespace.
            Err(error) if setting.optional && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                missing.push(path);
            }
            Err(source) => {
                return Err(Error::Sysctl { path, value: "1", source });
            }
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_what_differs_and_names_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        for (path, value) in [("net/ipv4/conf/all/forwarding", "0\n"), ("net/ipv4/conf/default/forwarding", "1\n")] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        let missing = enable_in(root.path(), false).unwrap();
        assert_eq!(missing, [root.path().join("net/bridge/bridge-nf-call-iptables")]);
        let all = root.path().join("net/ipv4/conf/all/forwarding");
        assert_eq!(fs::read_to_string(all).unwrap(), "1");
        assert!(matches!(enable_in(root.path(), true), Err(Error::Sysctl { .. })));
    }
}
