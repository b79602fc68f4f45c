//! `serviceaccounts/NAME/token`: a TokenRequest in, the same with a token out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::api::{ApiStatus, Cause, Registry, kind, request};
use crate::auth::Identity;
use crate::controllers::{clock, object};
use crate::http::{Body, RequestInfo, full};
use crate::tokens::{Claim, Tokens};

const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;
const DEFAULT: i64 = 3600;

/// Answers one TokenRequest.
pub async fn serve(
    registry: &Arc<Registry>,
    tokens: &Tokens,
    info: &RequestInfo,
    incoming: Request<Incoming>,
    identity: &Identity,
) -> Result<Response<Body>, ApiStatus> {
    if incoming.method() != Method::POST {
        return Err(ApiStatus::method_not_allowed());
    }
    let media = request::content_type(incoming.headers());
    let mut asked = request::decode(&media, &request::read_body(incoming.into_body()).await?)?;
    let account = registry.get(&kind::SERVICE_ACCOUNT, Some(&info.namespace), &info.name)?;
    let lifetime = lifetime(&asked)?;
    let audiences: Vec<String> =
        asked["spec"]["audiences"].as_array().into_iter().flatten().filter_map(|audience| audience.as_str().map(str::to_owned)).collect();
    let pod = bound_pod(registry, &info.namespace, &asked["spec"]["boundObjectRef"])?;
    if let Some(node) = identity.node() {
        restrict(node, &info.name, pod.as_deref(), &audiences)?;
    }
    let claim = Claim {
        namespace: &info.namespace,
        account: &account,
        pod: pod.as_deref(),
        audiences: audiences.clone(),
        lifetime: Duration::from_secs(lifetime.unsigned_abs()),
    };
    let (token, end) = tokens.issue(&claim, SystemTime::now());
    asked["kind"] = json!("TokenRequest");
    asked["apiVersion"] = json!("authentication.k8s.io/v1");
    asked["metadata"] = json!({
        "name": info.name,
        "namespace": info.namespace,
        "creationTimestamp": clock::now(),
    });
    if audiences.is_empty() {
        asked["spec"]["audiences"] = json!([crate::tokens::ISSUER, "k3s"]);
    }
    asked["spec"]["expirationSeconds"] = json!(lifetime);
    asked["status"] = json!({ "token": token, "expirationTimestamp": clock::text(end.into()) });
    let mut text = asked.to_string();
    text.push('\n');
    let mut response = Response::new(full(text));
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn lifetime(asked: &Value) -> Result<i64, ApiStatus> {
    let seconds = asked["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT);
    let wrong = |why: &str| {
        let cause = Cause {
            reason: "FieldValueInvalid".to_owned(),
            message: format!("Invalid value: {seconds}: {why}"),
            field: "spec.expirationSeconds".to_owned(),
        };
        let mut status = ApiStatus::invalid(&kind::SERVICE_ACCOUNT, "", vec![cause]);
        status.message = status.message.replacen("ServiceAccount", "TokenRequest.authentication.k8s.io", 1);
        Err(status)
    };
    match seconds {
        SHORTEST..=LONGEST => Ok(seconds),
        ..SHORTEST => wrong("may not specify a duration less than 10 minutes"),
        _ => wrong("may not specify a duration larger than 2^32 seconds"),
    }
}

fn bound_pod(registry: &Arc<Registry>, namespace: &str, reference: &Value) -> Result<Option<Arc<Value>>, ApiStatus> {
    if reference.is_null() {
        return Ok(None);
    }
    if reference["kind"] != "Pod" {
        return Err(ApiStatus::bad_request(format!("cannot bind token for serviceaccount to object of type {}", reference["kind"])));
    }
    let name = reference["name"].as_str().unwrap_or_default();
    let pod = registry.get(&kind::POD, Some(namespace), name)?;
    if let Some(uid) = reference["uid"].as_str().filter(|uid| !uid.is_empty()) {
        if uid != object::uid(&pod) {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(ApiStatus::conflict_because(&kind::POD, name, &why));
        }
    }
    Ok(Some(pod))
}

/// A node gets tokens only for pods bound to it, for their own service account, and for the audiences a projected
/// volume of the pod names (an empty one stands for the API server's).
fn restrict(node: &str, account: &str, pod: Option<&Value>, audiences: &[String]) -> Result<(), ApiStatus> {
    let refuse = |why: String| Err(ApiStatus::forbidden("", "serviceaccounts", account, &why));
    let Some(pod) = pod else {
        return refuse("node requested token not bound to a pod".to_owned());
    };
    if pod["spec"]["nodeName"] != *node {
        return refuse("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    if pod["spec"]["serviceAccountName"].as_str().unwrap_or("default") != account {
        return refuse(format!("node requested token for a service account the pod {} does not use", object::name(pod)));
    }
    let named: Vec<&str> = pod["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten())
        .filter(|source| source["serviceAccountToken"].is_object())
        .map(|source| source["serviceAccountToken"]["audience"].as_str().unwrap_or_default())
        .collect();
    let asked: Vec<&str> = if audiences.is_empty() { vec![""] } else { audiences.iter().map(String::as_str).collect() };
    for audience in asked {
        if !named.contains(&audience) {
            return refuse(format!("audience {audience:?} not found in pod spec volume"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_gets_only_what_its_pods_name() {
        let pod = json!({
            "metadata": { "name": "p" },
            "spec": { "nodeName": "a", "volumes": [
                { "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } },
                { "projected": { "sources": [{ "serviceAccountToken": { "audience": "vault" } }] } },
            ] },
        });
        let vault = ["vault".to_owned()];
        type Row<'a> = (&'a str, &'a str, &'a str, Option<&'a Value>, &'a [String], bool);
        let rows: &[Row<'_>] = &[
            ("own pod", "a", "default", Some(&pod), &[], true),
            ("named audience", "a", "default", Some(&pod), &vault, true),
            ("other audience", "a", "default", Some(&pod), &["x".to_owned()], false),
            ("other node", "b", "default", Some(&pod), &[], false),
            ("other account", "a", "robot", Some(&pod), &[], false),
            ("not bound", "a", "default", None, &[], false),
        ];
        for (name, node, account, pod, audiences, allowed) in rows {
            let got = restrict(node, account, *pod, audiences).map_err(|error| error.code);
            assert_eq!(got, if *allowed { Ok(()) } else { Err(403) }, "{name}");
        }
    }

    #[test]
    fn lifetime_is_at_least_ten_minutes() {
        assert_eq!(lifetime(&json!({})).unwrap(), 3600);
        assert_eq!(lifetime(&json!({ "spec": { "expirationSeconds": 3607 } })).unwrap(), 3607);
        assert_eq!(lifetime(&json!({ "spec": { "expirationSeconds": 599 } })).unwrap_err().code, 422);
    }
}
