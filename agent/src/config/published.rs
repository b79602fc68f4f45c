//! The command line and environment as K3s publishes them on the node: secrets masked.

use std::collections::BTreeMap;

use super::Input;
use super::layers::Layers;

const MASK: &str = "********";

/// K3s publishes its command line with the files expanded; `--key value` as two elements, secrets masked.
pub(super) fn public_args(layers: &Layers) -> Vec<String> {
    let mut args = vec!["agent".to_owned()];
    for key in &layers.order {
        let Some(given) = layers.given.get(key).filter(|given| !given.place.starts_with("environment")) else { continue };
        for value in &given.values {
            args.push(format!("--{key}"));
            args.push(if is_secret(key) { MASK.to_owned() } else { value.clone() });
        }
    }
    args
}

fn is_secret(key: &str) -> bool {
    matches!(key, "token" | "vpn-auth")
}

pub(super) fn public_env(input: &Input<'_>) -> BTreeMap<String, String> {
    let plain = ["K3S_URL", "K3S_TOKEN_FILE", "K3S_NODE_NAME", "K3S_DATA_DIR", "K3S_RESOLV_CONF", "K3S_DEBUG", "K3S_CONFIG_FILE"];
    let secret = ["K3S_TOKEN", "K3S_AGENT_TOKEN", "K3S_CLUSTER_SECRET", "K3S_DATASTORE_ENDPOINT", "K3S_VPN_AUTH"];
    let given = |name: &&str| (input.environment)(name).map(|value| ((*name).to_owned(), value));
    let mut env: BTreeMap<String, String> = plain.iter().filter_map(given).collect();
    env.extend(secret.iter().filter_map(given).map(|(name, _)| (name, MASK.to_owned())));
    env
}
