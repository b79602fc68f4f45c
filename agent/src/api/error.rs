//! What a request to the API server can end with.

use std::time::Duration;

/// A request that did not give what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The server answered with a Kubernetes `Status` (or another body) and this HTTP code.
    #[error("server answered {code} {reason}: {message}")]
    Status { code: u16, reason: String, message: String },
    /// No answer within the deadline of the request.
    #[error("no answer from {server} within {after:?}")]
    Deadline { server: String, after: Duration },
    /// The connection could not be made or broke.
    #[error("connection to {server}: {cause}")]
    Transport { server: String, cause: String },
    /// The answer came but was not what the type says.
    #[error("answer of {path} does not decode: {cause}")]
    Decode { path: String, cause: String },
}

impl Error {
    /// HTTP code, 0 when there was no answer.
    pub fn code(&self) -> u16 {
        match self {
            Error::Status { code, .. } => *code,
            Error::Deadline { .. } | Error::Transport { .. } | Error::Decode { .. } => 0,
        }
    }

    /// `reason` of the Status, empty when there was no answer.
    pub fn reason(&self) -> &str {
        match self {
            Error::Status { reason, .. } => reason,
            Error::Deadline { .. } | Error::Transport { .. } | Error::Decode { .. } => "",
        }
    }

    /// The object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// Somebody else changed it first, or it exists already.
    pub fn is_conflict(&self) -> bool {
        self.code() == 409
    }

    /// The resource version asked for is too old.
    pub fn is_gone(&self) -> bool {
        self.code() == 410
    }

    /// The same request may succeed later: no answer, 429 or 5xx.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Status { code, .. } => *code == 429 || *code >= 500,
            Error::Deadline { .. } | Error::Transport { .. } => true,
            Error::Decode { .. } => false,
        }
    }

    /// For events and statuses: what the server said, as a kubelet passes it on, else the whole error.
    pub fn event_message(&self) -> String {
        match self {
            Error::Status { message, .. } if !message.is_empty() => message.clone(),
            other => other.to_string(),
        }
    }

    /// The server could not be reached at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Error::Deadline { .. } | Error::Transport { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_say_what_the_server_said() {
        let refused = Error::Status { code: 403, reason: "Forbidden".to_owned(), message: "secrets \"s\" is forbidden".to_owned() };
        assert_eq!(refused.event_message(), "secrets \"s\" is forbidden");
        let bare = Error::Status { code: 502, reason: "Bad Gateway".to_owned(), message: String::new() };
        assert_eq!(bare.event_message(), "server answered 502 Bad Gateway: ");
    }
}
