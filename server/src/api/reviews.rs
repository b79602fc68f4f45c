//! Questions answered and not stored: token, access and self reviews.

use hyper::Response;
use serde_json::{Value, json};

use super::request::RequestInfo;
use super::status::ApiStatus;
use crate::auth::authz::{self, Attributes, Decision};
use crate::auth::{AUTHENTICATED, Identity, MASTERS};
use crate::http::{Body, Server, json_response};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Review {
    Token,
    Access,
    SelfAccess,
    SelfRules,
    SelfSubject,
}

/// The review a path asks for.
pub(super) fn find(info: &RequestInfo) -> Option<Review> {
    if info.version != "v1" || !info.name.is_empty() {
        return None;
    }
    match (info.group.as_str(), info.resource.as_str()) {
        ("authentication.k8s.io", "tokenreviews") => Some(Review::Token),
        ("authentication.k8s.io", "selfsubjectreviews") => Some(Review::SelfSubject),
        ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews") => Some(Review::Access),
        ("authorization.k8s.io", "selfsubjectaccessreviews") => Some(Review::SelfAccess),
        ("authorization.k8s.io", "selfsubjectrulesreviews") => Some(Review::SelfRules),
        _ => None,
    }
}

impl Review {
    /// # Errors
    /// 400 for an incomplete question.
    pub(super) fn answer(
        self,
        server: &Server,
        info: &RequestInfo,
        identity: &Identity,
        mut body: Value,
    ) -> Result<Response<Body>, ApiStatus> {
        if !body.is_object() {
            return Err(ApiStatus::bad_request("the body is not an object"));
        }
        let kind = match self {
            Self::Token => "TokenReview",
            Self::Access if info.resource.starts_with("local") => "LocalSubjectAccessReview",
            Self::Access => "SubjectAccessReview",
            Self::SelfAccess => "SelfSubjectAccessReview",
            Self::SelfRules => "SelfSubjectRulesReview",
            Self::SelfSubject => "SelfSubjectReview",
        };
        let status = match self {
            Self::Token => token(server, &body["spec"]),
            Self::SelfSubject => json!({"userInfo": user_info(identity)}),
            Self::SelfRules => rules(identity),
            Self::SelfAccess => access(server, identity, &body["spec"])?,
            Self::Access => {
                let mut asked = Identity::new(body["spec"]["user"].as_str().unwrap_or_default(), &[]);
                let groups = body["spec"]["groups"].as_array().into_iter().flatten();
                asked.groups = groups.filter_map(Value::as_str).map(str::to_owned).collect();
                if asked.user.is_empty() && asked.groups.is_empty() {
                    return Err(ApiStatus::bad_request("at least one of user or group must be specified"));
                }
                access(server, &asked, &body["spec"])?
            }
        };
        body["kind"] = json!(kind);
        body["apiVersion"] = json!(format!("{}/v1", info.group));
        if !body["metadata"].is_object() {
            body["metadata"] = json!({});
        }
        body["status"] = status;
        let mut out = serde_json::to_vec(&body).unwrap_or_default();
        out.push(b'\n');
        Ok(json_response(201, out))
    }
}

fn user_info(identity: &Identity) -> Value {
    let mut user = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        user["uid"] = json!(identity.uid);
    }
    if !identity.extra.is_empty() {
        user["extra"] = identity.extra.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    }
    user
}

fn token(server: &Server, spec: &Value) -> Value {
    let audiences: Vec<String> = spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    match server.credentials.bearer(spec["token"].as_str().unwrap_or_default(), &audiences) {
        Some(mut token) => {
            if !token.identity.in_group(AUTHENTICATED) {
                token.identity.groups.push(AUTHENTICATED.to_owned());
            }
            json!({"authenticated": true, "user": user_info(&token.identity), "audiences": token.audiences})
        }
        None => json!({"user": {}, "error": "[invalid bearer token, unknown]"}),
    }
}

fn access(server: &Server, identity: &Identity, spec: &Value) -> Result<Value, ApiStatus> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let resource = &spec["resourceAttributes"];
    let path = &spec["nonResourceAttributes"];
    let asked = if resource.is_object() {
        Attributes {
            verb: text(&resource["verb"]),
            group: text(&resource["group"]),
            resource: text(&resource["resource"]),
            subresource: text(&resource["subresource"]),
            namespace: text(&resource["namespace"]),
            name: text(&resource["name"]),
            fields: text(&resource["fieldSelector"]["rawSelector"]),
            path: String::new(),
        }
    } else if path.is_object() {
        Attributes::path(&text(&path["verb"]), &text(&path["path"]))
    } else {
        return Err(ApiStatus::bad_request("exactly one of nonResourceAttributes or resourceAttributes must be specified"));
    };
    Ok(match authz::decide(&server.registry, identity, &asked) {
        Decision::Allowed => json!({"allowed": true}),
        Decision::Denied(reason) if reason.is_empty() => json!({"allowed": false}),
        Decision::Denied(reason) => json!({"allowed": false, "reason": reason}),
    })
}

/// For `kubectl auth can-i --list`; what a node or controller may do is not a list of rules.
fn rules(identity: &Identity) -> Value {
    let everything = identity.in_group(MASTERS);
    let resources = if everything {
        json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}])
    } else {
        json!([{"verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
            "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]}])
    };
    let paths = if everything { json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]) } else { json!([]) };
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": !everything})
}
