//! Files of ConfigMap, Secret, projected and downward API volumes, gathered from the server.

use std::collections::BTreeMap;

use crate::api::core::TokenRequest;
use crate::api::pod::{ConfigMapVolume, DownwardApiVolume, KeyToPath, Pod, ServiceAccountTokenProjection, Volume};
use crate::pod::fields::{self, Addresses};
use crate::pod::{Deps, NodeFacts, env};

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub content: Vec<u8>,
    pub mode: u32,
    /// A user to give it to, for tokens.
    pub owner: Option<u32>,
}

/// By path relative to the volume.
pub(crate) type Files = BTreeMap<String, File>;

/// Mode of files whose volume names none.
const DEFAULT_MODE: u32 = 0o644;

/// What files are gathered for.
pub(super) struct Ask<'a> {
    pub pod: &'a Pod,
    pub node: &'a NodeFacts,
    /// What downward API files may ask for.
    pub host_ips: &'a [String],
    pub pod_ips: &'a [String],
    /// Service account tokens, too.
    pub tokens: bool,
}

/// Files of a volume; None for kinds that have none of their own.
pub(super) async fn gather(deps: &Deps, volume: &Volume, ask: &Ask<'_>) -> Result<Option<Files>, String> {
    let (pod, node) = (ask.pod, ask.node);
    let mut files = Files::new();
    let addresses = Addresses { pod_ips: ask.pod_ips, host_ips: ask.host_ips };
    if let Some(source) = &volume.config_map {
        config_map(deps, pod, source, source.default_mode.unwrap_or(DEFAULT_MODE), &mut files).await?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        secret(deps, pod, &source.secret_name, &source.items, source.optional, mode, &mut files).await?;
    } else if let Some(source) = &volume.downward_api {
        downward(pod, source, source.default_mode.unwrap_or(DEFAULT_MODE), node, addresses, &mut files)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in &projected.sources {
            if let Some(source) = &source.config_map {
                config_map(deps, pod, source, mode, &mut files).await?;
            }
            if let Some(source) = &source.secret {
                secret(deps, pod, &source.name, &source.items, source.optional, mode, &mut files).await?;
            }
            if let Some(source) = &source.downward_api {
                downward(pod, source, mode, node, addresses, &mut files)?;
            }
            if let Some(source) = source.service_account_token.as_ref().filter(|_| ask.tokens) {
                let file = token(deps, pod, source, mode).await?;
                files.insert(source.path.clone(), file);
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

async fn config_map(deps: &Deps, pod: &Pod, source: &ConfigMapVolume, mode: u32, files: &mut Files) -> Result<(), String> {
    let found = deps.objects.config_map(&pod.metadata.namespace, &source.name).await.map_err(|e| e.event_message())?;
    let Some(found) = found else {
        return if source.optional == Some(true) { Ok(()) } else { Err(format!("configmap \"{}\" not found", source.name)) };
    };
    let mut content: BTreeMap<&str, Vec<u8>> = found.data.iter().map(|(k, v)| (k.as_str(), v.clone().into_bytes())).collect();
    content.extend(found.binary_data.iter().map(|(k, v)| (k.as_str(), env::binary(v).unwrap_or_default())));
    project("config", content, &source.items, mode, source.optional == Some(true), files)
}

async fn secret(
    deps: &Deps,
    pod: &Pod,
    name: &str,
    items: &[KeyToPath],
    optional: Option<bool>,
    mode: u32,
    files: &mut Files,
) -> Result<(), String> {
    let found = deps.objects.secret(&pod.metadata.namespace, name).await.map_err(|e| e.event_message())?;
    let Some(found) = found else {
        return if optional == Some(true) { Ok(()) } else { Err(format!("secret \"{name}\" not found")) };
    };
    let content = found.data.keys().map(|k| (k.as_str(), found.value(k).unwrap_or_default())).collect();
    project("secret", content, items, mode, optional == Some(true), files)
}

/// All keys, or the chosen ones at their paths.
fn project(
    kind: &str,
    mut content: BTreeMap<&str, Vec<u8>>,
    items: &[KeyToPath],
    mode: u32,
    optional: bool,
    files: &mut Files,
) -> Result<(), String> {
    if items.is_empty() {
        files.extend(content.into_iter().map(|(key, content)| (key.to_owned(), File { content, mode, owner: None })));
        return Ok(());
    }
    for item in items {
        match content.get_mut(item.key.as_str()) {
            Some(content) => {
                files.insert(item.path.clone(), File { content: content.clone(), mode: item.mode.unwrap_or(mode), owner: None });
            }
            None if optional => {}
            None => return Err(format!("references non-existent {kind} key: {}", item.key)),
        }
    }
    Ok(())
}

fn downward(
    pod: &Pod,
    source: &DownwardApiVolume,
    mode: u32,
    node: &NodeFacts,
    addresses: Addresses<'_>,
    files: &mut Files,
) -> Result<(), String> {
    for item in &source.items {
        let text = if let Some(selector) = &item.field_ref {
            fields::field(pod, selector, addresses)?
        } else if let Some(selector) = &item.resource_field_ref {
            let container = pod
                .all_containers()
                .find(|c| c.name == selector.container_name)
                .ok_or_else(|| format!("container {} not found", selector.container_name))?;
            fields::resource(container, selector, node)?
        } else {
            continue;
        };
        files.insert(item.path.clone(), File { content: text.into_bytes(), mode: item.mode.unwrap_or(mode), owner: None });
    }
    Ok(())
}

async fn token(deps: &Deps, pod: &Pod, source: &ServiceAccountTokenProjection, mode: u32) -> Result<File, String> {
    let request = TokenRequest {
        audiences: if source.audience.is_empty() { Vec::new() } else { vec![source.audience.clone()] },
        expiration_seconds: source.expiration_seconds.unwrap_or(3600),
        pod_name: pod.metadata.name.clone(),
        pod_uid: pod.metadata.uid.clone(),
    };
    let account = if pod.spec.service_account_name.is_empty() { "default" } else { &pod.spec.service_account_name };
    let token = deps
        .objects
        .service_account_token(&pod.metadata.namespace, account, &request)
        .await
        .map_err(|e| format!("failed to fetch token: {}", e.event_message()))?;
    let owner = common_user(pod).and_then(|uid| u32::try_from(uid).ok());
    let group = pod.spec.security_context.as_ref().and_then(|c| c.fs_group);
    let mode = if owner.is_some() || group.is_some() { 0o600 } else { mode };
    Ok(File { content: token.token.into_bytes(), mode, owner: if group.is_some() { None } else { owner } })
}

/// The user all containers run as, when the spec names one and the same for all.
fn common_user(pod: &Pod) -> Option<i64> {
    let of_pod = pod.spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = pod.all_containers().map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_become_files_as_chosen() {
        let content = || BTreeMap::from([("a", b"1".to_vec()), ("b", b"2".to_vec())]);
        let item = |key: &str, mode| KeyToPath { key: key.to_owned(), path: format!("deep/{key}"), mode };
        let mut all = Files::new();
        project("config", content(), &[], 0o644, false, &mut all).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);
        let mut some = Files::new();
        project("config", content(), &[item("b", Some(0o400))], 0o644, false, &mut some).unwrap();
        assert_eq!(some, Files::from([("deep/b".to_owned(), File { content: b"2".to_vec(), mode: 0o400, owner: None })]));
        let missing = project("config", content(), &[item("c", None)], 0o644, false, &mut Files::new());
        assert_eq!(missing.unwrap_err(), "references non-existent config key: c");
        let missing = project("secret", content(), &[item("c", None)], 0o644, false, &mut Files::new());
        assert_eq!(missing.unwrap_err(), "references non-existent secret key: c");
        assert!(project("config", content(), &[item("c", None)], 0o644, true, &mut Files::new()).is_ok());
    }

    #[test]
    fn a_token_belongs_to_the_one_user_of_the_pod() {
        let user = |spec| common_user(&serde_json::from_value(json!({"spec": spec})).unwrap());
        assert_eq!(user(json!({"containers": [{"name": "a"}]})), None);
        assert_eq!(user(json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "a"}]})), Some(5));
        assert_eq!(
            user(
                json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 6}}]})
            ),
            None
        );
    }
}
