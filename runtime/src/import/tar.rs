//! Where each file of a tar archive begins. Only headers are read; contents stay on disk until somebody asks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

const BLOCK: u64 = 512;
/// Longest file name or pax header taken seriously.
const LONGEST_NAME: u64 = 64 << 10;
/// Manifests and configurations are small; containerd refuses larger ones too.
const LARGEST_DOCUMENT: u64 = 8 << 20;

/// A contiguous piece of the archive: one file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Bytes from the archive's beginning.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    File(Extent),
    /// A link, and the path it names, already resolved against the archive's root.
    Link(String),
}

/// The table of contents of one archive.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Reads the table of contents. Blocks; the time grows with the number of files, not with their size.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| file_error("open", path, e))?;
        let length = file.metadata().map_err(|e| file_error("read", path, e))?.len();
        let entries = scan(file, length).map_err(|problem| match problem {
            Problem::Io(e) => file_error("read", path, e),
            Problem::Format(text) => damaged(path, text),
        })?;
        Ok(Self { path: path.to_owned(), entries })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the content of `name` is, links followed.
    pub(crate) fn find(&self, name: &str) -> Option<Extent> {
        let mut name = clean(name);
        // Longer chains than this are loops.
        for _ in 0..8 {
            match self.entries.get(&name)? {
                Entry::File(extent) => return Some(*extent),
                Entry::Link(target) => name = target.clone(),
            }
        }
        None
    }

    /// A whole small file. Blocks.
    pub(crate) fn read(&self, extent: Extent) -> Result<Vec<u8>> {
        if extent.size > LARGEST_DOCUMENT {
            return Err(damaged(&self.path, format!("a manifest of {} bytes", extent.size)));
        }
        let mut file = File::open(&self.path).map_err(|e| file_error("open", &self.path, e))?;
        let mut content = Vec::new();
        file.seek(SeekFrom::Start(extent.offset))
            .and_then(|_| file.take(extent.size).read_to_end(&mut content))
            .map_err(|e| file_error("read", &self.path, e))?;
        Ok(content)
    }
}

pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Error {
    Error::Archive { path: path.to_owned(), problem: problem.into() }
}

pub(crate) fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File { action, path: path.to_owned(), source }
}

enum Problem {
    Io(std::io::Error),
    Format(String),
}

impl From<std::io::Error> for Problem {
    fn from(e: std::io::Error) -> Self {
        Problem::Io(e)
    }
}

fn scan(mut input: impl Read + Seek, length: u64) -> std::result::Result<BTreeMap<String, Entry>, Problem> {
    let mut entries = BTreeMap::new();
    let mut at = 0;
    let mut long_name: Option<String> = None;
    let mut long_link: Option<String> = None;
    let mut pax: BTreeMap<String, String> = BTreeMap::new();
    loop {
        if at + BLOCK > length {
            // The two zero blocks at the end are missing: cut exactly between files, which nobody can tell from whole.
            if at == length && at > 0 {
                return Ok(entries);
            }
            return Err(Problem::Format(if length == 0 { "it is empty".into() } else { "it is cut short; copy it again".into() }));
        }
        let mut header = [0_u8; BLOCK as usize];
        input.seek(SeekFrom::Start(at))?;
        input.read_exact(&mut header)?;
        if header.iter().all(|b| *b == 0) {
            return Ok(entries);
        }
        check(&header, at)?;
        let kind = header[156];
        let mut extent = Extent { offset: at + BLOCK, size: number(&header[124..136])? };
        if let Some(size) = pax.get("size") {
            extent.size = size.parse().map_err(|_| Problem::Format(format!("a pax size of {size:?}")))?;
        }
        let next = extent
            .size
            .checked_add(BLOCK - 1)
            .and_then(|padded| extent.offset.checked_add(padded / BLOCK * BLOCK))
            .ok_or_else(|| Problem::Format("an impossible size in a tar header".into()))?;
        if extent.offset + extent.size > length {
            return Err(Problem::Format("it is cut short; copy it again".into()));
        }
        match kind {
            b'L' => long_name = Some(text(&content(&mut input, extent)?)),
            b'K' => long_link = Some(text(&content(&mut input, extent)?)),
            b'x' => pax = pax_records(&content(&mut input, extent)?),
            b'g' => {}
            _ => {
                let name = pax.remove("path").or(long_name.take()).unwrap_or_else(|| short_name(&header));
                let link = pax.remove("linkpath").or(long_link.take()).unwrap_or_else(|| text(&header[157..257]));
                let name = clean(&name);
                match kind {
                    b'0' | 0 | b'7' => {
                        entries.insert(name, Entry::File(extent));
                    }
                    b'1' => {
                        entries.insert(name, Entry::Link(clean(&link)));
                    }
                    b'2' => {
                        let base = name.rsplit_once('/').map_or("", |(base, _)| base);
                        let target = clean(&format!("{base}/{link}"));
                        entries.insert(name, Entry::Link(target));
                    }
                    _ => {}
                }
                long_name = None;
                long_link = None;
                pax.clear();
            }
        }
        at = next;
    }
}

/// Every header carries the sum of its own bytes, with the sum's field taken as blanks.
fn check(header: &[u8; BLOCK as usize], at: u64) -> std::result::Result<(), Problem> {
    let sum: u64 = header.iter().enumerate().map(|(i, b)| u64::from(if (148..156).contains(&i) { b' ' } else { *b })).sum();
    match number(&header[148..156]) {
        Ok(stated) if stated == sum => Ok(()),
        _ if at == 0 => Err(Problem::Format("it is not a tar archive".into())),
        _ => Err(Problem::Format(format!("the tar header at byte {at} is damaged; copy it again"))),
    }
}

/// Octal text, or with the top bit set a big-endian number.
fn number(field: &[u8]) -> std::result::Result<u64, Problem> {
    let bad = || Problem::Format("a number in a tar header cannot be read".into());
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7f);
        for byte in &field[1..] {
            value = value.checked_mul(256).ok_or_else(bad)? + u64::from(*byte);
        }
        return Ok(value);
    }
    let digits = text(field);
    let digits = digits.trim_matches(' ');
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).map_err(|_| bad())
}

fn content(input: &mut (impl Read + Seek), extent: Extent) -> std::result::Result<Vec<u8>, Problem> {
    if extent.size > LONGEST_NAME {
        return Err(Problem::Format(format!("a file name of {} bytes", extent.size)));
    }
    input.seek(SeekFrom::Start(extent.offset))?;
    let mut bytes = Vec::new();
    input.take(extent.size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `"30 path=some/long/name\n"` and so on, each with its own length in front.
fn pax_records(bytes: &[u8]) -> BTreeMap<String, String> {
    let mut records = BTreeMap::new();
    let mut rest = bytes;
    while let Some(blank) = rest.iter().position(|b| *b == b' ') {
        let length = std::str::from_utf8(&rest[..blank])
            .ok()
            .and_then(|digits| digits.parse::<usize>().ok())
            .filter(|length| *length > blank + 1 && *length <= rest.len());
        let Some(length) = length else { break };
        let record = String::from_utf8_lossy(&rest[blank + 1..length]);
        if let Some((key, value)) = record.trim_end_matches('\n').split_once('=') {
            records.insert(key.to_owned(), value.to_owned());
        }
        rest = &rest[length..];
    }
    records
}

fn short_name(header: &[u8]) -> String {
    let name = text(&header[..100]);
    let prefix = text(&header[345..500]);
    // Only the POSIX form has a prefix; GNU's puts times there.
    if header[257..263] == *b"ustar\0" && !prefix.is_empty() { format!("{prefix}/{name}") } else { name }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A path without `.` and `..` and without a slash in front.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn archive_of(make: &[&str], format: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for name in make {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name.as_bytes()).unwrap();
        }
        std::os::unix::fs::symlink("../index.json", root.join("blobs/link")).unwrap();
        let file = dir.path().join("a.tar");
        let done =
            Command::new("tar").args(["-C", root.to_str().unwrap(), "-cf", file.to_str().unwrap()]).args([format, "."]).status().unwrap();
        assert!(done.success());
        (dir, file)
    }

    #[test]
    fn finds_files_of_every_tar_dialect() {
        let long = format!("blobs/{}/{}", "d".repeat(120), "f".repeat(130));
        let names = ["index.json", "blobs/sha256/abc", long.as_str()];
        for format in ["--format=gnu", "--format=pax"] {
            let (_dir, file) = archive_of(&names, format);
            let archive = Archive::open(&file).unwrap();
            for name in names {
                let extent = archive.find(name).expect(name);
                assert_eq!(archive.read(extent).unwrap(), name.as_bytes(), "{format}");
            }
            let linked = archive.find("blobs/link").unwrap();
            assert_eq!(archive.read(linked).unwrap(), b"index.json", "{format}");
            assert_eq!(archive.find("absent"), None);
        }
    }

    #[test]
    fn says_what_is_wrong_with_what_is_no_archive() {
        let (_dir, file) = archive_of(&["index.json", "blobs/a"], "--format=gnu");
        let whole = std::fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        flipped[600] ^= 0xff; // in the second entry's name or the first one's data
        let second = whole.chunks(512).skip(1).position(|b| b[257..262] == *b"ustar").unwrap() + 1;
        let mut header = whole.clone();
        header[second * 512] ^= 0x01;
        let table: [(&[u8], &str); 4] =
            [(b"", "empty"), (&[b'x'; 2000], "not a tar archive"), (&whole[..1000], "cut short"), (&header, "damaged")];
        for (bytes, words) in table {
            std::fs::write(&file, bytes).unwrap();
            let error = Archive::open(&file).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn paths_and_numbers() {
        assert_eq!(clean("./a//b/../c"), "a/c");
        assert_eq!(clean("../../etc"), "etc");
        assert!(matches!(number(b"0000644\0"), Ok(0o644)));
        assert!(matches!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]), Ok(65536)));
        assert!(number(b"9\0").is_err());
        assert!(number(&[0xff; 12]).is_err());
    }
}
