//! A containerd of a test's own, with images, a bridge and a cgroup, and the certainty that nothing of it stays.
//!
//! The images come from `images/build`; `EDGE_IMAGES` names where they are (default: built once below the target
//! directory's temporary files).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use runtime::import::{import_tar, import_tar_pinned};
use runtime::managed::{Managed, ManagedOptions, may_lower_oom_score};
use runtime::{Client, cri, labels};

pub(crate) const PAUSE: &str = "rancher/mirrored-pause:3.10.2";

/// What is missing here for tests with real containers.
pub(crate) fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root".into());
    }
    for program in ["containerd", "runc", "containerd-shim-runc-v2"] {
        if Command::new(program).arg("--version").output().is_err() {
            return Some(format!("{program} (apt-get install containerd runc)"));
        }
    }
    if !Path::new("/usr/lib/cni/bridge").exists() {
        return Some("/usr/lib/cni/bridge (apt-get install containernetworking-plugins)".into());
    }
    images().err()
}

/// The images, built on first use.
pub(crate) fn images() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            if let Some(directory) = std::env::var_os("EDGE_IMAGES") {
                return Ok(directory.into());
            }
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/build");
            let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
            match Command::new(script).arg(&directory).status() {
                Ok(status) if status.success() => Ok(directory),
                other => Err(format!("images (images/build: {other:?})")),
            }
        })
        .clone()
}

/// A containerd of the test's own, with its own bridge; all gone when dropped.
pub(crate) struct Machine {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) options: ManagedOptions,
    pub(crate) bridge: String,
}

impl Machine {
    pub(crate) fn new(number: u8) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let bridge = format!("edgert{number}");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("cni")).expect("cni directory");
        std::fs::write(
            at("cni/10-test.conflist"),
            format!(
                r#"{{"cniVersion":"0.4.0","name":"{bridge}","plugins":[{{"type":"bridge","bridge":"{bridge}","isGateway":true,"ipam":{{"type":"host-local","subnet":"10.213.{number}.0/24","dataDir":"{}"}}}}]}}"#,
                at("ipam").display()
            ),
        )
        .expect("network configuration");
        let options = ManagedOptions {
            root: at("root"),
            state: at("state"),
            socket: at("c.sock"),
            cni_bin_dir: "/usr/lib/cni".into(),
            cni_conf_dir: at("cni"),
            pause_image: PAUSE.into(),
            restrict_oom: !may_lower_oom_score(),
            log: at("containerd.log"),
            ..Default::default()
        };
        Self { dir, options, bridge }
    }

    pub(crate) async fn client(&self) -> Client {
        let managed = Managed::start(&self.options).await.expect("containerd");
        managed.client()
    }

    pub(crate) async fn with_images(&self) -> Client {
        let client = self.client().await;
        let images = images().expect("checked before");
        import_tar_pinned(&client, &images.join("pause.tar"), &[PAUSE]).await.expect("pause");
        for name in ["nginx.tar", "busybox.tar"] {
            import_tar(&client, &images.join(name)).await.expect(name);
        }
        client
    }

    pub(crate) fn sandbox(&self, uid: &str) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: format!("pod-{uid}"),
                uid: uid.into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: format!("pod-{uid}"),
            log_directory: self.dir.path().join("logs").join(uid).display().to_string(),
            labels: BTreeMap::from([
                (labels::POD_NAME.into(), format!("pod-{uid}")),
                (labels::POD_NAMESPACE.into(), "default".into()),
                (labels::POD_UID.into(), uid.into()),
            ]),
            linux: Some(cri::LinuxPodSandboxConfig {
                // Below a name of the test's own, never beside somebody else's pods.
                cgroup_parent: format!("/{}", self.bridge),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) fn container(&self, uid: &str, image: &str, command: &[&str]) -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
            command: command.iter().map(|word| word.to_string()).collect(),
            log_path: "main/0.log".into(),
            labels: BTreeMap::from([
                (labels::CONTAINER_NAME.into(), "main".into()),
                (labels::POD_UID.into(), uid.into()),
                (labels::POD_NAME.into(), format!("pod-{uid}")),
                (labels::POD_NAMESPACE.into(), "default".into()),
            ]),
            linux: Some(cri::LinuxContainerConfig::default()),
            ..Default::default()
        }
    }

    pub(crate) async fn end(self) {
        Managed::stop(&self.options).await.expect("stop");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let own = self.dir.path().display().to_string();
        assert!(!mounts.contains(&own), "mounts are left: {mounts}");
        assert!(processes_naming(&own).is_empty(), "processes are left");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.options.state.exists() {
            // A failed test: nobody else ends its containers.
            let options = self.options.clone();
            let ended = std::thread::spawn(move || {
                tokio::runtime::Builder::new_current_thread().enable_all().build().map(|rt| rt.block_on(Managed::stop(&options)))
            });
            let _ = ended.join();
        }
        let _ = Command::new("ip").args(["link", "del", &self.bridge]).output();
        remove_group(&self.bridge);
    }
}

/// The test's own cgroup with those of killed containers, in every hierarchy.
fn remove_group(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let below = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    for hierarchy in below(root).iter().map(PathBuf::as_path).chain([root]) {
        let group = hierarchy.join(name);
        for child in below(&group) {
            let _ = std::fs::remove_dir(child);
        }
        let _ = std::fs::remove_dir(group);
    }
}

pub(crate) fn processes_naming(text: &str) -> Vec<String> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(text))
        .collect()
}
