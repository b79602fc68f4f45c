//! kubectl as a user runs it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::process::{Output, output};

/// No command of a test takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// One kubectl binary with the administrator's kubeconfig.
#[derive(Clone)]
pub(crate) struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
    namespace: Option<String>,
}

impl Kubectl {
    /// `home` is where kubectl keeps its caches.
    pub(crate) fn new(binary: &Path, kubeconfig: &Path, home: &Path) -> Self {
        Self { binary: binary.to_owned(), kubeconfig: kubeconfig.to_owned(), home: home.to_owned(), namespace: None }
    }

    /// The same for one namespace.
    pub(crate) fn within(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.home);
        if let Some(namespace) = &self.namespace {
            command.args(["--namespace", namespace]);
        }
        command.args(args);
        command
    }

    /// Runs to the end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        output(self.command(args), LIMIT)
    }

    /// Runs to the end and must succeed; gives standard output.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        self.run(args).ok().unwrap_or_else(|seen| panic!("kubectl {args:?}: {seen}"))
    }

    /// Output, or what went wrong: for use in `wait_for`.
    pub(crate) fn get(&self, args: &[&str]) -> Result<String, String> {
        self.run(args).ok()
    }

    /// `get … -o json`.
    pub(crate) fn json(&self, args: &[&str]) -> Result<Value, String> {
        let mut all = vec!["get"];
        all.extend_from_slice(args);
        all.extend_from_slice(&["-o", "json"]);
        serde_json::from_str(&self.get(&all)?).map_err(|error| error.to_string())
    }

    /// `apply -f -` with this manifest.
    #[track_caller]
    pub(crate) fn apply(&self, manifest: &str) -> String {
        let file = self.home.join(format!("manifest-{}.yaml", next_number()));
        std::fs::write(&file, manifest).expect("manifest is written");
        self.ok(&["apply", "-f", &file.display().to_string()])
    }
}

fn next_number() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
