//! A whole server answers the requests that were recorded with a K3s v1.36.3 server, as that server did.
//!
//! Statuses and error bodies are compared byte for byte; certificates field by field, for the same keys.

#![allow(clippy::unwrap_used)] // All of this is test code; the lint only knows functions marked so.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use server::app::{self, Options};
use server::pki::{CertKey, Leaf, Pki};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;

struct Running {
    dir: tempfile::TempDir,
    port: u16,
    pki: Pki,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }
}

/// One recorded exchange.
struct Recording {
    request: Value,
    answer: Answer,
}

fn recording(name: &str) -> Recording {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recordings/k3s").join(format!("{name}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let exchange: Value = serde_json::from_str(&text).unwrap();
    let response = &exchange["response"];
    let headers = response["headers"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Recording {
        answer: Answer {
            status: u16::try_from(response["status"].as_u64().unwrap()).unwrap(),
            headers: headers.map(|pair| (text(&pair[0]), text(&pair[1]))).collect(),
            body: text(&response["body_text"]),
        },
        request: exchange["request"].clone(),
    }
}

impl Running {
    async fn start() -> Running {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        fs::create_dir(&data_dir).unwrap();
        fs::write(data_dir.join("token"), "token-placeholder-20").unwrap();
        let options = Options {
            data_dir: data_dir.clone(),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise_address: None,
            tls_san: Vec::new(),
            debug: false,
        };
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(app::serve(options, stopped));
        let port = wait_for("a port that answers", || port(&data_dir.join("kubeconfig.yaml"))).await;
        let pki = Pki::open(&data_dir.join("tls"), OffsetDateTime::now_utc()).unwrap();
        Running { dir, port, pki, stop, task }
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn certificate(&self, common_name: &str, organization: Option<&str>) -> CertKey {
        let leaf = Leaf::client(common_name, organization);
        self.pki.client_ca.issue(&leaf, OffsetDateTime::now_utc()).unwrap()
    }

    async fn play(&self, recording: &Recording) -> Answer {
        let request = &recording.request;
        let identity = request["client_certificate_subject"].as_str().map(|subject| {
            let part = |key: &str| subject.split(',').find_map(|part| part.strip_prefix(key));
            self.certificate(part("CN=").unwrap(), part("O="))
        });
        let mut head = format!("{} {} HTTP/1.1\r\n", request["method"].as_str().unwrap(), request["path"].as_str().unwrap());
        for header in request["headers"].as_array().unwrap() {
            head += &format!("{}: {}\r\n", header[0].as_str().unwrap(), header[1].as_str().unwrap());
        }
        let body = match (request["body_text"].as_str(), request["body_base64"].as_str()) {
            (_, Some(encoded)) => STANDARD.decode(encoded).unwrap(),
            (text, None) => text.unwrap_or_default().as_bytes().to_vec(),
        };
        self.send(&head, &body, identity.as_ref()).await
    }

    async fn send(&self, head: &str, body: &[u8], identity: Option<&CertKey>) -> Answer {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pki.server_ca.cert_pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes()).map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("kubernetes").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        stream.flush().await.unwrap();
        let mut bytes = Vec::new();
        let read = async {
            let mut chunk = [0; 4096];
            // A tunnel stays open after its 101; everything else closes as it was asked to.
            while !bytes.starts_with(b"HTTP/1.1 101") {
                match stream.read(&mut chunk).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => bytes.extend_from_slice(&chunk[..count]),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("an answer within 20 s");
        parse(&String::from_utf8(bytes).unwrap())
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> =
        lines.map(|line| line.split_once(": ").unwrap()).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Answer { status, headers, body: body.to_owned() }
}

fn port(kubeconfig: &Path) -> Option<u16> {
    let text = fs::read_to_string(kubeconfig).ok()?;
    let line = text.lines().find(|line| line.trim().starts_with("server:"))?;
    line.rsplit(':').next()?.parse().ok()
}

async fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < limit, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn certificates(pem: &str) -> Vec<Pem> {
    Pem::iter_from_buffer(pem.as_bytes()).map(Result::unwrap).collect()
}

/// Everything a certificate says except key identifiers, serial number and absolute times.
fn fields(certificate: &X509Certificate<'_>) -> Value {
    let name = |text: String| text.split('@').next().unwrap_or_default().to_owned();
    let mut extensions: Vec<String> = certificate.extensions().iter().map(|extension| extension.oid.to_id_string()).collect();
    extensions.sort();
    let names = certificate.subject_alternative_name().unwrap();
    let validity = certificate.validity();
    json!({
        "subject": name(certificate.subject().to_string()),
        "issuer": name(certificate.issuer().to_string()),
        "lifetime": validity.not_after.timestamp() - validity.not_before.timestamp(),
        "extensions": extensions,
        "key_usage": certificate.key_usage().unwrap().map(|usage| usage.value.to_string()),
        "extended": certificate.extended_key_usage().unwrap().map(|usage| (usage.value.server_auth, usage.value.client_auth)),
        "names": names.map(|names| names.value.general_names.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "ca": certificate.is_ca(),
    })
}

fn compare_certificates(name: &str, got: &str, recorded: &str, same_key: bool) {
    let (got, recorded) = (certificates(got), certificates(recorded));
    assert_eq!(got.len(), recorded.len(), "{name}: blocks");
    for (index, (got, recorded)) in got.iter().zip(&recorded).enumerate() {
        assert_eq!(got.label, recorded.label, "{name}");
        let (got, recorded) = (got.parse_x509().unwrap(), recorded.parse_x509().unwrap());
        assert_eq!(fields(&got), fields(&recorded), "{name}");
        if same_key && index == 0 {
            assert_eq!(got.public_key().raw, recorded.public_key().raw, "{name}: the key of the request");
            let age = OffsetDateTime::now_utc().unix_timestamp() - got.validity().not_before.timestamp();
            assert!((3600..3660).contains(&age), "{name}: not before lies an hour back, not {age} s");
        }
        if recorded.is_ca() {
            assert_eq!(got.serial, recorded.serial, "{name}: serial of a CA");
        }
    }
}

/// Status, content type and body as recorded.
async fn exact(server: &Running, names: &[&str]) {
    for name in names {
        let recording = recording(name);
        let got = server.play(&recording).await;
        assert_eq!(got.status, recording.answer.status, "{name}: {}", got.body);
        assert_eq!(got.header("content-type"), recording.answer.header("content-type"), "{name}");
        assert_eq!(got.body, recording.answer.body, "{name}");
    }
}

async fn signed(server: &Running, names: &[&str], same_key: bool) {
    for name in names {
        let recording = recording(name);
        let got = server.play(&recording).await;
        assert_eq!(got.status, 200, "{name}: {}", got.body);
        assert_eq!(got.header("content-type"), recording.answer.header("content-type"), "{name}");
        compare_certificates(name, &got.body, &recording.answer.body, same_key);
    }
}

#[tokio::test]
async fn supervisor_answers_as_k3s_does() {
    let server = Running::start().await;
    assert!(fs::read_to_string(server.data_dir().join("token")).unwrap().ends_with("::server:token-placeholder-20\n"));

    exact(&server, &["ping", "supervisor-readyz"]).await;
    signed(&server, &["cacerts", "client-ca", "server-ca"], false).await;
    exact(
        &server,
        &[
            "config-no-credentials",
            "config-wrong-password",
            "config-empty-user",
            "config-unknown-user",
            "config-user-server",
            "config-unknown-bootstrap-token",
            "config-kube-proxy-certificate",
            "encrypt-status-user-node",
            "unknown-path-basic-auth",
            "unknown-path-no-credentials",
        ],
    )
    .await;
    config(&server).await;
    let servers = server.play(&recording("apiservers")).await;
    assert_eq!((servers.status, servers.body), (200, format!("[\"127.0.0.1:{}\"]\n", server.port)));

    // Before the name has a password, and then with it.
    exact(&server, &["cert-no-credentials", "cert-user-server", "cert-no-node-name", "cert-no-node-password"]).await;
    let kinds = ["cert-serving-kubelet", "cert-client-kubelet", "cert-client-kube-proxy", "cert-client-k3s-controller"];
    signed(&server, &kinds, true).await;
    let refused = ["cert-wrong-node-password", "cert-bad-node-ip", "cert-by-certificate-node-absent", "cert-by-certificate-other-node"];
    exact(&server, &refused).await;
    // The one difference, on purpose: K3s answers these with a key that all such nodes share.
    for name in ["cert-client-kubelet-get", "cert-client-kubelet-pem-csr"] {
        let got = server.play(&recording(name)).await;
        assert_eq!(got.status, 400, "{name}");
        assert!(!got.body.contains("PRIVATE KEY"), "{name}");
    }
    let created = server.play(&recording("node-create")).await;
    assert_eq!(created.status, 201, "{}", created.body);
    signed(&server, &["cert-client-kubelet-renewal"], true).await;
    server.stop().await;
}

async fn config(server: &Running) {
    let recording = recording("config-ok");
    let got = server.play(&recording).await;
    assert_eq!((got.status, got.header("content-type")), (200, "application/json"));
    assert!(got.body.ends_with("}\n"));
    let keys = |text: &str| -> Vec<String> {
        // serde_json sorts the keys of a Value: their order is read from the text.
        let value: Value = serde_json::from_str(text).unwrap();
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort_by_key(|key| text.find(&format!("\"{key}\":")).unwrap());
        keys
    };
    assert_eq!(keys(&got.body), keys(&recording.answer.body));
    let (got, recorded): (Value, Value) = (serde_json::from_str(&got.body).unwrap(), serde_json::from_str(&recording.answer.body).unwrap());
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    for (key, value) in recorded.as_object().unwrap() {
        // A slice without arguments is null in Go, too.
        if key != "ExtraAPIArgs" {
            assert_eq!(kind(&got[key]), kind(value), "{key}");
        }
    }
    for key in ["ClusterIPRange", "ServiceIPRanges", "ClusterDNS", "ServiceNodePortRange", "CipherSuites", "EgressSelectorMode"] {
        assert_eq!(got[key], recorded[key], "{key}");
    }
    assert_eq!(got["FlannelBackend"], "host-gw");
}

#[tokio::test]
async fn tunnel_is_opened_for_kubelet_certificates_only() {
    let server = Running::start().await;
    let refused = [
        "connect-no-credentials",
        "connect-basic-auth",
        "connect-basic-and-certificate",
        "connect-kube-proxy-certificate",
        "connect-no-upgrade",
    ];
    exact(&server, &refused).await;
    let recording = recording("connect-101");
    let got = server.play(&recording).await;
    assert_eq!(got.status, 101, "{}", got.body);
    assert_eq!(got.header("sec-websocket-accept"), recording.answer.header("sec-websocket-accept"));
    assert_eq!(got.header("sec-websocket-protocol"), "");
    server.stop().await;
}

#[tokio::test]
async fn bootstrap_token_joins_until_a_certificate_is_shown() {
    let server = Running::start().await;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": { "name": "bootstrap-token-abcdef", "namespace": "kube-system" },
        "stringData": { "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true" },
    })
    .to_string();
    let head = format!(
        "POST /api/v1/namespaces/kube-system/secrets HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n",
        secret.len()
    );
    let admin = server.certificate("system:admin", Some("system:masters"));
    let created = server.send(&head, secret.as_bytes(), Some(&admin)).await;
    assert_eq!(created.status, 201, "{}", created.body);
    let servers = server.play(&recording("apiservers-bootstrap-token")).await;
    assert_eq!(servers.status, 200, "{}", servers.body);
    signed(&server, &["cert-client-kubelet-bootstrap-token"], true).await;
    exact(&server, &["cert-bearer-and-certificate-node-absent"]).await;
    server.stop().await;
}

#[tokio::test]
async fn node_identity_sees_and_changes_what_is_its_own() {
    let server = Running::start().await;
    let names = [
        "node-get-absent",
        "node-create-other-name",
        "node-create-role-label",
        "node-create",
        "node-create-exists",
        "node-get-other",
        "node-list-refused",
        "pod-list-own-empty",
        "pod-list-refused",
        "node-patch-annotations",
        "node-patch-status",
        "lease-create",
        "apiserver-readyz",
        "apiserver-readyz-kubelet",
        "subjectaccessreview",
        "subjectaccessreview-denied",
    ];
    for name in names {
        let recording = recording(name);
        let got = server.play(&recording).await;
        assert_eq!(got.status, recording.answer.status, "{name}: {}", got.body);
        if got.status >= 400 {
            let (got, recorded): (Value, Value) =
                (serde_json::from_str(&got.body).unwrap(), serde_json::from_str(&recording.answer.body).unwrap());
            assert_eq!((&got["reason"], &got["code"]), (&recorded["reason"], &recorded["code"]), "{name}");
        }
    }
    server.stop().await;
}
