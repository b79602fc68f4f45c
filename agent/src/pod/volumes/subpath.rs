//! subPath: one place inside a volume, pinned so that a link planted by a container cannot lead out of it
//! (kubelet-contract 5.6).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat, stat};

use super::Mounted;

/// Opens `sub` below `root` without following links, makes missing directories, and bind-mounts it on `pin`.
/// Returns the path to give to the runtime. A pin of the same thing is used again; one of a file that was replaced since
/// (a ConfigMap's) is made anew, for nothing can be mounted from a file that is gone.
pub(super) fn pin(root: &Path, sub: &str, pin: &Path) -> io::Result<PathBuf> {
    let target = walk(root, sub)?;
    let kind = fstat(&target).map_err(io::Error::from)?;
    if Mounted::read().contains(pin) {
        let pinned = stat(pin).map_err(io::Error::from)?;
        if (pinned.st_dev, pinned.st_ino) == (kind.st_dev, kind.st_ino) {
            return Ok(pin.to_owned());
        }
        umount2(pin, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(io::Error::from)?;
        // It may have been a file and now be a directory.
        let _ = fs::remove_file(pin).or_else(|_| fs::remove_dir(pin));
    }
    if let Some(parent) = pin.parent() {
        fs::create_dir_all(parent)?;
    }
    if is_dir(&kind) {
        fs::create_dir_all(pin)?;
    } else if !pin.exists() {
        fs::write(pin, "")?;
    }
    // The magic link names exactly what was opened, whatever happens to the path meanwhile.
    let source = format!("/proc/self/fd/{}", target.as_raw_fd());
    mount(Some(source.as_str()), pin, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(io::Error::from)?;
    Ok(pin.to_owned())
}

fn walk(root: &Path, sub: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut at = open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(io::Error::from)?;
    let mode = Mode::from_bits_truncate(fstat(&at).map_err(io::Error::from)?.st_mode & 0o7777);
    for part in Path::new(sub).components() {
        let name = match part {
            Component::Normal(name) => name,
            Component::CurDir => continue,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(io::Error::other(format!("subPath {sub:?} leads out of the volume")));
            }
        };
        match fstatat(&at, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => {
                mkdirat(&at, name, mode).map_err(io::Error::from)?;
                let made = openat(&at, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
                    .map_err(io::Error::from)?;
                fchmod(&made, mode).map_err(io::Error::from)?;
            }
            Err(e) => return Err(e.into()),
            Ok(found) if is_link(&found) => return follow_own(root, &at, sub, name),
            Ok(_) => {}
        }
        at = openat(&at, name, flags, Mode::empty()).map_err(io::Error::from)?;
    }
    Ok(at)
}

/// ConfigMap and Secret volumes are links inside themselves (`key -> ..data/key`): allowed when the end is in the volume.
fn follow_own(root: &Path, _at: &OwnedFd, sub: &str, name: &std::ffi::OsStr) -> io::Result<OwnedFd> {
    let real_root = fs::canonicalize(root)?;
    let real = fs::canonicalize(root.join(sub))?;
    if !real.starts_with(&real_root) {
        return Err(io::Error::other(format!("{} in subPath {sub:?} is a link out of the volume", name.to_string_lossy())));
    }
    let target = open(&real, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()).map_err(io::Error::from)?;
    // What was opened must be what was checked.
    let opened = fs::read_link(format!("/proc/self/fd/{}", target.as_raw_fd()))?;
    if opened.starts_with(&real_root) { Ok(target) } else { Err(io::Error::other(format!("subPath {sub:?} changed while it was opened"))) }
}

fn is_dir(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

fn is_link(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn end(root: &Path, sub: &str) -> io::Result<PathBuf> {
        let fd = walk(root, sub)?;
        fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
    }

    #[test]
    fn a_file_that_was_replaced_is_pinned_anew() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap().join("v");
        let at = root.parent().unwrap().join("pins/0");
        let show = |name: &str, content: &str| {
            fs::create_dir_all(root.join(name)).unwrap();
            fs::write(root.join(name).join("key"), content).unwrap();
            let _ = fs::remove_file(root.join("..data"));
            symlink(name, root.join("..data")).unwrap();
        };
        show("..1", "old");
        symlink("..data/key", root.join("key")).unwrap();
        match pin(&root, "key", &at) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return eprintln!("skipped: this user may not mount"),
            other => assert_eq!(other.unwrap(), at),
        }
        pin(&root, "key", &at).unwrap();
        assert_eq!(fs::read_to_string(&at).unwrap(), "old");
        show("..2", "new");
        fs::remove_dir_all(root.join("..1")).unwrap();
        pin(&root, "key", &at).unwrap();
        assert_eq!(fs::read_to_string(&at).unwrap(), "new");
        super::super::unmount_below(root.parent().unwrap()).unwrap();
        assert!(!Mounted::read().contains(&at));
    }

    #[test]
    fn a_planted_link_does_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap().join("v");
        fs::create_dir_all(root.join("..data_1")).unwrap();
        fs::write(root.join("..data_1/key"), "x").unwrap();
        symlink("..data_1/key", root.join("key")).unwrap();
        symlink("/etc", root.join("evil")).unwrap();
        assert_eq!(end(&root, "a/b").unwrap(), root.join("a/b"), "made");
        assert_eq!(end(&root, "key").unwrap(), root.join("..data_1/key"), "a link of its own");
        assert!(end(&root, "evil/passwd").is_err());
        assert!(end(&root, "../x").is_err());
        assert!(end(&root, "/etc").is_err());
    }
}
