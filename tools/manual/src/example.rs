//! Reads the example configuration as what it also is: the description of every key.

/// The file that is installed as the example.
pub const TEXT: &str = include_str!("../../../systemd/config.yaml");

/// A part of the file under a `# --- title ---` line.
#[derive(Debug, PartialEq, Eq)]
pub struct Section {
    pub title: String,
    pub keys: Vec<Key>,
}

/// A key, or a flag in the list of one.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// `node-name`, or `max-pods` for a flag of `kubelet-arg`.
    pub name: String,
    /// Values as they stand there, one a list element.
    pub values: Vec<String>,
    /// The comment above, lines joined.
    pub about: String,
    /// A flag inside the list of the key before.
    pub nested: bool,
}

/// Splits an example configuration into sections and keys. A key without a comment shares that of the key before it.
///
/// A commented key (`# pause-image: x`) counts as a key: a comment line whose first word is lower case and ends in a colon. So does a
/// commented flag (`# - port=10250`).
pub fn sections(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut about: Vec<&str> = Vec::new();
    for line in text.lines() {
        let bare = line.trim_start();
        let nested = bare.len() < line.len();
        if let Some(title) = line.strip_prefix("# --- ").and_then(|rest| rest.strip_suffix(" ---")) {
            about.clear();
            sections.push(Section { title: title.to_owned(), keys: Vec::new() });
            continue;
        }
        // What stands before the first section is about the file.
        let Some(section) = sections.last_mut() else { continue };
        if bare.is_empty() {
            about.clear();
        } else if let Some(comment) = bare.strip_prefix("# ").filter(|comment| key_line(comment).is_none() && !comment.starts_with("- ")) {
            about.push(comment.trim());
        } else if let Some(item) = bare.strip_prefix("# ").unwrap_or(bare).strip_prefix("- ") {
            let last = section.keys.iter_mut().rev().find(|key| !key.nested);
            let flag = last.as_ref().is_some_and(|key| key.name == "kubelet-arg");
            match (flag, item.split_once('='), last) {
                (true, Some((name, value)), _) => {
                    section.keys.push(Key { name: name.into(), values: vec![value.into()], about: taken(&mut about), nested: true });
                }
                (_, _, Some(key)) => key.values.push(item.to_owned()),
                (_, _, None) => {}
            }
        } else if let Some((name, value)) = key_line(bare.strip_prefix("# ").unwrap_or(bare)) {
            let values = if value.is_empty() { Vec::new() } else { vec![value.to_owned()] };
            section.keys.push(Key { name: name.to_owned(), values, about: taken(&mut about), nested });
        }
    }
    sections
}

fn taken(about: &mut Vec<&str>) -> String {
    std::mem::take(about).join(" ")
}

fn key_line(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.split_once(':')?;
    let key = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte.is_ascii_digit());
    // `managed: always our own` explains a value; keys of ours that are one word have a value without spaces.
    (key && (value.is_empty() || value.starts_with(' ')) && !value.trim().contains(". ")).then(|| (name, value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_values_and_comments_are_told_apart() {
        let text = "# The file.\nfile: 1\n\n# --- one ---\n# What it is,\n# in two lines.\nserver: https://a\n# Maybe.\n# other-key: 3\n\
                    node-label:\n  - a=b\n  - c=d\n\n# --- flags ---\nkubelet-arg:\n  # As many.\n  - max-pods=30\n  # There.\n  # - port=1\n";
        let found = sections(text);
        let key = |name: &str, values: &[&str], about: &str, nested: bool| Key {
            name: name.into(),
            values: values.iter().map(|&value| value.into()).collect(),
            about: about.into(),
            nested,
        };
        let wanted = vec![
            Section {
                title: "one".into(),
                keys: vec![
                    key("server", &["https://a"], "What it is, in two lines.", false),
                    key("other-key", &["3"], "Maybe.", false),
                    key("node-label", &["a=b", "c=d"], "", false),
                ],
            },
            Section {
                title: "flags".into(),
                keys: vec![
                    key("kubelet-arg", &[], "", false),
                    key("max-pods", &["30"], "As many.", true),
                    key("port", &["1"], "There.", true),
                ],
            },
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn the_example_describes_known_keys_only() {
        let keys: Vec<Key> = sections(TEXT).into_iter().flat_map(|section| section.keys).collect();
        assert!(keys.len() >= 25, "{}", keys.len());
        for name in ["server", "token-file", "kubelet-arg", "max-pods", "metrics-address", "containerd"] {
            assert!(keys.iter().any(|key| key.name == name), "{name}");
        }
        // Prose that looks like a key would be shown as one.
        assert!(!keys.iter().any(|key| ["managed", "auto", "system"].contains(&key.name.as_str())), "{keys:?}");
    }
}
