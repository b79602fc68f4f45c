//! The node password: binds a node name to the machine that used it first.
//!
//! Kept as a hash in Secret `kube-system/<node>.node-password.k3s`, owned by the Node once that exists, so that
//! deleting the Node frees the name. K3s hashes with scrypt; the password is 128 random bits made by the agent, so
//! PBKDF2, which ring has, protects it as well. The format is this server's own and never leaves it.

use std::num::NonZeroU32;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::pbkdf2;
use serde_json::{Value, json};

use crate::api::{ApiStatus, Registry, kind};
use crate::auth::Actor;
use crate::pki::{hex, random};

const NAMESPACE: &str = "kube-system";
const ITERATIONS: NonZeroU32 = NonZeroU32::new(20_000).expect("not zero");

/// What became of a node's password.
#[derive(Debug)]
pub enum Verdict {
    /// It matches, or the name was free and is now taken.
    Accepted,
    /// Another machine has this name.
    Mismatch,
    /// The store could not say.
    Unknown(ApiStatus),
}

/// Name of the Secret that holds `node`'s password hash.
pub fn secret_name(node: &str) -> String {
    format!("{node}.node-password.k3s")
}

/// Compares `password` with the one first used for `node`, taking the name when it is free.
pub async fn verify(registry: &Arc<Registry>, node: &str, password: &str) -> Verdict {
    let name = secret_name(node);
    let actor = Actor::system("k3s-supervisor");
    // Twice: two first requests of one node may race, and the loser finds the winner's secret.
    for _ in 0..2 {
        match registry.get(&kind::SECRET, Some(NAMESPACE), &name) {
            Ok(secret) => return compare(&secret, password).await,
            Err(error) if !error.is_not_found() => return Verdict::Unknown(error),
            Err(_) => {}
        }
        let hash = hash(random(), password).await;
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "type": "k3s.cattle.io/node-password",
            "immutable": true,
            "data": { "hash": STANDARD.encode(hash) },
        });
        if let Ok(node) = registry.get(&kind::NODE, None, node) {
            object["metadata"]["ownerReferences"] = json!([owner(&node)]);
        }
        match registry.create(&kind::SECRET, Some(NAMESPACE), object, &actor).await {
            Ok(_) => return Verdict::Accepted,
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Verdict::Unknown(error),
        }
    }
    Verdict::Unknown(ApiStatus::conflict(&kind::SECRET, &name))
}

/// The owner reference that ties a password to its Node.
pub fn owner(node: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "name": node["metadata"]["name"],
        "uid": node["metadata"]["uid"],
    })
}

async fn compare(secret: &Value, password: &str) -> Verdict {
    let stored =
        secret["data"]["hash"].as_str().and_then(|text| STANDARD.decode(text).ok()).and_then(|bytes| String::from_utf8(bytes).ok());
    let Some((salt, stored)) = stored.as_deref().and_then(parse) else {
        return Verdict::Mismatch;
    };
    let password = password.to_owned();
    let matches = tokio::task::spawn_blocking(move || {
        pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &salt, password.as_bytes(), &stored).is_ok()
    })
    .await
    .unwrap_or(false);
    if matches { Verdict::Accepted } else { Verdict::Mismatch }
}

/// `$pbkdf2-sha256:<salt hex>:<iterations>:<base64 of 32 bytes>`
async fn hash(salt: [u8; 16], password: &str) -> String {
    let password = password.to_owned();
    let derived = tokio::task::spawn_blocking(move || {
        let mut out = [0_u8; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &salt, password.as_bytes(), &mut out);
        out
    })
    .await
    .unwrap_or_default();
    format!("$pbkdf2-sha256:{}:{ITERATIONS}:{}", hex(&salt), STANDARD.encode(derived))
}

fn parse(text: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut parts = text.strip_prefix("$pbkdf2-sha256:")?.split(':');
    let salt = parts.next()?;
    let iterations: NonZeroU32 = parts.next()?.parse().ok()?;
    let hash = STANDARD.decode(parts.next()?).ok()?;
    if iterations != ITERATIONS || hash.len() != 32 || salt.len() % 2 != 0 {
        return None;
    }
    let salt = (0..salt.len())
        .step_by(2)
        .map(|i| salt.get(i..i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect::<Option<Vec<u8>>>()?;
    Some((salt, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_first_password_matches() {
        let hash = hash([7; 16], "0123456789abcdef0123456789abcdef").await;
        let secret = json!({ "data": { "hash": STANDARD.encode(hash) } });
        assert!(matches!(compare(&secret, "0123456789abcdef0123456789abcdef").await, Verdict::Accepted));
        assert!(matches!(compare(&secret, "ffffffffffffffffffffffffffffffff").await, Verdict::Mismatch));
        assert!(matches!(compare(&json!({}), "x").await, Verdict::Mismatch));
    }
}
