//! EndpointSlices, and the older Endpoints, of services: which addresses answer for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Context, Controller, object};
use crate::api::{ApiStatus, DeleteOptions, Kind, Selectors, Subresource, kind};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Endpoints in one slice.
const SLICE: usize = 100;

/// The controller.
pub struct Endpoints {
    /// Where it works.
    pub context: Context,
}

impl Controller for Endpoints {
    const NAME: &'static str = "endpoints";

    fn kinds(&self) -> &'static [&'static Kind] {
        static KINDS: [&Kind; 4] = [&kind::SERVICE, &kind::POD, &kind::ENDPOINT_SLICE, &kind::ENDPOINTS];
        &KINDS
    }

    async fn round(&mut self) -> Result<Option<Duration>, ApiStatus> {
        let registry = self.context.registry.clone();
        let (services, _) = registry.list(&kind::SERVICE, None, &Selectors::default());
        let (slices, _) = registry.list(&kind::ENDPOINT_SLICE, None, &Selectors::default());
        let mut wanted: BTreeSet<(String, String)> = BTreeSet::new();
        for service in services.iter().filter(|service| has_selector(service)) {
            let namespace = object::namespace(service);
            let (pods, _) = registry.list(&kind::POD, Some(namespace), &pods_of(service));
            let members: Vec<Member> = pods.iter().filter_map(|pod| Member::new(service, pod)).collect();
            for slice in wanted_slices(service, &members) {
                wanted.insert((namespace.to_owned(), object::name(&slice).to_owned()));
                self.put(&kind::ENDPOINT_SLICE, namespace, slice, &["endpoints", "ports", "addressType"]).await?;
            }
            self.put(&kind::ENDPOINTS, namespace, wanted_endpoints(service, &members), &["subsets"]).await?;
        }
        for slice in slices.iter().filter(|slice| slice["metadata"]["labels"][MANAGED_BY] == MANAGER) {
            let key = (object::namespace(slice).to_owned(), object::name(slice).to_owned());
            if !wanted.contains(&key) && !object::is_deleting(slice) {
                self.delete(&kind::ENDPOINT_SLICE, slice).await?;
            }
        }
        self.drop_orphans(&services).await?;
        self.kubernetes().await?;
        Ok(None)
    }
}

impl Endpoints {
    /// Creates `object`, or brings `fields` and labels of the present one to it. An object in a namespace that is going
    /// away is none of this controller's business.
    async fn put(&self, kind: &'static Kind, namespace: &str, object: Value, fields: &[&str]) -> Result<(), ApiStatus> {
        let (registry, actor, name) = (&self.context.registry, &self.context.actor, object::name(&object).to_owned());
        let update = |present: &mut Value| {
            let before = present.clone();
            for field in fields {
                present[*field] = object[*field].clone();
                if object[*field].is_null() {
                    if let Some(present) = present.as_object_mut() {
                        present.remove(*field);
                    }
                }
            }
            present["metadata"]["labels"] = object["metadata"]["labels"].clone();
            *present != before
        };
        match registry.get(kind, Some(namespace), &name) {
            Ok(present) => {
                if !update(&mut Value::clone(&present)) {
                    return Ok(());
                }
                match registry.modify(kind, Some(namespace), &name, Subresource::Main, actor, update).await {
                    Err(error) if !error.is_not_found() => Err(error),
                    _ => Ok(()),
                }
            }
            Err(_) => match registry.create(kind, Some(namespace), object, actor).await {
                Err(error) if !error.is_already_exists() && error.code != 403 && error.code != 404 => Err(error),
                _ => Ok(()),
            },
        }
    }

    async fn delete(&self, kind: &'static Kind, object: &Value) -> Result<(), ApiStatus> {
        let (registry, actor) = (&self.context.registry, &self.context.actor);
        let namespace = Some(object::namespace(object));
        match registry.delete(kind, namespace, object::name(object), DeleteOptions::default(), actor).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Endpoints carry the name of their service and no owner, so they are looked after here.
    async fn drop_orphans(&self, services: &[Arc<Value>]) -> Result<(), ApiStatus> {
        let (all, _) = self.context.registry.list(&kind::ENDPOINTS, None, &Selectors::default());
        for endpoints in &all {
            let ours = endpoints["metadata"]["labels"][MANAGED_BY] == MANAGER;
            let alive = services.iter().any(|service| {
                object::name(service) == object::name(endpoints) && object::namespace(service) == object::namespace(endpoints)
            });
            if ours && !alive {
                self.delete(&kind::ENDPOINTS, endpoints).await?;
            }
        }
        Ok(())
    }

    /// Service `default/kubernetes` and its endpoints: this server. Agents connect to every address listed here.
    pub async fn kubernetes(&self) -> Result<(), ApiStatus> {
        let (registry, actor, cluster) = (&self.context.registry, &self.context.actor, &self.context.cluster);
        let ip = cluster.service_ip(1).to_string();
        let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
        if registry.get(&kind::SERVICE, Some("default"), "kubernetes").is_err() {
            let service = json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
                "spec": {
                    "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "sessionAffinity": "None",
                    "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                    "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": cluster.port }],
                },
            });
            match registry.create(&kind::SERVICE, Some("default"), service, actor).await {
                Err(error) if !error.is_already_exists() => return Err(error),
                _ => {}
            }
        }
        let address = cluster.advertise;
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let port = json!([{ "name": "https", "port": cluster.port, "protocol": "TCP" }]);
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": "kubernetes", "namespace": "default", "labels": { (SERVICE_NAME): "kubernetes" } },
            "addressType": family,
            "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
            "ports": port,
        });
        self.put(&kind::ENDPOINT_SLICE, "default", slice, &["endpoints", "ports", "addressType"]).await?;
        let endpoints = json!({
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": { "name": "kubernetes", "namespace": "default",
                "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
            "subsets": [{ "addresses": [{ "ip": address }], "ports": port }],
        });
        self.put(&kind::ENDPOINTS, "default", endpoints, &["subsets"]).await
    }
}

fn has_selector(service: &Value) -> bool {
    service["spec"]["type"] != "ExternalName"
        && service["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty())
        && !object::is_deleting(service)
}

fn pods_of(service: &Value) -> Selectors {
    Selectors::from_label_selector(&json!({ "matchLabels": service["spec"]["selector"] }))
}

/// One pod behind a service.
struct Member {
    ip: String,
    ready: bool,
    serving: bool,
    terminating: bool,
    node: Value,
    reference: Value,
    hostname: Option<String>,
    ports: Value,
}

impl Member {
    fn new(service: &Value, pod: &Value) -> Option<Member> {
        let ip = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty())?;
        if object::is_finished(pod) || !pod["spec"]["nodeName"].is_string() {
            return None;
        }
        let (serving, terminating) = (object::is_ready(pod), object::is_deleting(pod));
        let published = service["spec"]["publishNotReadyAddresses"] == true;
        let subdomain = pod["spec"]["subdomain"].as_str() == Some(object::name(service));
        Some(Member {
            ip: ip.to_owned(),
            ready: published || (serving && !terminating),
            serving,
            terminating,
            node: pod["spec"]["nodeName"].clone(),
            reference: json!({
                "kind": "Pod",
                "name": object::name(pod),
                "namespace": object::namespace(pod),
                "uid": object::uid(pod),
            }),
            hostname: pod["spec"]["hostname"].as_str().filter(|_| subdomain).map(str::to_owned),
            ports: ports(service, pod),
        })
    }
}

/// The service's ports as this pod serves them: a named target port is looked up among its containers' ports.
fn ports(service: &Value, pod: &Value) -> Value {
    let mut ports = Vec::new();
    for port in service["spec"]["ports"].as_array().into_iter().flatten() {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = match &port["targetPort"] {
            Value::String(name) => named(pod, name, protocol),
            Value::Number(number) if number.as_u64() != Some(0) => number.as_u64(),
            _ => port["port"].as_u64(),
        };
        if let Some(number) = number {
            let name = port["name"].as_str().unwrap_or_default();
            let mut entry = json!({ "name": name, "port": number, "protocol": protocol });
            if !port["appProtocol"].is_null() {
                entry["appProtocol"] = port["appProtocol"].clone();
            }
            ports.push(entry);
        }
    }
    Value::Array(ports)
}

fn named(pod: &Value, name: &str, protocol: &str) -> Option<u64> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers
        .flat_map(|container| container["ports"].as_array().into_iter().flatten())
        .find(|port| port["name"] == name && port["protocol"].as_str().unwrap_or("TCP") == protocol)?["containerPort"]
        .as_u64()
}

/// The slices of a service: one for each set of ports, at least one, none with more than 100 endpoints. Names follow
/// from place and order, so that a restarted server finds the slices it made.
fn wanted_slices(service: &Value, members: &[Member]) -> Vec<Value> {
    let mut by_ports: BTreeMap<String, Vec<&Member>> = BTreeMap::new();
    for member in members {
        by_ports.entry(member.ports.to_string()).or_default().push(member);
    }
    let mut chunks: Vec<&[&Member]> = by_ports.values().flat_map(|members| members.chunks(SLICE)).collect();
    if chunks.is_empty() {
        chunks.push(&[]);
    }
    let mut labels = service["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), json!(object::name(service)));
    labels.insert(MANAGED_BY.to_owned(), json!(MANAGER));
    if service["spec"]["clusterIP"] == "None" {
        labels.insert("service.kubernetes.io/headless".to_owned(), json!(""));
    }
    let slice = |(index, members): (usize, &[&Member])| {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", object::name(service), suffix(object::uid(service), index)),
                "namespace": object::namespace(service),
                "labels": labels,
                "ownerReferences": [object::controller_reference(service)],
            },
            "addressType": "IPv4",
            "endpoints": members.iter().map(|member| endpoint(member)).collect::<Vec<_>>(),
            "ports": members.first().map_or_else(|| json!([]), |member| member.ports.clone()),
        })
    };
    chunks.into_iter().enumerate().map(slice).collect()
}

/// Five characters that look like a generated name's and are the same every time.
fn suffix(uid: &str, index: usize) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let text = format!("{uid}{index}");
    let mut hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut out = String::new();
    for _ in 0..5 {
        out.push(char::from(ALPHABET[(hash % 27) as usize]));
        hash /= 27;
    }
    out
}

fn endpoint(member: &Member) -> Value {
    let mut endpoint = json!({
        "addresses": [member.ip],
        "conditions": { "ready": member.ready, "serving": member.serving, "terminating": member.terminating },
        "nodeName": member.node,
        "targetRef": member.reference,
    });
    if let Some(hostname) = &member.hostname {
        endpoint["hostname"] = json!(hostname);
    }
    endpoint
}

fn wanted_endpoints(service: &Value, members: &[Member]) -> Value {
    let mut by_ports: BTreeMap<String, (Value, Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for member in members.iter().filter(|member| !member.terminating || member.ready) {
        let address = json!({ "ip": member.ip, "nodeName": member.node, "targetRef": member.reference });
        let entry = by_ports.entry(member.ports.to_string()).or_insert_with(|| (member.ports.clone(), Vec::new(), Vec::new()));
        if member.ready { entry.1.push(address) } else { entry.2.push(address) }
    }
    let subset = |(ports, ready, waiting): (Value, Vec<Value>, Vec<Value>)| {
        let mut subset = json!({});
        let unnamed = |ports: Value| {
            let mut ports = ports;
            for port in ports.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                if port.get("name").is_some_and(|name| name == "") {
                    port.remove("name");
                }
            }
            ports
        };
        for (field, value) in [("addresses", ready), ("notReadyAddresses", waiting)] {
            if !value.is_empty() {
                subset[field] = Value::Array(value);
            }
        }
        subset["ports"] = unnamed(ports);
        subset
    };
    let subsets: Vec<Value> = by_ports.into_values().map(subset).collect();
    let mut labels = service["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), json!(MANAGER));
    let mut endpoints = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": { "name": object::name(service), "namespace": object::namespace(service), "labels": labels },
    });
    if !subsets.is_empty() {
        endpoints["subsets"] = Value::Array(subsets);
    }
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "web", "namespace": "default", "uid": "s" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] },
        })
    }

    fn pod(name: &str, ip: &str, ready: bool, port: u64) -> Value {
        json!({
            "metadata": { "name": name, "namespace": "default", "uid": name },
            "spec": { "nodeName": "a", "containers": [{ "ports": [{ "name": "http", "containerPort": port }] }] },
            "status": { "podIP": ip, "phase": "Running",
                "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] },
        })
    }

    fn slices(pods: &[Value]) -> Vec<Value> {
        let service = service();
        let members: Vec<Member> = pods.iter().filter_map(|pod| Member::new(&service, pod)).collect();
        wanted_slices(&service, &members)
    }

    #[test]
    fn readiness_and_named_ports_are_looked_up() {
        let slices = slices(&[pod("a", "10.42.0.2", true, 80), pod("b", "10.42.0.3", false, 80), pod("c", "", true, 80)]);
        assert_eq!(slices.len(), 1);
        assert_eq!(slices[0]["ports"], json!([{ "name": "", "port": 80, "protocol": "TCP" }]));
        let endpoints = slices[0]["endpoints"].as_array().unwrap();
        assert_eq!(endpoints.len(), 2);
        assert_eq!(endpoints[1]["conditions"], json!({ "ready": false, "serving": false, "terminating": false }));
        assert_eq!(slices[0]["metadata"]["labels"][SERVICE_NAME], "web");
    }

    #[test]
    fn terminating_pod_serves_but_is_not_ready() {
        let mut ending = pod("a", "10.42.0.2", true, 80);
        ending["metadata"]["deletionTimestamp"] = json!("2026-11-23T00:00:00Z");
        let slices = slices(&[ending]);
        assert_eq!(slices[0]["endpoints"][0]["conditions"], json!({ "ready": false, "serving": true, "terminating": true }));
    }

    #[test]
    fn different_ports_and_many_pods_make_several_slices() {
        assert_eq!(slices(&[pod("a", "10.42.0.2", true, 80), pod("b", "10.42.0.3", true, 81)]).len(), 2);
        let many: Vec<Value> = (0..101).map(|n| pod(&n.to_string(), &format!("10.42.0.{n}"), true, 80)).collect();
        let many = slices(&many);
        assert_eq!(many.len(), 2);
        assert_ne!(object::name(&many[0]), object::name(&many[1]));
        assert_eq!(slices(&[]).len(), 1, "a service without pods has an empty slice");
    }
}
