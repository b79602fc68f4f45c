//! The command line. Parsing does no work; what is not given is left for the kind to size by the machine.
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What a hog does. The table is `governor.md` 5.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Cpu,
    Rt,
    Fork,
    MemFast,
    MemSlow,
    MemOwn,
    Cache,
    CacheMap,
    Write,
    WriteFsync,
    Fd,
    Inotify,
    Log,
    Disk,
    Inode,
    Conn,
    Sink,
    Storm,
    Bystander,
    Sampler,
}

impl Kind {
    pub(crate) const ALL: [(Kind, &'static str, &'static str); 20] = [
        (Kind::Cpu, "cpu", "busy threads: --threads, by default twice the cores"),
        (Kind::Rt, "rt", "the same at SCHED_FIFO; without the capability it is refused and goes on as cpu"),
        (Kind::Fork, "fork", "forks without exec until refused, never waits: at most --count processes"),
        (Kind::MemFast, "mem-fast", "touches --bytes at full speed, by default twice the memory, then touches them again"),
        (Kind::MemSlow, "mem-slow", "grows by --rate (10M) to --bytes (all memory and half the swap), then loops over them"),
        (Kind::MemOwn, "mem-own", "as mem-fast, by default to twice its own cgroup's limit"),
        (Kind::Cache, "cache", "reads files of --bytes (three times the memory) in --dir in a loop, or those below --tree"),
        (Kind::CacheMap, "cache-map", "the same through mmap"),
        (Kind::Write, "write", "buffered writes of 1 MiB round a ring of --bytes (1G, at most half of what is free) in --dir"),
        (Kind::WriteFsync, "write-fsync", "writes of 4 KiB, each with fdatasync, in the same ring"),
        (Kind::Fd, "fd", "opens files until refused: at most --count"),
        (Kind::Inotify, "inotify", "makes inotify instances until refused: at most --count"),
        (Kind::Log, "log", "--rate (50M) a second to the standard output"),
        (Kind::Disk, "disk", "fills the file system of --dir: at most --bytes"),
        (Kind::Inode, "inode", "makes --count (1000000) empty files in --dir"),
        (Kind::Conn, "conn", "opens --count (20000) connections to --target and keeps renewing them"),
        (Kind::Sink, "sink", "accepts connections at --target and keeps them"),
        (Kind::Storm, "storm", "cpu, mem-slow, write and fork at once, each a process of its own"),
        (Kind::Bystander, "bystander", "no hog: --rate (50) equal pieces of work a second over --bytes (4M)"),
        (Kind::Sampler, "sampler", "no hog: prints the numbers in each --watch PATH[:KEY,...] every --report"),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, ..)| *kind == self).map_or("?", |(_, name, _)| name)
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(kind, ..)| *kind)
    }
}

/// A checked command line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Arguments {
    pub(crate) kind: Kind,
    /// How long it runs.
    pub(crate) length: Duration,
    /// How often what was reached is printed.
    pub(crate) report: Duration,
    pub(crate) threads: Option<usize>,
    pub(crate) bytes: Option<u64>,
    /// Bytes a second; pieces a second for a bystander.
    pub(crate) rate: Option<u64>,
    pub(crate) count: Option<u64>,
    /// Where files are made.
    pub(crate) dir: PathBuf,
    /// Files that are there already, to be read instead of own ones.
    pub(crate) tree: Option<PathBuf>,
    /// ADDRESS:PORT.
    pub(crate) target: Option<String>,
    /// Files to sample, each `PATH` or `PATH:KEY,KEY`.
    pub(crate) watch: Vec<String>,
    /// Part of a storm: ends with its parent.
    pub(crate) child: bool,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Asked {
    Help,
    Run(Arguments),
}

/// What is wrong with a command line, with the remedy.
#[derive(Debug, PartialEq)]
pub(crate) struct Wrong(String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) fn help() -> String {
    let mut out = String::from(
        "hog --kind KIND [--seconds N] [--report SECONDS] [--threads N] [--bytes SIZE] [--rate SIZE] [--count N] [--dir D] [--tree D] [--target A:P] [--watch FILE]...\n\
         SIZE is a number of bytes, or of K, M, G (1024 each). Without --seconds: 120.\n\n",
    );
    for (_, name, about) in Kind::ALL {
        out.push_str(&format!("  {name:<12} {about}\n"));
    }
    out
}

/// The command line without the program's name.
pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Asked, Wrong> {
    let mut kind = None;
    let mut out = Arguments {
        kind: Kind::Cpu,
        length: Duration::from_secs(120),
        report: Duration::from_secs(1),
        threads: None,
        bytes: None,
        rate: None,
        count: None,
        dir: PathBuf::from("."),
        tree: None,
        target: None,
        watch: Vec::new(),
        child: false,
    };
    let mut words = words;
    while let Some(word) = words.next() {
        if word == "--help" || word == "-h" {
            return Ok(Asked::Help);
        }
        if word == "--child" {
            out.child = true;
            continue;
        }
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let mut value = || value.clone().or_else(|| words.next()).ok_or_else(|| Wrong(format!("{name} wants a value")));
        match name.as_str() {
            "--kind" => {
                let given = value()?;
                let names: Vec<_> = Kind::ALL.iter().map(|(_, name, _)| *name).collect();
                kind = Some(Kind::of(&given).ok_or_else(|| Wrong(format!("--kind {given} is not known; one of {}", names.join(", "))))?);
            }
            "--seconds" => out.length = seconds(&name, &value()?)?,
            "--report" => out.report = seconds(&name, &value()?)?,
            "--threads" => out.threads = Some(usize::try_from(size(&name, &value()?)?).unwrap_or(usize::MAX)),
            "--bytes" => out.bytes = Some(size(&name, &value()?)?),
            "--rate" => out.rate = Some(size(&name, &value()?)?),
            "--count" => out.count = Some(size(&name, &value()?)?),
            "--dir" => out.dir = PathBuf::from(value()?),
            "--tree" => out.tree = Some(PathBuf::from(value()?)),
            "--watch" => out.watch.push(value()?),
            "--target" => out.target = Some(value()?),
            other => return Err(Wrong(format!("{other} is not known; see --help"))),
        }
    }
    out.kind = kind.ok_or_else(|| Wrong("which hog? --kind KIND; see --help".to_owned()))?;
    Ok(Asked::Run(out))
}

fn seconds(name: &str, text: &str) -> Result<Duration, Wrong> {
    let number: f64 = text.parse().map_err(|_| Wrong(format!("{name} {text} is no number of seconds")))?;
    if number > 0.0 && number < 1e7 { Ok(Duration::from_secs_f64(number)) } else { Err(Wrong(format!("{name} {text} is out of range"))) }
}

fn size(name: &str, text: &str) -> Result<u64, Wrong> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'K')) => (&text[..at], 1 << 10),
        Some((at, 'M')) => (&text[..at], 1 << 20),
        Some((at, 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .filter(|number| *number > 0)
        .ok_or_else(|| Wrong(format!("{name} {text} is no amount: a number above 0, with K, M or G if wanted")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Asked, Wrong> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn sizes_and_both_forms_of_a_value() {
        let Asked::Run(arguments) = parsed("--kind=mem-slow --bytes 2M --rate=512K --seconds 1.5 --child").unwrap() else {
            panic!("no run")
        };
        assert_eq!((arguments.kind, arguments.bytes, arguments.rate), (Kind::MemSlow, Some(2 << 20), Some(512 << 10)));
        assert_eq!(arguments.length, Duration::from_millis(1500));
        assert!(arguments.child);
    }

    #[test]
    fn every_kind_is_found_by_its_name() {
        for (kind, name, _) in Kind::ALL {
            assert_eq!(Kind::of(name), Some(kind));
            assert_eq!(kind.name(), name);
        }
        assert_eq!(parsed("--help"), Ok(Asked::Help));
    }

    #[test]
    fn bad_lines_name_the_value_and_the_remedy() {
        for (line, said) in [
            ("", "which hog? --kind KIND; see --help"),
            ("--kind", "--kind wants a value"),
            ("--kind cpu --bytes 0", "--bytes 0 is no amount: a number above 0, with K, M or G if wanted"),
            ("--kind cpu --bytes 99999999999G", "--bytes 99999999999G is no amount: a number above 0, with K, M or G if wanted"),
            ("--kind cpu --seconds -1", "--seconds -1 is out of range"),
            ("--kind cpu --fast", "--fast is not known; see --help"),
        ] {
            assert_eq!(parsed(line).unwrap_err().to_string(), said, "{line}");
        }
        assert!(parsed("--kind nothing").unwrap_err().to_string().contains("mem-fast"));
    }
}
