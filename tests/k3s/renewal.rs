//! Certificates of a real server, renewed in the running agent. The server signs for one day, the configuration makes every
//! certificate due at once, and the server's audit log says which one each request came with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::lab::{Lab, Wanted, make_namespace, with_k3s};
use crate::system::cluster::Seen;
use crate::system::process::output;
use crate::system::steps::{DEPLOYMENT, SOON, busybox};
use crate::system::wait_for;
use crate::worker::three_of_three;

/// A certificate is renewed no sooner than a minute after the last time, whatever the configuration says.
const RENEWED: Duration = Duration::from_secs(150);
/// From then on nothing of before may be open.
const CHANGED_OVER: Duration = Duration::from_secs(15);

/// Only what the node's two identities ask.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata, userGroups: ['system:nodes']}
  - {level: Metadata, users: ['system:k3s-controller']}
  - {level: None}
";

/// Everything of the node that must, or must not, change.
#[derive(Debug)]
struct Picture {
    /// By file name below `agent`.
    certificates: BTreeMap<&'static str, Certificate>,
    /// What port 10250 shows.
    served: Certificate,
    /// Local ports of the connections to the server: tunnel and API.
    connections: BTreeSet<u16>,
    agent: i32,
    containers: BTreeMap<String, Seen>,
    /// Pod → start of its container and restarts, as the server knows them.
    pods: BTreeMap<String, (String, i64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Certificate {
    serial: String,
    /// As K3s' audit log names it.
    credential: String,
}

#[test]
fn every_certificate_is_renewed_without_a_restart() {
    with_k3s("renewal", |machine, k3s| {
        let mut lab = Lab::start_as(
            machine,
            k3s,
            Wanted {
                args: &["--kube-apiserver-arg=audit-policy-file={dir}/audit.yaml", "--kube-apiserver-arg=audit-log-path={dir}/audit.log"],
                env: &[("CATTLE_NEW_SIGNED_CERT_EXPIRATION_DAYS", "1")],
                files: &[("audit.yaml", AUDIT)],
                // With days this short it renews its own certificate for ever, on a core of its own.
                nice: 19,
                ..Wanted::default()
            },
        );
        lab.add_node_with(machine, 0, "certificate-renewal: 0\n");
        let k = make_namespace(&lab.site.kubectl, "renewal");
        k.apply(DEPLOYMENT);
        k.apply(&busybox("entered", "echo began; trap exit TERM; while :; do sleep 0.2; done", "Always"));
        three_of_three(&k);
        lab.site.wait_pod("renewal", "entered", SOON, |pod| pod["status"]["phase"] == "Running");

        let before = Picture::take(&lab);
        let identity = load(&lab);
        for validity in identity.validities().expect("validities") {
            let days = validity.until.duration_since(validity.from).expect("in order").as_secs_f64() / 86_400.0;
            assert!(days < 1.1, "the server signed for {days} days, not one");
        }
        assert_eq!(before.certificates["serving-kubelet"], before.served, "port 10250 shows what is on disk");
        assert_eq!(used(&lab, "system:node:"), Some(before.certificates["client-kubelet"].credential.clone()), "node requests");

        wait_for(RENEWED, "every certificate on disk is another one", || {
            let now = on_disk(&lab);
            let same: Vec<_> =
                now.iter().filter(|(name, now)| before.certificates[*name].serial == now.serial).map(|(name, _)| name).collect();
            if same.is_empty() { Ok(()) } else { Err(format!("the same: {same:?}")) }
        });
        let after = wait_for(CHANGED_OVER, "connections of before are closed, links open again", || {
            let seen = Picture::take(&lab);
            let old: Vec<_> = seen.connections.intersection(&before.connections).collect();
            if !old.is_empty() {
                return Err(format!("local ports {old:?} are still open"));
            }
            // Its tunnel and at least one for requests.
            if seen.connections.len() < 2 { Err(format!("{seen:?}")) } else { Ok(seen) }
        });
        for (name, certificate) in &after.certificates {
            println!("{name}: serial {} is now {}", before.certificates[name].serial, certificate.serial);
        }
        assert_eq!(after.served, after.certificates["serving-kubelet"], "port 10250 shows the new one");
        for (user, name) in [("system:node:", "client-kubelet"), ("system:k3s-controller", "client-k3s-controller")] {
            let wanted = after.certificates[name].credential.clone();
            wait_for(SOON, &format!("requests of {user} come with the new certificate"), || match used(&lab, user) {
                Some(seen) if seen == wanted => Ok(()),
                other => Err(format!("{other:?} instead of {wanted}")),
            });
        }
        wait_for(SOON, "the tunnel works", || {
            let seen = k.get(&["exec", "entered", "--", "echo", "alive"])?;
            if seen == "alive\n" { Ok(()) } else { Err(seen) }
        });
        assert_eq!(k.ok(&["logs", "entered"]), "began\n");
        assert_eq!(
            (after.agent, &after.containers, &after.pods),
            (before.agent, &before.containers, &before.pods),
            "nothing was restarted"
        );
        kill(Pid::from_raw(after.agent), None).expect("the agent runs");
        println!(
            "connections {:?} are now {:?}; agent {}, {} containers untouched",
            before.connections,
            after.connections,
            after.agent,
            after.containers.len()
        );
    });
}

impl Picture {
    fn take(lab: &Lab) -> Self {
        let node = &lab.site.nodes[0];
        let pods = lab.site.kubectl.within("renewal").json(&["pods"]).expect("pods");
        let pods = pods["items"].as_array().expect("items").iter().map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            let started = status["state"]["running"]["startedAt"].as_str().unwrap_or_default().to_owned();
            (pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(), (started, status["restartCount"].as_i64().unwrap_or(-1)))
        });
        Self {
            certificates: on_disk(lab),
            served: served(lab),
            connections: connections(lab),
            agent: node.agent_pid(),
            containers: node.containers().expect("containerd answers"),
            pods: pods.collect(),
        }
    }
}

fn load(lab: &Lab) -> tunnel::Identity {
    tunnel::identity::load(&lab.site.nodes[0].dir).expect("identity is read").expect("joined")
}

fn on_disk(lab: &Lab) -> BTreeMap<&'static str, Certificate> {
    let identity = load(lab);
    let all = [
        ("serving-kubelet", &identity.kubelet_serving),
        ("client-kubelet", &identity.kubelet_client),
        ("client-k3s-controller", &identity.controller),
        ("client-kube-proxy", &identity.kube_proxy),
    ];
    all.map(|(name, pair)| (name, Certificate::read(lab, &pair.chain()[0]))).into()
}

/// Port 10250, with the certificate checked against the cluster's CA.
fn served(lab: &Lab) -> Certificate {
    let ca = std::fs::read(lab.server_ca()).expect("the server's CA");
    let config = tunnel::tls::client_config(&ca, None, &[]).expect("TLS");
    let ip = lab.site.nodes[0].ip.clone();
    let asking = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let chain = asking.block_on(async {
        let stream = tokio::net::TcpStream::connect((ip.as_str(), 10250)).await.expect("port 10250 is open");
        let name = ServerName::try_from(ip).expect("an address");
        let stream = TlsConnector::from(Arc::clone(&config)).connect(name, stream).await.expect("handshake");
        stream.get_ref().1.peer_certificates().expect("certificates").to_vec()
    });
    Certificate::read(lab, &chain[0])
}

/// Local ports of the node's connections to its server.
fn connections(lab: &Lab) -> BTreeSet<u16> {
    let seen = lab.site.nodes[0].sh("ss", &["-Htn", "state", "established", "dport", "=", ":6443"]);
    let local = |line: &str| line.split_whitespace().nth(2)?.rsplit_once(':')?.1.parse().ok();
    seen.lines().map(|line| local(line).unwrap_or_else(|| panic!("not a line of ss: {line}"))).collect()
}

/// The certificate of the latest request of a user, from the server's audit log.
fn used(lab: &Lab, user: &str) -> Option<String> {
    let log = std::fs::read_to_string(lab.servers[0].dir.join("audit.log")).ok()?;
    let entries = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut of_user = entries.filter(|entry| entry["user"]["username"].as_str().is_some_and(|name| name.starts_with(user)));
    let credential = &of_user.next()?["user"]["extra"]["authentication.kubernetes.io/credential-id"][0];
    Some(credential.as_str()?.to_owned())
}

impl Certificate {
    fn read(lab: &Lab, der: &[u8]) -> Self {
        let file = lab.site.dir.join("certificate.der");
        std::fs::write(&file, der).expect("certificate is written");
        let mut command = std::process::Command::new("sha256sum");
        command.arg(&file);
        let sum = output(command, Duration::from_secs(10)).ok().expect("sha256sum");
        let sum = sum.split_whitespace().next().unwrap_or_default();
        Self { serial: serial(der).expect("a certificate"), credential: format!("X509SHA256={sum}") }
    }
}

/// Certificate ::= SEQUENCE { tbs SEQUENCE { [0] version, serialNumber INTEGER, …
fn serial(der: &[u8]) -> Option<String> {
    let (_, certificate, _) = element(der)?;
    let (_, tbs, _) = element(certificate)?;
    let (0xa0, _, rest) = element(tbs)? else { return None };
    let (0x02, serial, _) = element(rest)? else { return None };
    Some(serial.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Tag, content and what follows of one DER element.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, length) = (*der.first()?, usize::from(*der.get(1)?));
    let bytes = length.saturating_sub(0x80);
    let mut size = if bytes == 0 { length } else { 0 };
    for byte in der.get(2..2 + bytes)? {
        size = size.checked_mul(256)?.checked_add(usize::from(*byte))?;
    }
    let start = 2 + bytes;
    let end = start.checked_add(size)?;
    Some((tag, der.get(start..end)?, &der[end..]))
}

#[test]
fn the_serial_of_a_certificate_is_read() {
    let key = rcgen::KeyPair::generate().expect("key");
    let mut params = rcgen::CertificateParams::new(vec!["n".to_owned()]).expect("parameters");
    params.serial_number = Some(0x1234_5678_u64.into());
    let certificate = params.self_signed(&key).expect("certificate");
    assert_eq!(serial(certificate.der()).as_deref(), Some("12345678"));
    assert_eq!(serial(&certificate.der()[..20]), None);
}
