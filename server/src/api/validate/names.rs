//! Names, labels and annotations.

use serde_json::Value;

use super::{Wrong, list, text};
use crate::api::kind::Kind;
use crate::api::meta;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn is_lower(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// RFC 1123 label, as container and namespace names are.
pub(super) fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name.chars().all(|c| is_lower(c) || c == '-')
        && name.starts_with(is_lower)
        && name.ends_with(is_lower)
}

fn is_subdomain(name: &str) -> bool {
    !name.is_empty() && name.len() <= 253 && name.split('.').all(|part| part.len() > 63 || is_label(part))
}

/// Letters, digits, `-_.`, beginning and ending with a letter or digit.
fn is_plain(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63 && text.chars().all(|c| edge(c) || "-_.".contains(c)) && text.starts_with(edge) && text.ends_with(edge)
}

/// Whether this may be a label's key: `NAME` or `DOMAIN/NAME`.
pub(in crate::api) fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_plain(name),
        None => is_plain(key),
    }
}

/// Checks a label's key; `field` names the map.
pub(super) fn key(field: &str, key: &str, wrong: &mut Wrong) {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|p| !is_subdomain(p)) {
        wrong.invalid(field, &Value::from(key), &format!("prefix part {SUBDOMAIN}"));
    }
    if !is_plain(name) {
        wrong.invalid(field, &Value::from(key), QUALIFIED);
    }
}

/// Checks a map of labels.
pub(super) fn labels(field: &str, labels: &Value, wrong: &mut Wrong) {
    for (name, value) in labels.as_object().into_iter().flatten() {
        key(field, name, wrong);
        if !text(value).is_empty() && !is_plain(text(value)) {
            wrong.invalid(field, value, VALUE);
        }
    }
}

/// A container, volume or port name.
pub(super) fn label_name(field: &str, value: &Value, wrong: &mut Wrong) {
    if text(value).is_empty() {
        wrong.required(field, "");
    } else if !is_label(text(value)) {
        wrong.invalid(field, value, LABEL);
    }
}

/// Checks an object's metadata.
pub(super) fn metadata(kind: &Kind, object: &Value, wrong: &mut Wrong) {
    let metadata = &object["metadata"];
    let name = meta::name(object);
    let value = &metadata["name"];
    if name.is_empty() {
        wrong.required("metadata.name", "name or generateName is required");
    } else {
        match kind.kind {
            "Namespace" if !is_label(name) => wrong.invalid("metadata.name", value, LABEL),
            "Service" if !(is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase())) => {
                wrong.invalid("metadata.name", value, DNS_1035);
            }
            _ if !is_subdomain(name) => wrong.invalid("metadata.name", value, SUBDOMAIN),
            _ => {}
        }
    }
    labels("metadata.labels", &metadata["labels"], wrong);
    for name in metadata["annotations"].as_object().into_iter().flatten().map(|(name, _)| name) {
        key("metadata.annotations", &name.to_lowercase(), wrong);
    }
    let annotations = metadata["annotations"].as_object().into_iter().flatten();
    let size: usize = annotations.map(|(k, v)| k.len() + text(v).len()).sum();
    if size > 256 * 1024 {
        let message = "Too long: may not be more than 262144 bytes".to_owned();
        wrong.add("FieldValueTooLong", "metadata.annotations", message);
    }
    for (index, owner) in list(&metadata["ownerReferences"]).iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(&owner[field]).is_empty() {
                let path = format!("metadata.ownerReferences[{index}].{field}");
                wrong.invalid(
                    &path,
                    &Value::from(""),
                    &format!("{} must not be empty", if field == "apiVersion" { "version" } else { field }),
                );
            }
        }
    }
}
