//! Error bodies: Kubernetes Status in JSON, with or without `apiVersion`, sometimes two documents in one body
//! (k3s-agent.md 2.2).

use serde::Deserialize;

/// What this crate needs of a Status object.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[derive(Default)]
pub struct Status {
    /// `Status`.
    pub kind: String,
    /// Text for people.
    pub message: String,
    /// CamelCase word for machines.
    pub reason: String,
    /// HTTP status.
    pub code: u16,
}

/// The first Status document of a body; what follows it is not looked at.
pub fn parse(body: &[u8]) -> Option<Status> {
    let first = serde_json::Deserializer::from_slice(body).into_iter::<Status>().next()?.ok()?;
    (first.kind == "Status").then_some(first)
}

/// One line that says what the server said: the Status message, else the start of the body.
pub fn message(body: &[u8]) -> String {
    if let Some(status) = parse(body).filter(|s| !s.message.is_empty()) {
        return status.message;
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() { "no explanation given".to_owned() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Recording;

    #[test]
    fn recorded_errors_are_read_also_two_in_one_body() {
        for (name, code, want) in [
            ("config-wrong-password", 401, "not authorized"),
            ("config-no-credentials", 403, "forbidden"),
            ("cert-wrong-node-password", 403, "unable to verify password for node wire1: hash does not match"),
            ("cert-bad-node-ip", 500, "Internal error occurred: invalid node IP address <nil>"),
            ("connect-no-upgrade", 400, "websocket: the client is not using the websocket protocol"),
            ("unknown-path-basic-auth", 401, "Unauthorized"),
        ] {
            let status = parse(&Recording::load(name).response_body()).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(status.code, code, "{name}");
            assert!(status.message.contains(want), "{name}: {}", status.message);
        }
    }

    #[test]
    fn other_bodies_give_one_short_line() {
        assert_eq!(message(b"<html>\n no\tway "), "<html> no way");
        assert_eq!(message(b""), "no explanation given");
        assert_eq!(message(br#"{"kind":"Pod"}"#), r#"{"kind":"Pod"}"#);
        assert!(message(&[b'x'; 900]).len() == 200);
    }
}
