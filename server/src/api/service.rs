//! Addresses of services: cluster IPs and node ports, chosen while the service is written.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::kind;
use super::meta;
use super::status::{ApiStatus, Cause};

/// K3s' default service range, 10.43.0.0/16.
const NETWORK: u32 = 0x0a2b_0000;
const HOSTS: u32 = 0xffff;
const NODE_PORTS: std::ops::RangeInclusive<u64> = 30000..=32767;

/// Gives `service` what its type needs and it has not: `clusterIP`, `clusterIPs`, `nodePort`s.
/// `all` are the services that exist, `old` the one being replaced, whose addresses stay.
///
/// # Errors
/// 422 for an address outside the range or taken, 500 when the range is used up.
pub(super) fn allocate(all: &[Arc<Value>], service: &mut Value, old: Option<&Value>) -> Result<(), ApiStatus> {
    let others: Vec<&Value> = all.iter().map(|s| &**s).filter(|s| meta::uid(s) != meta::uid(service)).collect();
    let service_type = service["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
    let name = meta::name(service).to_owned();
    if service_type == "ExternalName" {
        if let Some(spec) = service["spec"].as_object_mut() {
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
        }
        return Ok(());
    }
    let asked = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    let had = old.and_then(|o| o["spec"]["clusterIP"].as_str()).unwrap_or_default();
    let used = || -> BTreeSet<&str> { others.iter().filter_map(|s| s["spec"]["clusterIP"].as_str()).collect() };
    let address = if asked.is_empty() && !had.is_empty() {
        had.to_owned()
    } else if asked.is_empty() {
        let used = used();
        pick(&used).ok_or_else(|| ApiStatus::internal("failed to allocate a serviceIP: range is full"))?
    } else if asked != "None" && asked != had {
        let wrong = match asked.parse::<Ipv4Addr>() {
            Ok(ip) if u32::from(ip) & !HOSTS != NETWORK => {
                "The provided IP is not in the valid range. The range of valid IPs is 10.43.0.0/16"
            }
            Ok(_) if used().contains(asked.as_str()) => "provided IP is already allocated",
            Ok(_) => "",
            Err(_) => "must be a valid IP address",
        };
        if !wrong.is_empty() {
            return Err(invalid(&name, "spec.clusterIPs", &json!([asked]), &format!("failed to allocate IP {asked}: {wrong}")));
        }
        asked
    } else {
        asked
    };
    service["spec"]["clusterIP"] = json!(address);
    service["spec"]["clusterIPs"] = json!([address]);
    node_ports(&others, service, old, &service_type, &name)
}

fn pick(used: &BTreeSet<&str>) -> Option<String> {
    let mut random = [0_u8; 4];
    meta::fill(&mut random);
    // The first addresses stay free for those that are asked for by number (10.43.0.1, 10.43.0.10).
    let start = u32::from_le_bytes(random) % (HOSTS - 256);
    (0..HOSTS - 256).map(|n| Ipv4Addr::from(NETWORK + 256 + (start + n) % (HOSTS - 257)).to_string()).find(|ip| !used.contains(ip.as_str()))
}

fn node_ports(others: &[&Value], service: &mut Value, old: Option<&Value>, service_type: &str, name: &str) -> Result<(), ApiStatus> {
    if service_type == "ClusterIP" {
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if let Some(port) = port.as_object_mut() {
                // A service that was a NodePort gives them back.
                if old.is_some_and(|o| o["spec"]["type"] != "ClusterIP") {
                    port.remove("nodePort");
                }
            }
        }
        return Ok(());
    }
    let ports =
        |s: &Value| -> Vec<u64> { s["spec"]["ports"].as_array().into_iter().flatten().filter_map(|p| p["nodePort"].as_u64()).collect() };
    let mut used: BTreeSet<u64> = others.iter().flat_map(|s| ports(s)).collect();
    let had = old.map(|o| o["spec"]["ports"].clone()).unwrap_or_default();
    let mut wanted = service["spec"]["ports"].take();
    for (index, port) in wanted.as_array_mut().into_iter().flatten().enumerate() {
        let asked = port["nodePort"].as_u64().unwrap_or(0);
        if asked != 0 {
            let field = format!("spec.ports[{index}].nodePort");
            if !NODE_PORTS.contains(&asked) {
                return Err(invalid(
                    name,
                    &field,
                    &json!(asked),
                    "provided port is not in the valid range. The range of valid ports is 30000-32767",
                ));
            }
            if used.contains(&asked) {
                return Err(invalid(name, &field, &json!(asked), "provided port is already allocated"));
            }
            used.insert(asked);
            continue;
        }
        let same = |o: &&Value| o["port"] == port["port"] && o["protocol"] == port["protocol"];
        let before = had.as_array().into_iter().flatten().find(same).and_then(|o| o["nodePort"].as_u64());
        let free = before.filter(|p| !used.contains(p)).or_else(|| NODE_PORTS.clone().find(|p| !used.contains(p)));
        let free = free.ok_or_else(|| ApiStatus::internal("failed to allocate a nodePort: range is full"))?;
        used.insert(free);
        port["nodePort"] = json!(free);
    }
    service["spec"]["ports"] = wanted;
    Ok(())
}

fn invalid(name: &str, field: &str, value: &Value, why: &str) -> ApiStatus {
    let cause =
        Cause { reason: "FieldValueInvalid".to_owned(), message: format!("Invalid value: {value}: {why}"), field: field.to_owned() };
    ApiStatus::invalid(&kind::SERVICE, name, vec![cause])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(uid: &str, spec: Value) -> Value {
        json!({"metadata": {"name": "s", "uid": uid}, "spec": spec})
    }

    #[test]
    fn addresses_are_unique_and_stay() {
        let mut first = service("1", json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        allocate(&[], &mut first, None).unwrap();
        let ip = first["spec"]["clusterIP"].as_str().unwrap().to_owned();
        assert!(ip.starts_with("10.43."));
        assert_eq!(first["spec"]["ports"][0]["nodePort"], 30000);
        let all = [Arc::new(first.clone())];
        let mut second = service("2", json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        allocate(&all, &mut second, None).unwrap();
        assert_ne!(second["spec"]["clusterIP"], first["spec"]["clusterIP"]);
        assert_eq!(second["spec"]["ports"][0]["nodePort"], 30001);
        let mut again = service("1", json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        allocate(&all, &mut again, Some(&first)).unwrap();
        assert_eq!(again["spec"], first["spec"], "applying the manifest again keeps what was given");
        let mut taken = service("3", json!({"type": "ClusterIP", "clusterIP": ip}));
        assert_eq!(allocate(&all, &mut taken, None).unwrap_err().code, 422);
        let mut outside = service("3", json!({"type": "ClusterIP", "clusterIP": "10.1.1.1"}));
        assert_eq!(allocate(&all, &mut outside, None).unwrap_err().code, 422);
        let mut headless = service("3", json!({"type": "ClusterIP", "clusterIP": "None"}));
        allocate(&all, &mut headless, None).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    }
}
