//! From what a client sent to what is stored: metadata, status separation, defaults, admission, validation.
//! Reads the registry, never writes.

use serde_json::{Value, json};

use super::kind::{self, Kind};
use super::registry::{Registry, Subresource};
use super::status::{ApiStatus, Cause};
use super::{admission, defaults, meta, validate};
use crate::auth::Actor;

/// What the server alone sets.
const OWNED_METADATA: &[&str] = &["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];

/// The object as it will be created.
pub(super) fn create(
    registry: &Registry,
    kind: &'static Kind,
    namespace: Option<&str>,
    mut object: Value,
    actor: &Actor,
) -> Result<Value, ApiStatus> {
    if !object.is_object() {
        return Err(ApiStatus::bad_request("the body is not an object"));
    }
    if !meta::get(&object, "resourceVersion").is_empty() {
        return Err(ApiStatus::bad_request("resourceVersion should not be set on objects to be created"));
    }
    meta::drop_nulls(&mut object);
    set_type(kind, &mut object);
    set_namespace(kind, namespace, &mut object)?;
    let metadata = meta::metadata_mut(&mut object);
    for field in OWNED_METADATA.iter().chain(&["managedFields", "selfLink", "resourceVersion"]) {
        metadata.remove(*field);
    }
    let prefix = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default().to_owned();
    if metadata.get("name").and_then(Value::as_str).is_none_or(str::is_empty) && !prefix.is_empty() {
        let prefix: String = prefix.chars().take(58).collect();
        metadata.insert("name".to_owned(), json!(format!("{prefix}{}", meta::random_suffix(5))));
    }
    metadata.insert("uid".to_owned(), json!(meta::new_uid()));
    metadata.insert("creationTimestamp".to_owned(), json!(meta::now()));
    if kind.generation {
        metadata.insert("generation".to_owned(), json!(1));
    }
    if let Some(namespace) = namespace {
        check_namespace(registry, kind, namespace, &object)?;
    }
    // Nodes register with their status; of all others it is the server's.
    if kind.status && kind != &kind::NODE {
        if let Some(object) = object.as_object_mut() {
            object.remove("status");
        }
    }
    defaults::apply(kind, &mut object);
    match (kind.group, kind.kind) {
        ("", "Namespace") => object["spec"]["finalizers"] = json!(["kubernetes"]),
        ("apps", _) => object["status"] = json!({}),
        ("", "Pod") if object["spec"]["serviceAccountName"].is_null() && actor.node().is_none() => {
            object["spec"]["serviceAccountName"] = json!("default");
            object["spec"]["serviceAccount"] = json!("default");
        }
        _ => {}
    }
    if kind == &kind::REPLICA_SET {
        object["status"]["replicas"] = json!(0);
    }
    let account = (kind == &kind::POD)
        .then(|| {
            let name = object["spec"]["serviceAccountName"].as_str().unwrap_or("default");
            registry.get(&kind::SERVICE_ACCOUNT, namespace, name).ok()
        })
        .flatten();
    validate::create(kind, &object)?;
    admission::create(kind, &mut object, actor, account.as_deref())?;
    // Looking into an absent list for writing leaves a null there.
    meta::drop_nulls(&mut object);
    Ok(object)
}

fn set_type(kind: &Kind, object: &mut Value) {
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.kind);
}

fn set_namespace(kind: &Kind, namespace: Option<&str>, object: &mut Value) -> Result<(), ApiStatus> {
    let given = meta::namespace(object).to_owned();
    match namespace {
        Some(namespace) if kind.namespaced => {
            if !given.is_empty() && given != namespace {
                return Err(ApiStatus::bad_request(format!(
                    "the namespace of the provided object does not match the namespace sent on the request ({namespace})"
                )));
            }
            meta::metadata_mut(object).insert("namespace".to_owned(), json!(namespace));
        }
        _ => {
            meta::metadata_mut(object).remove("namespace");
        }
    }
    Ok(())
}

fn check_namespace(registry: &Registry, kind: &Kind, namespace: &str, object: &Value) -> Result<(), ApiStatus> {
    let found = registry.get(&kind::NAMESPACE, None, namespace)?;
    if meta::is_deleting(&found) && kind != &kind::EVENT {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = ApiStatus::forbidden(kind.group, kind.plural, meta::name(object), &why);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".to_owned(),
            });
        }
        return Err(status);
    }
    Ok(())
}

/// The object as it will be stored, or `None` when nothing changes.
pub(super) fn update(
    kind: &'static Kind,
    namespace: Option<&str>,
    name: &str,
    current: &Value,
    mut next: Value,
    sub: Subresource,
    actor: &Actor,
) -> Result<Option<Value>, ApiStatus> {
    if !next.is_object() {
        return Err(ApiStatus::bad_request("the body is not an object"));
    }
    meta::drop_nulls(&mut next);
    set_type(kind, &mut next);
    set_namespace(kind, namespace, &mut next)?;
    let given = meta::name(&next);
    if given != name {
        return Err(ApiStatus::bad_request(format!("the name of the object ({given}) does not match the name on the URL ({name})")));
    }
    let uid = meta::uid(&next);
    if !uid.is_empty() && uid != meta::uid(current) {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(current));
        return Err(ApiStatus::conflict_because(kind, name, &why));
    }
    keep_metadata(current, &mut next);
    separate_status(kind, current, &mut next, sub);
    defaults::apply(kind, &mut next);
    if sub == Subresource::Main {
        validate::update(kind, current, &next)?;
    }
    admission::update(kind, current, &next, sub, actor)?;
    if kind.generation && sub == Subresource::Main && changes_generation(kind, current, &next) {
        let generation = current["metadata"]["generation"].as_i64().unwrap_or(0);
        next["metadata"]["generation"] = json!(generation + 1);
    }
    next["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
    meta::drop_nulls(&mut next);
    Ok((next != *current).then_some(next))
}

/// Clients do not write `managedFields`; only applying does.
pub(super) fn keep_managed(current: &Value, next: &mut Value) {
    let metadata = meta::metadata_mut(next);
    match current["metadata"].get("managedFields") {
        Some(managed) => metadata.insert("managedFields".to_owned(), managed.clone()),
        None => metadata.remove("managedFields"),
    };
}

fn keep_metadata(current: &Value, next: &mut Value) {
    let metadata = meta::metadata_mut(next);
    metadata.remove("selfLink");
    for field in OWNED_METADATA {
        match current["metadata"].get(*field) {
            Some(value) => metadata.insert((*field).to_owned(), value.clone()),
            None => metadata.remove(*field),
        };
    }
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = |v: &Value| v.as_object().is_some_and(serde_json::Map::is_empty) || v.as_array().is_some_and(Vec::is_empty);
        if metadata.get(field).is_some_and(empty) {
            metadata.remove(field);
        }
    }
}

/// Puts back what the endpoint does not let through.
fn separate_status(kind: &Kind, current: &Value, next: &mut Value, sub: Subresource) {
    match sub {
        Subresource::Main if kind.status => restore(current, next, "status"),
        Subresource::Main => {}
        Subresource::Status => {
            let others: Vec<String> = next
                .as_object()
                .into_iter()
                .chain(current.as_object())
                .flat_map(|o| o.keys())
                .filter(|k| !["status", "metadata", "kind", "apiVersion"].contains(&k.as_str()))
                .cloned()
                .collect();
            for field in others {
                restore(current, next, &field);
            }
            restore(&current["metadata"], &mut next["metadata"], "ownerReferences");
            if kind.group == "apps" {
                restore(&current["metadata"], &mut next["metadata"], "labels");
            }
        }
    }
}

fn restore(current: &Value, next: &mut Value, field: &str) {
    let Some(next) = next.as_object_mut() else {
        return;
    };
    match current.get(field) {
        Some(value) => next.insert(field.to_owned(), value.clone()),
        None => next.remove(field),
    };
}

fn changes_generation(kind: &Kind, current: &Value, next: &Value) -> bool {
    let spec = |v: &Value| {
        let fields = v.as_object().into_iter().flatten();
        let kept = fields.filter(|(k, _)| !["metadata", "status", "kind", "apiVersion"].contains(&k.as_str()));
        kept.map(|(k, v)| (k.clone(), v.clone())).collect::<serde_json::Map<_, _>>()
    };
    spec(current) != spec(next) || (kind == &kind::DEPLOYMENT && current["metadata"]["annotations"] != next["metadata"]["annotations"])
}

/// The pod on its node, with the condition that says so.
pub(super) fn bind(kind: &Kind, name: &str, current: &Value, node: &str) -> Result<Value, ApiStatus> {
    if meta::is_deleting(current) {
        return Err(ApiStatus::conflict_because(kind, name, &format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    if let Some(already) = current["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
        let why = format!("pod {name} is already assigned to node \"{already}\"");
        return Err(ApiStatus::conflict_because(kind, name, &why));
    }
    let mut next = current.clone();
    next["spec"]["nodeName"] = json!(node);
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastTransitionTime": meta::now(),
        "observedGeneration": current["metadata"]["generation"],
    });
    let status = meta::child_mut(&mut next, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|c| c["type"] != "PodScheduled");
        list.push(condition);
    }
    Ok(next)
}
