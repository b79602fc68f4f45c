//! Image names, pull credentials and pull policies (kubelet-contract 7.1 and 7.2).

use base64::Engine;
use runtime::cri::AuthConfig;
use serde::Deserialize;

use crate::api::core::Secret;
use crate::api::pod::Pod;
use crate::objects::Objects;
use crate::registries::Logins;

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// `imagePullPolicy`; where the server filled in none, `:latest` means Always.
pub fn policy(text: &str, image: &str) -> PullPolicy {
    match text {
        "Always" => PullPolicy::Always,
        "Never" => PullPolicy::Never,
        "IfNotPresent" => PullPolicy::IfNotPresent,
        _ if image.ends_with(":latest") => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    }
}

/// The image with `:latest` where it names neither tag nor digest; the error is that of InvalidImageName.
pub fn with_tag(image: &str) -> Result<String, String> {
    let failed = |what: String| {
        format!("Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format{what}")
    };
    let (named, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    let (domain, rest) = split_domain(named);
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        // The reference as Docker completes it, up to the first colon.
        let path = path.split(':').next().unwrap_or(path);
        let library = if domain.is_none() && !rest.contains('/') { "library/" } else { "" };
        return Err(failed(format!(": repository name ({library}{path}) must be lowercase")));
    }
    let component = |part: &str| {
        let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(ends) && part.ends_with(ends) && part.chars().all(|c| ends(c) || matches!(c, '.' | '_' | '-'))
    };
    let good_domain =
        domain.is_none_or(|d| !d.is_empty() && d.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']')));
    let good_tag = tag.is_none_or(|t| {
        (1..=128).contains(&t.len())
            && !t.starts_with(['.', '-'])
            && t.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    });
    let good_digest = digest.is_none_or(|d| {
        d.split_once(':').is_some_and(|(kind, hex)| !kind.is_empty() && hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit()))
    });
    if !path.split('/').all(component) || !good_domain || !good_tag || !good_digest || image.len() > 1024 {
        return Err(failed(String::new()));
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

/// The registry part, if the name starts with one.
fn split_domain(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase()) => {
            (Some(first), rest)
        }
        _ => (None, name),
    }
}

/// Registry host (as Docker's files spell it) and repository path of an image.
fn location(image: &str) -> (String, String) {
    let named = image.split_once('@').map_or(image, |(n, _)| n);
    let (domain, rest) = split_domain(named);
    let path = rest.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(rest, |(p, _)| p);
    match domain {
        None | Some("docker.io" | "index.docker.io") => {
            let path = if path.contains('/') { path.to_owned() } else { format!("library/{path}") };
            ("index.docker.io".to_owned(), path)
        }
        Some(domain) => (domain.to_owned(), path.to_owned()),
    }
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct Login {
    username: String,
    password: String,
    /// base64 of `user:password`.
    auth: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerConfig {
    auths: std::collections::BTreeMap<String, Login>,
}

/// Credentials of the pod's pull secrets that fit `image`, most specific first, then none at all. The second list names
/// secrets that could not be had.
pub async fn credentials(objects: &Objects, registries: &Logins, pod: &Pod, image: &str) -> (Vec<Option<AuthConfig>>, Vec<String>) {
    let mut logins = Vec::new();
    let mut missing = Vec::new();
    for wanted in &pod.spec.image_pull_secrets {
        match objects.secret(&pod.metadata.namespace, &wanted.name).await {
            Ok(Some(secret)) => logins.extend(parse(&secret)),
            Ok(None) | Err(_) => missing.push(wanted.name.clone()),
        }
    }
    let mut fitting: Vec<Option<AuthConfig>> = matching(logins, image).into_iter().map(Some).collect();
    if fitting.is_empty() {
        // As K3s: what the machine knows of registries counts where the pod brings nothing.
        fitting.extend(registries.of(&location(image).0).into_iter().map(Some));
    }
    if fitting.is_empty() {
        fitting.push(None);
    }
    (fitting, missing)
}

fn parse(secret: &Secret) -> Vec<(String, Login)> {
    let new = secret.value(".dockerconfigjson").and_then(|bytes| serde_json::from_slice::<DockerConfig>(&bytes).ok()).map(|c| c.auths);
    let old = || secret.value(".dockercfg").and_then(|bytes| serde_json::from_slice(&bytes).ok());
    new.or_else(old).unwrap_or_default().into_iter().collect()
}

fn matching(mut logins: Vec<(String, Login)>, image: &str) -> Vec<AuthConfig> {
    let (host, path) = location(image);
    logins.sort_by(|a, b| b.0.cmp(&a.0));
    logins
        .into_iter()
        .filter(|(key, _)| fits(key, &host, &path))
        .map(|(_, login)| {
            // Written with or without padding; where both forms are given this one counts.
            let encoded = login.auth.trim().trim_end_matches('=');
            let decoded = base64::engine::general_purpose::STANDARD_NO_PAD.decode(encoded).ok().and_then(|b| String::from_utf8(b).ok());
            let (user, password) = match decoded.as_deref().and_then(|t| t.split_once(':')) {
                Some((user, password)) => (user.to_owned(), password.to_owned()),
                None => (login.username, login.password),
            };
            AuthConfig { username: user, password, ..Default::default() }
        })
        .collect()
}

/// Whether a registry key (maybe with scheme, `/v1/`, globs in host labels, a path) covers host and path.
fn fits(key: &str, host: &str, path: &str) -> bool {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    let (wanted, prefix) = key.split_once('/').unwrap_or((key, ""));
    let wanted = if wanted == "docker.io" { "index.docker.io" } else { wanted };
    let port = |h: &str| h.rsplit_once(':').map(|(_, p)| p.to_owned());
    let name = |h: &str| h.rsplit_once(':').map_or(h, |(n, _)| n).to_owned();
    if port(wanted) != port(host) {
        return false;
    }
    let (wanted, host) = (name(wanted), name(host));
    let labels_fit =
        wanted.split('.').count() == host.split('.').count() && wanted.split('.').zip(host.split('.')).all(|(w, h)| glob(w, h));
    labels_fit && path.starts_with(prefix)
}

/// `*` stands for any run of characters within a label.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => {
            text.strip_prefix(before).is_some_and(|rest| (0..=rest.len()).any(|at| rest.is_char_boundary(at) && glob(after, &rest[at..])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_a_tag_are_latest() {
        let digest = format!("x@sha256:{}", "a".repeat(64));
        let table = [
            ("nginx", "nginx:latest"),
            ("nginx:alpine", "nginx:alpine"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("docker.io/library/busybox:1.36", "docker.io/library/busybox:1.36"),
            (digest.as_str(), digest.as_str()),
        ];
        for (image, wanted) in table {
            assert_eq!(with_tag(image).as_deref(), Ok(wanted));
        }
    }

    #[test]
    fn names_that_are_none_are_told_as_a_kubelet_does() {
        // The first text is that of the recording image-bad-name.
        let table = [
            ("UPPER/Case:1", ": repository name (Case) must be lowercase"),
            ("Not:A:Name", ": repository name (library/Not) must be lowercase"),
            ("a b", ""),
            ("", ""),
            ("x:", ""),
            ("x@sha256:12", ""),
            ("-x", ""),
        ];
        for (image, end) in table {
            let wanted = format!(
                "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format{end}"
            );
            assert_eq!(with_tag(image), Err(wanted));
        }
    }

    #[test]
    fn credentials_fit_by_host_labels_port_and_path() {
        let table = [
            ("https://index.docker.io/v1/", "nginx", true),
            ("docker.io", "a/b:1", true),
            ("*.example.com", "reg.example.com/x", true),
            ("*.example.com", "a.reg.example.com/x", false),
            ("reg.example.com:5000", "reg.example.com/x", false),
            ("reg.example.com:5000", "reg.example.com:5000/x:1", true),
            ("reg.example.com/team", "reg.example.com/team/x", true),
            ("reg.example.com/team", "reg.example.com/other/x", false),
        ];
        for (key, image, wanted) in table {
            let (host, path) = location(image);
            assert_eq!(fits(key, &host, &path), wanted, "{key} {image}");
        }
    }

    #[test]
    fn logins_come_from_either_form() {
        let secret: Secret = serde_json::from_value(serde_json::json!({"data": {".dockerconfigjson":
            base64::engine::general_purpose::STANDARD.encode(r#"{"auths":{"r.io":{"auth":"dTpwOnE="}}}"#)}}))
        .unwrap();
        let found = matching(parse(&secret), "r.io/x");
        assert_eq!((found[0].username.as_str(), found[0].password.as_str()), ("u", "p:q"));
        let login = |auth: &str| Login { username: "other".to_owned(), password: "x".to_owned(), auth: auth.to_owned() };
        for (auth, wanted) in [("dTpw", ("u", "p")), ("dXM6cA==", ("us", "p")), ("dXM6cA", ("us", "p")), ("", ("other", "x"))] {
            let found = matching(vec![("r.io".to_owned(), login(auth))], "r.io/x");
            assert_eq!((found[0].username.as_str(), found[0].password.as_str()), wanted, "{auth}");
        }
    }
}
