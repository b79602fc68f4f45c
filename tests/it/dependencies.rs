//! The bans of deny.toml, checked against Cargo.lock, so that they hold where cargo-deny is not installed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Package name to the versions locked.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    let text = std::fs::read_to_string(path).unwrap();
    let mut packages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        let value = |key: &str| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"');
        if let Some(found) = value("name") {
            name = found.to_owned();
        } else if let Some(version) = value("version") {
            packages.entry(name.clone()).or_default().insert(version.to_owned());
        } else if let Some(source) = value("source") {
            assert!(source.starts_with("registry+https://github.com/rust-lang/crates.io-index"), "{name} comes from {source}");
        }
    }
    packages
}

/// The entries of `deny` in deny.toml: the crate, and whether only a second version of it is denied.
fn denied() -> Vec<(String, bool)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deny.toml");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .filter_map(|line| {
            let rest = line.trim().strip_prefix("{ crate = \"")?;
            let (name, rest) = rest.split_once('"')?;
            Some((name.to_owned(), rest.contains("deny-multiple-versions = true")))
        })
        .collect()
}

#[test]
fn nothing_banned_is_locked_and_no_stack_is_there_twice() {
    let (packages, denied) = (locked(), denied());
    assert!(packages.len() > 100, "Cargo.lock was read: {} packages", packages.len());
    for needed in ["aws-lc-rs", "openssl-sys", "rustls-pemfile", "serde_yml", "native-tls"] {
        assert!(denied.contains(&(needed.to_owned(), false)), "deny.toml no longer bans {needed}");
    }
    for stack in ["tonic", "prost", "hyper", "rustls", "ring"] {
        assert!(denied.contains(&(stack.to_owned(), true)), "deny.toml allows two versions of {stack}");
    }
    for (name, only_twice) in denied {
        let versions = packages.get(&name).cloned().unwrap_or_default();
        let most = usize::from(only_twice);
        assert!(versions.len() <= most, "{name} is locked as {versions:?}; deny.toml allows {most} of it");
    }
}
