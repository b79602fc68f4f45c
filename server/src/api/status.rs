//! `ApiStatus`: the Status object every failure answers with, and the few successes that use it.

use serde::Serialize;

/// A Kubernetes `Status`, which is also this server's error type.
///
/// Field order is the wire order of the real API server; tests compare bodies byte for byte.
#[derive(Debug, Clone, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiStatus {
    pub kind: &'static str,
    #[serde(rename = "apiVersion")]
    pub api_version: &'static str,
    pub metadata: Metadata,
    pub status: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
    #[serde(skip_serializing_if = "is_zero")]
    pub code: u16,
}

/// List metadata of a Status; only set where the real server sets it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Metadata {}

/// What the failure is about.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(rename = "retryAfterSeconds", skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u16,
}

/// One wrong field of a 422, or why a 400 or 409 was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(code: &u16) -> bool {
    *code == 0
}

use super::kind::Kind;

impl ApiStatus {
    fn failure(code: u16, reason: &'static str, message: String) -> Self {
        Self { kind: "Status", api_version: "v1", metadata: Metadata {}, status: "Failure", message, reason, details: None, code }
    }

    fn about(mut self, kind: &Kind, name: &str) -> Self {
        self.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: kind.group.to_owned(),
            kind: kind.plural.to_owned(),
            ..Details::default()
        }));
        self
    }

    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::failure(404, "NotFound", format!("{} \"{name}\" not found", kind.qualified())).about(kind, name)
    }

    /// 404 for a path no resource has.
    pub fn no_such_path() -> Self {
        let mut status = Self::failure(404, "NotFound", "the server could not find the requested resource".to_owned());
        status.details = Some(Box::new(Details::default()));
        status
    }

    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::failure(409, "AlreadyExists", format!("{} \"{name}\" already exists", kind.qualified())).about(kind, name)
    }

    /// 409 of a lost race or a wrong `resourceVersion`.
    pub fn conflict(kind: &Kind, name: &str) -> Self {
        Self::conflict_because(kind, name, "the object has been modified; please apply your changes to the latest version and try again")
    }

    pub fn conflict_because(kind: &Kind, name: &str, why: &str) -> Self {
        Self::failure(409, "Conflict", format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.qualified())).about(kind, name)
    }

    /// 409 of a server-side apply over fields of another manager.
    pub fn apply_conflict(causes: Vec<Cause>) -> Self {
        let count = match causes.len() {
            1 => "1 conflict".to_owned(),
            n => format!("{n} conflicts"),
        };
        let text = match causes.as_slice() {
            [one] => format!(": {}: {}", one.message, one.field),
            many => many.iter().map(|c| format!("\n- {}: {}", c.message, c.field)).collect(),
        };
        let separator = if causes.len() == 1 { "" } else { ":" };
        let mut status = Self::failure(409, "Conflict", format!("Apply failed with {count}{separator}{text}"));
        status.details = Some(Box::new(Details { causes, ..Details::default() }));
        status
    }

    /// 403 of authorisation or admission; `name` empty for collections.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let message = match (plural.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{qualified} is forbidden: {why}"),
            (false, false) => format!("{qualified} \"{name}\" is forbidden: {why}"),
        };
        let mut status = Self::failure(403, "Forbidden", message);
        status.details =
            Some(Box::new(Details { name: name.to_owned(), group: group.to_owned(), kind: plural.to_owned(), ..Details::default() }));
        status
    }

    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized".to_owned())
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message.into())
    }

    /// 422 with one cause per wrong field.
    pub fn invalid(kind: &Kind, name: &str, causes: Vec<Cause>) -> Self {
        let list: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let text = if list.len() == 1 { list.concat() } else { format!("[{}]", list.join(", ")) };
        let qualified = if kind.group.is_empty() { kind.kind.to_owned() } else { format!("{}.{}", kind.kind, kind.group) };
        let mut status = Self::failure(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {text}"));
        status.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: kind.group.to_owned(),
            kind: kind.kind.to_owned(),
            causes,
            ..Details::default()
        }));
        status
    }

    /// 410: the asked resourceVersion is no longer in the history.
    /// 422 for a JSON patch whose operations do not fit; the real server does not say which.
    pub fn patch_does_not_fit() -> Self {
        let mut status = Self::failure(422, "Invalid", "the server rejected our request due to an error in our request".to_owned());
        status.details = Some(Box::default());
        status
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message.into())
    }

    pub fn method_not_allowed() -> Self {
        let mut status =
            Self::failure(405, "MethodNotAllowed", "the server does not allow this method on the requested resource".to_owned());
        status.details = Some(Box::new(Details::default()));
        status
    }

    pub fn not_acceptable() -> Self {
        let why = "only the following media types are accepted: application/json";
        Self::failure(406, "NotAcceptable", why.to_owned())
    }

    pub fn unsupported_media_type(got: &str, accepted: &[&str]) -> Self {
        tracing::debug!(media_type = got, "body refused");
        let why = "the body of the request was in an unknown format - accepted media types include";
        Self::failure(415, "UnsupportedMediaType", format!("{why}: {}", accepted.join(", ")))
    }

    pub fn too_large(limit: usize) -> Self {
        Self::failure(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::failure(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, "ServiceUnavailable", message.into())
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self::failure(504, "Timeout", message.into())
    }

    /// 200 answer of a delete that removed the object at once.
    pub fn deleted(kind: &Kind, name: &str, uid: &str) -> Self {
        Self {
            status: "Success",
            details: Some(Box::new(Details {
                name: name.to_owned(),
                group: kind.group.to_owned(),
                kind: kind.plural.to_owned(),
                uid: uid.to_owned(),
                ..Details::default()
            })),
            ..Self::failure(0, "", String::new())
        }
    }

    /// Success without an object; `code` 201 as bindings and evictions answer.
    pub fn success(code: u16) -> Self {
        Self { status: "Success", ..Self::failure(code, "", String::new()) }
    }

    /// The answer as the real server writes it, with its final newline.
    pub fn body(&self) -> bytes::Bytes {
        let mut out = serde_json::to_vec(self).unwrap_or_default();
        out.push(b'\n');
        bytes::Bytes::from(out)
    }

    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    pub fn is_conflict(&self) -> bool {
        self.code == 409 && self.reason == "Conflict"
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }
}
