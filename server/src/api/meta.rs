//! Small readers and makers of object metadata.

use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::macros::format_description;

/// A string field of `metadata`, empty when absent.
pub fn get<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

pub fn name(object: &Value) -> &str {
    get(object, "name")
}

pub fn namespace(object: &Value) -> &str {
    get(object, "namespace")
}

pub fn uid(object: &Value) -> &str {
    get(object, "uid")
}

/// `metadata.resourceVersion` as a number, 0 when absent.
pub fn version(object: &Value) -> u64 {
    get(object, "resourceVersion").parse().unwrap_or(0)
}

pub fn is_deleting(object: &Value) -> bool {
    object["metadata"].get("deletionTimestamp").is_some_and(|t| !t.is_null())
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The metadata map, made if missing. The object must be a JSON object.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    child_mut(object, "metadata")
}

/// The map at `field`, made if missing or of another type.
pub fn child_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let slot = &mut object[field];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("made an object above")
}

/// Now, as `metav1.Time` is written.
pub fn now() -> String {
    time_text(OffsetDateTime::now_utc())
}

/// A time with second precision, `2026-11-23T04:05:06Z`.
pub fn time_text(time: OffsetDateTime) -> String {
    time.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z")).unwrap_or_default()
}

/// Reads `metav1.Time` and `MicroTime`.
pub fn parse_time(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()
}

/// A random UUID (version 4).
pub fn new_uid() -> String {
    let mut bytes = [0_u8; 16];
    fill(&mut bytes);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// `length` characters of the alphabet Kubernetes makes names from (no vowels, no look-alikes).
pub fn random_suffix(length: usize) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = vec![0_u8; length];
    fill(&mut bytes);
    bytes.iter().map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()])).collect()
}

/// Random bytes.
pub fn fill(bytes: &mut [u8]) {
    SystemRandom::new().fill(bytes).expect("the kernel's random source works");
}

/// Removes members that are null, as decoding into typed objects does. Arrays keep theirs.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
