//! Label and field selectors, parsed once and matched against objects.

use serde_json::Value;

use super::kind::Kind;
use super::status::ApiStatus;
use super::validate::names;

/// Which objects of a kind are meant. The default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selectors {
    labels: Vec<Requirement>,
    fields: Vec<FieldTest>,
    nothing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    /// Also true when the label is absent.
    NotIn(Vec<String>),
    Greater(i64),
    Less(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTest {
    path: String,
    value: String,
    equal: bool,
}

impl Selectors {
    /// Parses the two query parameters for one kind.
    ///
    /// # Errors
    /// 400 for a selector that does not parse or a field the kind cannot be selected by.
    pub fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, ApiStatus> {
        let labels = parse_labels(labels)?;
        let tests = parse_fields(fields)?;
        for test in &tests {
            if !selectable(kind, &test.path) {
                return Err(ApiStatus::bad_request(format!("field label not supported: {}", test.path)));
            }
        }
        Ok(Self { labels, fields: tests, nothing: false })
    }

    /// From a `LabelSelector` object (`matchLabels`, `matchExpressions`); an empty one matches all,
    /// an absent one (null) nothing.
    pub fn from_label_selector(selector: &Value) -> Self {
        if selector.is_null() {
            return Self { nothing: true, ..Self::default() };
        }
        let mut labels = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            labels.push(Requirement { key: key.clone(), test: Test::In(vec![value]) });
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let values = || {
                let list = expression["values"].as_array().into_iter().flatten();
                list.filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let test = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Test::In(values()),
                "NotIn" => Test::NotIn(values()),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::Absent,
                _ => {
                    return Self { nothing: true, ..Self::default() };
                }
            };
            labels.push(Requirement { key: expression["key"].as_str().unwrap_or_default().to_owned(), test });
        }
        Self { labels, fields: Vec::new(), nothing: false }
    }

    /// From a plain map of labels, as `spec.selector` of a Service.
    pub fn from_labels(labels: &Value) -> Self {
        Self::from_label_selector(&serde_json::json!({ "matchLabels": labels }))
    }

    /// One object by name.
    pub fn name(name: &str) -> Self {
        Self::field("metadata.name", name)
    }

    /// Objects whose field has this value, for example `spec.nodeName`.
    pub fn field(path: &str, value: &str) -> Self {
        let test = FieldTest { path: path.to_owned(), value: value.to_owned(), equal: true };
        Self { fields: vec![test], ..Self::default() }
    }

    pub fn matches(&self, object: &Value) -> bool {
        !self.nothing
            && self.fields.iter().all(|t| (field(object, &t.path) == t.value) == t.equal)
            && (self.labels.is_empty() || self.matches_labels(&object["metadata"]["labels"]))
    }

    /// Only the label part, against a map of labels.
    pub fn matches_labels(&self, labels: &Value) -> bool {
        !self.nothing && self.labels.iter().all(|r| r.matches(labels.get(&r.key).and_then(Value::as_str)))
    }

    /// The value a field is required to have, if any: what authorisation of single objects needs.
    pub fn required_field(&self, path: &str) -> Option<&str> {
        self.fields.iter().find(|t| t.equal && t.path == path).map(|t| t.value.as_str())
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.labels.is_empty() && self.fields.is_empty()
    }
}

impl Requirement {
    fn matches(&self, label: Option<&str>) -> bool {
        match (&self.test, label) {
            (Test::Exists, label) => label.is_some(),
            (Test::Absent, label) => label.is_none(),
            (Test::In(values), Some(label)) => values.iter().any(|v| v == label),
            (Test::NotIn(values), Some(label)) => values.iter().all(|v| v != label),
            (Test::NotIn(_), None) => true,
            (Test::Greater(limit), Some(label)) => label.parse::<i64>().is_ok_and(|n| n > *limit),
            (Test::Less(limit), Some(label)) => label.parse::<i64>().is_ok_and(|n| n < *limit),
            (Test::In(_) | Test::Greater(_) | Test::Less(_), None) => false,
        }
    }
}

/// The text a field selector compares with.
fn field(object: &Value, path: &str) -> String {
    if path == "source" {
        // Events: the old field, else the new one.
        let component = object["source"]["component"].as_str().unwrap_or_default();
        let reporting = object["reportingComponent"].as_str().unwrap_or_default();
        return if component.is_empty() { reporting } else { component }.to_owned();
    }
    let path = match path.strip_prefix("regarding.") {
        Some(rest) => format!("/involvedObject/{}", rest.replace('.', "/")),
        None => format!("/{}", path.replace('.', "/")),
    };
    match object.pointer(&path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ if path == "/spec/unschedulable" || path == "/spec/hostNetwork" => "false".to_owned(),
        _ => String::new(),
    }
}

fn selectable(kind: &Kind, path: &str) -> bool {
    let own: &[&str] = match (kind.group, kind.kind) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        ("", "Node") => &["spec.unschedulable"],
        ("", "Namespace") => &["status.phase"],
        ("", "Secret") => &["type"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("apps", "ReplicaSet") => &["status.replicas"],
        (_, "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        _ => &[],
    };
    path == "metadata.name" || (kind.namespaced && path == "metadata.namespace") || own.contains(&path)
}

fn parse_fields(text: &str) -> Result<Vec<FieldTest>, ApiStatus> {
    let mut tests = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (path, value, equal) = if let Some((path, value)) = part.split_once("!=") {
            (path, value, false)
        } else if let Some((path, value)) = part.split_once("==") {
            (path, value, true)
        } else if let Some((path, value)) = part.split_once('=') {
            (path, value, true)
        } else {
            return Err(ApiStatus::bad_request(format!(
                "unable to parse field selector: invalid selector: '{part}'; can't understand '{part}'"
            )));
        };
        tests.push(FieldTest { path: path.to_owned(), value: value.replace('\\', ""), equal });
    }
    Ok(tests)
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, ApiStatus> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    split_outside_parentheses(text).into_iter().map(parse_requirement).collect()
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(str::trim).collect()
}

fn parse_requirement(part: &str) -> Result<Requirement, ApiStatus> {
    if part.is_empty() {
        return Err(ApiStatus::bad_request("unable to parse requirement: found ',', expected: !, identifier, or 'end of string'"));
    }
    let bad = |why: &str| ApiStatus::bad_request(format!("unable to parse requirement: {why}: \"{part}\""));
    let checked = |key: &str, test: Test| {
        let key = key.trim();
        if names::is_key(key) { Ok(Requirement { key: key.to_owned(), test }) } else { Err(bad("invalid label key")) }
    };
    let one = |value: &str| {
        let value = value.trim();
        if value.contains(['=', '!', '<', '>', ' ']) {
            Err(bad("found an operator where a value is expected"))
        } else {
            Ok(value.to_owned())
        }
    };
    if let Some(open) = part.find('(') {
        let values = part[open + 1..].strip_suffix(')').ok_or_else(|| bad("missing ')'"))?;
        let values: Vec<String> = values.split(',').map(|v| v.trim().to_owned()).collect();
        let head = part[..open].trim();
        return if let Some(key) = head.strip_suffix(" notin") {
            checked(key, Test::NotIn(values))
        } else if let Some(key) = head.strip_suffix(" in") {
            checked(key, Test::In(values))
        } else {
            Err(bad("expected in or notin before '('"))
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return checked(key, Test::NotIn(vec![one(value)?]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return checked(key, Test::In(vec![one(value)?]));
    }
    for (sign, greater) in [('>', true), ('<', false)] {
        if let Some((key, limit)) = part.split_once(sign) {
            let limit = limit.trim().parse().map_err(|_| bad("for 'Gt', 'Lt' operators, the value must be an integer"))?;
            return checked(key, if greater { Test::Greater(limit) } else { Test::Less(limit) });
        }
    }
    match part.strip_prefix('!') {
        Some(key) => checked(key, Test::Absent),
        None => checked(part, Test::Exists),
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind;
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors_select_as_the_api_does() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front", "n": "5"}}});
        let rows = [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=api", false),
            ("app!=api", true),
            ("other!=x", true),
            ("app in (api, web)", true),
            ("app notin (api,web)", false),
            ("other notin (api)", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("app in (web),tier=front,!other", true),
            ("n>4", true),
            ("n<4", false),
        ];
        for (text, expected) in rows {
            let selectors = Selectors::parse(&kind::POD, text, "").unwrap();
            assert_eq!(selectors.matches(&object), expected, "{text}");
        }
        for bad in ["app in (web", "a b=c", "app x (y)", "=v", ",", "a,,b", "a,", "a=b=c", "A/B/C", "!", "a>x"] {
            assert_eq!(Selectors::parse(&kind::POD, bad, "").unwrap_err().code, 400, "{bad}");
        }
    }

    #[test]
    fn field_selectors_know_their_kind() {
        let pod = json!({"metadata": {"name": "a", "namespace": "d"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
        let rows = [
            ("metadata.name=a", true),
            ("metadata.name!=a", false),
            ("spec.nodeName=n1,status.phase=Running", true),
            ("spec.nodeName=", false),
            ("spec.nodeName!=,status.phase!=Failed", true),
        ];
        for (text, expected) in rows {
            assert_eq!(Selectors::parse(&kind::POD, "", text).unwrap().matches(&pod), expected, "{text}");
        }
        let refused = Selectors::parse(&kind::POD, "", "spec.foo=1").unwrap_err();
        assert_eq!(refused.code, 400);
        // kubectl puts what was asked for before it.
        assert_eq!(refused.message, "field label not supported: spec.foo");
    }

    #[test]
    fn label_selector_objects() {
        let labels = json!({"app": "web"});
        let all = Selectors::from_label_selector(&json!({}));
        assert!(all.matches_labels(&labels));
        assert!(!Selectors::from_label_selector(&Value::Null).matches_labels(&labels));
        let expressions = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]});
        assert!(Selectors::from_label_selector(&expressions).matches_labels(&labels));
    }
}
