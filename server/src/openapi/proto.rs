//! An OpenAPI v2 document as gnostic's protobuf `openapi.v2.Document`, which kubectl asks for.
//!
//! Field numbers: `google/gnostic: openapiv2/OpenAPIv2.proto`. Only what our documents hold is written.

use serde_json::{Map, Value};

/// Writes the document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    out.message(2, |info| {
        info.text(1, &document["info"]["title"]);
        info.text(2, &document["info"]["version"]);
    });
    out.message(8, |paths| {
        for (name, item) in members(&document["paths"]) {
            paths.named(2, name, |out| path_item(out, item));
        }
    });
    out.message(9, |definitions| {
        for (name, definition) in members(&document["definitions"]) {
            definitions.named(1, name, |out| schema(out, definition));
        }
    });
    out.0
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn path_item(out: &mut Message, item: &Value) {
    for (field, verb) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = item.get(verb) {
            out.message(field, |out| operation(out, found));
        }
    }
}

fn operation(out: &mut Message, operation: &Value) {
    out.text(5, &operation["operationId"]);
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        // ParametersItem.parameter, Parameter.non_body_parameter, NonBodyParameter.query_parameter_sub_schema
        out.message(8, |item| {
            item.message(1, |item| {
                item.message(2, |item| {
                    item.message(3, |query| {
                        query.text(2, &parameter["in"]);
                        query.text(4, &parameter["name"]);
                        query.text(6, &parameter["type"]);
                    });
                });
            });
        });
    }
    out.message(9, |responses| {
        for (code, response) in members(&operation["responses"]) {
            responses.named(1, code, |value| value.message(1, |out| out.text(1, &response["description"])));
        }
    });
    extensions(out, 13, operation);
}

fn schema(out: &mut Message, schema_value: &Value) {
    out.text(1, &schema_value["$ref"]);
    out.text(2, &schema_value["format"]);
    out.text(4, &schema_value["description"]);
    for name in schema_value["required"].as_array().into_iter().flatten() {
        out.text(19, name);
    }
    if let Some(values) = schema_value.get("additionalProperties") {
        out.message(21, |item| item.message(1, |out| schema(out, values)));
    }
    if schema_value["type"].is_string() {
        out.message(22, |ty| ty.text(1, &schema_value["type"]));
    }
    if let Some(items) = schema_value.get("items") {
        out.message(23, |item| item.message(1, |out| schema(out, items)));
    }
    if schema_value.get("properties").is_some() {
        out.message(25, |properties| {
            for (name, property) in members(&schema_value["properties"]) {
                properties.named(1, name, |out| schema(out, property));
            }
        });
    }
    extensions(out, 31, schema_value);
}

/// Members named `x-...` as NamedAny with their YAML (JSON is YAML).
fn extensions(out: &mut Message, field: u32, value: &Value) {
    for (name, extension) in members(value).filter(|(name, _)| name.starts_with("x-")) {
        out.named(field, name, |any| any.bytes(2, extension.to_string().as_bytes()));
    }
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// Nothing for an absent or empty text, as proto3 has it.
    fn text(&mut self, field: u32, value: &Value) {
        if let Some(text) = value.as_str().filter(|t| !t.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// A `Named...` pair: name 1, value 2.
    fn named(&mut self, field: u32, name: &str, write: impl FnOnce(&mut Self)) {
        self.message(field, |pair| {
            pair.bytes(1, name.as_bytes());
            pair.message(2, write);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bytes_are_those_of_the_proto_file() {
        let small = json!({"swagger": "2.0", "definitions": {"A": {"type": "object", "x-a": true}}});
        let expected: Vec<u8> = [
            &b"\x0a\x032.0"[..],
            b"\x12\x00",
            b"\x42\x00",
            // definitions: NamedSchema {A, Schema {type: [object], vendor_extension: x-a}}
            b"\x4a\x22\x0a\x20\x0a\x01A\x12\x1b\xb2\x01\x08\x0a\x06object\xfa\x01\x0d\x0a\x03x-a\x12\x06\x12\x04true",
        ]
        .concat();
        let written = document(&small);
        assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(&expected));
    }
}
