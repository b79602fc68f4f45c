//! The four patch types, applied to an object's JSON. Pure.

use serde_json::Value;

use super::kind::Kind;
use super::status::ApiStatus;
use super::strategic;
use crate::openapi::schema::schema;

/// How a patch body is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    pub const ACCEPTED: &'static [&'static str] = &[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/apply-patch+yaml",
        "application/strategic-merge-patch+json",
    ];

    /// By content type, without its parameters.
    pub fn from_media_type(media: &str) -> Option<Self> {
        match media {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }
}

/// Applies `patch` to `object`.
///
/// # Errors
/// 400 for a malformed patch, 422 for a JSON patch whose operations do not fit.
pub(super) fn apply_to(kind: &Kind, object: &mut Value, patch_type: PatchType, patch: &Value) -> Result<(), ApiStatus> {
    match patch_type {
        PatchType::Json => {
            let operations: json_patch::Patch =
                serde_json::from_value(patch.clone()).map_err(|error| ApiStatus::bad_request(format!("error decoding patch: {error}")))?;
            json_patch::patch(object, &operations).map_err(|_| ApiStatus::patch_does_not_fit())
        }
        PatchType::Merge => {
            if !patch.is_object() {
                return Err(ApiStatus::bad_request("a merge patch must be a JSON object"));
            }
            json_patch::merge(object, patch);
            Ok(())
        }
        PatchType::Strategic | PatchType::Apply => {
            strategic::merge(object, patch.clone(), schema().of(kind.group, kind.kind)).map_err(ApiStatus::bad_request)
        }
    }
}
