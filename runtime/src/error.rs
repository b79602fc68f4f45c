//! The one error of this crate, and the questions callers ask of it.

use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};

use crate::client::STARTING;

/// What containerd says when it did not begin to start a container.
const NOT_TO_BE_STARTED: &str = "failed to set starting state";

/// What containerd says when the container to be removed has a task.
const KEPT_BY_TASK: &str = "cannot delete running task";

/// Why a call to the runtime, an import or a managed containerd failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The runtime answered with an error, or could not be reached (code `Unavailable`).
    #[error("{verb} {subject}: {}", go_style(.status))]
    Call {
        /// The call, as CRI names it.
        verb: &'static str,
        /// What it was about: an id, a name, an image; may be empty.
        subject: String,
        /// The runtime's answer.
        status: Box<Status>,
    },
    /// The runtime did not answer in time. What was asked may still happen: look again.
    #[error("{verb} {subject}: no answer within {} s", .limit.as_secs())]
    Deadline {
        /// The call, as CRI names it.
        verb: &'static str,
        /// What it was about.
        subject: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The answer lacked something CRI promises.
    #[error("{verb} {subject}: the answer has no {missing}")]
    Incomplete {
        /// The call, as CRI names it.
        verb: &'static str,
        /// What it was about.
        subject: String,
        /// The absent field.
        missing: &'static str,
    },
    /// A file or directory could not be used.
    #[error("{action} {}", .path.display())]
    File {
        /// What was tried, for example `read`.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// An image archive is not one, or is damaged.
    #[error("image archive {}: {problem}", .path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it and, where there is one, the remedy.
        problem: String,
    },
    /// A program this crate needs is missing or failed at once.
    #[error("{program}: {problem}")]
    Program {
        /// Name or path of the program.
        program: String,
        /// What happened and the remedy.
        problem: String,
    },
    /// The managed containerd ended or did not become ready.
    #[error("containerd at {}: {problem} (its log: {})", .socket.display(), .log.display())]
    Managed {
        /// Where it should have answered.
        socket: PathBuf,
        /// What happened; ends with the last lines of the log where there are any.
        problem: String,
        /// Where its output is.
        log: PathBuf,
    },
}

impl Error {
    /// Whether the sandbox, container or image named in the call does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            Error::Call { status, .. } => status.code() == Code::NotFound,
            _ => false,
        }
    }

    /// Whether the same call may succeed later without anybody changing anything: the runtime is away, starting,
    /// overloaded or slow. An answer such as "invalid argument" is not worth repeating at once.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Call { status, .. } => matches!(
                status.code(),
                Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted | Code::Cancelled | Code::Unknown
            ),
            Error::Deadline { .. } => true,
            Error::Managed { .. } => true,
            Error::Incomplete { .. } | Error::File { .. } | Error::Archive { .. } | Error::Program { .. } => false,
        }
    }

    /// Whether the runtime could not be reached at all.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Error::Call { status, .. } => status.code() == Code::Unavailable,
            _ => false,
        }
    }

    /// Whether the runtime was reached and has not loaded yet what it has.
    pub fn is_starting(&self) -> bool {
        matches!(self, Error::Call { status, .. } if status.code() == Code::Unavailable && status.message().contains(STARTING))
    }

    /// Whether `StartContainer` was refused before anything was done, because the container is no longer one that was only
    /// made: a former agent's call is still at it, or has come to its end meanwhile. What became of it shows by looking.
    pub fn is_not_to_be_started(&self) -> bool {
        matches!(self, Error::Call { verb: "StartContainer", status, .. } if status.message().contains(NOT_TO_BE_STARTED))
    }

    /// Whether a removal was refused because containerd has a task that its CRI service knows nothing of.
    pub fn is_kept_by_task(&self) -> bool {
        matches!(self, Error::Call { status, .. } if status.code() == Code::FailedPrecondition && status.message().contains(KEPT_BY_TASK))
    }

    /// The text a kubelet would put into an event or a container's waiting message:
    /// `rpc error: code = Unknown desc = …` for answers of the runtime, our own text for the rest.
    pub fn event_message(&self) -> String {
        match self {
            Error::Call { status, .. } => go_style(status),
            Error::Deadline { .. } => "rpc error: code = DeadlineExceeded desc = context deadline exceeded".to_owned(),
            other => other.to_string(),
        }
    }

    /// The runtime's own words without code and prefix; `None` when it did not answer.
    pub fn runtime_message(&self) -> Option<&str> {
        match self {
            Error::Call { status, .. } => Some(status.message()),
            _ => None,
        }
    }

    /// The gRPC code of the runtime's answer, where there was one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Call { status, .. } => Some(status.code()),
            Error::Deadline { .. } => Some(Code::DeadlineExceeded),
            _ => None,
        }
    }
}

/// A status as Go's gRPC prints it; users and tools know this form from events.
fn go_style(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(code: Code) -> Error {
        Error::Call { verb: "StopContainer", subject: "abc".into(), status: Box::new(Status::new(code, "no")) }
    }

    #[test]
    fn the_three_questions() {
        let table = [
            (Code::NotFound, true, false),
            (Code::Unavailable, false, true),
            (Code::Unknown, false, true),
            (Code::InvalidArgument, false, false),
            (Code::Unimplemented, false, false),
        ];
        for (code, gone, retry) in table {
            assert_eq!(call(code).is_not_found(), gone, "{code:?}");
            assert_eq!(call(code).is_retryable(), retry, "{code:?}");
        }
    }

    #[test]
    fn a_runtime_that_is_loading_is_away_for_a_moment() {
        let said = Status::unknown(format!("rpc error: {STARTING}"));
        let error = crate::client::failed("Status", "", said);
        assert!(error.is_starting() && error.is_unavailable() && error.is_retryable(), "{error}");
        let other = crate::client::failed("Status", "", Status::unknown("disk full"));
        assert!(!other.is_starting() && !other.is_unavailable(), "{other}");
    }

    #[test]
    fn a_start_that_another_call_makes_is_no_failed_one() {
        // containerd 1.6, after kill -9 of an agent; 2.3 has the same words.
        let refused = "failed to set starting state for container \"7c77\": ";
        let blamed = "failed to create containerd task: failed to create shim task: OCI runtime create failed: exec: \"nope\": not found";
        let table = [
            (format!("{refused}container is already in starting state"), true),
            (format!("{refused}container is in CONTAINER_EXITED state"), true),
            (format!("{refused}container is in removing state"), true),
            (blamed.to_owned(), false),
        ];
        for (said, expected) in table {
            for (verb, asked) in [("StartContainer", true), ("StopContainer", false)] {
                let error = Error::Call { verb, subject: "7c77".into(), status: Box::new(Status::unknown(said.clone())) };
                assert_eq!(error.is_not_to_be_started(), expected && asked, "{error}");
            }
        }
    }

    #[test]
    fn a_task_in_the_way_of_a_removal_is_recognized() {
        let said = "failed to delete containerd container \"7f89\": cannot delete running task 7f89: failed precondition";
        for (code, said, expected) in
            [(Code::FailedPrecondition, said, true), (Code::FailedPrecondition, "other", false), (Code::Unknown, said, false)]
        {
            let error = Error::Call { verb: "RemoveContainer", subject: "7f89".into(), status: Box::new(Status::new(code, said)) };
            assert_eq!(error.is_kept_by_task(), expected, "{error}");
        }
    }

    #[test]
    fn events_read_as_go_prints_them() {
        assert_eq!(call(Code::NotFound).event_message(), "rpc error: code = NotFound desc = no");
        assert_eq!(call(Code::NotFound).to_string(), "StopContainer abc: rpc error: code = NotFound desc = no");
    }
}
