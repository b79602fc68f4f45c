//! Each kind for a moment and within limits that this machine does not feel.
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const HOG: &str = env!("CARGO_BIN_EXE_hog");

/// The lines of JSON that a hog printed, and how it ended.
struct Seen {
    lines: Vec<Value>,
    output: Output,
}

impl Seen {
    fn of(mut command: Command) -> Self {
        let output = command.output().expect("the command starts");
        let lines = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect();
        Self { lines, output }
    }

    /// The last line of one that ran to its end.
    fn last(&self) -> &Value {
        assert!(self.output.status.success(), "{:?}: {}", self.output.status, String::from_utf8_lossy(&self.output.stderr));
        let last = self.lines.last().expect("a line at the end");
        assert_eq!(last["end"], true, "{last}");
        last
    }

    fn number(&self, name: &str) -> f64 {
        self.last()[name].as_f64().unwrap_or_else(|| panic!("{name} in {}", self.last()))
    }
}

fn hog(line: &str) -> Seen {
    let mut command = Command::new(HOG);
    command.args(line.split_whitespace()).args(["--report", "0.1"]);
    Seen::of(command)
}

/// A hog started by a shell that first prepares its surroundings; the hog's path is $HOG.
fn in_shell(script: &str, dir: &Path) -> Seen {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).env("HOG", HOG).current_dir(dir);
    Seen::of(command)
}

/// A new group of a controller, on v2 or v1; none where this process may not make one.
struct Group(PathBuf);

impl Group {
    fn with(controller: &str, limits: &[(&str, &str)]) -> Option<Self> {
        let name = format!("hog-test-{controller}-{}", std::process::id());
        let group = [Path::new("/sys/fs/cgroup").join(&name), Path::new("/sys/fs/cgroup").join(controller).join(&name)]
            .into_iter()
            .find(|dir| {
                let made = std::fs::create_dir(dir).is_ok();
                let usable = made && limits.iter().any(|(file, _)| dir.join(file).exists());
                if made && !usable {
                    let _ = std::fs::remove_dir(dir);
                }
                usable
            })
            .map(Group)?;
        for (file, value) in limits {
            if group.0.join(file).exists() {
                std::fs::write(group.0.join(file), value).expect("an own group takes a limit");
            }
        }
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn busy_threads_and_their_rounds() {
    let seen = hog("--kind cpu --threads 2 --seconds 0.4");
    assert_eq!(seen.number("held"), 2.0);
    assert!(seen.number("done") > 0.0);
    assert!(seen.lines.len() >= 2, "lines while it runs: {:?}", seen.lines);
    assert!(hog("--kind rt --threads 1 --seconds 0.1").number("done") > 0.0);
}

#[test]
fn a_bomb_is_refused_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let seen = hog("--kind fork --count 20 --seconds 0.3");
    assert_eq!((seen.number("held"), seen.number("refused")), (20.0, 0.0));

    let Some(group) = Group::with("pids", &[("pids.max", "30")]) else {
        println!("SKIP fork to a limit: no group of the pids controller can be made here");
        return;
    };
    let seen = in_shell(&format!("echo $$ >{}/cgroup.procs; exec $HOG --kind fork --seconds 0.5", group.0.display()), dir.path());
    assert!((1.0..30.0).contains(&seen.number("held")), "{}", seen.last());
    assert!(seen.number("refused") > 100.0, "{}", seen.last());
    assert_eq!(seen.last()["errno"], "EAGAIN");
}

#[test]
fn memory_grows_at_full_speed_or_on_a_ramp() {
    let fast = hog("--kind mem-fast --bytes 32M --seconds 0.5");
    assert_eq!(fast.number("held"), f64::from(32 << 20));
    assert!(fast.number("done") > fast.number("held"), "touched again: {}", fast.last());
    let slow = hog("--kind mem-slow --bytes 64M --rate 10M --seconds 1");
    assert!((1 << 20..=12 << 20).contains(&(slow.number("held") as u64)), "10 MiB a second: {}", slow.last());
}

#[test]
fn memory_that_is_refused_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let seen = in_shell("ulimit -v 65536; exec $HOG --kind mem-fast --bytes 1G --seconds 0.5", dir.path());
    assert_eq!(seen.last()["errno"], "ENOMEM");
    assert!(seen.number("held") > 0.0 && seen.number("refused") > 0.0, "{}", seen.last());
}

#[test]
fn its_own_limit_kills_it() {
    let limits = [("memory.max", "24M"), ("memory.swap.max", "0"), ("memory.limit_in_bytes", "24M")];
    let Some(group) = Group::with("memory", &limits) else {
        println!("SKIP mem-own: no group of the memory controller can be made here");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let line = format!("echo $$ >{}/cgroup.procs; exec $HOG --kind mem-own --bytes 48M --seconds 20", group.0.display());
    let seen = in_shell(&line, dir.path());
    assert_eq!(seen.output.status.signal(), Some(9), "{:?}", seen.output.status);
}

#[test]
fn files_are_read_written_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["cache", "cache-map"] {
        let seen = hog(&format!("--kind {kind} --bytes 80M --seconds 0.5 --dir {}", dir.path().display()));
        assert!(seen.number("done") > f64::from(80 << 20), "more than once: {}", seen.last());
        let tree = hog(&format!("--kind {kind} --tree {} --seconds 0.2", env!("CARGO_MANIFEST_DIR")));
        assert!(tree.number("done") > 0.0, "{}", tree.last());
    }
    let seen = hog(&format!("--kind write --bytes 8M --seconds 0.4 --dir {}", dir.path().display()));
    assert!(seen.number("done") > f64::from(8 << 20), "round the ring: {}", seen.last());
    let seen = hog(&format!("--kind write-fsync --bytes 1M --seconds 0.4 --dir {}", dir.path().display()));
    assert!(seen.number("done") >= 4096.0 && seen.number("worst_ms") > 0.0, "{}", seen.last());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn handles_up_to_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let seen = in_shell("ulimit -n 40; exec $HOG --kind fd --seconds 0.3", dir.path());
    assert_eq!(seen.last()["errno"], "EMFILE");
    assert!((20.0..40.0).contains(&seen.number("held")), "{}", seen.last());
    assert_eq!(hog("--kind fd --count 10 --seconds 0.1").number("held"), 10.0);
    assert_eq!(hog("--kind inotify --count 3 --seconds 0.1").number("held"), 3.0);
}

#[test]
fn lines_at_a_rate() {
    let seen = hog("--kind log --rate 1M --seconds 0.5");
    let printed = seen.output.stdout.iter().filter(|byte| **byte == b'x').count();
    assert!((200_000..1 << 20).contains(&printed), "{printed}");
    assert!(seen.number("done") >= printed as f64, "{}", seen.last());
}

#[test]
fn a_file_system_is_filled() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(hog(&format!("--kind disk --bytes 2M --seconds 0.1 --dir {}", dir.path().display())).number("held"), f64::from(2 << 20));
    assert_eq!(hog(&format!("--kind inode --count 30 --seconds 0.2 --dir {}", dir.path().display())).number("held"), 30.0);
    assert!(dir.path().join("hog-inode-0/29").exists());

    let own_mounts = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none"]).arg(dir.path()).output();
    if !own_mounts.is_ok_and(|output| output.status.success()) {
        println!("SKIP a full file system: no mount namespace can be made here");
        return;
    }
    for (kind, options) in [("disk", "size=2m"), ("inode", "nr_inodes=40")] {
        let line = format!(
            "exec unshare --mount sh -ec 'mount -t tmpfs -o {options} none . && cd \"$PWD\" && exec $HOG --kind {kind} --seconds 0.4'"
        );
        let seen = in_shell(&line, dir.path());
        assert_eq!(seen.last()["errno"], "ENOSPC", "{}", seen.last());
        assert!(seen.number("held") > 0.0);
    }
}

#[test]
fn connections_to_a_listener() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let seen = hog(&format!("--kind conn --count 50 --seconds 0.3 --target {target}"));
    assert_eq!(seen.number("held"), 50.0);
    drop(listener);

    let sink = std::thread::spawn(move || hog(&format!("--kind sink --target {target} --seconds 2")));
    let seen = hog(&format!("--kind conn --count 50 --seconds 1.5 --target {target}"));
    assert!(seen.number("done") > 50.0, "the oldest makes place: {}", seen.last());
    assert!(sink.join().unwrap().number("done") > 0.0);
}

#[test]
fn a_storm_is_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("--kind storm --threads 1 --bytes 4M --count 5 --seconds 1.5 --dir {}", dir.path().display());
    let seen = hog(&line);
    assert!(seen.number("done") >= 4.0, "{}", seen.last());
    for kind in ["cpu", "mem-slow", "write", "fork", "storm"] {
        assert!(seen.lines.iter().any(|line| line["kind"] == kind && line["done"].as_f64() > Some(0.0)), "{kind} in {:?}", seen.lines);
    }
}

#[test]
fn a_bystander_keeps_its_pace() {
    let seen = hog("--kind bystander --rate 50 --bytes 64K --seconds 1");
    assert!((10.0..=52.0).contains(&seen.number("done")), "{}", seen.last());
}

#[test]
fn numbers_of_files_are_sampled() {
    let seen = hog("--kind sampler --watch /proc/meminfo:MemTotal --watch /proc/loadavg --watch /nowhere --seconds 0.5");
    assert!(seen.lines.len() > 2, "{:?}", seen.lines);
    assert!(seen.lines[0]["values"]["/proc/meminfo MemTotal"].as_f64() > Some(0.0), "{:?}", seen.lines[0]);
    assert_eq!(seen.last()["kind"], "sampler");
}

#[test]
fn sigterm_ends_it_with_its_last_line() {
    let dir = tempfile::tempdir().unwrap();
    let seen = in_shell(
        "$HOG --kind fd --count 2 --seconds 60 >lines & hog=$!; until [ -s lines ]; do :; done; kill $hog; wait $hog; cat lines",
        dir.path(),
    );
    assert!(seen.number("seconds") < 50.0);
}

#[test]
fn what_cannot_begin_says_why() {
    for (line, code, said) in [
        ("--kind write --dir /nowhere", 1, "/nowhere"),
        ("--kind conn", 1, "--target"),
        ("--kind cache --tree /sys/kernel/none --seconds 5", 1, "nothing to read"),
        ("--kind all", 2, "--kind all is not known"),
    ] {
        let seen = hog(line);
        assert_eq!(seen.output.status.code(), Some(code), "{line}");
        let error = String::from_utf8_lossy(&seen.output.stderr).into_owned();
        assert!(error.starts_with("hog: ") && error.contains(said), "{line}: {error}");
    }
}
