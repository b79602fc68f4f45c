//! What flannel on other nodes expects to find on this node's Node object, and what theirs says about them (k3s-agent
//! reference, section 8.1). Values must be spelled exactly so, or other nodes see a change at every write.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::routes::Peer;
use crate::vxlan::{self, Mac, VxlanPeer};

/// `"true"` on every node that takes part; others are ignored.
pub const KUBE_SUBNET_MANAGER: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
/// The backend; nodes with another one are ignored.
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
/// Backend data for IPv4, JSON.
pub const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
/// Backend data for IPv6, JSON.
pub const BACKEND_V6_DATA: &str = "flannel.alpha.coreos.com/backend-v6-data";
/// The IPv4 address peers send to.
pub const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
/// The IPv6 address peers send to.
pub const PUBLIC_IPV6: &str = "flannel.alpha.coreos.com/public-ipv6";

/// How pod traffic travels between nodes. All nodes of a cluster use the one the server names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Plain routes; all nodes in one layer-2 network.
    HostGw,
    /// UDP encapsulation, K3s' default.
    Vxlan,
}

impl Backend {
    /// As annotation and server configuration spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Backend::HostGw => "host-gw",
            Backend::Vxlan => "vxlan",
        }
    }

    /// From the server's `FlannelBackend`; `None` for one this agent does not implement.
    pub fn parse(text: &str) -> Option<Backend> {
        match text {
            "host-gw" => Some(Backend::HostGw),
            "vxlan" => Some(Backend::Vxlan),
            _ => None,
        }
    }
}

/// The annotations of a node that uses host-gw and is reached at these addresses (at most one per family is used).
pub fn annotations(public_ips: &[IpAddr]) -> BTreeMap<&'static str, String> {
    let mut all = BTreeMap::from([(KUBE_SUBNET_MANAGER, "true".to_owned()), (BACKEND_TYPE, Backend::HostGw.as_str().to_owned())]);
    for ip in public_ips {
        let (address, data) = match ip {
            IpAddr::V4(_) => (PUBLIC_IP, BACKEND_DATA),
            IpAddr::V6(_) => (PUBLIC_IPV6, BACKEND_V6_DATA),
        };
        all.entry(address).or_insert_with(|| ip.to_string());
        all.insert(data, "null".to_owned());
    }
    all
}

/// The annotations of a node that uses vxlan: its address and its device's MAC, per family.
pub fn vxlan_annotations(ends: &[(IpAddr, Mac)]) -> BTreeMap<&'static str, String> {
    let mut all = BTreeMap::from([(KUBE_SUBNET_MANAGER, "true".to_owned()), (BACKEND_TYPE, Backend::Vxlan.as_str().to_owned())]);
    for (ip, mac) in ends {
        let (address, data) = match ip {
            IpAddr::V4(_) => (PUBLIC_IP, BACKEND_DATA),
            IpAddr::V6(_) => (PUBLIC_IPV6, BACKEND_V6_DATA),
        };
        all.insert(address, ip.to_string());
        all.insert(data, format!("{{\"VNI\":{},\"VtepMAC\":\"{mac}\"}}", vxlan::VNI));
    }
    all
}

/// The MAC in an annotation of a vxlan node, the own one's included; `None` if it is not there or of another VNI.
pub fn vtep_mac(annotations: &BTreeMap<String, String>, key: &str) -> Option<Mac> {
    #[derive(serde::Deserialize)]
    struct Data {
        #[serde(rename = "VNI")]
        vni: u32,
        #[serde(rename = "VtepMAC")]
        mac: String,
    }
    let data: Data = serde_json::from_str(annotations.get(key)?).ok()?;
    (data.vni == vxlan::VNI).then(|| data.mac.parse().ok()).flatten()
}

/// A vxlan peer as its Node object describes it.
pub fn vxlan_peer(name: &str, annotations: &BTreeMap<String, String>, pod_cidrs: &[IpNet]) -> Option<VxlanPeer> {
    let peer = peer(name, annotations, pod_cidrs, Backend::Vxlan)?;
    let (mac, mac_v6) = (vtep_mac(annotations, BACKEND_DATA), vtep_mac(annotations, BACKEND_V6_DATA));
    (mac.is_some() || mac_v6.is_some()).then_some(VxlanPeer { peer, mac, mac_v6 })
}

/// A peer as its Node object describes it; `None` if it does not take part with this backend or is not ready to (no
/// podCIDR or address yet).
pub fn peer(name: &str, annotations: &BTreeMap<String, String>, pod_cidrs: &[IpNet], backend: Backend) -> Option<Peer> {
    let is = |key: &str, wanted: &str| annotations.get(key).is_some_and(|found| found == wanted);
    if !is(KUBE_SUBNET_MANAGER, "true") || !is(BACKEND_TYPE, backend.as_str()) {
        return None;
    }
    let ips: Vec<IpAddr> = [PUBLIC_IP, PUBLIC_IPV6].iter().filter_map(|key| annotations.get(*key)?.parse().ok()).collect();
    (!ips.is_empty() && !pod_cidrs.is_empty()).then(|| Peer { name: name.to_owned(), pod_cidrs: pod_cidrs.to_vec(), ips })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(map: BTreeMap<&'static str, String>) -> BTreeMap<String, String> {
        map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    #[test]
    fn annotations_of_one_and_two_families() {
        let v4: IpAddr = "192.168.1.13".parse().unwrap();
        let v6: IpAddr = "2001:db8::13".parse().unwrap();
        let one = annotations(&[v4]);
        assert_eq!(
            one.into_iter().collect::<Vec<_>>(),
            [
                (BACKEND_DATA, "null".to_owned()),
                (BACKEND_TYPE, "host-gw".to_owned()),
                (KUBE_SUBNET_MANAGER, "true".to_owned()),
                (PUBLIC_IP, "192.168.1.13".to_owned()),
            ]
        );
        let two = annotations(&[v4, v6]);
        assert_eq!(two[PUBLIC_IPV6], "2001:db8::13");
        assert_eq!(two[BACKEND_V6_DATA], "null");
    }

    #[test]
    fn what_one_node_writes_another_reads() {
        let cidr: IpNet = "10.42.3.0/24".parse().unwrap();
        let ip: IpAddr = "192.168.1.13".parse().unwrap();
        let written = owned(annotations(&[ip]));
        let found = peer("b", &written, &[cidr], Backend::HostGw).unwrap();
        assert_eq!((found.pod_cidrs, found.ips), (vec![cidr], vec![ip]));
        assert_eq!(peer("b", &written, &[cidr], Backend::Vxlan), None);
        assert_eq!(peer("b", &written, &[], Backend::HostGw), None);
        assert_eq!(peer("b", &BTreeMap::new(), &[cidr], Backend::HostGw), None);
    }

    #[test]
    fn vxlan_data_is_spelled_as_flannel_does_and_read_back() {
        let mac: Mac = "aa:bb:cc:dd:ee:ff".parse().unwrap();
        let ends = [("192.168.1.13".parse().unwrap(), mac), ("2001:db8::13".parse().unwrap(), mac)];
        let written = owned(vxlan_annotations(&ends));
        assert_eq!(written[BACKEND_DATA], r#"{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}"#);
        assert_eq!(written[BACKEND_TYPE], "vxlan");
        let cidr: IpNet = "10.42.3.0/24".parse().unwrap();
        let found = vxlan_peer("b", &written, &[cidr]).unwrap();
        assert_eq!((found.mac, found.mac_v6), (Some(mac), Some(mac)));
        let mut other = written.clone();
        for (data, left) in [("null", None), (r#"{"VNI":4096,"VtepMAC":"aa:bb:cc:dd:ee:ff"}"#, None), ("{", None)] {
            other.insert(BACKEND_DATA.to_owned(), data.to_owned());
            assert_eq!(vtep_mac(&other, BACKEND_DATA), left, "{data}");
        }
    }
}
