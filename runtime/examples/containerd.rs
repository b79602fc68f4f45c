//! `containerd start|stop DIRECTORY`: a private containerd below a directory, as the agent runs it, for trying things
//! out by hand. Prints its socket. Pods get addresses once a network configuration lies in DIRECTORY/cni.

use std::path::PathBuf;

use runtime::managed::{Managed, ManagedOptions, may_lower_oom_score};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, directory] = arguments.as_slice() else {
        return Err("usage: containerd start|stop DIRECTORY".into());
    };
    let directory = std::fs::canonicalize(directory)?;
    let at = |name: &str| -> PathBuf { directory.join(name) };
    let options = ManagedOptions {
        root: at("root"),
        state: at("state"),
        socket: at("containerd.sock"),
        cni_bin_dir: "/usr/lib/cni".into(),
        cni_conf_dir: at("cni"),
        pause_image: "rancher/mirrored-pause:3.10.2".into(),
        restrict_oom: !may_lower_oom_score(),
        log: at("containerd.log"),
        ..Default::default()
    };
    if what == "stop" {
        Managed::stop(&options).await?;
    } else {
        let managed = Managed::start(&options).await?;
        println!("{} {}", managed.pid, managed.socket().display());
    }
    Ok(())
}
