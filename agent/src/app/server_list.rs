//! The list of servers, followed as the cluster changes it (k3s-agent.md 4.7): a watch that costs nothing while nothing
//! changes. Tunnel links and API clients follow the list by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tunnel::{ServerAddr, balancer};

use crate::api::Client;
use crate::api::slice::EndpointSlice;
use crate::api::watch::Change;

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const SELECTOR: &str = "labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes";

/// What the task works with.
pub(super) struct Deps {
    /// May list EndpointSlices (`system:k3s-controller`).
    pub controller: Client,
    pub servers: watch::Sender<Vec<ServerAddr>>,
    /// Becomes true with the first list; who fetches the list otherwise stops then.
    pub followed: Arc<AtomicBool>,
    /// Where the list is kept for the next start, and for which configured address.
    pub data_dir: PathBuf,
    pub configured: ServerAddr,
    /// Of the supervisor, where it is not the apiserver's.
    pub port: Option<u16>,
}

/// Runs for ever. `clients` leave servers that are no longer in the list.
pub(super) async fn follow(deps: Deps, clients: Vec<Client>) {
    let mut watch = deps.controller.watch::<EndpointSlice>(SLICES, SELECTOR);
    let mut slices = BTreeMap::new();
    loop {
        take(&mut slices, watch.next().await);
        let list = addresses(slices.values(), deps.port);
        // A moment without any server is the servers' own trouble, and no reason to forget them.
        if list.is_empty() {
            continue;
        }
        deps.followed.store(true, Ordering::Relaxed);
        let known: BTreeSet<ServerAddr> = deps.servers.borrow().iter().cloned().collect();
        if list == known {
            continue;
        }
        let list: Vec<ServerAddr> = list.into_iter().collect();
        tracing::info!(servers = ?list.iter().map(ServerAddr::to_string).collect::<Vec<_>>(), "list of servers changed");
        if let Err(error) = balancer::save(&deps.data_dir, &deps.configured, &list) {
            tracing::warn!(error = %crate::telemetry::chain(&error), "list of servers not saved");
        }
        deps.servers.send_replace(list);
        for client in &clients {
            client.servers_changed().await;
        }
    }
}

fn take(slices: &mut BTreeMap<String, EndpointSlice>, change: Change<EndpointSlice>) {
    match change {
        Change::Replaced(all) => *slices = all.into_iter().map(|slice| (slice.metadata.name.clone(), slice)).collect(),
        Change::Applied(slice) => {
            slices.insert(slice.metadata.name.clone(), slice);
        }
        Change::Deleted(slice) => {
            slices.remove(&slice.metadata.name);
        }
    }
}

/// Every address that is not unready; port of the slice, 443 where it has none.
fn addresses<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, port: Option<u16>) -> BTreeSet<ServerAddr> {
    let mut list = BTreeSet::new();
    for slice in slices {
        let port = port.or_else(|| slice.ports.first().and_then(|port| port.port)).unwrap_or(443);
        let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready != Some(false));
        list.extend(ready.flat_map(|endpoint| &endpoint.addresses).map(|address| ServerAddr::new(address, port)));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str, endpoints: &str, port: &str) -> EndpointSlice {
        let text = format!(r#"{{"metadata":{{"name":"{name}"}},"addressType":"IPv4","endpoints":[{endpoints}],"ports":[{port}]}}"#);
        serde_json::from_str(&text).expect("json")
    }

    fn text(slices: &BTreeMap<String, EndpointSlice>, port: Option<u16>) -> String {
        addresses(slices.values(), port).iter().map(ServerAddr::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_address_that_is_not_unready_counts() {
        let six = r#"{"name":"https","port":6443}"#;
        let both =
            r#"{"addresses":["10.0.0.2","10.0.0.1"],"conditions":{"ready":true}},{"addresses":["10.0.0.3"],"conditions":{"ready":false}}"#;
        let rows = [
            (both, six, None, "10.0.0.1:6443 10.0.0.2:6443"),
            (r#"{"addresses":["10.0.0.1"]}"#, "", None, "10.0.0.1:443"),
            (r#"{"addresses":["10.0.0.1"],"conditions":{}}"#, six, Some(9345), "10.0.0.1:9345"),
            (r#"{"addresses":["fd00::1"]}"#, six, None, "[fd00::1]:6443"),
            ("", six, None, ""),
        ];
        for (endpoints, ports, port, wanted) in rows {
            let slices = BTreeMap::from([("kubernetes".to_owned(), slice("kubernetes", endpoints, ports))]);
            assert_eq!(text(&slices, port), wanted, "{endpoints}");
        }
    }

    #[test]
    fn changes_add_up() {
        let of = |name: &str, address: &str| slice(name, &format!(r#"{{"addresses":["{address}"]}}"#), r#"{"port":6443}"#);
        let mut slices = BTreeMap::new();
        for (change, wanted) in [
            (Change::Replaced(vec![of("a", "10.0.0.1"), of("b", "10.0.0.2")]), "10.0.0.1:6443 10.0.0.2:6443"),
            (Change::Applied(of("a", "10.0.0.3")), "10.0.0.2:6443 10.0.0.3:6443"),
            (Change::Deleted(of("b", "10.0.0.2")), "10.0.0.3:6443"),
            (Change::Replaced(Vec::new()), ""),
        ] {
            take(&mut slices, change);
            assert_eq!(text(&slices, None), wanted);
        }
    }
    /// What a real K3s with three servers answered while one after the other was killed and started again (tests/k3s).
    #[test]
    fn a_recorded_list_shrinks_and_grows_with_the_servers() {
        let body = |name: &str| {
            let path = format!("{}/../tests/recordings/k3s/{name}.json", env!("CARGO_MANIFEST_DIR"));
            let recording: serde_json::Value = serde_json::from_slice(&std::fs::read(path).expect("recording")).expect("json");
            recording["response"]["body_text"].as_str().expect("a body").to_owned()
        };
        let object = |value: &serde_json::Value| -> EndpointSlice { serde_json::from_str(&value.to_string()).expect("a slice") };
        let last = |slices: &BTreeMap<String, EndpointSlice>| {
            let list = addresses(slices.values(), None);
            assert!(list.iter().all(|server| server.port == 6443), "{list:?}");
            list.iter().filter_map(|server| server.host.rsplit('.').next().map(str::to_owned)).collect::<Vec<_>>().join(" ")
        };
        let mut slices = BTreeMap::new();
        let list: serde_json::Value = serde_json::from_str(&body("endpointslices-three-servers")).expect("json");
        take(&mut slices, Change::Replaced(list["items"].as_array().expect("items").iter().map(object).collect()));
        let mut seen = vec![last(&slices)];
        for line in body("endpointslices-watch").lines() {
            let event: serde_json::Value = serde_json::from_str(line).expect("json");
            assert_eq!(event["type"], "MODIFIED");
            take(&mut slices, Change::Applied(object(&event["object"])));
            seen.push(last(&slices));
        }
        seen.dedup();
        // A server that comes back is listed, gone again for a moment, and listed.
        let all = "101 102 103";
        assert_eq!(seen, [all, "101 103", all, "101 103", all, "102 103", all, "102 103", all]);
    }
}
