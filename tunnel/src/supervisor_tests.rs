use super::*;
use crate::testing::{self, Recording};

#[test]
fn a_recorded_certificate_goes_with_our_own_key() {
    let key = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for name in ["cert-serving-kubelet", "cert-client-kubelet", "cert-client-kube-proxy", "cert-client-k3s-controller"] {
        let (pair, replaced) = split_answer(&Recording::load(name).response_body(), key).unwrap();
        assert!(!replaced, "{name}");
        assert_eq!(pair.key_pem, key, "{name}");
        assert_eq!(pair.chain().len(), 2, "{name}: leaf and CA");
        let (from, until) = pair.validity().unwrap();
        assert_eq!(until.duration_since(from).unwrap().as_secs(), 365 * 86400, "{name}");
    }
}

#[test]
fn a_returned_private_key_replaces_ours() {
    for name in ["cert-client-kubelet-pem-csr", "cert-client-kubelet-get"] {
        let (pair, replaced) = split_answer(&Recording::load(name).response_body(), b"ours").unwrap();
        assert!(replaced, "{name}");
        assert!(pair.key_pem.starts_with(b"-----BEGIN EC PRIVATE KEY-----"), "{name}");
        assert_eq!(pair.chain().len(), 2, "{name}");
        assert!(!String::from_utf8_lossy(&pair.cert_pem).contains("PRIVATE"), "{name}");
    }
    assert!(split_answer(b"pong", b"ours").is_err());
}

#[test]
fn lists_of_servers_are_read() {
    let parse = |name: &str| parse_apiservers(&Recording::load(name).response_body()).unwrap();
    assert_eq!(parse("apiservers"), [ServerAddr::new("10.99.0.1", 6443)]);
    assert_eq!(parse("starting-apiservers-empty"), []);
    assert_eq!(parse_apiservers(b"null\n").unwrap(), []);
    assert_eq!(parse_apiservers(b"[\"[fd00::1]:6443\"]").unwrap()[0].host, "fd00::1");
    assert!(parse_apiservers(b"[\"nonsense\"]").is_err());
    assert!(parse_apiservers(b"{}").is_err());
}

#[test]
fn node_headers_are_the_recorded_ones() {
    let recording = Recording::load("cert-serving-kubelet");
    let node = NodeHeaders {
        name: "wire1".into(),
        password: "0123456789abcdef0123456789abcdef".into(),
        ips: vec!["10.99.0.41".parse().unwrap()],
        password_file: "/etc/rancher/node/password".into(),
    };
    for (name, value) in node.list() {
        assert_eq!(recording.request_header(name), Some(value.as_str()), "{name}");
    }
    let two = NodeHeaders { ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()], ..node };
    assert_eq!(two.list()[2].1, "10.0.0.1,fd00::1");
    let token = Token::parse("K10::server:token-placeholder-20").unwrap();
    assert_eq!(recording.request_header("Authorization"), Some(token.authorization().as_str()));
}

/// Every recorded answer goes through the code that would meet it and comes out as what the reference says it is.
#[test]
fn every_recorded_answer_is_understood() {
    let mut checked = 0;
    for name in testing::exchanges() {
        let recording = Recording::load(&name);
        let (status, path, body) = (recording.status(), recording.path().to_owned(), recording.response_body());
        // The Kubernetes API is not this crate's.
        if path.starts_with("/api/") || path.starts_with("/apis/") {
            continue;
        }
        checked += 1;
        if status >= 400 {
            let parsed = crate::status::parse(&body).unwrap_or_else(|| panic!("{name}: no Status"));
            assert_eq!(parsed.code, status, "{name}");
            assert!(!parsed.message.is_empty() && !parsed.reason.is_empty(), "{name}");
            continue;
        }
        match path.as_str() {
            "/v1-k3s/config" => assert!(serde_json::from_slice::<ServerConfig>(&body).is_ok(), "{name}"),
            "/v1-k3s/apiservers" => assert!(parse_apiservers(&body).is_ok(), "{name}"),
            "/v1-k3s/connect" => assert_eq!(
                crate::serve::accept_key(recording.request_header("Sec-WebSocket-Key").unwrap()),
                recording.0["response"]["headers"][2][1].as_str().unwrap(),
                "{name}"
            ),
            "/v1-k3s/client-ca.crt" | "/v1-k3s/server-ca.crt" | "/cacerts" => {
                assert_eq!(ca_hash(&body, SystemTime::now()).unwrap().len(), 64, "{name}");
            }
            p if p.ends_with(".crt") => assert!(split_answer(&body, b"key").is_ok(), "{name}"),
            "/ping" => assert_eq!(body, b"pong", "{name}"),
            p if p.starts_with("/v1-k3s/readyz") || p.starts_with("/readyz") => {
                assert_eq!(body, b"ok", "{name}")
            }
            other => panic!("{name}: nothing here reads {other}"),
        }
    }
    assert!(checked > 45, "{checked} recordings");
}
