//! One key's value from the layers: its text, its type, and the line that says where it is wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use super::Problems;
use super::layers::Layers;

pub(super) struct Resolver<'a> {
    pub(super) layers: &'a Layers,
    pub(super) args: BTreeMap<String, String>,
    pub(super) args_place: String,
    pub(super) problems: Problems,
}

impl Resolver<'_> {
    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.layers.given.get(key).and_then(|given| given.values.last().cloned())
    }

    /// Values of a list key; comma separated ones are split, as K3s does for addresses and names.
    pub(super) fn list(&self, key: &str) -> Vec<String> {
        let given = self.layers.given.get(key).map(|given| given.values.as_slice()).unwrap_or_default();
        given.iter().flat_map(|value| value.split(',')).map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
    }

    pub(super) fn arg(&self, name: &str) -> Option<String> {
        self.args.get(name).cloned()
    }

    /// Where the value stands: `FILE: key`, or the flag alone.
    pub(super) fn label(&self, key: &str) -> String {
        match self.layers.given.get(key) {
            Some(given) if given.place.starts_with("--") => given.place.clone(),
            Some(given) => format!("{}: {key}", given.place),
            None => format!("default of {key}"),
        }
    }

    pub(super) fn bad(&mut self, key: &str, value: &str, what: &str) {
        let label = self.label(key);
        self.problems.push(format!("{label}: {value} {what}"));
    }

    pub(super) fn bad_arg(&mut self, name: &str, value: &str, what: &str) {
        let line = format!("{} {name}={value}: {what}", self.args_place);
        self.problems.push(line);
    }

    pub(super) fn parsed<T: FromStr>(&mut self, key: &str, kind: &str) -> Option<T> {
        let text = self.text(key).filter(|text| !text.is_empty())?;
        let value = text.parse().ok();
        if value.is_none() {
            self.bad(key, &text, &format!("is not {kind}"));
        }
        value
    }

    pub(super) fn arg_parsed<T: FromStr>(&mut self, name: &str, kind: &str) -> Option<T> {
        let text = self.arg(name)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.bad_arg(name, &text, &format!("is not {kind}"));
        }
        value
    }

    pub(super) fn directory(&mut self, key: &str, default: &str) -> PathBuf {
        let text = self.text(key).filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned());
        if !text.starts_with('/') {
            self.bad(key, &text, "is not an absolute path");
        }
        PathBuf::from(text)
    }

    pub(super) fn arg_path(&mut self, name: &str, default: &str) -> PathBuf {
        let text = self.arg(name).unwrap_or_else(|| default.to_owned());
        if !text.starts_with('/') {
            self.bad_arg(name, &text, "is not an absolute path");
        }
        PathBuf::from(text)
    }
}
