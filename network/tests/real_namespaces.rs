//! Routes, rules and devices in network namespaces that each test makes and that vanish with it.
//!
//! Needs root, `ip` and `nft`; without them each test says that it was skipped.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use network::routes::{PROTOCOL, Reason, RouteChange};
use network::{
    CniConfig, Firewall, Instance, Masquerade, Own, Peer, Routes, Vxlan, VxlanPeer, default_interface, delete_interface, flannel,
    interface, interface_with, remove, sysctl, write_conflist,
};
use nix::sched::{CloneFlags, setns};

/// A network namespace, held open by a process that sleeps in it.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Namespace {
        let holder = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().expect("run unshare");
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let path = format!("/proc/{}/ns/net", holder.id());
        let start = Instant::now();
        while std::fs::read_link(&path).map_or(true, |found| found == own) {
            assert!(start.elapsed().as_secs() < 20, "no namespace of its own");
            std::thread::yield_now();
        }
        let namespace = Namespace { holder };
        namespace.run("ip link set lo up");
        namespace
    }

    /// Runs `work` in a thread of this namespace.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = std::fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            work()
        })
        .join()
        .expect("work in the namespace")
    }

    fn run(&self, command: &str) -> String {
        let command = command.to_owned();
        self.inside(move || {
            let words: Vec<&str> = command.split_whitespace().collect();
            let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// Connects device `here` of this namespace with device `there` of another.
    fn cable(&self, here: &str, other: &Namespace, there: &str) {
        self.run(&format!("ip link add {here} type veth peer name {there} netns {}", other.holder.id()));
        self.run(&format!("ip link set {here} up"));
        other.run(&format!("ip link set {there} up"));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn able(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("\nSKIP network::{test}: not root");
        return false;
    }
    for program in ["ip", "nft", "unshare"] {
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            eprintln!("\nSKIP network::{test}: no {program}");
            return false;
        }
    }
    let unshared = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
    if !unshared.is_ok_and(|status| status.success()) {
        eprintln!("\nSKIP network::{test}: no network namespaces");
        return false;
    }
    true
}

fn peer(name: &str, cidr: &str, ip: &str) -> Peer {
    Peer { name: name.to_owned(), pod_cidrs: vec![cidr.parse().unwrap()], ips: vec![ip.parse().unwrap()] }
}

#[test]
fn routes_come_and_go_and_foreign_ones_stay() {
    if !able("routes_come_and_go_and_foreign_ones_stay") {
        return;
    }
    let ns = Namespace::new();
    ns.run("ip link add wire type veth peer name far");
    ns.run("ip link set far up");
    ns.run("ip link set wire mtu 1380 up");
    ns.run("ip address add 192.168.77.10/24 dev wire");
    ns.run("ip address add fd77::10/64 dev wire nodad");
    ns.run("ip route add default via 192.168.77.1");
    ns.run("ip route add 10.42.9.0/24 via 192.168.77.99");
    let (interface, first, second, unreachable, removed) = ns.inside(|| {
        let interface = default_interface().unwrap().unwrap();
        assert_eq!(interface_with("192.168.77.10".parse().unwrap()).unwrap().as_ref(), Some(&interface));
        assert_eq!(interface_with("fd77::10".parse().unwrap()).unwrap().as_ref(), Some(&interface));
        assert_eq!(interface_with("192.168.77.11".parse().unwrap()).unwrap(), None);
        let mut routes = Routes::open(PROTOCOL).unwrap();
        let own = Own { name: "me".to_owned(), ..Own::default() };
        let mut peers = vec![
            peer("b", "10.42.1.0/24", "192.168.77.11"),
            peer("c", "fd42:1::/64", "fd77::11"),
            peer("d", "10.42.9.0/24", "192.168.77.12"),
        ];
        let first = routes.sync(&peers, &own).unwrap();
        assert!(routes.sync(&peers, &own).unwrap().changed.is_empty(), "the second time there is nothing to do");
        let listed = |family: &str| {
            let proto = PROTOCOL.to_string();
            let output = Command::new("ip").args([family, "route", "show", "proto", &proto]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(listed("-4").contains("10.42.1.0/24 via 192.168.77.11 dev wire"), "{}", listed("-4"));
        assert!(listed("-6").contains("fd42:1::/64 via fd77::11 dev wire"), "{}", listed("-6"));
        peers[0].ips = vec!["192.168.77.21".parse().unwrap()];
        let second = routes.sync(&peers, &own).unwrap();
        let far = [peer("far", "10.42.5.0/24", "172.31.0.1")];
        let unreachable = routes.sync(&far, &own).unwrap();
        let removed = routes.remove().unwrap();
        (interface, first, second, unreachable, removed)
    });
    assert_eq!((interface.name.as_str(), interface.mtu), ("wire", 1380));
    assert_eq!(first.changed.len(), 2, "{first:?}");
    assert_eq!(first.refused[0].reason, Reason::ForeignRoute);
    assert!(matches!(second.changed[..], [RouteChange::Delete(_), RouteChange::Add(_)]), "{second:?}");
    let (_, error) = &unreachable.failed[0];
    assert!(error.to_string().contains("not in a directly attached network"), "{error}");
    assert_eq!(removed, 0, "peers b and c had been taken away with the rest");
    let left = ns.run("ip route show");
    assert!(left.contains("10.42.9.0/24 via 192.168.77.99"), "{left}");
    assert!(!left.contains("proto 233"), "{left}");
}

#[test]
fn devices_are_removed_by_name() {
    if !able("devices_are_removed_by_name") {
        return;
    }
    let ns = Namespace::new();
    ns.run("ip link add cni0 type bridge");
    ns.inside(|| {
        delete_interface("cni0").unwrap();
        delete_interface("cni0").unwrap();
    });
    assert!(!ns.run("ip link show").contains("cni0"));
}

/// One connection from `from` to `to`; the address the other side saw.
fn seen_by(server: &Namespace, at: &str, from: &Namespace) -> IpAddr {
    let address: SocketAddr = format!("{at}:7070").parse().unwrap();
    let listener = server.inside(move || TcpListener::bind(address).unwrap());
    let answer = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
    });
    let text = from.inside(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    answer.join().unwrap();
    text.parse().unwrap()
}

/// Two nodes on a wire, each with one pod: `pod A - node A - node B - pod B`.
#[test]
fn pods_of_two_nodes_reach_each_other_and_the_world_sees_the_node() {
    if !able("pods_of_two_nodes_reach_each_other_and_the_world_sees_the_node") {
        return;
    }
    let [node_a, node_b, pod_a, pod_b] = [(); 4].map(|()| Namespace::new());
    node_a.cable("wire", &node_b, "wire");
    for (node, pod, number) in [(&node_a, &pod_a, 1), (&node_b, &pod_b, 2)] {
        node.run(&format!("ip address add 192.168.77.{number}/24 dev wire"));
        node.cable("pods", pod, "eth0");
        node.run(&format!("ip address add 10.42.{number}.1/24 dev pods"));
        pod.run(&format!("ip address add 10.42.{number}.2/24 dev eth0"));
        pod.run(&format!("ip route add default via 10.42.{number}.1"));
    }
    let apply = |node: &Namespace, own: u8, other: u8| {
        node.inside(move || {
            sysctl::enable_forwarding(false).unwrap();
            let name = format!("node-{own}");
            let firewall = Firewall::new(&name);
            let masquerade = Masquerade {
                cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
                pod_cidrs: vec![format!("10.42.{own}.0/24").parse().unwrap()],
                ipv6: false,
            };
            firewall.apply(&masquerade).unwrap();
            firewall.apply(&masquerade).unwrap();
            let own = Own { name, ..Own::default() };
            let peers = [peer("other", &format!("10.42.{other}.0/24"), &format!("192.168.77.{other}"))];
            let synced = Routes::open(PROTOCOL).unwrap().sync(&peers, &own).unwrap();
            assert!(synced.failed.is_empty(), "{synced:?}");
        });
    };
    apply(&node_a, 1, 2);
    apply(&node_b, 2, 1);

    let seen = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(seen_by(&pod_b, "10.42.2.2", &pod_a), seen("10.42.1.2"), "pod to pod keeps the pod's address");
    assert_eq!(seen_by(&node_b, "192.168.77.2", &pod_a), seen("192.168.77.1"), "pod to the world shows the node's");
    assert_eq!(seen_by(&pod_a, "10.42.1.2", &node_a), seen("10.42.1.1"), "the node reaches its own pods");
    assert_eq!(seen_by(&pod_b, "10.42.2.2", &node_a), seen("192.168.77.1"), "and those of the other node");

    node_a.run("nft add table inet somebody_elses");
    node_a.inside(|| {
        Firewall::new("node-1").remove().unwrap();
        Firewall::new("node-1").remove().unwrap();
        assert_eq!(Routes::open(PROTOCOL).unwrap().remove().unwrap(), 1);
    });
    assert_eq!(node_a.run("nft list tables").trim(), "table inet somebody_elses");
}

#[test]
fn a_forward_policy_of_drop_is_opened_for_pods_and_closed_again() {
    if !able("a_forward_policy_of_drop_is_opened_for_pods_and_closed_again") {
        return;
    }
    let ns = Namespace::new();
    let usable = ns.inside(|| Command::new("iptables").args(["-w", "-P", "FORWARD", "DROP"]).status());
    if !usable.is_ok_and(|status| status.success()) {
        eprintln!("\nSKIP network::a_forward_policy_of_drop_is_opened_for_pods_and_closed_again: no iptables");
        return;
    }
    let apply = || {
        let masquerade = Masquerade { cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()], ..Masquerade::default() };
        Firewall::new("n").apply(&masquerade).unwrap();
    };
    ns.inside(apply);
    ns.inside(apply);
    let rules = ns.run("iptables -S FORWARD");
    assert_eq!(rules.matches("10.42.0.0/16").count(), 2, "{rules}");
    ns.inside(|| Firewall::new("n").remove().unwrap());
    assert_eq!(ns.run("iptables -S FORWARD").trim(), "-P FORWARD DROP");
}

/// Node A is ours, node B is set up by hand as flannel does it.
#[test]
fn vxlan_carries_pods_to_a_node_that_flannel_set_up() {
    let test = "vxlan_carries_pods_to_a_node_that_flannel_set_up";
    if !able(test) {
        return;
    }
    let [node_a, node_b, pod_a, pod_b] = [(); 4].map(|()| Namespace::new());
    node_a.cable("wire", &node_b, "wire");
    for (node, pod, number) in [(&node_a, &pod_a, 1), (&node_b, &pod_b, 2)] {
        node.run(&format!("ip address add 192.168.77.{number}/24 dev wire"));
        node.cable("pods", pod, "eth0");
        node.run(&format!("ip address add 10.42.{number}.1/24 dev pods"));
        pod.run(&format!("ip address add 10.42.{number}.2/24 dev eth0"));
        pod.run(&format!("ip route add default via 10.42.{number}.1"));
        node.inside(|| sysctl::enable_forwarding(false).unwrap());
    }
    let possible = node_b.inside(|| {
        let words = "link add flannel.1 type vxlan id 1 dev wire local 192.168.77.2 dstport 8472 nolearning";
        Command::new("ip").args(words.split(' ')).stderr(Stdio::null()).status().unwrap().success()
    });
    if !possible {
        eprintln!("\nSKIP network::{test}: this kernel has no vxlan");
        return;
    }

    let local: IpAddr = "192.168.77.1".parse().unwrap();
    let open = move || Vxlan::open(&interface("wire").unwrap().unwrap(), local, None, PROTOCOL).unwrap();
    // A device that does not fit is replaced, one that fits is kept with its MAC.
    node_a.run("ip link add flannel.1 type vxlan id 2 dev wire dstport 4789");
    let mut ours = node_a.inside(open);
    assert_eq!(node_a.inside(open).mac(), ours.mac());
    assert_eq!(ours.mtu(), 1450);
    let mac = ours.mac();

    let mac_b = "02:00:00:00:00:0b";
    for command in [
        format!("ip link set flannel.1 address {mac_b} mtu 1450 up"),
        "ip address add 10.42.2.0/32 dev flannel.1".to_owned(),
        format!("ip neighbour add 10.42.1.0 lladdr {mac} nud permanent dev flannel.1"),
        format!("bridge fdb add {mac} dst 192.168.77.1 dev flannel.1 self permanent"),
        "ip route add 10.42.1.0/24 via 10.42.1.0 dev flannel.1 onlink".to_owned(),
    ] {
        node_b.run(&command);
    }
    let theirs = flannel::vxlan_annotations(&[("192.168.77.2".parse().unwrap(), mac_b.parse().unwrap())]);
    let theirs = theirs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let peer: VxlanPeer = flannel::vxlan_peer("b", &theirs, &["10.42.2.0/24".parse().unwrap()]).unwrap();
    let own = Own { name: "a".to_owned(), pod_cidrs: vec!["10.42.1.0/24".parse().unwrap()], ips: vec![local] };
    ours.set_pod_cidr(&"10.42.9.0/24".parse().unwrap()).unwrap();
    ours.set_pod_cidr(&own.pod_cidrs[0]).unwrap();
    let synced = ours.sync(std::slice::from_ref(&peer), &own).unwrap();
    assert_eq!((synced.changed, synced.failed.len(), synced.refused.len()), (3, 0, 0), "{synced:?}");
    assert_eq!(ours.sync(&[peer], &own).unwrap().changed, 0, "the second time there is nothing to do");
    let addresses = node_a.run("ip -4 -oneline address show dev flannel.1");
    assert!(addresses.contains("10.42.1.0/32") && !addresses.contains("10.42.9.0"), "{addresses}");

    assert_eq!(seen_by(&pod_b, "10.42.2.2", &pod_a), "10.42.1.2".parse::<IpAddr>().unwrap());
    assert_eq!(seen_by(&pod_a, "10.42.1.2", &pod_b), "10.42.2.2".parse::<IpAddr>().unwrap());

    assert_eq!(ours.sync(&[], &own).unwrap().changed, 3);
    assert!(!node_a.run("bridge fdb show dev flannel.1").contains(mac_b));
    assert!(!node_a.run("ip neighbour show dev flannel.1").contains(mac_b));
    ours.remove().unwrap();
    assert!(!node_a.run("ip link show").contains("flannel.1"));
}

#[test]
fn a_node_that_leaves_removes_what_it_made_and_nothing_else() {
    if !able("a_node_that_leaves_removes_what_it_made_and_nothing_else") {
        return;
    }
    let ns = Namespace::new();
    ns.run("ip link add wire type veth peer name far");
    ns.run("ip link set far up");
    ns.run("ip link set wire up");
    ns.run("ip address add 192.168.77.10/24 dev wire");
    ns.run("ip route add 10.9.0.0/16 via 192.168.77.99");
    ns.run("nft add table inet somebody_elses");
    let facts = |ns: &Namespace| ["ip route show", "nft list ruleset", "ip -brief link show"].map(|command| ns.run(command));
    let before = facts(&ns);

    // The bridge is the CNI plugin's work, here done by hand.
    ns.run("ip link add cni0 type bridge");
    let dir = tempfile::tempdir().unwrap();
    let instance = Instance {
        firewall: "n".to_owned(),
        bridge: "cni0".to_owned(),
        cni_conf_dir: dir.path().join("net.d"),
        cni_data_dir: dir.path().join("state"),
        vxlan: false,
    };
    let made = instance.clone();
    ns.inside(move || {
        let cidr = vec!["10.42.1.0/24".parse().unwrap()];
        let cluster = vec!["10.42.0.0/16".parse().unwrap()];
        write_conflist(&made.cni_conf_dir, &CniConfig::new(cidr.clone(), cluster.clone(), made.cni_data_dir.clone())).unwrap();
        std::fs::create_dir(&made.cni_data_dir).unwrap();
        let masquerade = Masquerade { cluster_cidrs: cluster, pod_cidrs: cidr, ipv6: false };
        Firewall::new(&made.firewall).apply(&masquerade).unwrap();
        let peers = [peer("b", "10.42.2.0/24", "192.168.77.11")];
        Routes::open(PROTOCOL).unwrap().sync(&peers, &Own::default()).unwrap();
    });
    assert_ne!(facts(&ns), before);
    for _ in 0..2 {
        let again = instance.clone();
        let failures = ns.inside(move || remove(&again));
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(facts(&ns), before);
    }
    assert!(!instance.cni_conf_dir.join(CniConfig::FILE).exists() && !instance.cni_data_dir.exists());
}
