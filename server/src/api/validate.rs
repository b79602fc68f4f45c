//! Validation: which fields of an object are wrong, in the API server's words (422). Pure.

use serde_json::Value;

use super::kind::Kind;
use super::meta;
use super::status::{ApiStatus, Cause};

/// Checks a complete object before it is created.
pub(super) fn create(kind: &Kind, object: &Value) -> Result<(), ApiStatus> {
    let mut wrong = Vec::new();
    metadata(kind, object, &mut wrong);
    finish(kind, object, wrong)
}

/// Checks a change.
pub(super) fn update(kind: &Kind, old: &Value, new: &Value) -> Result<(), ApiStatus> {
    let _ = old;
    finish(kind, new, Vec::new())
}

fn finish(kind: &Kind, object: &Value, wrong: Vec<Cause>) -> Result<(), ApiStatus> {
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(ApiStatus::invalid(kind, meta::name(object), wrong))
    }
}

fn metadata(_kind: &Kind, object: &Value, wrong: &mut Vec<Cause>) {
    if meta::name(object).is_empty() {
        wrong.push(Cause {
            reason: "FieldValueRequired".to_owned(),
            message: "Required value: name or generateName is required".to_owned(),
            field: "metadata.name".to_owned(),
        });
    }
}
