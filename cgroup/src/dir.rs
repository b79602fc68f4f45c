//! One group's directory in one hierarchy: checked reads and writes of its control files.
//!
//! Files are opened for writing but never created, so a wrong name is an error on a real mount and in a fake tree alike.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::value::Limit;
use crate::{Error, Result};

/// A group's directory. Holding one does not mean that the group exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CgroupDir {
    path: PathBuf,
}

impl CgroupDir {
    /// The directory at `path`, whether or not it exists.
    pub fn new(path: impl Into<PathBuf>) -> CgroupDir {
        CgroupDir { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the group exists.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Whether the group has this control file.
    pub fn has(&self, file: &str) -> bool {
        self.path.join(file).exists()
    }

    /// The text of a control file, without the trailing newline.
    pub fn read(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim_end().to_owned()),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// Writes `value` in one write and reports the kernel's answer with path and value.
    pub fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        let done = fs::OpenOptions::new().write(true).truncate(true).open(&path).and_then(|mut open| open.write_all(value.as_bytes()));
        done.map_err(|source| Error::Write { path, value: value.to_owned(), source })
    }

    /// A control file that holds one number.
    pub fn read_u64(&self, file: &str) -> Result<u64> {
        let text = self.read(file)?;
        text.trim().parse().map_err(|_| self.parse_error(file, &text, "a number"))
    }

    /// A control file that holds a number or the kernel's word for "none".
    pub fn read_limit(&self, file: &str) -> Result<Limit> {
        let text = self.read(file)?;
        Limit::parse(&text).ok_or_else(|| self.parse_error(file, &text, "a number, `max` or -1"))
    }

    /// The number after `key` in a file of `key number` lines, `None` if the key is not there.
    pub fn read_key(&self, file: &str, key: &str) -> Result<Option<u64>> {
        let text = self.read(file)?;
        match keyed(&text, key) {
            None => Ok(None),
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(())) => Err(self.parse_error(file, &text, "lines of a key and a number")),
        }
    }

    /// The processes in this group itself. Zero, the kernel's word for "in another pid namespace", is left out:
    /// signalling pid 0 would signal the caller's own process group.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let text = self.read("cgroup.procs")?;
        let mut pids = Vec::new();
        for line in text.lines() {
            match line.trim().parse::<i32>() {
                Ok(pid) if pid > 0 => pids.push(pid),
                Ok(_) => {}
                Err(_) => return Err(self.parse_error("cgroup.procs", &text, "process ids")),
            }
        }
        Ok(pids)
    }

    /// The names of the groups directly below, sorted; empty when this group does not exist.
    pub fn children(&self) -> Result<Vec<String>> {
        let read = |source| Error::Read { path: self.path.clone(), source };
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(read(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(read)?;
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let (true, Ok(name)) = (is_dir, entry.file_name().into_string()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The group of that name below this one.
    pub fn child(&self, name: &str) -> CgroupDir {
        CgroupDir::new(self.path.join(name))
    }

    pub(crate) fn parse_error(&self, file: &str, text: &str, expected: &'static str) -> Error {
        Error::Parse { path: self.path.join(file), text: text.chars().take(80).collect(), expected }
    }
}

/// The number after `key` in `text`, a list of `key number` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<Result<u64, ()>> {
    let line = text.lines().find_map(|line| {
        let (name, value) = line.split_once([' ', '\t'])?;
        (name == key).then_some(value)
    })?;
    Some(line.trim().parse().map_err(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(files: &[(&str, &str)]) -> (tempfile::TempDir, CgroupDir) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(root.path().join(name), text).unwrap();
        }
        let dir = CgroupDir::new(root.path());
        (root, dir)
    }

    #[test]
    fn a_missing_file_is_not_created_by_a_write() {
        let (_root, dir) = scratch(&[]);
        let error = dir.write("memory.maxx", "1").unwrap_err();
        assert!(error.is_gone(), "{error:?}");
        assert!(error.to_string().contains("memory.maxx"), "{error}");
        assert!(!dir.has("memory.maxx"));
    }

    #[test]
    fn numbers_limits_and_keys_are_read_and_refused() {
        let (_root, dir) = scratch(&[("n", "42\n"), ("bad", "4x\n"), ("max", "max\n"), ("stat", "cache 1\ninactive_file 7\n")]);
        assert_eq!(dir.read_u64("n").unwrap(), 42);
        assert!(matches!(dir.read_u64("bad"), Err(Error::Parse { .. })));
        assert_eq!(dir.read_limit("max").unwrap(), Limit::None);
        assert_eq!(dir.read_limit("n").unwrap(), Limit::At(42));
        assert_eq!(dir.read_key("stat", "inactive_file").unwrap(), Some(7));
        assert_eq!(dir.read_key("stat", "inactive").unwrap(), None);
    }

    #[test]
    fn processes_of_other_namespaces_are_left_out() {
        let (_root, dir) = scratch(&[("cgroup.procs", "0\n17\n0\n23\n")]);
        assert_eq!(dir.processes().unwrap(), [17, 23]);
    }
}
