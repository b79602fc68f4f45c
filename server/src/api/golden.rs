//! The REST face against recordings of a K3s v1.36 server: the same requests, the same statuses and bodies.
//!
//! UIDs, versions and times differ; fields the real server leaves out because they are empty may be there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Registry, Subresource, kind, meta, rest};
use crate::auth::{AUTHENTICATED, Caller, Credentials, Identity, Token};
use crate::http::{Body, Extra, Handled, RequestInfo, Server, error_response};

struct Nothing;

impl Credentials for Nothing {
    fn basic(&self, _: &str, _: &str) -> Option<Identity> {
        None
    }
    fn bearer(&self, _: &str, _: &[String]) -> Option<Token> {
        None
    }
}

impl Extra for Nothing {
    fn supervisor(&self, request: Request<Incoming>, _: Caller) -> Handled {
        Handled::NotMine(request)
    }
    fn subresource(&self, _: RequestInfo, request: Request<Incoming>, _: Identity) -> Handled {
        Handled::NotMine(request)
    }
}

/// A server in memory, spoken to over HTTP/1.1.
struct Api {
    server: Arc<Server>,
    _stop: watch::Sender<bool>,
    stopped: watch::Receiver<bool>,
}

impl Api {
    fn new() -> Self {
        let registry = Registry::open(Path::new(":memory:")).unwrap();
        let server = Server { registry, credentials: Arc::new(Nothing), extra: Arc::new(Nothing), client_ca_pem: Vec::new() };
        let (stop, stopped) = watch::channel(false);
        Self { server: Arc::new(server), _stop: stop, stopped }
    }

    fn registry(&self) -> &Arc<Registry> {
        &self.server.registry
    }

    async fn send(&self, who: Identity, request: Request<Full<bytes::Bytes>>) -> (u16, Value) {
        let response = self.open(who, request).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn open(&self, who: Identity, request: Request<Full<bytes::Bytes>>) -> Response<Incoming> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (server, stopped) = (Arc::clone(&self.server), self.stopped.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (server, who, stopped) = (Arc::clone(&server), who.clone(), stopped.clone());
                async move {
                    let answer: Result<Response<Body>, _> = rest::handle(server, request, who, stopped).await;
                    Ok::<_, std::convert::Infallible>(answer.unwrap_or_else(|status| error_response(&status)))
                }
            });
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).await);
        });
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    /// Sends a recorded request as the recorded identity.
    async fn replay(&self, recording: &Value) -> (u16, Value) {
        let request = &recording["request"];
        let subject = request["client_certificate_subject"].as_str().unwrap_or_default();
        let mut who = Identity::new("", &[AUTHENTICATED]);
        for part in subject.split(',') {
            match part.split_once('=') {
                Some(("CN", name)) => name.clone_into(&mut who.user),
                Some(("O", group)) => who.groups.push(group.to_owned()),
                _ => {}
            }
        }
        let mut built = Request::builder().method(request["method"].as_str().unwrap()).uri(request["path"].as_str().unwrap());
        for header in request["headers"].as_array().unwrap() {
            let (name, value) = (header[0].as_str().unwrap(), header[1].as_str().unwrap());
            if !["content-length", "connection"].contains(&name.to_lowercase().as_str()) {
                built = built.header(name, value);
            }
        }
        let body = request["body_text"].as_str().unwrap_or_default().to_owned();
        self.send(who, built.body(Full::new(body.into())).unwrap()).await
    }
}

fn recording(name: &str) -> Value {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/recordings/k3s");
    let text = std::fs::read_to_string(root.join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Everything expected is there; what differs from run to run is not compared.
fn assert_contains(name: &str, path: &str, expected: &Value, got: &Value) {
    const CHANGING: &[&str] = &["uid", "resourceVersion", "creationTimestamp", "generation"];
    match (expected, got) {
        (Value::Object(expected), Value::Object(got)) => {
            for (key, value) in expected {
                if CHANGING.contains(&key.as_str()) || value.is_null() {
                    continue;
                }
                let got = got.get(key).unwrap_or(&Value::Null);
                assert_contains(name, &format!("{path}.{key}"), value, got);
            }
        }
        (Value::Array(expected), Value::Array(got)) => {
            assert_eq!(expected.len(), got.len(), "{name}: {path}");
            for (index, (expected, got)) in expected.iter().zip(got).enumerate() {
                assert_contains(name, &format!("{path}[{index}]"), expected, got);
            }
        }
        _ => assert_eq!(expected, got, "{name}: {path}"),
    }
}

async fn check(api: &Api, name: &str) {
    let recording = recording(name);
    let (status, body) = api.replay(&recording).await;
    assert_eq!(recording["response"]["status"], status, "{name}: {body}");
    let expected: Value = serde_json::from_str(recording["response"]["body_text"].as_str().unwrap()).unwrap();
    assert_contains(name, "", &expected, &body);
}

#[tokio::test]
async fn a_node_registers_and_is_refused_as_by_k3s() {
    let api = Api::new();
    for name in ["node-get-absent", "node-create", "node-create-exists", "node-create-other-name"] {
        check(&api, name).await;
    }
    for name in ["node-create-role-label", "node-get-other", "node-list-refused", "pod-list-own-empty"] {
        check(&api, name).await;
    }
    for name in ["pod-list-refused", "lease-create", "subjectaccessreview", "subjectaccessreview-denied"] {
        check(&api, name).await;
    }
}

#[tokio::test]
async fn a_node_patches_its_annotations_and_status_as_with_k3s() {
    let admin = Identity::system("test");
    for (patch, before) in
        [("node-patch-annotations", "node-object-before-cloud-controller"), ("node-patch-status", "node-object-before-cloud-controller")]
    {
        let api = Api::new();
        let mut node = recording(before);
        meta::metadata_mut(&mut node).remove("resourceVersion");
        let taints = node["spec"]["taints"].clone();
        api.registry().create(&kind::NODE, None, node, &admin).await.unwrap();
        let recorded = recording(patch);
        let mut expected: Value = serde_json::from_str(recorded["response"]["body_text"].as_str().unwrap()).unwrap();
        api.registry()
            .modify(&kind::NODE, None, "wire1", Subresource::Main, &admin, |node| {
                node["spec"]["taints"] = taints.clone();
                true
            })
            .await
            .unwrap();
        let (status, got) = api.replay(&recorded).await;
        assert_eq!(recorded["response"]["status"], status, "{patch}: {got}");
        // What the cloud controller did between the two recordings is not the API's.
        for field in ["labels", "annotations"] {
            expected["metadata"][field] = Value::Null;
        }
        expected["spec"] = Value::Null;
        assert_contains(patch, "", &expected, &got);
    }
}

#[tokio::test]
async fn pod_status_and_leases_change_as_with_k3s() {
    let api = Api::new();
    let admin = Identity::system("test");
    let recorded = recording("pod-status-patch");
    let mut pod: Value = serde_json::from_str(recorded["response"]["body_text"].as_str().unwrap()).unwrap();
    meta::metadata_mut(&mut pod).remove("resourceVersion");
    api.registry().create(&kind::POD, Some("default"), pod, &admin).await.unwrap();
    check(&api, "pod-status-patch").await;
    check(&api, "pod-status-patch-label").await;

    check(&api, "lease-create").await;
    let mut renewal = recording("lease-renew");
    let lease = api.registry().get(&kind::LEASE, Some("kube-node-lease"), "wire1").unwrap();
    let mut body: Value = serde_json::from_str(renewal["request"]["body_text"].as_str().unwrap()).unwrap();
    for field in ["uid", "resourceVersion"] {
        body["metadata"][field] = lease["metadata"][field].clone();
    }
    renewal["request"]["body_text"] = json!(body.to_string());
    let (status, renewed) = api.replay(&renewal).await;
    assert_eq!(status, 200);
    assert_eq!(renewed["spec"]["renewTime"], body["spec"]["renewTime"]);
    let (status, refused) = api.replay(&renewal).await;
    assert_eq!((status, &refused["reason"]), (409, &json!("Conflict")), "the version is old now");
}

fn request(method: &str, path: &str, media: &str, body: &Value) -> Request<Full<bytes::Bytes>> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::builder().method(method).uri(path).header("content-type", media);
    request.body(Full::new(body.into())).unwrap()
}

const JSON: &str = "application/json";

#[tokio::test]
async fn what_is_not_served_is_never_a_success() {
    let api = Api::new();
    let config = json!({"metadata": {"name": "c"}, "data": {"a": "b"}});
    let rows = [
        ("GET", "/api/v1/namespaces/default/configmaps/none", JSON, Value::Null, 404),
        ("GET", "/api/v1/things", JSON, Value::Null, 404),
        ("GET", "/apis/batch/v1/jobs", JSON, Value::Null, 404),
        ("GET", "/apis/apps/v1beta1/deployments", JSON, Value::Null, 404),
        ("GET", "/nothing", JSON, Value::Null, 404),
        ("POST", "/version", JSON, Value::Null, 405),
        ("POST", "/api/v1/configmaps", JSON, config.clone(), 405),
        ("PUT", "/api/v1/namespaces/default/configmaps", JSON, config.clone(), 405),
        ("POST", "/api/v1/namespaces/none/configmaps", JSON, config.clone(), 404),
        ("POST", "/api/v1/namespaces/default/configmaps", "text/plain", config.clone(), 415),
        ("POST", "/api/v1/namespaces/default/configmaps", JSON, json!({"kind": "Pod", "apiVersion": "v1"}), 400),
        ("POST", "/api/v1/namespaces/default/configmaps", JSON, json!({"metadata": {"name": "A"}}), 422),
        ("POST", "/api/v1/namespaces/default/configmaps", JSON, json!({"metadata": {"name": "a"}, "data": {"x": 1}}), 400),
        ("PATCH", "/api/v1/namespaces/default/configmaps/c", JSON, config.clone(), 415),
        ("GET", "/api/v1/namespaces/default/pods/none/log", JSON, Value::Null, 404),
        ("GET", "/api/v1/namespaces/default/pods/none/exec", JSON, Value::Null, 404),
        ("GET", "/api/v1/namespaces/default/configmaps/c/status", JSON, Value::Null, 404),
        ("GET", "/api/v1/pods?fieldSelector=spec.color%3Dred", JSON, Value::Null, 400),
        ("GET", "/api/v1/pods?limit=x", JSON, Value::Null, 400),
        ("GET", "/api/v1/pods?resourceVersion=999999", JSON, Value::Null, 504),
        ("POST", "/api/v1/namespaces/default/configmaps?dryRun=Some", JSON, config, 400),
    ];
    for (method, path, media, body, expected) in rows {
        let (status, answer) = api.send(Identity::system("test"), request(method, path, media, &body)).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
        assert_eq!(answer["kind"], "Status", "{method} {path}");
    }
}

/// The next event of a watch; a stream that says nothing for five seconds fails the test.
async fn next_event(body: &mut Incoming) -> Value {
    let frame = tokio::time::timeout(std::time::Duration::from_secs(5), body.frame());
    let frame = frame.await.expect("an event in time").unwrap().unwrap();
    serde_json::from_slice(frame.data_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn watches_tell_what_enters_and_leaves_the_selection() {
    let api = Api::new();
    let admin = Identity::system("test");
    let path = "/api/v1/namespaces/default/configmaps";
    let version = api.registry().version();
    let watch = format!("{path}?watch=1&labelSelector=on%3Dyes&resourceVersion={version}");
    let mut events = api.open(admin.clone(), request("GET", &watch, JSON, &Value::Null)).await.into_body();
    let change = |labels: Value| json!({"metadata": {"labels": labels}});
    let merge = "application/merge-patch+json";
    let made = json!({"metadata": {"name": "c", "labels": {"on": "yes"}}});
    for (method, name, media, body) in [
        ("POST", "", JSON, made),
        ("PATCH", "/c", merge, change(json!({"x": "1"}))),
        ("PATCH", "/c", merge, change(json!({"on": "no"}))),
        ("PATCH", "/c", merge, change(json!({"on": "yes"}))),
        ("DELETE", "/c", JSON, Value::Null),
    ] {
        let (status, _) = api.send(admin.clone(), request(method, &format!("{path}{name}"), media, &body)).await;
        assert!(status < 300, "{method} {status}");
    }
    let mut seen = Vec::new();
    let mut last = 0;
    for _ in 0..5 {
        let event = next_event(&mut events).await;
        let version = meta::version(&event["object"]);
        assert!(version > last, "versions grow");
        last = version;
        seen.push(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen, ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]);
}

#[tokio::test]
async fn a_watch_list_sends_the_present_then_its_end_and_old_versions_are_expired() {
    let api = Api::new();
    let admin = Identity::system("test");
    let path = "/api/v1/namespaces?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut events = api.open(admin.clone(), request("GET", path, JSON, &Value::Null)).await.into_body();
    for _ in 0..4 {
        assert_eq!(next_event(&mut events).await["type"], "ADDED");
    }
    let end = next_event(&mut events).await;
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");

    let old = "/api/v1/namespaces?watch=1&resourceVersion=1";
    let mut events = api.open(admin, request("GET", old, JSON, &Value::Null)).await.into_body();
    let event = next_event(&mut events).await;
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");
}

#[tokio::test]
async fn pods_end_gracefully_and_pages_cover_everything() {
    let api = Api::new();
    let admin = Identity::system("test");
    let pods = "/api/v1/namespaces/default/pods";
    for (name, node) in [("on", json!("n1")), ("off", Value::Null)] {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x"}]}});
        assert_eq!(api.send(admin.clone(), request("POST", pods, JSON, &pod)).await.0, 201);
    }
    let page = api.send(admin.clone(), request("GET", &format!("{pods}?limit=1"), JSON, &Value::Null)).await.1;
    assert_eq!(page["metadata"]["remainingItemCount"], 1);
    let token = page["metadata"]["continue"].as_str().unwrap();
    let next = format!("{pods}?limit=1&continue={token}");
    let rest = api.send(admin.clone(), request("GET", &next, JSON, &Value::Null)).await.1;
    assert_ne!(page["items"][0]["metadata"]["name"], rest["items"][0]["metadata"]["name"]);
    assert!(rest["metadata"].get("continue").is_none());

    // Not on a node: gone at once. On a node: marked, and gone when its kubelet says so.
    assert_eq!(api.send(admin.clone(), request("DELETE", &format!("{pods}/off"), JSON, &Value::Null)).await.0, 200);
    assert!(api.registry().get(&kind::POD, Some("default"), "off").is_err());
    assert_eq!(api.send(admin.clone(), request("DELETE", &format!("{pods}/on"), JSON, &Value::Null)).await.0, 200);
    let marked = api.registry().get(&kind::POD, Some("default"), "on").unwrap();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    let other = Identity::new("system:node:n2", &["system:nodes", AUTHENTICATED]);
    let now = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": meta::uid(&marked)}});
    assert_eq!(api.send(other, request("DELETE", &format!("{pods}/on"), JSON, &now)).await.0, 403);
    let own = Identity::new("system:node:n1", &["system:nodes", AUTHENTICATED]);
    let wrong = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}});
    assert_eq!(api.send(own.clone(), request("DELETE", &format!("{pods}/on"), JSON, &wrong)).await.0, 409);
    assert_eq!(api.send(own, request("DELETE", &format!("{pods}/on"), JSON, &now)).await.0, 200);
    assert!(api.registry().get(&kind::POD, Some("default"), "on").is_err());
}
