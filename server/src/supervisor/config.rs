//! `/v1-k3s/config`: the cluster's settings in the document K3s' agents read, 66 keys in Go's order.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::Ipv4Net;
use serde::Serializer as _;
use serde::ser::SerializeMap as _;
use serde_json::{Value, json};

/// What this one-server cluster is made of.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Pod network of the whole cluster; each node gets a /24 of it.
    pub pods: Ipv4Net,
    /// Service network. Its first address is Service `default/kubernetes`, its tenth the DNS service.
    pub services: Ipv4Net,
    /// DNS domain of the cluster.
    pub domain: String,
    /// Address under which nodes reach this server.
    pub advertise: IpAddr,
    /// The one TLS port.
    pub port: u16,
    /// Host name of the server.
    pub server_name: String,
    /// Names and addresses of the serving certificate.
    pub sans: Vec<String>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// 96 hex characters; only the embedded registry would use them.
    pub ipsec_psk: String,
}

/// NodePorts: first, and how many.
pub const NODE_PORTS: (u16, u16) = (30000, 2768);

const CIPHERS: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
];

impl Cluster {
    /// `address:port` as nodes dial it.
    pub fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.advertise, self.port)
    }

    /// The `n`-th address of the service network.
    pub fn service_ip(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.services.network()).wrapping_add(n))
    }

    /// The document, with its final newline.
    pub fn document(&self) -> String {
        let mut out = Vec::with_capacity(4096);
        let mut serializer = serde_json::Serializer::new(&mut out);
        let fields = self.fields();
        let mut map = serializer.serialize_map(Some(fields.len())).expect("writing to memory");
        for (key, value) in &fields {
            map.serialize_entry(key, value).expect("writing to memory");
        }
        map.end().expect("writing to memory");
        out.push(b'\n');
        String::from_utf8(out).expect("serde_json writes UTF-8")
    }

    fn fields(&self) -> Vec<(&'static str, Value)> {
        let dns = self.service_ip(10).to_string();
        let absent = json!({
            "coredns": true, "local-storage": true, "metrics-server": true, "servicelb": true, "traefik": true,
        });
        let address = self.advertise.to_string();
        vec![
            ("ClusterDNSs", json!([dns])),
            ("ClusterIPRanges", json!([ip_net(&self.pods)])),
            ("ClusterDNS", json!(dns)),
            ("ClusterDomain", json!(self.domain)),
            ("ClusterIPRange", ip_net(&self.pods)),
            ("DisableCCM", json!(false)),
            ("DisableHelmController", json!(true)),
            ("DisableNPC", json!(true)),
            ("EncryptSecrets", json!(false)),
            ("EncryptProvider", json!("aescbc")),
            ("EmbeddedRegistry", json!(false)),
            ("FlannelBackend", json!("host-gw")),
            ("FlannelIPv6Masq", json!(false)),
            ("FlannelExternalIP", json!(false)),
            ("EgressSelectorMode", json!("agent")),
            ("ServiceIPRange", ip_net(&self.services)),
            ("ServiceIPRanges", json!([ip_net(&self.services)])),
            ("SupervisorMetrics", json!(false)),
            ("AdvertisePort", json!(self.port)),
            ("AdvertiseIP", json!(address)),
            ("HTTPSPort", json!(self.port)),
            ("SupervisorPort", json!(self.port)),
            ("APIServerPort", json!(self.port)),
            ("APIServerBindAddress", json!("")),
            ("ServiceNodePortRange", json!({ "Base": NODE_PORTS.0, "Size": NODE_PORTS.1 })),
            ("KubeConfigOutput", json!(self.data_dir.join("kubeconfig.yaml"))),
            ("KubeConfigMode", json!("")),
            ("KubeConfigGroup", json!("")),
            ("KubeConfigName", json!("default")),
            ("HelmJobImage", json!("")),
            ("DataDir", json!(self.data_dir)),
            ("KineTLS", json!(false)),
            ("Disables", absent.clone()),
            ("DisableAgent", json!(true)),
            ("DisableAPIServer", json!(false)),
            ("DisableControllerManager", json!(false)),
            ("DisableETCD", json!(true)),
            ("DisableKubeProxy", json!(false)),
            ("DisableScheduler", json!(false)),
            ("DisableServiceLB", json!(true)),
            ("Rootless", json!(false)),
            ("ServiceLBNamespace", json!("kube-system")),
            ("ExtraAPIArgs", Value::Null),
            ("ExtraControllerArgs", Value::Null),
            ("ExtraCloudControllerArgs", Value::Null),
            ("ExtraEtcdArgs", Value::Null),
            ("ExtraSchedulerArgs", Value::Null),
            ("ExtraHelmArgs", Value::Null),
            ("NoLeaderElect", json!(true)),
            ("JoinURL", json!("")),
            ("IPSECPSK", json!(self.ipsec_psk)),
            ("DefaultLocalStoragePath", json!("")),
            ("Skips", absent),
            ("SystemDefaultRegistry", json!("")),
            ("ClusterInit", json!(false)),
            ("ClusterReset", json!(false)),
            ("ClusterResetRestorePath", json!("")),
            ("MinTLSVersion", json!("")),
            ("CipherSuites", json!(CIPHERS)),
            ("ServerNodeName", json!(self.server_name)),
            ("VLevel", json!(0)),
            ("VModule", json!("")),
            ("BindAddress", json!("")),
            ("SANs", json!(self.sans)),
            ("SANSecurity", json!(true)),
            ("PrivateIP", json!(address)),
        ]
    }
}

/// Go's `*net.IPNet`: address, and the mask's bytes in base64.
fn ip_net(net: &Ipv4Net) -> Value {
    json!({ "IP": net.network().to_string(), "Mask": STANDARD.encode(net.netmask().octets()) })
}

#[cfg(test)]
pub(crate) fn example() -> Cluster {
    Cluster {
        pods: "10.42.0.0/16".parse().unwrap(),
        services: "10.43.0.0/16".parse().unwrap(),
        domain: "cluster.local".to_owned(),
        advertise: "10.99.0.1".parse().unwrap(),
        port: 6443,
        server_name: "server1".to_owned(),
        sans: vec!["10.99.0.1".to_owned()],
        data_dir: PathBuf::from("/var/lib/edge-server"),
        ipsec_psk: "0".repeat(96),
    }
}
