//! The scrape that metrics-server makes: over the network, with a service account's token, checked by the server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::lab::{Lab, make_namespace};
use crate::system::kubectl::Kubectl;
use crate::system::steps::busybox;
use crate::system::wait_for;

/// The part of metrics-server's manifest that lets it read kubelets; the second account has none of it.
const ACCOUNTS: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: metrics-server, namespace: scrape}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: nobody, namespace: scrape}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: scrape-metrics-server}
rules:
  - {apiGroups: [''], resources: [nodes/metrics], verbs: [get]}
  - {apiGroups: [''], resources: [pods, nodes], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: scrape-metrics-server}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: scrape-metrics-server}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: scrape}]
";

/// What metrics-server reads of a kubelet.
const NODE: [&str; 2] = ["node_cpu_usage_seconds_total", "node_memory_working_set_bytes"];
const CONTAINER: [&str; 3] = ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_start_time_seconds"];

/// Needs one node of ours.
pub(crate) fn scrape(lab: &Lab) {
    let k = make_namespace(&lab.site.kubectl, "scrape");
    k.apply(ACCOUNTS);
    k.apply(&busybox("measured", "while :; do :; sleep 0.01; done", "Always"));
    lab.site.wait_pod("scrape", "measured", Duration::from_secs(60), |pod| pod["status"]["phase"] == "Running");
    let url = format!("https://{}:10250/metrics/resource", lab.site.nodes[0].ip);
    let get = |token: Option<&str>| {
        let ca = lab.server_ca().display().to_string();
        let header = token.map(|token| format!("Authorization: Bearer {token}"));
        let mut args = vec!["--cacert", &ca, "-w", "\n%{http_code}", &url];
        if let Some(header) = &header {
            args.extend(["-H", header]);
        }
        // The certificate is checked against the cluster's CA with the node's address as its name.
        let text = lab.curl(&args).ok()?;
        let (body, code) = text.rsplit_once('\n').ok_or_else(|| text.clone())?;
        Ok::<_, String>((code.to_owned(), body.to_owned()))
    };
    let code = |token: Option<&str>| get(token).expect("an answer").0;
    assert_eq!(code(None), "401", "without a token");
    assert_eq!(code(Some("not.a.token")), "401", "with a token that is none");
    assert_eq!(code(Some(&token(lab, &k, "nobody"))), "403", "without the right to it");

    let scraper = token(lab, &k, "metrics-server");
    wait_for(Duration::from_secs(60), "the running container in /metrics/resource", || {
        let (code, body) = get(Some(&scraper))?;
        if code != "200" {
            return Err(format!("{code}: {body}"));
        }
        let samples = parse(&body)?;
        for name in NODE {
            let found = samples.iter().find(|sample| sample.name == name).ok_or_else(|| format!("no {name} in\n{body}"))?;
            assert!(found.value > 0.0, "{name} is {}", found.value);
        }
        for name in CONTAINER {
            let ours = |sample: &&Sample| {
                let label = |key: &str| sample.labels.get(key).map(String::as_str);
                sample.name == name
                    && (label("namespace"), label("pod"), label("container")) == (Some("scrape"), Some("measured"), Some("c"))
            };
            let found = samples.iter().find(ours).ok_or_else(|| format!("no {name} of our container in\n{body}"))?;
            if found.value <= 0.0 {
                return Err(format!("{name} is {}", found.value));
            }
        }
        println!(
            "/metrics/resource: {} samples of {} names",
            samples.len(),
            samples.iter().map(|s| &s.name).collect::<BTreeSet<_>>().len()
        );
        Ok(())
    });
    // The same token opens nothing else.
    let pods = lab.curl(&[
        "--cacert",
        &lab.server_ca().display().to_string(),
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-H",
        &format!("Authorization: Bearer {scraper}"),
        &url.replace("/metrics/resource", "/pods"),
    ]);
    assert_eq!(pods.ok().expect("an answer"), "403", "the scraper may not list pods");
    k.ok(&["delete", "pod", "measured", "--now"]);
}

/// `kubectl create token`, in a form that old kubectls know too.
fn token(lab: &Lab, k: &Kubectl, account: &str) -> String {
    let file = lab.site.dir.join("token-request.json");
    let request = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"expirationSeconds":3600}}"#;
    std::fs::write(&file, request).expect("request is written");
    let path = format!("/api/v1/namespaces/scrape/serviceaccounts/{account}/token");
    let answer = k.ok(&["create", "--raw", &path, "-f", &file.display().to_string()]);
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("json");
    answer["status"]["token"].as_str().expect("a token").to_owned()
}

struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Prometheus text: every line must be a comment or `name{labels} value [milliseconds]`.
fn parse(text: &str) -> Result<Vec<Sample>, String> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| sample(line).ok_or_else(|| format!("not a sample: {line}")))
        .collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (series, rest) = match line.split_once('}') {
        Some((series, rest)) => (series, rest),
        None => line.split_once(' ')?,
    };
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let valid = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let mut found = BTreeMap::new();
    // Names of Kubernetes objects hold neither commas nor quotes.
    for pair in labels.split(',').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        let value = value.strip_prefix('"')?.strip_suffix('"')?;
        found.insert(Some(key).filter(|key| valid(key))?.to_owned(), value.to_owned());
    }
    let mut numbers = rest.split_whitespace();
    let value = numbers.next()?.parse().ok()?;
    if let Some(stamp) = numbers.next() {
        stamp.parse::<i64>().ok()?;
    }
    (numbers.next().is_none() && valid(name)).then(|| Sample { name: name.to_owned(), labels: found, value })
}

#[test]
fn text_that_is_not_prometheus_is_refused() {
    let good = "# HELP a b\n# TYPE a counter\na{pod=\"p\",x=\"y\"} 1.5 1700000000000\nb 2e3\n";
    let samples = parse(good).expect("good text");
    assert_eq!(samples.len(), 2);
    assert_eq!((samples[0].labels["pod"].as_str(), samples[0].value, samples[1].value), ("p", 1.5, 2000.0));
    for bad in ["a{pod=p} 1", "a{pod=\"p\"} x", "a", "a 1 2 3", "a b{} 1", "1", "a{pod=\"p\"} 1 soon"] {
        assert!(parse(bad).is_err(), "{bad:?} was taken");
    }
}
