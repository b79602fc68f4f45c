//! Resolver configuration of a pod (kubelet-contract 3.5). Pure: the host's file comes in as text.

use std::net::IpAddr;

use runtime::cri::DnsConfig;

use crate::api::pod::{Pod, PodDnsConfig};

const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// Parts of a `resolv.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostResolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl HostResolver {
    /// Server lines accumulate, the last search line wins, options merge by name; `domain` lines count as little as on a kubelet.
    pub fn parse(text: &str) -> HostResolver {
        let mut host = HostResolver::default();
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with(['#', ';']) {
                continue;
            }
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => host.servers.extend(words.next().map(str::to_owned)),
                Some("search") => {
                    host.searches =
                        words.map(|w| if w == "." { w } else { w.trim_end_matches('.') }.to_owned()).filter(|w| w != ".").collect();
                }
                Some("options") => words.for_each(|w| set_option(&mut host.options, w.to_owned())),
                _ => {}
            }
        }
        host
    }
}

fn set_option(options: &mut Vec<String>, option: String) {
    let name = |o: &str| o.split(':').next().unwrap_or_default().to_owned();
    match options.iter_mut().find(|have| name(have) == name(&option)) {
        Some(have) => *have = option,
        None => options.push(option),
    }
}

/// The configuration and what to warn the user about.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    pub config: DnsConfig,
    /// Event reason and message.
    pub warnings: Vec<(&'static str, String)>,
}

/// Resolver configuration of `pod`.
pub fn resolve(pod: &Pod, cluster_dns: &[IpAddr], cluster_domain: &str, host: &HostResolver) -> Resolved {
    let mut warnings = Vec::new();
    let spec = &pod.spec;
    let cluster_wanted = match spec.dns_policy.as_str() {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" | "" => !spec.host_network,
        _ => false,
    };
    let mut config = if spec.dns_policy == "None" {
        DnsConfig::default()
    } else if cluster_wanted && !cluster_dns.is_empty() {
        let namespace = &pod.metadata.namespace;
        let own = [format!("{namespace}.svc.{cluster_domain}"), format!("svc.{cluster_domain}"), cluster_domain.to_owned()];
        let mut searches = Vec::new();
        if !cluster_domain.is_empty() {
            own.into_iter().for_each(|s| push_new(&mut searches, s));
        }
        host.searches.iter().for_each(|s| push_new(&mut searches, s.clone()));
        DnsConfig { servers: cluster_dns.iter().map(IpAddr::to_string).collect(), searches, options: vec!["ndots:5".to_owned()] }
    } else {
        if cluster_wanted {
            warnings.push((
                "MissingClusterDNS",
                format!(
                    "pod: \"{}_{}({})\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"{}\" policy. Falling back to \"Default\" policy.",
                    pod.metadata.name,
                    pod.metadata.namespace,
                    pod.metadata.uid,
                    if spec.dns_policy.is_empty() { "ClusterFirst" } else { &spec.dns_policy }
                ),
            ));
        }
        DnsConfig { servers: host.servers.clone(), searches: host.searches.clone(), options: host.options.clone() }
    };
    if let Some(own) = &spec.dns_config {
        append(&mut config, own);
    }
    limit(&mut config, &mut warnings);
    Resolved { config, warnings }
}

fn append(config: &mut DnsConfig, own: &PodDnsConfig) {
    own.nameservers.iter().for_each(|s| push_new(&mut config.servers, s.clone()));
    own.searches.iter().for_each(|s| push_new(&mut config.searches, s.clone()));
    for option in &own.options {
        let text = match &option.value {
            Some(value) if !value.is_empty() => format!("{}:{value}", option.name),
            _ => option.name.clone(),
        };
        set_option(&mut config.options, text);
    }
}

fn push_new(list: &mut Vec<String>, item: String) {
    if !list.contains(&item) {
        list.push(item);
    }
}

fn limit(config: &mut DnsConfig, warnings: &mut Vec<(&'static str, String)>) {
    if config.servers.len() > MAX_SERVERS {
        config.servers.truncate(MAX_SERVERS);
        warnings.push((
            "DNSConfigForming",
            format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                config.servers.join(" ")
            ),
        ));
    }
    let before = config.searches.len();
    config.searches.retain(|s| s.len() <= 253);
    config.searches.truncate(MAX_SEARCHES);
    while config.searches.join(" ").len() > MAX_SEARCH_CHARS {
        config.searches.pop();
    }
    if config.searches.len() < before {
        warnings.push((
            "DNSConfigForming",
            format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                config.searches.join(" ")
            ),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HOST: &str =
        "# made by hand\nnameserver 192.168.1.1\nnameserver 192.168.1.2\nsearch lan. home\noptions edns0 ndots:1\ndomain other\n";

    fn check(spec: serde_json::Value, servers: &[&str], searches: &[&str], options: &[&str]) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "rec"}, "spec": spec})).unwrap();
        let got = resolve(&pod, &[IpAddr::from([10, 43, 0, 10])], "cluster.local", &HostResolver::parse(HOST));
        assert_eq!(got.config.servers, servers, "{spec}");
        assert_eq!(got.config.searches, searches, "{spec}");
        assert_eq!(got.config.options, options, "{spec}");
    }

    #[test]
    fn policies() {
        let cluster = ["rec.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan", "home"];
        check(json!({}), &["10.43.0.10"], &cluster, &["ndots:5"]);
        check(
            json!({"dnsPolicy": "ClusterFirst", "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}),
            &["10.43.0.10"],
            &cluster,
            &["ndots:2"],
        );
        check(
            json!({"hostNetwork": true, "dnsPolicy": "ClusterFirst"}),
            &["192.168.1.1", "192.168.1.2"],
            &["lan", "home"],
            &["edns0", "ndots:1"],
        );
        check(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), &["10.43.0.10"], &cluster, &["ndots:5"]);
        check(json!({"dnsPolicy": "Default"}), &["192.168.1.1", "192.168.1.2"], &["lan", "home"], &["edns0", "ndots:1"]);
        check(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"]}}), &["9.9.9.9"], &[], &[]);
    }

    #[test]
    fn a_fourth_server_is_left_out_aloud() {
        let pod: Pod = serde_json::from_value(
            json!({"spec": {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]}}}),
        )
        .unwrap();
        let got = resolve(&pod, &[], "", &HostResolver::default());
        assert_eq!(got.config.servers.len(), 3);
        assert_eq!(got.warnings[0].0, "DNSConfigForming");
    }

    #[test]
    fn a_cluster_policy_without_cluster_dns_falls_back_aloud() {
        let got = resolve(&Pod::default(), &[], "", &HostResolver::parse(HOST));
        assert_eq!(got.config.servers.len(), 2);
        assert_eq!(got.warnings[0].0, "MissingClusterDNS");
    }
}
