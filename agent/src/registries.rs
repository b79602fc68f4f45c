//! K3s' `registries.yaml` (k3s-agent.md 6.8): mirrors and TLS become containerd's `certs.d/HOST/hosts.toml`, credentials go
//! along with each pull, so that they stand in no second file and no containerd has to be restarted for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use runtime::cri::AuthConfig;
use serde::Deserialize;

use crate::config::Problems;
use crate::ledger::write_whole;

#[derive(Default, Deserialize)]
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

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Registry {
    auth: Option<Auth>,
    tls: Tls,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Auth {
    username: String,
    password: String,
    /// base64 of `user:password`.
    auth: String,
    identity_token: String,
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

fn read(file: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(file).map_err(|error| Problems(vec![format!("private-registry: {}: {error}", file.display())]))?;
    let parsed: Option<File> = yaml_serde::from_str(&text).map_err(|error| Problems(vec![format!("{}: {error}", file.display())]))?;
    Ok(parsed.unwrap_or_default())
}

/// Who to be at which registry.
#[derive(Default)]
pub struct Logins(File);

impl Logins {
    /// From `registries.yaml`; nobody without a file.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Logins> {
        file.map_or_else(|| Ok(Logins::default()), |file| read(file).map(Logins))
    }

    /// What to try, one after the other, when pulling from `host` as an image name spells it. Each counts for one endpoint
    /// only: a mirror's password is not shown to the registry behind it.
    pub fn of(&self, host: &str) -> Vec<AuthConfig> {
        let host = if host == "index.docker.io" { "docker.io" } else { host };
        let mirror = self.0.mirrors.get(host).or_else(|| self.0.mirrors.get("*"));
        let endpoints = mirror.into_iter().flat_map(|mirror| &mirror.endpoint).map(|endpoint| url(endpoint));
        let mut found: Vec<AuthConfig> = Vec::new();
        for endpoint in endpoints.chain(default_server(host)) {
            let (scheme, authority) = (endpoint.split("://").next().unwrap_or("https"), authority(&endpoint));
            let server_address = format!("{scheme}://{authority}");
            let Some(auth) = config_of(&self.0, authority).and_then(|registry| registry.auth.as_ref()) else { continue };
            if found.iter().all(|known| known.server_address != server_address) {
                found.push(AuthConfig {
                    username: auth.username.clone(),
                    password: auth.password.clone(),
                    auth: auth.auth.clone(),
                    identity_token: auth.identity_token.clone(),
                    server_address,
                    ..AuthConfig::default()
                });
            }
        }
        found
    }
}

/// Writes the directory and returns it; None without a file. Directories of an earlier file that are not wanted any more go.
pub fn write(file: Option<&Path>, certs: PathBuf) -> anyhow::Result<Option<PathBuf>> {
    let Some(file) = file else { return Ok(None) };
    let (wanted, warnings) = hosts(&read(file)?);
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
    let none = Mirror::default();
    let mirrored = file.mirrors.iter().map(|(host, mirror)| (host.as_str(), mirror));
    let configured = file.configs.keys().map(String::as_str).filter(|host| !file.mirrors.contains_key(*host)).map(|host| (host, &none));
    for (host, mirror) in mirrored.chain(configured) {
        let below = mirror.rewrite.iter().filter_map(|(pattern, into)| {
            let below = prefix(pattern, into);
            if below.is_none() {
                warnings.push(format!(
                    "mirrors: {host}: rewrite {pattern:?}: only the containerd of K3s changes names by pattern; here a mirror can put \
                     something before every name (\"^(.*)$\": \"something/$1\"), other images are asked for under their own names"
                ));
            }
            below
        });
        let below = below.last();
        let mut text = format!("{MARK}\n");
        let default = default_server(host);
        if let Some(default) = &default {
            text.push_str(&format!("server = {}\n", quoted(default)));
        }
        let mut seen = Vec::new();
        let endpoints = mirror.endpoint.iter().map(|endpoint| match &below {
            Some(below) => format!("{}/{below}", url(endpoint)),
            None => url(endpoint),
        });
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

/// What a rewrite puts before every name, if that is all it does: `^(.*)$` to `something/$1`. The path of an endpoint says
/// the same to any containerd.
fn prefix(pattern: &str, into: &str) -> Option<String> {
    let inner = pattern.strip_prefix('^').unwrap_or(pattern);
    let below = match inner.strip_suffix('$').unwrap_or(inner) {
        "(.*)" | "(.+)" => into.strip_suffix("$1").or_else(|| into.strip_suffix("${1}"))?,
        "" if pattern == "^" => into,
        _ => return None,
    };
    let below = below.strip_suffix('/')?.trim_start_matches('/');
    (!below.is_empty() && !below.contains('$')).then(|| below.to_owned())
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
    fn a_rewrite_that_puts_something_before_every_name_becomes_the_path_of_the_mirror() {
        for (pattern, into, want) in [
            ("^(.*)$", "cache/hub/$1", Some("cache/hub")),
            ("(.*)", "/cache/${1}", Some("cache")),
            ("^", "cache/", Some("cache")),
            ("^rancher/(.*)", "x/$1", None),
            ("^(.*)$", "cache-$1", None),
            ("^(.*)/(.*)$", "$2/$1", None),
            ("(.*)", "$1", None),
        ] {
            assert_eq!(prefix(pattern, into).as_deref(), want, "{pattern} {into}");
        }
        let (files, warnings) =
            of("mirrors:\n  a:\n    endpoint: [\"http://b:5000\"]\n    rewrite: {'^(.*)$': 'c/$1', '^x/(.*)': 'y/$1'}\n");
        assert!(
            files["a"].contains("[host.\"http://b:5000/v2/c\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true"),
            "{}",
            files["a"]
        );
        assert!(warnings.len() == 1 && warnings[0].contains("^x/(.*)"), "{warnings:?}");
    }

    #[test]
    fn each_endpoint_is_told_its_own_password_only() {
        let text = "mirrors:\n  docker.io:\n    endpoint: [\"https://m1.lan:5000\", \"http://m2.lan\"]\nconfigs:\n  m1.lan:5000:\n    auth: {username: u1, password: p1}\n  docker.io:\n    auth: {auth: dTpw}\n  plain.lan:\n    auth: {identity_token: t}\n  tls.lan:\n    tls: {insecure_skip_verify: true}\n";
        let logins = Logins(yaml_serde::from_str(text).unwrap());
        let told = |host: &str| {
            let all = logins.of(host).into_iter();
            all.map(|a| format!("{} {}{}{}{}", a.server_address, a.username, a.password, a.auth, a.identity_token)).collect::<Vec<_>>()
        };
        let hub = ["https://m1.lan:5000 u1p1", "https://registry-1.docker.io dTpw"];
        assert_eq!(told("docker.io"), hub);
        assert_eq!(told("index.docker.io"), hub);
        assert_eq!(told("plain.lan"), ["https://plain.lan t"]);
        assert_eq!(told("tls.lan"), Vec::<String>::new());
        assert_eq!(told("elsewhere.lan"), Vec::<String>::new());
        let everywhere = Logins(yaml_serde::from_str("configs:\n  '*':\n    auth: {username: u, password: p}\n").unwrap());
        assert_eq!(everywhere.of("elsewhere.lan")[0].server_address, "https://elsewhere.lan");
        let wrong = yaml_serde::from_str::<File>("configs:\n  a:\n    auth: {user: u}\n");
        assert!(wrong.is_err_and(|error| error.to_string().contains("user")));
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
