//! hostPath volumes: the check or creation their type asks for.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::make_dir;

/// Ok when the path is what the type says; the message is the kubelet's.
pub(super) fn prepare(path: &str, kind: &str) -> Result<(), String> {
    let at = Path::new(path);
    let failed = |what: &str| Err(format!("hostPath type check failed: {path} is not a {what}"));
    let found = fs::metadata(at).ok();
    let is = |check: fn(&fs::FileType) -> bool| found.as_ref().is_some_and(|m| check(&m.file_type()));
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" => {
            if found.is_none() {
                make_dir(at, 0o755).map_err(|e| format!("create {path}: {e}"))?;
                return Ok(());
            }
            if is(fs::FileType::is_dir) { Ok(()) } else { failed("directory") }
        }
        "Directory" => {
            if is(fs::FileType::is_dir) {
                Ok(())
            } else {
                failed("directory")
            }
        }
        "FileOrCreate" => {
            if found.is_none() {
                return super::write_file(at, b"", 0o644).map_err(|e| format!("create {path}: {e}"));
            }
            if is(fs::FileType::is_file) { Ok(()) } else { failed("file") }
        }
        "File" => {
            if is(fs::FileType::is_file) {
                Ok(())
            } else {
                failed("file")
            }
        }
        "Socket" => {
            if is(FileTypeExt::is_socket) {
                Ok(())
            } else {
                failed("socket file")
            }
        }
        "CharDevice" => {
            if is(FileTypeExt::is_char_device) {
                Ok(())
            } else {
                failed("character device")
            }
        }
        "BlockDevice" => {
            if is(FileTypeExt::is_block_device) {
                Ok(())
            } else {
                failed("block device")
            }
        }
        other => Err(format!("{other} is an invalid volume type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(path("f"), "x").unwrap();
        let f = path("f");
        assert_eq!(prepare(&f, "Directory"), Err(format!("hostPath type check failed: {f} is not a directory")));
        assert_eq!(prepare(&f, "File"), Ok(()));
        assert_eq!(prepare(&path("none"), "File"), Err(format!("hostPath type check failed: {} is not a file", path("none"))));
        assert_eq!(prepare(&path("none"), ""), Ok(()));
        assert_eq!(prepare(&path("new/dir"), "DirectoryOrCreate"), Ok(()));
        assert!(Path::new(&path("new/dir")).is_dir());
        assert_eq!(prepare(&path("file"), "FileOrCreate"), Ok(()));
        assert_eq!(prepare("/dev/null", "CharDevice"), Ok(()));
        assert!(prepare("/dev/null", "Socket").is_err());
    }
}
