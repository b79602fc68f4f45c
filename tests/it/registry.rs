//! Images from a real registry (Debian's `docker-registry`) with a CA of its own and passwords: through `registries.yaml`
//! and through image pull secrets.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;

use crate::system::cluster::Cluster;
use crate::system::process::{Process, output, sh};
use crate::system::{Machine, run, skip, wait_for};

const SOON: Duration = Duration::from_secs(90);
const USER: &str = "puller";
const PASSWORD: &str = "open-sesame";
/// That user and password as `htpasswd -nbB` writes them.
const HTPASSWD: &str = "puller:$2y$05$h19B8gCoBwm904M1eOb9Z.D2pV3hy7s6Xc48YF.06hZqIVClHtbzS\n";
/// Where busybox stands in the registry; nodes ask for it by names that say nothing of this.
const STORED: &str = "cache/library/busybox:1";

struct Registry {
    process: Process,
    /// `ADDRESS:PORT`.
    host: String,
    ca: PathBuf,
}

impl Registry {
    /// Starts it in a network namespace of its own and fills it.
    fn start(machine: &Machine, cluster: &mut Cluster) -> Self {
        let made = cluster.add_namespace(1);
        let (namespace, ip) = (made.0, made.1);
        let dir = cluster.dir.join("registry");
        std::fs::create_dir_all(dir.join("data")).expect("directory is made");
        let host = format!("{ip}:5443");
        let ca = certificates(&dir, &ip);
        std::fs::write(dir.join("htpasswd"), HTPASSWD).expect("written");
        let d = dir.display();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {d}/data}}}}\nauth: {{htpasswd: {{realm: test, path: {d}/htpasswd}}}}\n\
             http: {{addr: '{host}', tls: {{certificate: {d}/server.crt, key: {d}/server.key}}}}\n"
        );
        std::fs::write(dir.join("config.yml"), config).expect("written");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).args(["docker-registry", "serve"]).arg(dir.join("config.yml"));
        let process = Process::start(command, &cluster.dir.join("registry.log"));
        let registry = Registry { process, host, ca };
        wait_for(SOON, "the registry answers", || registry.ask("/v2/"));
        registry.push(&machine.images.join("busybox.tar"), &dir);
        registry
    }

    fn ask(&self, path: &str) -> Result<String, String> {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail", "--max-time", "10", "--user", &format!("{USER}:{PASSWORD}"), "--cacert"]).arg(&self.ca);
        command.arg(format!("https://{}{path}", self.host));
        output(command, SOON).ok()
    }

    fn push(&self, archive: &Path, dir: &Path) {
        let certs = dir.join("trusted");
        std::fs::create_dir_all(&certs).expect("directory is made");
        std::fs::copy(&self.ca, certs.join("ca.crt")).expect("copied");
        sh(
            "skopeo",
            &[
                "--insecure-policy",
                "copy",
                "--quiet",
                "--dest-cert-dir",
                &certs.display().to_string(),
                "--dest-creds",
                &format!("{USER}:{PASSWORD}"),
                &format!("oci-archive:{}:latest", archive.display()),
                &format!("docker://{}/{STORED}", self.host),
            ],
        );
    }

    /// Lines of its log about reading this repository with that answer.
    fn asked(&self, repository: &str, status: u16) -> usize {
        let log = std::fs::read_to_string(&self.process.log).unwrap_or_default();
        let (path, answer) = (format!("/v2/{repository}/manifests/"), format!("\" {status} "));
        log.lines().filter(|line| line.contains(&path) && line.contains(&answer)).count()
    }
}

/// A CA and a certificate for this address; gives the CA's file.
fn certificates(dir: &Path, ip: &str) -> PathBuf {
    let ca_key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, "CA of the test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).expect("CA");
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("key");
    let certificate = CertificateParams::new(vec![ip.to_owned()]).expect("parameters").signed_by(&key, &issuer).expect("certificate");
    let file = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    file("server.crt", certificate.pem());
    file("server.key", key.serialize_pem());
    file("ca.crt", ca.pem())
}

fn pod(name: &str, node: &str, image: &str, secret: &str) -> String {
    let secrets = if secret.is_empty() { String::new() } else { format!("  imagePullSecrets: [{{name: {secret}}}]\n") };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n{secrets}  \
         containers:\n    - {{name: c, image: '{image}', imagePullPolicy: Always, command: [sleep, '3600']}}\n"
    )
}

fn running(pod: &Value) -> bool {
    pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
}

/// Why it waits for its image.
fn refused(pod: &Value) -> bool {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    matches!(waiting["reason"].as_str(), Some("ErrImagePull" | "ImagePullBackOff"))
}

#[test]
fn images_come_through_mirrors_and_with_passwords() {
    const NAME: &str = "images_come_through_mirrors_and_with_passwords";
    run(NAME, |machine| {
        for tool in ["docker-registry", "skopeo"] {
            if crate::system::which(tool).is_none() {
                return skip(NAME, &format!("{tool} is not installed"));
            }
        }
        let mut cluster = Cluster::bare(machine);
        cluster.start_server();
        let registry = Registry::start(machine, &mut cluster);
        let (host, ca) = (registry.host.clone(), registry.ca.display().to_string());

        // The first node knows everything from its file, the second one only whom to trust.
        let tls = format!("    tls: {{ca_file: {ca}}}\n");
        let all = format!(
            "mirrors:\n  images.example:\n    endpoint: ['https://{host}']\n    rewrite: {{'^(.*)$': 'cache/$1'}}\n\
             configs:\n  {host}:\n    auth: {{username: {USER}, password: {PASSWORD}}}\n{tls}"
        );
        let token = cluster.dir.join("server/token").display().to_string();
        let url = cluster.server_url.clone();
        for (index, text) in [all, format!("configs:\n  {host}:\n{tls}")].into_iter().enumerate() {
            let file = cluster.dir.join(format!("registries-{index}.yaml"));
            std::fs::write(&file, text).expect("written");
            cluster.add_node(machine, &format!("private-registry: {}\n", file.display()));
            cluster.nodes[index].join(&url, &token);
            cluster.nodes[index].start();
        }
        cluster.wait_ready(2);
        let (first, second) = (cluster.nodes[0].name.clone(), cluster.nodes[1].name.clone());
        assert_eq!(registry.asked("cache/library/busybox", 200), 0, "nobody has asked for it yet");

        cluster.kubectl.apply(&pod("mirrored", &first, "images.example/library/busybox:1", ""));
        cluster.wait_pod("default", "mirrored", SOON, running);
        assert!(registry.asked("cache/library/busybox", 200) > 0, "{}", registry.process.tail());
        cluster.kubectl.apply(&pod("named", &first, &format!("{host}/{STORED}"), ""));
        cluster.wait_pod("default", "named", SOON, running);
        // What the mirror does not have is asked of the registry that the name says, which nobody runs here.
        cluster.kubectl.apply(&pod("missing", &first, "images.example/library/nothing:1", ""));
        cluster.wait_pod("default", "missing", SOON, refused);
        assert!(registry.asked("cache/library/nothing", 404) > 0, "{}", registry.process.tail());

        // Without a password, with a wrong one, with the right one.
        let image = format!("{host}/{STORED}");
        cluster.kubectl.apply(&pod("open", &second, &image, ""));
        cluster.wait_pod("default", "open", SOON, refused);
        wait_for(SOON, "the reason", || {
            let events = cluster.kubectl.get(&["describe", "pod", "open"])?;
            if events.contains("no basic auth credentials") || events.contains("401") { Ok(()) } else { Err(events) }
        });
        for (secret, password) in [("wrong", "close-sesame"), ("right", PASSWORD)] {
            cluster.kubectl.ok(&[
                "create",
                "secret",
                "docker-registry",
                secret,
                "--docker-server",
                &host,
                "--docker-username",
                USER,
                "--docker-password",
                password,
            ]);
        }
        cluster.kubectl.apply(&pod("shut", &second, &image, "wrong"));
        cluster.wait_pod("default", "shut", SOON, refused);
        cluster.kubectl.apply(&pod("secret", &second, &image, "right"));
        cluster.wait_pod("default", "secret", SOON, running);
        cluster.kubectl.apply(&pod("unknown", &second, &image, "nobody"));
        wait_for(SOON, "a secret that is not there is named", || {
            let events = cluster.kubectl.get(&["describe", "pod", "unknown"])?;
            if events.contains("FailedToRetrieveImagePullSecret") && events.contains("nobody") { Ok(()) } else { Err(events) }
        });

        // The password of the file goes with each pull and is written nowhere else.
        let node = &cluster.nodes[0];
        for secret in [PASSWORD.to_owned(), STANDARD.encode(format!("{USER}:{PASSWORD}"))] {
            let mut command = Command::new("grep");
            command.args(["--recursive", "--files-with-matches", "--fixed-strings", "--devices=skip", secret.as_str()]);
            command.args([&node.dir, &node.run_dir, &cluster.dir.join(format!("{}.log", node.name))]);
            let found = output(command, SOON);
            assert_eq!((found.code, found.stdout.as_str()), (Some(1), ""), "a password was written down: {}", found.stderr);
        }
    });
}
