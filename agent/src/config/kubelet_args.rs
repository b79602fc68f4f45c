//! `kubelet-arg`: `name=value`, the kubelet's own flags.

use std::collections::BTreeMap;

use super::Problems;
use super::keys::{self, Use};
use super::layers::Given;

/// Splits `--kubelet-arg` values; a later one replaces an earlier one, `name+=value` appends with a comma.
pub(super) fn split(given: Option<&Given>, problems: &mut Problems, warnings: &mut Vec<String>) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
    let Some(given) = given else { return args };
    for written in &given.values {
        let text = written.trim_start_matches('-');
        let (name, value) = text.split_once('=').unwrap_or((text, "true"));
        let (name, append) = name.strip_suffix('+').map_or((name, false), |name| (name, true));
        match keys::find(keys::KUBELET_ARGS, name) {
            Some(Use::Yes | Use::List) => match args.get_mut(name) {
                Some(earlier) if append => {
                    let earlier: &mut String = earlier;
                    earlier.push(',');
                    earlier.push_str(value);
                }
                _ => {
                    args.insert(name.to_owned(), value.to_owned());
                }
            },
            Some(Use::NoEffect(why)) => warnings.push(format!("{}: kubelet-arg {name}: has no effect: {why}", given.place)),
            Some(Use::Refused(effect)) => {
                let harmless = value == "false"
                    || matches!((name, value), ("read-only-port", "0") | ("cpu-manager-policy" | "topology-manager-policy", "none"))
                    || matches!(
                        (name, value),
                        ("memory-manager-policy", "None") | ("authorization-mode", "Webhook") | ("cpu-cfs-quota", "true")
                    )
                    || matches!((name, value), ("enforce-node-allocatable", "pods"));
                if !harmless {
                    problems
                        .push(format!("{}: kubelet-arg {name}={value}: is not supported here; it would {effect}; remove it", given.place));
                }
            }
            None => {
                let meant = keys::nearest(name, keys::KUBELET_ARGS.iter().map(|(key, _)| *key));
                let remedy = meant.map_or_else(|| "remove it".to_owned(), |meant| format!("did you mean {meant}?"));
                problems.push(format!("{}: unknown kubelet-arg {name}; {remedy}", given.place));
            }
        }
    }
    args
}

/// `a=1,b=2` and, for evictions, `a<1,b<2`.
pub(super) fn pairs(text: &str, between: char) -> Result<BTreeMap<String, String>, String> {
    let mut map = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once(between).ok_or_else(|| format!("{part} is not NAME{between}VALUE"))?;
        map.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    Ok(map)
}
