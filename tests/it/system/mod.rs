//! Whole-system tests: the real binaries, real containerd, real kubectl, on nodes that are network namespaces.
//!
//! What such a test needs and the machine lacks is said aloud as `SKIP name: reason`; `./test` collects these lines.
//! Tests share the machine one after the other, and every cluster has names, a subnet and directories of its own.

pub(crate) mod cluster;
pub(crate) mod kubectl;
pub(crate) mod process;
pub(crate) mod steps;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whole-system tests run one at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// Time between two looks at a condition.
const LOOK: Duration = Duration::from_millis(100);

/// What a test found on this machine.
pub(crate) struct Machine {
    /// `edge-agent` and `edge-server`.
    pub(crate) bin: PathBuf,
    /// Image archives to preload: pause, busybox, nginx.
    pub(crate) images: PathBuf,
    /// Released kubectl binaries by a short name; at least one.
    pub(crate) kubectls: Vec<(&'static str, PathBuf)>,
}

impl Machine {
    /// Looks for everything a cluster needs; the error is the reason to skip.
    fn find() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root (namespaces, cgroups, containerd)".to_owned());
        }
        for tool in ["containerd", "runc", "ip", "nsenter", "unshare", "curl"] {
            which(tool).ok_or_else(|| format!("{tool} is not installed"))?;
        }
        let bin = match std::env::var_os("EDGE_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => {
                // This test is target/<profile>/deps/NAME-<hash>: the binaries stand two levels up.
                let exe = std::env::current_exe().map_err(|error| error.to_string())?;
                exe.ancestors().nth(2).map(Path::to_owned).unwrap_or_default()
            }
        };
        for name in ["edge-agent", "edge-server"] {
            if !bin.join(name).is_file() {
                return Err(format!("{name} is not built in {}; set EDGE_BIN_DIR", bin.display()));
            }
        }
        let images = std::env::var_os("EDGE_IMAGES").map(PathBuf::from);
        let images = images.ok_or("EDGE_IMAGES does not name a directory made by images/build")?;
        for image in ["pause.tar", "busybox.tar", "nginx.tar"] {
            if !images.join(image).is_file() {
                return Err(format!("{image} is not in {}", images.display()));
            }
        }
        let mut kubectls = Vec::new();
        for (name, variable) in [("1.20", "KUBECTL_OLD"), ("1.32", "KUBECTL_NEW")] {
            if let Some(path) = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_file()) {
                kubectls.push((name, path));
            }
        }
        if kubectls.is_empty() {
            let path = which("kubectl").ok_or("kubectl is not installed and neither KUBECTL_OLD nor KUBECTL_NEW is set")?;
            kubectls.push(("system", path));
        }
        Ok(Self { bin, images, kubectls })
    }
}

/// Runs a test that needs the whole machine, or says why it cannot.
pub(crate) fn run(name: &str, test: impl FnOnce(&Machine)) {
    // A test that panicked leaves nothing behind that the next one could trip over.
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    match Machine::find() {
        Ok(machine) => test(&machine),
        Err(reason) => skip(name, &reason),
    }
}

/// Says aloud that something was not tested.
pub(crate) fn skip(name: &str, reason: &str) {
    println!("SKIP {name}: {reason}");
}

/// How many rounds a repeated test makes: from the environment, else a few.
pub(crate) fn rounds(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

pub(crate) fn which(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|file| file.is_file())
}

/// Looks until `look` succeeds; panics with what it said last when `limit` is over.
#[track_caller]
pub(crate) fn wait_for<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(began.elapsed() < limit, "{what}: not within {limit:?}; last seen: {seen}"),
        }
        std::thread::sleep(LOOK);
    }
}

/// Looks during the whole of `span` and panics as soon as `look` fails.
#[track_caller]
pub(crate) fn holds_for(span: Duration, what: &str, mut look: impl FnMut() -> Result<(), String>) {
    let began = Instant::now();
    while began.elapsed() < span {
        if let Err(seen) = look() {
            panic!("{what}: held only for {:?}: {seen}", began.elapsed());
        }
        std::thread::sleep(LOOK);
    }
}
