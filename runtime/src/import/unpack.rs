//! Compressed archives, by way of the machine's own `gzip`, `zstd`, `bzip2` and `lz4`: images are imported once, and no
//! decompressor is worth its place in the agent's memory.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::tar::{damaged, file_error};
use crate::{Error, Result};

/// An archive as plain tar: the given file itself, or a copy that is removed when this is dropped.
pub(super) struct Plain {
    path: PathBuf,
    copy: bool,
}

impl Plain {
    /// Unpacks beside the archive where that is needed. Blocks.
    pub(super) fn of(archive: &Path) -> Result<Self> {
        let mut magic = [0; 4];
        let mut file = File::open(archive).map_err(|e| file_error("open", archive, e))?;
        let program = match file.read_exact(&mut magic) {
            Ok(()) if magic.starts_with(&[0x1f, 0x8b]) => "gzip",
            Ok(()) if magic == [0x28, 0xb5, 0x2f, 0xfd] => "zstd",
            Ok(()) if magic.starts_with(b"BZh") => "bzip2",
            Ok(()) if magic == [0x04, 0x22, 0x4d, 0x18] => "lz4",
            _ => {
                return Ok(Self { path: archive.to_owned(), copy: false });
            }
        };
        let name = archive.file_name().unwrap_or_default().to_string_lossy();
        // A leading dot, so that nobody takes the copy for an archive to import.
        let plain = Self { path: archive.with_file_name(format!(".{name}.{}.unpacked", std::process::id())), copy: true };
        unpack(program, archive, &plain.path)?;
        Ok(plain)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        if self.copy {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn unpack(program: &'static str, archive: &Path, to: &Path) -> Result<()> {
    let input = File::open(archive).map_err(|e| file_error("open", archive, e))?;
    let output = File::create(to).map_err(|e| file_error("create", to, e))?;
    let done =
        Command::new(program).arg("-dc").stdin(input).stdout(output).stderr(Stdio::piped()).output().map_err(|e| Error::Program {
            program: program.to_owned(),
            problem: format!("needed to unpack {} and cannot be run ({e}); apt-get install {program}", archive.display()),
        })?;
    if done.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&done.stderr);
    Err(damaged(archive, format!("{program} cannot unpack it: {}", words.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_unpacked_beside_and_cleaned_up() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tar");
        std::fs::write(&file, b"content").unwrap();
        assert_eq!(Plain::of(&file).unwrap().path(), file);
        let done = Command::new("gzip").arg(&file).status().unwrap();
        assert!(done.success());
        let packed = dir.path().join("a.tar.gz");
        let plain = Plain::of(&packed).unwrap();
        assert_eq!(std::fs::read(plain.path()).unwrap(), b"content");
        drop(plain);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

        let mut bytes = std::fs::read(&packed).unwrap();
        bytes.truncate(bytes.len() - 6);
        std::fs::write(&packed, bytes).unwrap();
        let error = Plain::of(&packed).err().unwrap().to_string();
        assert!(error.contains("gzip cannot unpack it"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
