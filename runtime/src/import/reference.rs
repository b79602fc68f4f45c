//! Image names as containerd's store spells them.

/// The full form of a name: registry, path and tag or digest. `nginx:alpine` is `docker.io/library/nginx:alpine`; the
/// rules are Docker's (`distribution/reference`): the first part is a registry if it has a dot or a colon or is
/// `localhost`.
pub fn normalise(name: &str) -> String {
    let (registry, rest) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("docker.io", name),
    };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    let library = if registry == "docker.io" && !rest.contains('/') { "library/" } else { "" };
    let last = rest.rsplit('/').next().unwrap_or(rest);
    let tag = if last.contains([':', '@']) { "" } else { ":latest" };
    format!("{registry}/{library}{rest}{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_users_write_them() {
        let table = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:alpine", "docker.io/library/nginx:alpine"),
            ("rancher/mirrored-pause:3.10.2", "docker.io/rancher/mirrored-pause:3.10.2"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/a/b:1", "docker.io/a/b:1"),
            ("localhost/app", "localhost/app:latest"),
            ("registry.local:5000/a/b", "registry.local:5000/a/b:latest"),
            ("ghcr.io/a/b@sha256:00", "ghcr.io/a/b@sha256:00"),
        ];
        for (given, wanted) in table {
            assert_eq!(normalise(given), wanted);
            assert_eq!(normalise(wanted), wanted);
        }
    }
}
