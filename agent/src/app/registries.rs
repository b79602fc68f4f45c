//! K3s' `registries.yaml` to containerd's `certs.d/HOST/hosts.toml` (k3s-agent.md 6.8), for our own containerd.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use crate::config::Problems;
use crate::ledger::write_whole;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Registry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mirror {
    endpoint: Vec<String>,
    rewrite: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Registry {
    auth: Option<yaml_serde::Value>,
    tls: Tls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tls {
    ca_file: String,
    cert_file: String,
    key_file: String,
    insecure_skip_verify: bool,
}

const MARK: &str = "# Made by edge-agent from registries.yaml; changes are lost.";

/// Writes the directory and returns it; None without a file. Directories of an earlier file that are not wanted any more go.
pub(super) fn write(file: Option<&Path>, certs: PathBuf) -> anyhow::Result<Option<PathBuf>> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(file).map_err(|error| Problems(vec![format!("private-registry: {}: {error}", file.display())]))?;
    let parsed: Option<File> = yaml_serde::from_str(&text).map_err(|error| Problems(vec![format!("{}: {error}", file.display())]))?;
    let (wanted, warnings) = hosts(&parsed.unwrap_or_default());
    for warning in warnings {
        tracing::warn!(path = %file.display(), "{warning}");
    }
    for entry in std::fs::read_dir(&certs).into_iter().flatten().flatten() {
        let ours = std::fs::read_to_string(entry.path().join("hosts.toml")).is_ok_and(|text| text.starts_with(MARK));
        if ours && !wanted.contains_key(&*entry.file_name().to_string_lossy()) {
            std::fs::remove_dir_all(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    for (host, text) in wanted {
        let path = certs.join(host).join("hosts.toml");
        if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            write_whole(&path, text.as_bytes())?;
        }
    }
    Ok(Some(certs))
}

/// Directory name to contents of its `hosts.toml`, and what cannot be expressed.
fn hosts(file: &File) -> (BTreeMap<String, String>, Vec<String>) {
    let mut out = BTreeMap::new();
    let mut warnings = Vec::new();
    for (host, registry) in &file.configs {
        if registry.auth.is_some() {
            warnings.push(format!("configs: {host}: auth is not used by this version; give pods an imagePullSecret"));
        }
    }
    let none = Mirror::default();
    let mirrored = file.mirrors.iter().map(|(host, mirror)| (host.as_str(), mirror));
    let configured = file.configs.keys().map(String::as_str).filter(|host| !file.mirrors.contains_key(*host)).map(|host| (host, &none));
    for (host, mirror) in mirrored.chain(configured) {
        if !mirror.rewrite.is_empty() {
            warnings.push(format!("mirrors: {host}: rewrite is not understood by a containerd that is not K3s' own"));
        }
        let mut text = format!("{MARK}\n");
        let default = default_server(host);
        if let Some(default) = &default {
            text.push_str(&format!("server = {}\n", quoted(default)));
        }
        let mut seen = Vec::new();
        let endpoints = mirror.endpoint.iter().map(|endpoint| url(endpoint));
        for endpoint in endpoints.chain(default.filter(|_| config_of(file, host).is_some())) {
            if seen.contains(&endpoint) {
                continue;
            }
            text.push_str(&table(&endpoint, config_of(file, authority(&endpoint))));
            seen.push(endpoint);
        }
        if seen.is_empty() {
            continue;
        }
        out.insert(if host == "*" { "_default".to_owned() } else { host.to_owned() }, text);
    }
    (out, warnings)
}

fn table(endpoint: &str, registry: Option<&Registry>) -> String {
    let mut text = format!("\n[host.{}]\ncapabilities = [\"pull\", \"resolve\"]\n", quoted(endpoint));
    if !endpoint.ends_with("/v2") || endpoint.matches('/').count() > 3 {
        text.push_str("override_path = true\n");
    }
    let Some(tls) = registry.map(|registry| &registry.tls) else { return text };
    if !tls.ca_file.is_empty() {
        text.push_str(&format!("ca = [{}]\n", quoted(&tls.ca_file)));
    }
    if !tls.cert_file.is_empty() {
        text.push_str(&format!("client = [[{}, {}]]\n", quoted(&tls.cert_file), quoted(&tls.key_file)));
    }
    if tls.insecure_skip_verify {
        text.push_str("skip_verify = true\n");
    }
    text
}

/// Looked up under the exact name, Docker's two names alike, then `*`.
fn config_of<'a>(file: &'a File, host: &str) -> Option<&'a Registry> {
    let other = match host {
        "docker.io" => "registry-1.docker.io",
        "registry-1.docker.io" => "docker.io",
        same => same,
    };
    file.configs.get(host).or_else(|| file.configs.get(other)).or_else(|| file.configs.get("*"))
}

fn default_server(host: &str) -> Option<String> {
    match host {
        "*" => None,
        "docker.io" => Some(url("registry-1.docker.io")),
        other => Some(url(other)),
    }
}

/// With scheme and `/v2`, as K3s completes them.
fn url(endpoint: &str) -> String {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or_else(|| (scheme_of(endpoint), endpoint));
    let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path.trim_end_matches('/')));
    let path = if path.is_empty() { "v2" } else { path };
    format!("{scheme}://{host}/{path}")
}

fn scheme_of(endpoint: &str) -> &'static str {
    let host = endpoint.split('/').next().unwrap_or_default();
    let (name, port) = host.rsplit_once(':').unwrap_or((host, ""));
    let local = name == "localhost" || name == "[::1]" || name.starts_with("127.");
    if local && !port.is_empty() && port != "443" { "http" } else { "https" }
}

fn authority(url: &str) -> &str {
    url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default()
}

/// A TOML basic string; JSON's escapes are a subset.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (BTreeMap<String, String>, Vec<String>) {
        hosts(&yaml_serde::from_str(text).unwrap())
    }

    #[test]
    fn mirrors_become_hosts_in_order_with_their_certificates() {
        let (files, warnings) = of(
            "mirrors:\n  docker.io:\n    endpoint: [\"https://mirror.lan:5000\", \"http://10.0.0.1/cache/\"]\n  \"*\":\n    endpoint: [\"localhost:5001\"]\nconfigs:\n  mirror.lan:5000:\n    tls: {ca_file: /ca.pem, insecure_skip_verify: true}\n",
        );
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(
            files["docker.io"],
            format!(
                "{MARK}\nserver = \"https://registry-1.docker.io/v2\"\n\n[host.\"https://mirror.lan:5000/v2\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = [\"/ca.pem\"]\nskip_verify = true\n\n[host.\"http://10.0.0.1/cache\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n"
            )
        );
        assert!(files["_default"].contains("[host.\"http://localhost:5001/v2\"]"));
        assert!(!files["_default"].contains("server ="));
        assert!(files["mirror.lan:5000"].contains("skip_verify = true"), "a registry with settings and no mirror");
    }

    #[test]
    fn what_cannot_be_expressed_is_said() {
        let (_, warnings) =
            of("mirrors:\n  a:\n    endpoint: [b]\n    rewrite: {x: y}\nconfigs:\n  a:\n    auth: {username: u, password: p}\n");
        assert_eq!(warnings.len(), 2);
        assert!(!warnings.join(" ").contains('p'.to_string().repeat(2).as_str()));
    }

    #[test]
    fn the_directory_follows_the_file_and_leaves_others_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (file, certs) = (dir.path().join("registries.yaml"), dir.path().join("certs.d"));
        assert_eq!(write(None, certs.clone()).unwrap(), None);
        std::fs::write(&file, "mirrors:\n  a:\n    endpoint: [b]\n").unwrap();
        write(Some(&file), certs.clone()).unwrap();
        std::fs::create_dir_all(certs.join("mine")).unwrap();
        std::fs::write(certs.join("mine/hosts.toml"), "x").unwrap();
        std::fs::write(&file, "mirrors:\n  c:\n    endpoint: [d]\n").unwrap();
        write(Some(&file), certs.clone()).unwrap();
        assert!(!certs.join("a").exists() && certs.join("c/hosts.toml").exists() && certs.join("mine/hosts.toml").exists());
        std::fs::write(&file, "mirors: {}\n").unwrap();
        assert!(write(Some(&file), certs).unwrap_err().to_string().contains("mirors"));
    }
}
