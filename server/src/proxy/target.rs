//! Which pod, container and node a request means, with the API's own errors where it cannot be said.

use serde_json::Value;

use crate::api::ApiStatus;
use crate::controllers::object;

/// The containers of one list of a pod's spec.
fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    pod["spec"][list].as_array().into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
}

/// The container meant by `wanted`; a pod with one container needs no name.
pub(super) fn container(pod: &Value, wanted: &str) -> Result<String, ApiStatus> {
    let containers = names(pod, "containers");
    let init = names(pod, "initContainers");
    let ephemeral = names(pod, "ephemeralContainers");
    let pod_name = object::name(pod);
    if wanted.is_empty() {
        return match containers.as_slice() {
            [only] => Ok((*only).to_owned()),
            [] => Err(ApiStatus::bad_request(format!("a container name must be specified for pod {pod_name}"))),
            many => {
                let mut message = format!("a container name must be specified for pod {pod_name}, choose one of: [{}]", many.join(" "));
                if !init.is_empty() {
                    message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(ApiStatus::bad_request(message))
            }
        };
    }
    if containers.contains(&wanted) || init.contains(&wanted) || ephemeral.contains(&wanted) {
        Ok(wanted.to_owned())
    } else {
        Err(ApiStatus::bad_request(format!("container {wanted} is not valid for pod {pod_name}")))
    }
}

/// The node a pod is bound to.
pub(super) fn node(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn container_is_found_or_the_error_names_the_choice() {
        let pod = json!({
            "metadata": { "name": "web" },
            "spec": { "containers": [{ "name": "a" }, { "name": "b" }], "initContainers": [{ "name": "i" }] },
        });
        let one = json!({ "metadata": { "name": "web" }, "spec": { "containers": [{ "name": "a" }] } });
        let rows = [
            (&one, "", Ok("a")),
            (&one, "a", Ok("a")),
            (&one, "x", Err("container x is not valid for pod web")),
            (&pod, "i", Ok("i")),
            (&pod, "", Err("a container name must be specified for pod web, choose one of: [a b] or one of the init containers: [i]")),
        ];
        for (pod, wanted, expected) in rows {
            let got = container(pod, wanted).map_err(|error| error.message);
            assert_eq!(got.as_deref().map_err(String::as_str), expected);
        }
    }
}
