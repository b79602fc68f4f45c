//! `fsGroup`: group and permissions of a volume the pod may write to (kubelet-contract 5.5).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// Gives the tree to `group`: files gain rw for it, directories rwx and setgid. Links are given, never followed.
pub(super) fn apply(root: &Path, group: i64, only_on_mismatch: bool) -> io::Result<()> {
    let group = u32::try_from(group).map_err(|_| io::Error::other(format!("{group} is not a group id")))?;
    if only_on_mismatch && fits(root, group)? {
        return Ok(());
    }
    walk(root, group, WRITABLE)
}

/// Gives the tree of a volume that pods only read to `group`: files gain r for it, directories rx and setgid.
pub(super) fn readable(root: &Path, group: u32) -> io::Result<()> {
    walk(root, group, READABLE)
}

/// Bits that directories and files gain.
const WRITABLE: (u32, u32) = (0o2770, 0o660);
const READABLE: (u32, u32) = (0o2550, 0o440);

fn fits(root: &Path, group: u32) -> io::Result<bool> {
    let have = fs::symlink_metadata(root)?;
    Ok(have.gid() == group && have.mode() & 0o2770 == 0o2770)
}

fn walk(path: &Path, group: u32, gained: (u32, u32)) -> io::Result<()> {
    let have = fs::symlink_metadata(path)?;
    if have.gid() != group {
        lchown(path, None, Some(group))?;
    }
    if have.file_type().is_symlink() {
        return Ok(());
    }
    let more = if have.is_dir() { gained.0 } else { gained.1 };
    // chown clears setgid of files, so the mode is written after it.
    let mode = have.mode() & 0o7777 | more;
    if have.mode() & 0o7777 != mode || have.gid() != group {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    if have.is_dir() {
        for entry in fs::read_dir(path)? {
            walk(&entry?.path(), group, gained)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_becomes_the_groups() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(dir.path().join("f"), "x").unwrap();
        fs::set_permissions(dir.path().join("f"), fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("l")).unwrap();
        // Our own group is one any user may set.
        let own = fs::metadata(dir.path()).unwrap().gid();
        let before = fs::metadata("/etc/passwd").unwrap().mode();
        apply(dir.path(), i64::from(own), false).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o2777);
        assert_eq!(fs::metadata(dir.path().join("f")).unwrap().mode() & 0o7777, 0o660);
        assert_eq!(fs::metadata("/etc/passwd").unwrap().mode(), before);
    }
}
