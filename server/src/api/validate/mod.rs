//! Validation: which fields of an object are wrong, in the API server's words (422). Pure.
//!
//! Source: Kubernetes `pkg/apis/{core,apps,discovery,coordination}/validation`. What is not checked here is taken as
//! it comes; what is checked is refused as the real server would refuse it.

mod kinds;
pub(super) mod names;
mod pod;

use serde_json::Value;

use super::kind::Kind;
use super::meta;
use super::status::{ApiStatus, Cause};

/// The wrong fields found so far.
#[derive(Debug, Default)]
struct Wrong(Vec<Cause>);

impl Wrong {
    fn add(&mut self, reason: &str, field: &str, message: String) {
        self.0.push(Cause { reason: reason.to_owned(), message, field: field.to_owned() });
    }

    fn required(&mut self, field: &str, detail: &str) {
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        self.add("FieldValueRequired", field, format!("Required value{detail}"));
    }

    fn invalid(&mut self, field: &str, value: &Value, detail: &str) {
        self.add("FieldValueInvalid", field, format!("Invalid value: {value}: {detail}"));
    }

    fn duplicate(&mut self, field: &str, value: &Value) {
        self.add("FieldValueDuplicate", field, format!("Duplicate value: {value}"));
    }

    fn not_found(&mut self, field: &str, value: &Value) {
        self.add("FieldValueNotFound", field, format!("Not found: {value}"));
    }

    fn forbidden(&mut self, field: &str, detail: &str) {
        self.add("FieldValueForbidden", field, format!("Forbidden: {detail}"));
    }

    /// One of `supported`, when it is there at all.
    fn supported(&mut self, field: &str, value: &Value, supported: &[&str]) {
        if value.is_null() || value.as_str().is_some_and(|v| supported.contains(&v)) {
            return;
        }
        let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", list.join(", "));
        self.add("FieldValueNotSupported", field, message);
    }

    fn not_negative(&mut self, field: &str, value: &Value) {
        if value.as_i64().is_some_and(|n| n < 0) {
            self.invalid(field, value, "must be greater than or equal to 0");
        }
    }

    fn port(&mut self, field: &str, value: &Value) {
        if !value.as_i64().is_some_and(|p| (1..=65535).contains(&p)) {
            self.invalid(field, value, "must be between 1 and 65535, inclusive");
        }
    }

    fn immutable(&mut self, field: &str, old: &Value, new: &Value) {
        if old != new {
            self.invalid(field, new, "field is immutable");
        }
    }
}

/// The items of a list, none when it is absent.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Checks a complete object before it is created.
pub(super) fn create(kind: &Kind, object: &Value) -> Result<(), ApiStatus> {
    let mut wrong = Wrong::default();
    names::metadata(kind, object, &mut wrong);
    kinds::object(kind, object, &mut wrong);
    finish(kind, object, wrong)
}

/// Checks a change of everything but status.
pub(super) fn update(kind: &Kind, old: &Value, new: &Value) -> Result<(), ApiStatus> {
    let mut wrong = Wrong::default();
    names::metadata(kind, new, &mut wrong);
    kinds::change(kind, old, new, &mut wrong);
    // What was let in once does not keep an object from being changed elsewhere.
    if wrong.0.is_empty() && old["spec"] != new["spec"] || old["data"] != new["data"] {
        kinds::object(kind, new, &mut wrong);
    }
    finish(kind, new, wrong)
}

fn finish(kind: &Kind, object: &Value, wrong: Wrong) -> Result<(), ApiStatus> {
    if wrong.0.is_empty() {
        return Ok(());
    }
    let name = match meta::name(object) {
        "" => meta::get(object, "generateName"),
        name => name,
    };
    Err(ApiStatus::invalid(kind, name, wrong.0))
}

#[cfg(test)]
mod tests {
    use super::super::{defaults, kind};
    use super::*;
    use serde_json::json;

    fn pod(spec: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "a"}, "spec": spec});
        defaults::apply(&kind::POD, &mut pod);
        pod
    }

    fn deployment() -> Value {
        let mut object = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
        defaults::apply(&kind::DEPLOYMENT, &mut object);
        object
    }

    fn causes(kind: &Kind, object: &Value) -> String {
        match create(kind, object) {
            Ok(()) => String::new(),
            Err(status) => {
                assert_eq!((status.code, status.reason), (422, "Invalid"));
                let causes = status.details.unwrap().causes;
                causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect::<Vec<_>>().join("; ")
            }
        }
    }

    #[test]
    fn pods_are_refused_in_the_words_of_the_real_server() {
        let rows = [
            (json!({"containers": [{"name": "c", "image": "x"}]}), ""),
            (json!({}), "spec.containers: Required value"),
            (json!({"containers": [{"image": "x"}]}), "spec.containers[0].name: Required value"),
            (json!({"containers": [{"name": "c"}]}), "spec.containers[0].image: Required value"),
            (
                json!({"containers": [{"name": "c", "image": "x"}, {"name": "c", "image": "x"}]}),
                "spec.containers[1].name: Duplicate value: \"c\"",
            ),
            (
                json!({"containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 70000}]}]}),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"containers": [{"name": "c", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}]}),
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ),
            (
                json!({"restartPolicy": "Sometimes", "containers": [{"name": "c", "image": "x"}]}),
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (
                json!({"containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}),
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                json!({"containers": [{"name": "c", "image": "x", "livenessProbe": {}}]}),
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
        ];
        for (spec, expected) in rows {
            assert_eq!(causes(&kind::POD, &pod(spec.clone())), expected, "{spec}");
        }
    }

    #[test]
    fn deployments_need_a_selector_that_fits() {
        assert_eq!(causes(&kind::DEPLOYMENT, &deployment()), "");
        let mut other = deployment();
        other["spec"]["selector"]["matchLabels"]["app"] = json!("b");
        assert_eq!(
            causes(&kind::DEPLOYMENT, &other),
            "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`"
        );
        let mut never = deployment();
        never["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        assert!(causes(&kind::DEPLOYMENT, &never).starts_with("spec.template.spec.restartPolicy: Unsupported value"));
        let mut negative = deployment();
        negative["spec"]["replicas"] = json!(-1);
        assert!(causes(&kind::DEPLOYMENT, &negative).ends_with("must be greater than or equal to 0"));
        assert!(update(&kind::DEPLOYMENT, &deployment(), &other).unwrap_err().message.contains("field is immutable"));
    }

    #[test]
    fn names_labels_and_settings_of_others() {
        let named = |name: &str| json!({"metadata": {"name": name}});
        assert!(
            causes(&kind::CONFIG_MAP, &named("A_b")).starts_with("metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain")
        );
        assert!(causes(&kind::NAMESPACE, &named("a.b")).contains("a lowercase RFC 1123 label"));
        assert_eq!(causes(&kind::CONFIG_MAP, &named("a.b")), "");
        let label = json!({"metadata": {"name": "a", "labels": {"x": "b c"}}});
        assert!(causes(&kind::CONFIG_MAP, &label).starts_with("metadata.labels: Invalid value: \"b c\": a valid label must be"));
        let service = json!({"metadata": {"name": "s"}, "spec": {"type": "ClusterIP"}});
        assert_eq!(causes(&kind::SERVICE, &service), "spec.ports: Required value");
        let old = json!({"metadata": {"name": "n"}, "spec": {"providerID": "a"}});
        let new = json!({"metadata": {"name": "n"}, "spec": {"providerID": "b"}});
        assert_eq!(update(&kind::NODE, &old, &new).unwrap_err().code, 422);
    }

    #[test]
    fn a_running_pod_changes_its_image_only() {
        let old = pod(json!({"containers": [{"name": "c", "image": "x"}]}));
        let mut image = old.clone();
        image["spec"]["containers"][0]["image"] = json!("y");
        assert!(update(&kind::POD, &old, &image).is_ok());
        let mut other = old.clone();
        other["spec"]["hostNetwork"] = json!(true);
        assert_eq!(update(&kind::POD, &old, &other).unwrap_err().code, 422);
    }

    #[test]
    fn secrets_of_a_known_type_have_its_keys() {
        let secret = |ty: &str, data: Value| causes(&kind::SECRET, &json!({"metadata": {"name": "s"}, "type": ty, "data": data}));
        let rows = [
            ("Opaque", json!({}), ""),
            ("example.com/own", json!({}), ""),
            ("kubernetes.io/tls", json!({"tls.crt": "YQ==", "tls.key": "YQ=="}), ""),
            ("kubernetes.io/tls", json!({"a": "Yg=="}), "data[tls.crt]: Required value; data[tls.key]: Required value"),
            ("kubernetes.io/basic-auth", json!({"password": "YQ=="}), ""),
            ("kubernetes.io/basic-auth", json!({}), "data[username]: Required value; data[password]: Required value"),
            ("kubernetes.io/ssh-auth", json!({}), "data[ssh-privatekey]: Required value"),
            ("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "e30="}), ""),
            ("kubernetes.io/dockerconfigjson", json!({}), "data[.dockerconfigjson]: Required value"),
        ];
        for (ty, data, expected) in rows {
            assert_eq!(secret(ty, data), expected, "{ty}");
        }
        let broken = secret("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "e3s="}));
        assert!(broken.starts_with("data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": "), "{broken}");
    }
}
