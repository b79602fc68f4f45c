//! Mount points: what is there, tmpfs on, everything below off.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mount points of this process's mount namespace.
#[derive(Debug, Clone, Default)]
pub struct Mounted(BTreeSet<PathBuf>);

impl Mounted {
    /// From `/proc/self/mountinfo`; empty where there is none.
    pub fn read() -> Mounted {
        Mounted::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    fn parse(text: &str) -> Mounted {
        Mounted(text.lines().filter_map(|line| line.split(' ').nth(4)).map(|path| PathBuf::from(unescape(path))).collect())
    }

    pub fn contains(&self, path: &Path) -> bool {
        self.0.contains(path) || fs::canonicalize(path).is_ok_and(|real| self.0.contains(&real))
    }

    /// Mount points at or below `path`, deepest first.
    fn below(&self, path: &Path) -> Vec<&PathBuf> {
        let mut list: Vec<&PathBuf> = self.0.iter().filter(|p| p.starts_with(path)).collect();
        list.reverse();
        list
    }
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|o| u8::from_str_radix(o, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Mounts a tmpfs, without swap where the kernel can (6.4 and later).
pub(super) fn tmpfs(dir: &Path, size: Option<i64>) -> io::Result<()> {
    let size = size.map(|bytes| format!("size={bytes}"));
    let with = [size.as_deref(), Some("noswap")].into_iter().flatten().collect::<Vec<_>>().join(",");
    let try_mount = |options: &str| mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(options));
    try_mount(&with).or_else(|_| try_mount(size.as_deref().unwrap_or_default())).map_err(io::Error::from)
}

/// Unmounts everything at or below `path`, deepest first; lazily where it is still busy.
pub fn unmount_below(path: &Path) -> io::Result<()> {
    let real = match fs::canonicalize(path) {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    // One mount may hide another of the same path: look again until none is left.
    for _ in 0..8 {
        let mounted = Mounted::read();
        let below = mounted.below(&real);
        if below.is_empty() {
            return Ok(());
        }
        // A bind shares what is mounted below it with its source: alone it is taken off here only, not on the host.
        for point in &below {
            let _ = mount(None::<&str>, *point, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>);
        }
        for point in below {
            umount2(point, MntFlags::UMOUNT_NOFOLLOW)
                .or_else(|_| umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW))
                .map_err(io::Error::from)?;
        }
    }
    Err(io::Error::other(format!("{} stays mounted", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_on_the_host_stays_there() {
        let dir = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(dir.path()).unwrap();
        let (host, pod) = (top.join("host"), top.join("pod"));
        fs::create_dir(&host).unwrap();
        if let Err(e) = tmpfs(&host, None) {
            assert_eq!(e.kind(), io::ErrorKind::PermissionDenied);
            return eprintln!("skipped: this user may not mount");
        }
        let plain = |source: Option<&Path>, at: &Path, flags| mount(source, at, None::<&str>, flags, None::<&str>).unwrap();
        plain(None, &host, MsFlags::MS_SHARED);
        fs::create_dir(host.join("disk")).unwrap();
        fs::create_dir(&pod).unwrap();
        plain(Some(&host), &pod, MsFlags::MS_BIND);
        // A disk that comes later is seen in the pod, too.
        tmpfs(&host.join("disk"), None).unwrap();
        assert!(Mounted::read().contains(&pod.join("disk")));
        unmount_below(&pod).unwrap();
        let mounted = Mounted::read();
        assert!(mounted.contains(&host.join("disk")));
        assert!(!mounted.contains(&pod));
        unmount_below(&host).unwrap();
    }

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let mounted = Mounted::parse(
            "36 35 98:0 /mnt1 /a/b\\040c rw - ext4 /dev/x rw\n37 35 0:2 / /a/b\\040c/d rw - tmpfs tmpfs rw\n38 1 0:3 / /ab rw - tmpfs t rw\n",
        );
        assert!(mounted.contains(Path::new("/a/b c")));
        assert_eq!(mounted.below(Path::new("/a")), [Path::new("/a/b c/d"), Path::new("/a/b c")]);
    }
}
