//! Beside the list: what this instance needs to run pods.

use super::super::fix::Fix;
use super::{Verdict, blocked, pass, skipped, warn};
use crate::preflight::Facts;
use crate::preflight::facts::node::Node;
use crate::reboot::Outcome;

pub(super) fn all(facts: &Facts, node: &Node) -> Vec<(&'static str, Verdict)> {
    let mut all = vec![
        ("root", root(facts)),
        ("cpu-controller", controller(facts, facts.cgroups.cpu, "processor limits do not hold")),
        ("pids-controller", controller(facts, facts.cgroups.pids, "a fork bomb takes the node")),
        ("network-plugins", plugins(node)),
        ("overlayfs", overlay(node)),
        ("bridge-netfilter", bridge(node)),
        ("nftables", nft(node)),
        ("oom-scores", oom(node)),
        ("ports", ports(node)),
        ("address", address(node)),
    ];
    if let Some(outcome) = &facts.boot.reboot {
        let verdict = match outcome {
            Outcome::Required(_) => warn(outcome.message(), "Reboot").pending(),
            Outcome::Done(_) => pass(outcome.message()),
            Outcome::Ineffective(_) => warn(outcome.message(), "See what the checks above say of them"),
        };
        all.push(("reboot", verdict));
    }
    all
}

fn root(facts: &Facts) -> Verdict {
    if facts.root { pass("runs as root") } else { blocked("runs as an ordinary user", "Run it with sudo") }
}

fn controller(facts: &Facts, there: bool, without: &str) -> Verdict {
    match (facts.cgroups.layout, there) {
        (None, _) => skipped("no hierarchy, see cgroup-v2"),
        (Some(_), true) => pass("available"),
        (Some(_), false) => warn(format!("the kernel offers none: {without}"), "Use the distribution's kernel"),
    }
}

fn plugins(node: &Node) -> Verdict {
    if node.missing_plugins.is_empty() {
        return pass(format!("all in {}", node.cni_bin_dir.display()));
    }
    blocked(
        format!("{} missing in {}", node.missing_plugins.join(", "), node.cni_bin_dir.display()),
        "Run: apt-get install containernetworking-plugins, or set cni-bin-dir",
    )
}

fn overlay(node: &Node) -> Verdict {
    if node.overlay {
        return pass("available");
    }
    blocked("the kernel has not loaded it", "Run: modprobe overlay, or: edge-agent preflight --fix").fixed_by([Fix::Module("overlay")])
}

fn bridge(node: &Node) -> Verdict {
    if node.bridge_netfilter {
        return pass("available");
    }
    let found = "br_netfilter is not loaded: services may not reach pods of this node";
    warn(found, "Run: modprobe br_netfilter, or: edge-agent preflight --fix").fixed_by([Fix::Module("br_netfilter")])
}

fn nft(node: &Node) -> Verdict {
    if node.nft_program {
        pass("installed")
    } else {
        warn("the nft program is missing: pods do not reach the outside", "Run: apt-get install nftables")
    }
}

fn oom(node: &Node) -> Verdict {
    if node.may_lower_oom {
        pass("can be lowered")
    } else {
        warn(
            "CAP_SYS_RESOURCE is missing: the kernel may end the agent before a pod",
            "Run it outside of a container, or grant SYS_RESOURCE",
        )
    }
}

fn ports(node: &Node) -> Verdict {
    if node.running {
        return pass("held by the running agent of this instance");
    }
    match node.taken.as_slice() {
        [] => pass("free"),
        taken => {
            let list: Vec<String> = taken.iter().map(|(address, _)| address.to_string()).collect();
            let keys: Vec<&str> = taken.iter().map(|(_, key)| *key).collect();
            blocked(format!("{} in use", list.join(", ")), format!("Stop what listens there, or choose others with {}", keys.join(", ")))
        }
    }
}

fn address(node: &Node) -> Verdict {
    if node.addresses > 0 {
        pass("other nodes can reach this one")
    } else {
        warn("no address and no default route yet", "Connect the machine, or set node-ip")
    }
}
