//! Objects and lists as bytes, in the form the client accepts.

use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Value, json};

use super::kind::Kind;
use super::request::Format;
use super::rest::Context;
use super::{table, views};

/// One object.
pub(super) fn object(context: &Context, object: &Value) -> Vec<u8> {
    let object = views::to_served(context.kind, object);
    let mut out = match context.format {
        Format::Json => serde_json::to_vec(&*object),
        Format::Table(version) => serde_json::to_vec(&one_row_table(context, version, &object)),
        Format::Partial => serde_json::to_vec(&partial(&object)),
    }
    .unwrap_or_default();
    out.push(b'\n');
    out
}

/// A table of one object, as watches send it too.
pub(super) fn one_row_table(context: &Context, version: &str, object: &Value) -> Value {
    let row = table::row(context.kind, object, context.query.get("includeObject"));
    let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
    table::table(context.kind, version, &metadata, vec![row])
}

/// Kind, version and metadata only.
pub(super) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// A list; `metadata` is the list's own.
pub(super) fn list(context: &Context, metadata: &Value, items: &[std::sync::Arc<Value>]) -> Vec<u8> {
    let kind = context.kind;
    let served = || items.iter().map(|item| views::to_served(kind, item));
    let mut out = match context.format {
        Format::Json => {
            let mut out = head(kind, metadata);
            for (index, item) in served().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                // Writing into memory does not fail.
                drop(serde_json::to_writer(&mut out, &Untyped(&item)));
            }
            out.extend_from_slice(b"]}");
            return ended(out);
        }
        Format::Table(version) => {
            let include = context.query.get("includeObject");
            let rows = served().map(|item| table::row(kind, &item, include)).collect();
            serde_json::to_vec(&table::table(kind, version, metadata, rows))
        }
        Format::Partial => serde_json::to_vec(&json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "items": served().map(|item| partial(&item)).collect::<Vec<_>>(),
        })),
    }
    .unwrap_or_default();
    out.push(b'\n');
    out
}

fn head(kind: &Kind, metadata: &Value) -> Vec<u8> {
    format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[", kind.list_kind(), kind.api_version())
        .into_bytes()
}

fn ended(mut out: Vec<u8>) -> Vec<u8> {
    out.push(b'\n');
    out
}

/// List items do not repeat kind and version.
struct Untyped<'a>(&'a Value);

impl Serialize for Untyped<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.0.as_object().into_iter().flatten() {
            if key != "kind" && key != "apiVersion" {
                map.serialize_entry(key, value)?;
            }
        }
        map.end()
    }
}
