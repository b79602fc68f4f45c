//! Objects in Kubernetes' protobuf form, as typed clients send them: `kubectl create ...` of 1.32 does.
//!
//! Only what the schema table numbers can be read; anything else is an error, never silently dropped. We answer in
//! JSON, which those clients accept beside protobuf.

use base64::Engine as _;
use serde_json::{Map, Number, Value, json};
use time::OffsetDateTime;

use super::schema::{Type, TypeDef, schema};
use crate::api::meta;

/// Before each object: `k8s` and a zero byte, then `runtime.Unknown`.
const MAGIC: &[u8] = b"k8s\0";

/// Fields for which zero or empty is not the same as absent (pointers in Go).
const POINTERS: &[&str] = &[
    "replicas",
    "revisionHistoryLimit",
    "progressDeadlineSeconds",
    "terminationGracePeriodSeconds",
    "activeDeadlineSeconds",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "immutable",
    "optional",
    "gracePeriodSeconds",
    "tolerationSeconds",
    "expirationSeconds",
    "controller",
    "blockOwnerDeletion",
    "orphanDependents",
    "selector",
    "allocateLoadBalancerNodePorts",
];

/// Why bytes could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not a Kubernetes protobuf object")]
    Envelope,
    #[error("{api_version} {kind} is not read from protobuf; send JSON")]
    Kind { api_version: String, kind: String },
    #[error("field {number} of {owner} is not read from protobuf; send JSON")]
    Field { owner: String, number: u64 },
    #[error("the bytes end early or are malformed")]
    Malformed,
}

/// Reads an object with its envelope.
///
/// # Errors
/// When the bytes are malformed or hold what the table does not number.
pub fn decode(bytes: &[u8]) -> Result<Value, Error> {
    let mut envelope = Reader(bytes.strip_prefix(MAGIC).ok_or(Error::Envelope)?);
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, content)) = envelope.next()? {
        match (number, content) {
            (1, Content::Bytes(bytes)) => {
                let mut type_meta = Reader(bytes);
                while let Some((number, content)) = type_meta.next()? {
                    match (number, content) {
                        (1, Content::Bytes(text)) => api_version = string(text)?,
                        (2, Content::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Content::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let found = match kind.as_str() {
        "DeleteOptions" => schema().named("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"),
        _ => schema().of(group, &kind),
    };
    let numbered = found.filter(|ty| ty.fields.iter().any(|f| f.number > 0));
    let Some(ty) = numbered else {
        return Err(Error::Kind { api_version, kind });
    };
    let mut object = message(ty, raw)?;
    object.insert("apiVersion".to_owned(), json!(api_version));
    object.insert("kind".to_owned(), json!(kind));
    Ok(Value::Object(object))
}

fn message(ty: &TypeDef, bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    let mut out = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, content)) = reader.next()? {
        let Some(field) = ty.fields.iter().find(|f| f.number == number) else {
            if content.is_empty() {
                continue;
            }
            return Err(Error::Field { owner: ty.name.clone(), number });
        };
        match (&field.ty, content) {
            (Type::List(item), content) => {
                let value = single(item, content, ty, number)?;
                if let Some(list) = out.entry(field.name.clone()).or_insert_with(|| json!([])).as_array_mut() {
                    list.push(value);
                }
            }
            (Type::Map(item), Content::Bytes(entry)) => {
                let (key, value) = map_entry(item, entry, ty, number)?;
                if let Some(map) = out.entry(field.name.clone()).or_insert_with(|| json!({})).as_object_mut() {
                    map.insert(key, value);
                }
            }
            (single_type, content) => {
                let value = single(single_type, content, ty, number)?;
                if POINTERS.contains(&field.name.as_str()) || !is_zero(&value) {
                    out.insert(field.name.clone(), value);
                }
            }
        }
    }
    Ok(out)
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn map_entry(item: &Type, entry: &[u8], owner: &TypeDef, number: u64) -> Result<(String, Value), Error> {
    let (mut key, mut value) = (String::new(), Value::Null);
    let mut reader = Reader(entry);
    while let Some((field, content)) = reader.next()? {
        match (field, content) {
            (1, Content::Bytes(text)) => key = string(text)?,
            (2, content) => value = single(item, content, owner, number)?,
            _ => {}
        }
    }
    if value.is_null() {
        value = json!("");
    }
    Ok((key, value))
}

fn single(ty: &Type, content: Content<'_>, owner: &TypeDef, number: u64) -> Result<Value, Error> {
    Ok(match (ty, content) {
        (Type::String, Content::Bytes(bytes)) => json!(string(bytes)?),
        (Type::Bytes, Content::Bytes(bytes)) => {
            json!(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
        (Type::Bool, Content::Varint(value)) => json!(value != 0),
        // Negative numbers come as 64 bits whatever their type.
        (Type::Int32 | Type::Int64, Content::Varint(value)) => Value::Number(Number::from(value as i64)),
        (Type::Ref(index), Content::Bytes(bytes)) => Value::Object(message(schema().at(*index), bytes)?),
        (Type::Quantity, Content::Bytes(bytes)) => {
            let mut reader = Reader(bytes);
            match reader.next()? {
                Some((1, Content::Bytes(text))) => json!(string(text)?),
                _ => json!("0"),
            }
        }
        (Type::IntOrString, Content::Bytes(bytes)) => int_or_string(bytes)?,
        (Type::Time | Type::MicroTime, Content::Bytes(bytes)) => time(bytes)?,
        (Type::Object, content) if content.is_empty() => json!({}),
        // A status without content holds empty parts.
        (Type::Object, Content::Bytes(bytes)) if only_empty(bytes) => json!({}),
        _ => {
            return Err(Error::Field { owner: owner.name.clone(), number });
        }
    })
}

fn only_empty(bytes: &[u8]) -> bool {
    let mut reader = Reader(bytes);
    loop {
        match reader.next() {
            Ok(None) => return true,
            Ok(Some((_, content))) if content.is_empty() => {}
            Ok(Some((_, Content::Bytes(inner)))) if only_empty(inner) => {}
            _ => return false,
        }
    }
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Error> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    let mut reader = Reader(bytes);
    while let Some((field, content)) = reader.next()? {
        match (field, content) {
            (1, Content::Varint(value)) => is_text = value == 1,
            (2, Content::Varint(value)) => number = value as i64,
            (3, Content::Bytes(bytes)) => text = string(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { json!(number) })
}

fn time(bytes: &[u8]) -> Result<Value, Error> {
    let mut reader = Reader(bytes);
    while let Some((field, content)) = reader.next()? {
        if let (1, Content::Varint(seconds)) = (field, content) {
            let time = OffsetDateTime::from_unix_timestamp(seconds as i64).map_err(|_| Error::Malformed)?;
            return Ok(json!(meta::time_text(time)));
        }
    }
    Ok(Value::Null)
}

fn string(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Malformed)
}

/// What a field holds on the wire.
#[derive(Debug, Clone, Copy)]
enum Content<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

impl Content<'_> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Varint(value) => *value == 0,
            Self::Bytes(bytes) => bytes.is_empty(),
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u64, Content<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let content = match tag & 7 {
            0 => Content::Varint(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::Malformed)?;
                Content::Bytes(self.take(length)?)
            }
            1 => Content::Bytes(self.take(8)?),
            5 => Content::Bytes(self.take(4)?),
            _ => return Err(Error::Malformed),
        };
        Ok(Some((tag >> 3, content)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        if length > self.0.len() {
            return Err(Error::Malformed);
        }
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC, &field(1, &type_meta), &field(2, raw)].concat()
    }

    #[test]
    fn a_config_map_is_read() {
        let metadata = [field(1, b"cm"), field(2, b""), field(8, b"")].concat();
        let raw = [field(1, &metadata), field(2, &[field(1, b"a"), field(2, b"b")].concat())].concat();
        let object = decode(&envelope("v1", "ConfigMap", &raw)).unwrap();
        let expected = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"a": "b"}});
        assert_eq!(object, expected);
    }

    #[test]
    fn an_empty_status_with_empty_parts_is_empty() {
        let user = [field(1, b""), field(2, b"")].concat();
        let raw = [field(1, b""), field(2, &field(1, &user))].concat();
        let object = decode(&envelope("authentication.k8s.io/v1", "SelfSubjectReview", &raw)).unwrap();
        assert_eq!(object["kind"], "SelfSubjectReview");
        assert!(object.get("status").is_none());
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert_eq!(decode(b"{}"), Err(Error::Envelope));
        let strange = envelope("v1", "ConfigMap", &field(14, b"x"));
        assert_eq!(decode(&strange), Err(Error::Field { owner: "ConfigMap".to_owned(), number: 14 }));
        assert!(matches!(decode(&envelope("v1", "Node", b"")), Err(Error::Kind { .. })));
        let mut cut = envelope("v1", "ConfigMap", &field(1, b"x"));
        cut.pop();
        assert_eq!(decode(&cut), Err(Error::Malformed));
    }
}
