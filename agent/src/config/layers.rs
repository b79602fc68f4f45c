//! Files, environment and flags, one over the other, as K3s lays them (k3s-agent.md 10.2).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Problems;
use super::keys::{self, Use};

/// Where a value came from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub values: Vec<String>,
    pub place: String,
}

/// Every key that was given, with all its values.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub given: BTreeMap<String, Given>,
    pub sources: Vec<PathBuf>,
    /// Order of first appearance in files, for the published arguments.
    pub order: Vec<String>,
}

/// Environment variables, weakest layer: (variable, key). Later ones win.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("K3S_URL", "server"),
    ("K3S_TOKEN", "token"),
    ("K3S_TOKEN_FILE", "token-file"),
    ("K3S_NODE_NAME", "node-name"),
    ("K3S_DATA_DIR", "data-dir"),
    ("K3S_RESOLV_CONF", "resolv-conf"),
    ("K3S_DEBUG", "debug"),
    ("K3S_LB_SERVER_PORT", "lb-server-port"),
    ("K3S_SELINUX", "selinux"),
    ("K3S_VPN_AUTH", "vpn-auth"),
    ("K3S_VPN_AUTH_FILE", "vpn-auth-file"),
    ("EDGE_URL", "server"),
    ("EDGE_TOKEN", "token"),
    ("EDGE_TOKEN_FILE", "token-file"),
];

impl Layers {
    pub(super) fn environment(&mut self, lookup: &dyn Fn(&str) -> Option<String>) {
        for (variable, key) in ENVIRONMENT {
            if let Some(value) = lookup(variable).filter(|value| !value.is_empty()) {
                self.set(key, vec![value], false, &format!("environment variable {variable}"));
            }
        }
    }

    /// `file`, then `file.d/*.yaml|yml` in name order. A missing file is an error only when it was named.
    pub(super) fn files(&mut self, file: &Path, named: bool, problems: &mut Problems) {
        self.one_file(file, named, problems);
        let mut directory = file.as_os_str().to_owned();
        directory.push(".d");
        let directory = PathBuf::from(directory);
        let Ok(entries) = std::fs::read_dir(&directory) else { return };
        let mut drop_ins: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("yaml") || ext.eq_ignore_ascii_case("yml")))
            .collect();
        drop_ins.sort();
        for path in drop_ins {
            self.one_file(&path, true, problems);
        }
    }

    fn one_file(&mut self, path: &Path, required: bool, problems: &mut Problems) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return,
            Err(error) => return problems.push(format!("{}: {error}", path.display())),
        };
        self.sources.push(path.to_owned());
        self.text(&text, &path.display().to_string(), problems);
    }

    pub(super) fn text(&mut self, text: &str, place: &str, problems: &mut Problems) {
        let document: yaml_serde::Value = match yaml_serde::from_str(text) {
            Ok(document) => document,
            Err(error) => return problems.push(format!("{place}: {error}")),
        };
        let map = match document {
            yaml_serde::Value::Null => return,
            yaml_serde::Value::Mapping(map) => map,
            _ => return problems.push(format!("{place}: is not a list of `key: value` lines")),
        };
        for (key, value) in map {
            let Some(written) = key.as_str() else {
                problems.push(format!("{place}: key {key:?} is not text"));
                continue;
            };
            let (key, append) = written.strip_suffix('+').map_or((written, false), |key| (key, true));
            if !self.known(key, place, problems) {
                continue;
            }
            match values_of(&value) {
                Some(values) => self.set(key, values, append, place),
                None => problems.push(format!("{place}: {key}: has to be a value or a list of values")),
            }
        }
    }

    fn known(&self, key: &str, place: &str, problems: &mut Problems) -> bool {
        if keys::find(keys::KEYS, key).is_some() {
            return true;
        }
        let message = if keys::SERVER_KEYS.contains(&key) {
            format!("{place}: {key}: is a key of `k3s server`, an agent has no use for it; remove it")
        } else {
            match keys::nearest(key, keys::KEYS.iter().map(|(key, _)| *key)) {
                Some(meant) => format!("{place}: unknown key {key}; did you mean {meant}?"),
                None => format!("{place}: unknown key {key}; remove it"),
            }
        };
        problems.push(message);
        false
    }

    /// A value from the command line: replaces scalars, adds to lists.
    pub(super) fn flag(&mut self, key: &str, value: String) {
        let list = keys::find(keys::KEYS, key) == Some(Use::List);
        self.set(key, vec![value], list, &format!("--{key}"));
    }

    fn set(&mut self, key: &str, values: Vec<String>, append: bool, place: &str) {
        if !self.order.iter().any(|known| known == key) {
            self.order.push(key.to_owned());
        }
        match self.given.get_mut(key) {
            Some(given) if append => given.values.extend(values),
            _ => {
                self.given.insert(key.to_owned(), Given { values, place: place.to_owned() });
            }
        }
    }
}

fn values_of(value: &yaml_serde::Value) -> Option<Vec<String>> {
    match value {
        yaml_serde::Value::Sequence(items) => items.iter().map(scalar).collect(),
        other => scalar(other).map(|value| vec![value]),
    }
}

fn scalar(value: &yaml_serde::Value) -> Option<String> {
    match value {
        yaml_serde::Value::Null => Some(String::new()),
        yaml_serde::Value::Bool(yes) => Some(yes.to_string()),
        yaml_serde::Value::Number(number) => Some(number.to_string()),
        yaml_serde::Value::String(text) => Some(text.clone()),
        yaml_serde::Value::Sequence(_) | yaml_serde::Value::Mapping(_) | yaml_serde::Value::Tagged(_) => None,
    }
}
