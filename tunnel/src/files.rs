//! Small files that must survive a power cut: written whole (tmp, fsync, rename), 0600, and only when changed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};

fn error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { verb, path, source }
}

/// The content, or `None` when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(error("read", path)(e)),
    }
}

/// Replaces the file in one step, unless it has this content already. Creates missing parents.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<()> {
    if matches!(read(path), Ok(Some(old)) if old == content) {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    dir(parent, 0o755)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let tmp = parent.join(name);
    let put = || -> io::Result<()> {
        // A leftover of a crash may have any mode.
        match fs::remove_file(&tmp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&tmp, path)?;
        File::open(parent)?.sync_all()
    };
    put().map_err(error("write", path))
}

/// Makes a directory and its parents with `mode` where they are missing.
pub(crate) fn dir(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(error("create", path))
}

/// Renames a file, `false` when it does not exist.
pub(crate) fn take(from: &Path, to: &Path) -> Result<bool> {
    match read(from)? {
        None => Ok(false),
        Some(content) => {
            write(to, &content)?;
            fs::remove_file(from).map_err(error("remove", from))?;
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn files_are_private_whole_and_not_rewritten_for_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/key");
        assert_eq!(read(&path).unwrap(), None);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path.with_file_name("key.tmp"), "left by a crash").unwrap();
        write(&path, b"one").unwrap();
        let first = fs::metadata(&path).unwrap();
        assert_eq!(first.permissions().mode() & 0o777, 0o600);
        write(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino());
        write(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert!(!path.with_file_name("key.tmp").exists());
    }

    #[test]
    fn errors_name_the_file() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let err = write(&file.join("below"), b"x").unwrap_err().to_string();
        assert!(err.contains("file"), "{err}");
    }
}
