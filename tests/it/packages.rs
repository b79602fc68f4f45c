//! The Debian packages: what is in them, and that nothing is left of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::system::skip;

/// Processors as an ELF header names them.
const ARCHITECTURES: [(&str, u16); 3] = [("amd64", 62), ("arm64", 183), ("armhf", 40)];

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn there(program: &str, test: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        skip(test, &format!("{program} is not installed"));
    }
    found
}

/// Pages and completions, written once.
fn manual() -> &'static Path {
    static WRITTEN: OnceLock<tempfile::TempDir> = OnceLock::new();
    let written = WRITTEN.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        manual::write(dir.path()).unwrap();
        dir
    });
    written.path()
}

/// Both packages, in `dir`, of programs that only look as if they were for that processor.
fn built(dir: &Path, machine: u16, version: Option<&str>) -> Vec<PathBuf> {
    let mut program = fs::read("/bin/true").unwrap();
    program[18..20].copy_from_slice(&machine.to_le_bytes());
    for name in ["edge-agent", "edge-server"] {
        fs::write(dir.join(name), &program).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut build = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/build-deb"));
    build.arg(dir).arg(dir).env("MANUAL", manual()).env_remove("DEB_ARCH").env_remove("VERSION");
    if let Some(version) = version {
        build.env("VERSION", version);
    }
    let packages: Vec<PathBuf> = run(&mut build).lines().map(PathBuf::from).collect();
    assert_eq!(packages.len(), 2, "{packages:?}");
    packages
}

fn field(package: &Path, name: &str) -> String {
    run(Command::new("dpkg-deb").arg("--field").arg(package).arg(name)).trim().to_owned()
}

#[test]
fn a_package_says_what_its_programs_are_for_and_need() {
    if !there("dpkg-deb", "a_package_says_what_its_programs_are_for_and_need") {
        return;
    }
    for (name, machine) in ARCHITECTURES {
        let dir = tempfile::tempdir().unwrap();
        for package in built(dir.path(), machine, None) {
            assert_eq!(field(&package, "Architecture"), name);
            assert!(package.to_str().unwrap().ends_with(&format!("_{name}.deb")), "{package:?}");
            let depends = field(&package, "Depends");
            let libc = depends.split("libc6 (>= 2.").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or_default();
            assert!(libc.parse::<u32>().is_ok_and(|minor| minor >= 17), "{depends}");
            let size: u64 = field(&package, "Installed-Size").parse().unwrap();
            assert!(size >= 30, "{size} KiB");
        }
        let other = if name == "amd64" { "arm64" } else { "amd64" };
        let mut wrong = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/build-deb"));
        let refused = wrong.arg(dir.path()).arg(dir.path()).env("MANUAL", manual()).env("DEB_ARCH", other).output().unwrap();
        assert!(!refused.status.success());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(&format!("DEB_ARCH is {other}")) && said.contains(&format!("programs for {name}")), "{said}");
    }
}

/// What lintian would say most about: owners and modes, man pages compressed, conffiles and sums complete, nothing in odd places.
#[test]
fn packages_are_made_as_debian_wants_them() {
    if !there("dpkg-deb", "packages_are_made_as_debian_wants_them") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let packages = built(dir.path(), 62, None);
    let wanted: [&[&str]; 2] = [
        &[
            "usr/bin/edge-agent",
            "usr/lib/systemd/system/edge-agent.service",
            "usr/lib/systemd/system/edge.slice",
            "usr/lib/systemd/system/kubepods.slice",
            "usr/lib/systemd/system/containerd.service.d/40-edge-agent.conf",
            "usr/lib/systemd/system/system.slice.d/40-edge-agent.conf",
            "usr/lib/systemd/system/user.slice.d/40-edge-agent.conf",
            "usr/lib/systemd/system/ssh.service.d/40-edge-agent.conf",
            "usr/lib/systemd/system/systemd-journald.service.d/40-edge-agent.conf",
            "usr/lib/systemd/system/NetworkManager.service.d/40-edge-agent.conf",
            "usr/lib/sysctl.d/50-edge-agent.conf",
            "usr/lib/modules-load.d/edge-agent.conf",
            "usr/lib/edge-agent/containerd-config",
            "usr/share/edge-agent/grafana-dashboard.json",
            "usr/share/doc/edge-agent/examples/config.yaml",
            "usr/share/man/man8/edge-agent.8.gz",
            "usr/share/man/man8/edge-agent-join.8.gz",
            "usr/share/man/man5/edge-agent-config.5.gz",
            "usr/share/bash-completion/completions/edge-agent",
            "usr/share/zsh/vendor-completions/_edge-agent",
            "usr/share/fish/vendor_completions.d/edge-agent.fish",
            "etc/default/edge-agent",
        ],
        &[
            "usr/bin/edge-server",
            "usr/lib/systemd/system/edge-server.service",
            "usr/share/man/man8/edge-server.8.gz",
            "etc/default/edge-server",
        ],
    ];
    for (package, wanted) in packages.iter().zip(wanted) {
        let listing = run(Command::new("dpkg-deb").arg("--contents").arg(package));
        let mut files = BTreeSet::new();
        for line in listing.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (mode, owner, path) = (words[0], words[1], words[5].trim_start_matches("./"));
            assert_eq!(owner, "root/root", "{line}");
            let program = path.starts_with("usr/bin/") || path == "usr/lib/edge-agent/containerd-config";
            let right = if mode.starts_with('d') || program { "rwxr-xr-x" } else { "rw-r--r--" };
            assert_eq!(&mode[1..], right, "{line}");
            let top = path.split('/').next().unwrap();
            assert!(["", "usr", "etc"].contains(&top) && !path.starts_with("usr/local"), "{line}");
            if !mode.starts_with('d') {
                files.insert(path.to_owned());
            }
            assert!(!path.contains("/man/") || mode.starts_with('d') || path.ends_with(".gz"), "{line}");
        }
        for path in wanted {
            assert!(files.contains(*path), "{path} is not in\n{listing}");
        }
        let name = field(package, "Package");
        assert!(
            files.contains(&format!("usr/share/doc/{name}/copyright")) && files.contains(&format!("usr/share/doc/{name}/changelog.gz"))
        );
        let control = dir.path().join(format!("{name}.control"));
        run(Command::new("dpkg-deb").arg("--control").arg(package).arg(&control));
        let conffiles = fs::read_to_string(control.join("conffiles")).unwrap();
        let in_etc: BTreeSet<String> = files.iter().filter(|path| path.starts_with("etc/")).map(|path| format!("/{path}")).collect();
        assert_eq!(conffiles.lines().map(str::to_owned).collect::<BTreeSet<_>>(), in_etc);
        let sums = fs::read_to_string(control.join("md5sums")).unwrap();
        assert_eq!(sums.lines().map(|line| line.split_once("  ").unwrap().1.to_owned()).collect::<BTreeSet<_>>(), files);
        for script in ["preinst", "postinst", "prerm", "postrm"] {
            let text = fs::read_to_string(control.join(script)).unwrap();
            assert!(text.starts_with("#!/bin/sh\n") && text.contains("set -e"), "{script} of {name}");
        }
    }
}

/// Raspberry Pi OS takes armhf packages on every board; of its kernels only those of the first boards say armv6l.
#[test]
fn a_board_that_cannot_run_the_programs_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let uname = dir.path().join("uname");
    for name in ["edge-agent", "edge-server"] {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../systemd/debian/{name}/preinst"));
        for (machine, refused) in [("armv6l", true), ("armv7l", false), ("aarch64", false), ("x86_64", false)] {
            fs::write(&uname, format!("#!/bin/sh\necho {machine}\n")).unwrap();
            fs::set_permissions(&uname, fs::Permissions::from_mode(0o755)).unwrap();
            let path = format!("{}:/usr/bin:/bin", dir.path().display());
            let output = Command::new("sh").arg(&script).arg("install").env("PATH", path).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(i32::from(refused)), "{name} on {machine}: {said}");
            assert_eq!(said.lines().count(), usize::from(refused), "{name} on {machine}: {said}");
            assert!(!refused || said.contains("ARMv7"), "{said}");
        }
    }
}

/// A root directory with the programs that maintainer scripts use, taken from this machine.
fn small_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let mut libraries = BTreeSet::new();
    for program in ["sh", "rm", "rmdir", "find", "sed", "grep", "sort", "umount", "true", "uname"] {
        let found = run(Command::new("sh").args(["-c", &format!("command -v {program} || echo /bin/{program}")]));
        let source = ["/usr/bin", "/bin"].iter().map(|dir| Path::new(dir).join(program)).find(|path| path.exists());
        let source = source.unwrap_or_else(|| PathBuf::from(found.trim()));
        copy_into(root.path(), &source, &Path::new("/bin").join(program));
        let needs = Command::new("ldd").arg(&source).output().unwrap();
        let needs = String::from_utf8_lossy(&needs.stdout).into_owned();
        libraries.extend(needs.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    for library in libraries {
        copy_into(root.path(), &library, &library);
    }
    for dir in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "dev", "run", "tmp", "etc", "var/log"] {
        fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    for file in ["var/lib/dpkg/status", "dev/null"] {
        fs::write(root.path().join(file), "").unwrap();
    }
    root
}

fn copy_into(root: &Path, source: &Path, target: &Path) {
    let target = root.join(target.strip_prefix("/").unwrap());
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::copy(source, target).unwrap();
}

/// Everything below a root but what dpkg keeps for itself.
fn files(root: &Path) -> BTreeSet<PathBuf> {
    let listing = run(Command::new("find").arg(root).args(["-path", "*/var/lib/dpkg", "-prune", "-o", "-print"]));
    let logs = ["dpkg.log", "alternatives.log"];
    listing.lines().map(PathBuf::from).filter(|path| !logs.iter().any(|log| path.ends_with(log))).collect()
}

fn dpkg(root: &Path, arguments: &[&str]) {
    let mut command = Command::new("dpkg");
    command.arg(format!("--root={}", root.display())).args(["--force-depends", "--force-architecture", "--no-triggers"]);
    run(command.args(arguments).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive"));
}

/// The files below `/etc` that `preflight --fix` names in its source, each with what it keeps of it when it writes it again.
fn written_by_preflight() -> Vec<String> {
    let preflight = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/src/preflight");
    let sources = run(Command::new("find").arg(preflight).args(["-name", "*.rs", "-not", "-name", "*tests.rs"]));
    let text: String = sources.lines().map(|source| fs::read_to_string(source).unwrap()).collect();
    let ours = |literal: &&str| literal.starts_with("/etc/") && literal.ends_with(".conf") && literal.contains("edge-agent");
    let found: BTreeSet<String> = text.split('"').filter(ours).map(|path| path[1..].replace("{unit}", "dbus.service")).collect();
    for path in ["etc/systemd/system/dbus.service.d/60-edge-agent.conf", "etc/sysctl.d/91-edge-agent-preflight.conf"] {
        assert!(found.contains(path), "{found:?}");
    }
    found.iter().flat_map(|path| [path.clone(), format!("{path}.edge-agent.20261123T120000Z")]).collect()
}

/// Texts of others that a repair changed have their old self beside them: nobody else would know it any more.
const KEPT_OF_OTHERS: [&str; 2] =
    ["etc/containerd/config.toml.edge-agent.20261123T120000Z", "boot/cmdline.txt.edge-agent.20261123T120000Z"];

#[test]
fn nothing_is_left_of_a_purged_package_and_an_upgrade_keeps_what_was_changed() {
    let test = "nothing_is_left_of_a_purged_package_and_an_upgrade_keeps_what_was_changed";
    if !there("dpkg", test) || !there("ldd", test) {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "not root");
    }
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = built(old.path(), 62, Some("0.0.9"));
    let second = built(new.path(), 62, None);
    let root = small_root();
    for path in KEPT_OF_OTHERS.map(|path| root.path().join(path)) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x\n").unwrap();
    }
    let before = files(root.path());
    for (first, second) in first.iter().zip(&second) {
        let name = field(first, "Package");
        dpkg(root.path(), &["--install", first.to_str().unwrap()]);
        let defaults = root.path().join(format!("etc/default/{name}"));
        fs::write(&defaults, "# mine\n").unwrap();
        // What the program, join and preflight write, and what systemd keeps for the agent.
        let state: Vec<PathBuf> = match name.as_str() {
            "edge-agent" => vec![
                "etc/edge-agent/config.yaml",
                "etc/edge-agent/config.yaml.d/10-site.yaml",
                "etc/systemd/system/multi-user.target.wants/edge-agent.service",
                "etc/cni/net.d/10-edge-agent.conflist",
                "var/lib/edge-agent/agent/client.key",
                "var/lib/kubelet/pods/uid/etc-hosts",
                "var/log/pods/default_web_uid/c/0.log",
                "run/edge-agent/governor.json",
                "run/systemd/system.control/kubepods.slice.d/50-MemoryMax.conf",
                "run/systemd/system.control/kubepods-burstable.slice.d/50-MemoryHigh.conf",
                "run/systemd/system.control/kubepods-besteffort-podx.slice.d/50-TasksMax.conf",
                "run/systemd/system.control/user.slice.d/50-MemoryMax.conf",
            ],
            _ => vec!["var/lib/edge-server/state.db", "etc/systemd/system/multi-user.target.wants/edge-server.service"],
        }
        .into_iter()
        .map(str::to_owned)
        .chain(written_by_preflight().into_iter().filter(|_| name == "edge-agent"))
        .map(|path| root.path().join(path))
        .collect();
        for path in &state {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x\n").unwrap();
        }
        dpkg(root.path(), &["--install", second.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(&defaults).unwrap(), "# mine\n", "an upgrade keeps the administrator's file");
        assert!(state.iter().all(|path| path.exists()), "an upgrade removes nothing");
        dpkg(root.path(), &["--remove", &name]);
        assert!(defaults.exists() && !root.path().join("usr/bin").join(&name).exists());
        assert!(state[0].exists(), "{} is kept for when the package comes back", state[0].display());
        dpkg(root.path(), &["--purge", &name]);
    }
    // Directories that a machine has anyway are not the packages'.
    let shared = |path: &PathBuf| {
        let below = path.strip_prefix(root.path()).unwrap();
        [
            "etc/systemd/system/multi-user.target.wants",
            "etc/systemd/system",
            "etc/systemd",
            "etc/sysctl.d",
            "etc/rpi",
            "run/systemd",
            "run/systemd/system.control",
        ]
        .iter()
        .any(|dir| below == Path::new(dir))
    };
    let left: Vec<PathBuf> = files(root.path()).difference(&before).filter(|path| !shared(path)).cloned().collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    assert!(KEPT_OF_OTHERS.iter().all(|path| root.path().join(path).exists()));
}

/// Somebody else's kubelet has its pods in the same places.
#[test]
fn purging_leaves_the_pods_of_another_node_agent_alone() {
    let test = "purging_leaves_the_pods_of_another_node_agent_alone";
    if !there("dpkg", test) || !there("ldd", test) {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "not root");
    }
    let dir = tempfile::tempdir().unwrap();
    let agent = &built(dir.path(), 62, None)[0];
    let root = small_root();
    let theirs = root.path().join("var/lib/kubelet/pods/uid/etc-hosts");
    for path in [&theirs, &root.path().join("usr/local/bin/k3s")] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x\n").unwrap();
    }
    dpkg(root.path(), &["--install", agent.to_str().unwrap()]);
    dpkg(root.path(), &["--purge", "edge-agent"]);
    assert!(theirs.exists());
}
