//! What there is: versions, groups, resources, health, OpenAPI. Pure.

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Response};
use serde_json::{Value, json};

use super::kind::{KINDS, Kind};
use super::request::{Query, media_ranges};
use super::status::ApiStatus;
use crate::http::{Body, full, json_response};
use crate::openapi;

/// The version of Kubernetes whose API this is, as K3s names itself.
pub const GIT_VERSION: &str = "v1.36.3+k3s1";

/// Groups and their version, in the order kubectl prints them.
const GROUPS: &[&str] = &[
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "node.k8s.io",
    "storage.k8s.io",
];

/// A resource that is no stored kind: subresources and reviews.
struct Virtual {
    name: String,
    group: &'static str,
    kind: &'static str,
    /// Group and version of the kind, when not the resource's.
    of: Option<(&'static str, &'static str)>,
    namespaced: bool,
    verbs: &'static [&'static str],
}

/// Answers a non-resource path.
pub(super) fn handle(path: &str, headers: &HeaderMap, query: &Query) -> Result<Response<Body>, ApiStatus> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let body = match parts.as_slice() {
        ["version"] => version(),
        ["healthz" | "livez" | "readyz", ..] => return health(&parts, query),
        ["api"] => match aggregated_version(headers) {
            Some(version) => return Ok(aggregated(version, &[""])),
            None => {
                json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
            }
        },
        ["apis"] => match aggregated_version(headers) {
            Some(version) => return Ok(aggregated(version, GROUPS)),
            None => json!({
                "kind": "APIGroupList", "apiVersion": "v1",
                "groups": GROUPS.iter().map(|g| group(g)).collect::<Vec<_>>(),
            }),
        },
        ["api", "v1"] => resources(""),
        ["apis", name] if GROUPS.contains(name) => {
            let mut group = group(name);
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
            group
        }
        ["apis", name, "v1"] if GROUPS.contains(name) => resources(name),
        ["openapi", ..] => return openapi::handle(&parts, headers),
        _ => return Err(ApiStatus::no_such_path()),
    };
    Ok(json_response(200, line(&body)))
}

fn line(value: &Value) -> Vec<u8> {
    let mut out = serde_json::to_vec(value).unwrap_or_default();
    out.push(b'\n');
    out
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "", "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", architecture()),
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn health(parts: &[&str], query: &Query) -> Result<Response<Body>, ApiStatus> {
    let text = match parts {
        [name] if query.flag("verbose") => {
            format!("[+]ping ok\n[+]store ok\n{name} check passed\n")
        }
        [_] | [_, "ping" | "store" | "etcd"] => "ok".to_owned(),
        _ => return Err(ApiStatus::no_such_path()),
    };
    let mut response = Response::new(full(text));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    Ok(response)
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn verbs(kind: &Kind) -> Vec<&'static str> {
    let _ = kind;
    vec!["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
}

fn virtuals(group: &str) -> Vec<Virtual> {
    const CONNECT: &[&str] = &["create", "get"];
    const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
    const CREATE: &[&str] = &["create"];
    let make = |name: &str, group, kind, of, namespaced, verbs| Virtual { name: name.to_owned(), group, kind, of, namespaced, verbs };
    let all = [
        make("namespaces/finalize", "", "Namespace", None, false, &["update"][..]),
        make("nodes/proxy", "", "NodeProxyOptions", None, false, PROXY),
        make("pods/attach", "", "PodAttachOptions", None, true, CONNECT),
        make("pods/binding", "", "Binding", None, true, CREATE),
        make("pods/eviction", "", "Eviction", Some(("policy", "v1")), true, CREATE),
        make("pods/exec", "", "PodExecOptions", None, true, CONNECT),
        make("pods/log", "", "Pod", None, true, &["get"]),
        make("pods/portforward", "", "PodPortForwardOptions", None, true, CONNECT),
        make("serviceaccounts/token", "", "TokenRequest", Some(("authentication.k8s.io", "v1")), true, CREATE),
        make("selfsubjectreviews", "authentication.k8s.io", "SelfSubjectReview", None, false, CREATE),
        make("tokenreviews", "authentication.k8s.io", "TokenReview", None, false, CREATE),
        make("localsubjectaccessreviews", "authorization.k8s.io", "LocalSubjectAccessReview", None, true, CREATE),
        make("selfsubjectaccessreviews", "authorization.k8s.io", "SelfSubjectAccessReview", None, false, CREATE),
        make("selfsubjectrulesreviews", "authorization.k8s.io", "SelfSubjectRulesReview", None, false, CREATE),
        make("subjectaccessreviews", "authorization.k8s.io", "SubjectAccessReview", None, false, CREATE),
    ];
    let mut found: Vec<Virtual> = all.into_iter().filter(|v| v.group == group).collect();
    for kind in KINDS.iter().filter(|k| k.group == group) {
        if kind.status {
            found.push(make(&format!("{}/status", kind.plural), kind.group, kind.kind, None, kind.namespaced, &["get", "patch", "update"]));
        }
        if kind.scale {
            let of = Some(("autoscaling", "v1"));
            found.push(make(&format!("{}/scale", kind.plural), kind.group, "Scale", of, true, &["get", "patch", "update"]));
        }
    }
    found
}

/// `APIResourceList` of one group version.
fn resources(group: &str) -> Value {
    let mut list: Vec<Value> = Vec::new();
    for kind in KINDS.iter().filter(|k| k.group == group) {
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": verbs(kind),
        });
        if !kind.short.is_empty() {
            resource["shortNames"] = json!(kind.short);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        list.push(resource);
    }
    for one in virtuals(group) {
        let mut resource = json!({
            "name": one.name, "singularName": "", "namespaced": one.namespaced, "kind": one.kind, "verbs": one.verbs,
        });
        if let Some((group, version)) = one.of {
            resource["group"] = json!(group);
            resource["version"] = json!(version);
        }
        list.push(resource);
    }
    list.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list})
}

/// The first aggregated form the client lists before plain JSON.
fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    for range in media_ranges(headers) {
        if range.media != "application/json" {
            continue;
        }
        if range.param("as") == "APIGroupDiscoveryList" && range.param("g") == "apidiscovery.k8s.io" {
            match range.param("v") {
                "v2" => return Some("v2"),
                "v2beta1" => return Some("v2beta1"),
                _ => {}
            }
        } else if range.param("as").is_empty() {
            return None;
        }
    }
    None
}

fn aggregated(version: &'static str, groups: &[&str]) -> Response<Body> {
    let items: Vec<Value> = groups.iter().map(|group| aggregated_group(group)).collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items,
    });
    let mut response = json_response(200, line(&list));
    let media = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(media) = HeaderValue::from_str(&media) {
        response.headers_mut().insert(CONTENT_TYPE, media);
    }
    response
}

fn aggregated_group(group: &str) -> Value {
    let kind_of = |group: &str, kind: &str| json!({"group": group, "version": "v1", "kind": kind});
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let mut resources: Vec<Value> = KINDS
        .iter()
        .filter(|k| k.group == group)
        .map(|kind| {
            let mut resource = json!({
                "resource": kind.plural, "responseKind": kind_of(group, kind.kind), "scope": scope(kind.namespaced),
                "singularResource": kind.singular, "verbs": verbs(kind),
            });
            if !kind.short.is_empty() {
                resource["shortNames"] = json!(kind.short);
            }
            if !kind.categories.is_empty() {
                resource["categories"] = json!(kind.categories);
            }
            resource
        })
        .collect();
    for one in virtuals(group) {
        let (of_group, _) = one.of.unwrap_or((one.group, "v1"));
        match one.name.split_once('/') {
            Some((parent, sub)) => {
                let parent = resources.iter_mut().find(|r| r["resource"] == parent);
                let sub = json!({"subresource": sub, "responseKind": kind_of(of_group, one.kind), "verbs": one.verbs});
                match parent.map(|p| &mut p["subresources"]) {
                    Some(Value::Array(list)) => list.push(sub),
                    Some(slot) => *slot = json!([sub]),
                    None => {}
                }
            }
            None => resources.push(json!({
                "resource": one.name, "responseKind": kind_of(of_group, one.kind), "scope": scope(one.namespaced),
                "singularResource": one.kind.to_lowercase(), "verbs": one.verbs,
            })),
        }
    }
    json!({
        "metadata": {"name": group, "creationTimestamp": null},
        "versions": [{"version": "v1", "resources": resources, "freshness": "Current"}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_discoverable_both_ways() {
        for kind in KINDS {
            let plain = resources(kind.group);
            assert!(plain["resources"].as_array().unwrap().iter().any(|r| r["name"] == kind.plural), "{kind:?}");
            let aggregated = aggregated_group(kind.group);
            let list = aggregated["versions"][0]["resources"].as_array().unwrap();
            assert!(list.iter().any(|r| r["resource"] == kind.plural), "{kind:?}");
            assert!(kind.group.is_empty() || GROUPS.contains(&kind.group));
        }
        let pods = aggregated_group("");
        let pods = pods["versions"][0]["resources"].as_array().unwrap().iter().find(|r| r["resource"] == "pods").unwrap();
        assert!(pods["subresources"].as_array().unwrap().iter().any(|s| s["subresource"] == "exec"));
    }
}
