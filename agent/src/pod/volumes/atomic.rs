//! Files that change all at once: a timestamped directory behind the link `..data`, in the kubelet's layout
//! (kubelet-contract 5.4). A reader that holds `..data` sees one consistent set.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path};

use super::ownership;
use super::payload::Files;
use crate::pod::time;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// Makes `dir` show exactly `files`. Nothing is written when it already does.
pub(super) fn write(dir: &Path, files: &Files, group: Option<i64>) -> Result<(), String> {
    for path in files.keys() {
        check(path)?;
    }
    replace(dir, files, group).map_err(|e| format!("write {}: {e}", dir.display()))
}

/// Relative, without `..`, not starting with `..`, within the kernel's lengths.
fn check(path: &str) -> Result<(), String> {
    let parts_fit = Path::new(path).components().all(|part| matches!(part, Component::Normal(name) if name.len() <= 255));
    if path.is_empty() || path.len() > 4096 || path.starts_with("..") || !parts_fit {
        return Err(format!("invalid path: {path:?}"));
    }
    Ok(())
}

fn replace(dir: &Path, files: &Files, group: Option<i64>) -> io::Result<()> {
    let group = group.and_then(|g| u32::try_from(g).ok());
    let old = fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old {
        if same(&dir.join(old), files, group)? {
            return links(dir, files);
        }
    }
    let name = fresh_name(dir);
    let new = dir.join(&name);
    fs::create_dir(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    for (path, file) in files {
        let at = new.join(path);
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&at, &file.content)?;
        if file.owner.is_some() {
            lchown(&at, file.owner, None)?;
        }
        fs::set_permissions(&at, fs::Permissions::from_mode(file.mode))?;
    }
    if let Some(group) = group {
        ownership::readable(&new, group)?;
    }
    let tmp = dir.join(DATA_TMP);
    let _ = fs::remove_file(&tmp);
    symlink(&name, &tmp)?;
    fs::rename(&tmp, dir.join(DATA))?;
    links(dir, files)?;
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(())
}

/// With a group every file is readable by it.
fn mode(wanted: u32, group: Option<u32>) -> u32 {
    if group.is_some() { wanted | 0o440 } else { wanted }
}

fn same(data: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    list(data, data, &mut found)?;
    if !found.iter().map(String::as_str).eq(files.keys().map(String::as_str)) {
        return Ok(false);
    }
    for (path, file) in files {
        let at = data.join(path);
        if fs::read(&at)? != file.content || fs::metadata(&at)?.mode() & 0o7777 != mode(file.mode, group) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn list(root: &Path, dir: &Path, found: &mut BTreeSet<String>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(root, &entry.path(), found)?;
        } else if let Ok(path) = entry.path().strip_prefix(root) {
            found.insert(path.display().to_string());
        }
    }
    Ok(())
}

/// One link per top-level name, none that is stale.
fn links(dir: &Path, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(format!("{DATA}/{name}"), link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(name.as_str()) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// `..2026_11_23_02_52_00.2926903314`: the time and a number that is not taken.
fn fresh_name(dir: &Path) -> String {
    let now = time::now();
    let stamp: String = time::rfc3339(now).trim_end_matches('Z').chars().map(|c| if c.is_ascii_digit() { c } else { '_' }).collect();
    let mut number = now.rem_euclid(time::SECOND);
    loop {
        let name = format!("..{stamp}.{number}");
        if !dir.join(&name).exists() {
            return name;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::payload::File;
    use super::*;

    fn files(list: &[(&str, &str, u32)]) -> Files {
        list.iter().map(|(p, c, mode)| ((*p).to_owned(), File { content: c.as_bytes().to_vec(), mode: *mode, owner: None })).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|n| !n.starts_with("..2"))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn the_layout_is_the_kubelets_and_changes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        write(at, &files(&[("k", "v1", 0o400), ("deep/x", "1", 0o644)]), None).unwrap();
        assert_eq!(names(at), ["..data", "deep", "k"]);
        assert_eq!(fs::read_link(at.join("k")).unwrap(), Path::new("..data/k"));
        assert_eq!(fs::read_link(at.join("deep")).unwrap(), Path::new("..data/deep"));
        assert_eq!(fs::metadata(at.join("k")).unwrap().mode() & 0o777, 0o400);
        let first = fs::read_link(at.join("..data")).unwrap();

        write(at, &files(&[("k", "v1", 0o400), ("deep/x", "1", 0o644)]), None).unwrap();
        assert_eq!(fs::read_link(at.join("..data")).unwrap(), first, "the same content is not written again");

        write(at, &files(&[("k", "v2", 0o400), ("new", "n", 0o644)]), None).unwrap();
        assert_eq!(names(at), ["..data", "k", "new"]);
        assert_eq!(fs::read_to_string(at.join("k")).unwrap(), "v2");
        assert!(!at.join(first).exists());
    }

    #[test]
    fn a_half_written_set_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("..2026_01_01_00_00_00.1")).unwrap();
        symlink("..2026_01_01_00_00_00.1", dir.path().join(DATA_TMP)).unwrap();
        write(dir.path(), &files(&[("k", "v", 0o644)]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("k")).unwrap(), "v");
    }

    #[test]
    fn paths_stay_inside() {
        for path in ["", "../x", "/x", "a/../b", "..x", &"n".repeat(256)] {
            assert!(check(path).is_err(), "{path}");
        }
        assert!(check("a/b.c").is_ok());
    }

    #[test]
    fn a_group_may_read_everything() {
        let dir = tempfile::tempdir().unwrap();
        let own = fs::metadata(dir.path()).unwrap().gid();
        let wanted = files(&[("k", "v", 0o400), ("deep/x", "1", 0o600)]);
        write(dir.path(), &wanted, Some(i64::from(own))).unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("k"), mode("deep/x")), (0o440, 0o640));
        assert_eq!((mode("..data"), mode("deep")), (0o2755, 0o2755));
        let first = fs::read_link(dir.path().join("..data")).unwrap();
        write(dir.path(), &wanted, Some(i64::from(own))).unwrap();
        assert_eq!(fs::read_link(dir.path().join("..data")).unwrap(), first, "the same content is not written again");
    }
}
