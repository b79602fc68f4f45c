//! Host names of a pod and the text of its `/etc/hosts` (kubelet-contract 3.4 and 3.6.2). Pure.

use std::fmt::Write;

use crate::api::pod::{HostAlias, Pod};

const MAX_LABEL: usize = 63;
const MAX_KERNEL_NAME: usize = 64;

/// What the kernel calls the pod, and its domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNames {
    pub hostname: String,
    /// `<subdomain>.<namespace>.svc.<cluster domain>`, empty without a subdomain.
    pub domain: String,
}

/// Names of a pod by its spec.
pub fn names(pod: &Pod, cluster_domain: &str) -> PodNames {
    let wanted = if pod.spec.hostname.is_empty() { &pod.metadata.name } else { &pod.spec.hostname };
    let cut: String = wanted.chars().take(MAX_LABEL).collect();
    let hostname = cut.trim_end_matches(['-', '.']).to_owned();
    let domain = if pod.spec.subdomain.is_empty() {
        String::new()
    } else {
        format!("{}.{}.svc.{cluster_domain}", pod.spec.subdomain, pod.metadata.namespace)
    };
    PodNames { hostname, domain }
}

/// The name the sandbox gets; an error where `setHostnameAsFQDN` asks for more than the kernel can hold.
pub fn sandbox_hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let names = names(pod, cluster_domain);
    if pod.spec.set_hostname_as_fqdn != Some(true) || names.domain.is_empty() {
        return Ok(names.hostname);
    }
    let full = format!("{}.{}", names.hostname, names.domain);
    if full.len() > MAX_KERNEL_NAME {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, {} characters requested)",
            full.len()
        ));
    }
    Ok(full)
}

/// `/etc/hosts` of a pod with its own network.
pub fn pod_file(ips: &[String], names: &PodNames, aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        let _ = if names.domain.is_empty() {
            writeln!(text, "{ip}\t{}", names.hostname)
        } else {
            writeln!(text, "{ip}\t{}.{}\t{}", names.hostname, names.domain, names.hostname)
        };
    }
    text + &alias_lines(aliases)
}

/// `/etc/hosts` of a pod on the host's network: the host's file and the aliases.
pub fn host_network_file(host: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{host}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.join("\t"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_file_is_what_a_kubelet_wrote() {
        // Recording hostname-subdomain.
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "hostname-subdomain", "namespace": "rec"},
            "spec": {"hostname": "hh", "subdomain": "ss", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a.b", "c"]}]},
        }))
        .unwrap();
        let names = names(&pod, "cluster.local");
        let text = pod_file(&["10.42.0.40".to_owned()], &names, &pod.spec.host_aliases);
        assert_eq!(
            text,
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n10.42.0.40\thh.ss.rec.svc.cluster.local\thh\n\n# Entries added by HostAliases.\n1.2.3.4\ta.b\tc\n"
        );
    }

    #[test]
    fn long_names_are_cut_and_trimmed() {
        let name = format!("{}-rest", "a".repeat(62));
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        assert_eq!(names(&pod, "x").hostname, "a".repeat(62));
    }

    #[test]
    fn a_full_name_the_kernel_cannot_hold_is_refused() {
        let spec = |sub: &str| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "web", "namespace": "n"}, "spec": {"subdomain": sub, "setHostnameAsFQDN": true}}),
            )
            .unwrap()
        };
        assert_eq!(sandbox_hostname(&spec("s"), "cluster.local").unwrap(), "web.s.n.svc.cluster.local");
        assert!(sandbox_hostname(&spec(&"s".repeat(60)), "cluster.local").is_err());
    }
}
