//! Masquerading and forwarding rules, in one nftables table of our own that is replaced and removed as a whole.
//!
//! The rules are flannel's (k3s-agent reference, section 8.5): pod addresses are kept inside the cluster and replaced by the node's
//! when leaving it. nftables is fed text through a pipe, so that a change is atomic and nothing passes a shell.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ipnet::IpNet;

use crate::{Error, Result};

/// What the rules depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// The cluster's CIDRs.
    pub cluster_cidrs: Vec<IpNet>,
    /// This node's podCIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Masquerade IPv6 too (K3s: `flannel-ipv6-masq`).
    pub ipv6: bool,
}

/// kube-proxy's mark on packets that it masquerades itself.
const MASQUERADE_MARK: &str = "0x4000";

/// The table of one instance.
#[derive(Debug, Clone)]
pub struct Firewall {
    table: String,
    nft: PathBuf,
    iptables: PathBuf,
}

impl Firewall {
    /// The table `edge_agent_<instance>`; characters that nftables does not take become `_`.
    pub fn new(instance: &str) -> Firewall {
        let name: String = instance.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(64).collect();
        Firewall { table: format!("edge_agent_{name}"), nft: "nft".into(), iptables: "iptables".into() }
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Puts the rules in place, replacing those of before in one step.
    pub fn apply(&self, masquerade: &Masquerade) -> Result<()> {
        self.run_nft(&ruleset(&self.table, masquerade))?;
        self.open_iptables_forward(masquerade)
    }

    /// Removes the rules; none is removed already.
    pub fn remove(&self) -> Result<()> {
        self.run_nft(&format!("table inet {table}\ndelete table inet {table}\n", table = self.table))?;
        self.close_iptables_forward()
    }

    fn run_nft(&self, rules: &str) -> Result<()> {
        let run = |source| Error::Run { program: self.nft.clone(), source };
        let mut child = Command::new(&self.nft)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(run)?;
        // Dropped at the end of the statement, which is the end of the input. Should nft end early, its status says why.
        let fed = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(rules.as_bytes()));
        let output = child.wait_with_output().map_err(run)?;
        if !output.status.success() {
            return Err(self.refused(&self.nft, &output.stderr));
        }
        fed.map_err(run)
    }

    fn refused(&self, program: &std::path::Path, complaint: &[u8]) -> Error {
        let text = String::from_utf8_lossy(complaint);
        let message: Vec<&str> = text.lines().take(3).map(str::trim).collect();
        Error::Refused { program: program.to_owned(), message: message.join("; ") }
    }

    /// Accepting in our table does not help where another one drops: Docker sets the policy of iptables' FORWARD to
    /// DROP. Only there, and only our marked rules, are put into it, as flannel does.
    fn open_iptables_forward(&self, masquerade: &Masquerade) -> Result<()> {
        let Some(listing) = self.iptables_forward() else {
            return Ok(());
        };
        if !listing.lines().any(|line| line == "-P FORWARD DROP") {
            return Ok(());
        }
        for cidr in masquerade.cluster_cidrs.iter().filter(|cidr| is_v4(cidr)) {
            for side in ["-s", "-d"] {
                let rule = self.forward_rule(side, &cidr.trunc().to_string());
                if !self.run_iptables("-C", &rule)?.status.success() {
                    let output = self.run_iptables("-A", &rule)?;
                    if !output.status.success() {
                        return Err(self.refused(&self.iptables, &output.stderr));
                    }
                }
            }
        }
        Ok(())
    }

    fn close_iptables_forward(&self) -> Result<()> {
        let listing = self.iptables_forward().unwrap_or_default();
        let mark = format!("--comment {} ", self.table);
        for line in listing.lines().filter(|line| line.contains(&mark)) {
            // The listing is in the form of the arguments that made it, ours without quotes.
            let rule: Vec<String> = line.split_whitespace().skip(2).map(str::to_owned).collect();
            let output = self.run_iptables("-D", &rule)?;
            if !output.status.success() {
                return Err(self.refused(&self.iptables, &output.stderr));
            }
        }
        Ok(())
    }

    fn forward_rule(&self, side: &str, cidr: &str) -> Vec<String> {
        [side, cidr, "-m", "comment", "--comment", &self.table, "-j", "ACCEPT"].map(str::to_owned).to_vec()
    }

    /// `None` where there is no iptables, and so nobody who set a policy with it.
    fn iptables_forward(&self) -> Option<String> {
        let output = Command::new(&self.iptables).args(["-w", "5", "-S", "FORWARD"]).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn run_iptables(&self, action: &str, rule: &[String]) -> Result<std::process::Output> {
        Command::new(&self.iptables)
            .args(["-w", "5", action, "FORWARD"])
            .args(rule)
            .output()
            .map_err(|source| Error::Run { program: self.iptables.clone(), source })
    }
}

fn is_v4(cidr: &IpNet) -> bool {
    matches!(cidr, IpNet::V4(_))
}

/// The whole table as text for `nft -f`. The first two lines make it replace what was there.
pub fn ruleset(table: &str, masquerade: &Masquerade) -> String {
    let mut post = String::new();
    let mut forward = String::new();
    for cluster in &masquerade.cluster_cidrs {
        let (ip, multicast) = match cluster {
            IpNet::V4(_) => ("ip", "224.0.0.0/4"),
            IpNet::V6(_) => ("ip6", "ff00::/8"),
        };
        let cluster_text = cluster.trunc();
        forward += &format!("    {ip} saddr {cluster_text} accept\n    {ip} daddr {cluster_text} accept\n");
        if !is_v4(cluster) && !masquerade.ipv6 {
            continue;
        }
        for pods in masquerade.pod_cidrs.iter().filter(|pods| is_v4(pods) == is_v4(cluster)) {
            let pods = pods.trunc();
            post += &format!("    {ip} saddr {pods} {ip} daddr {cluster_text} return\n");
            post += &format!("    {ip} saddr {cluster_text} {ip} daddr {pods} return\n");
            post += &format!("    {ip} saddr != {cluster_text} {ip} daddr {pods} return\n");
        }
        post += &format!("    {ip} saddr {cluster_text} {ip} daddr != {multicast} masquerade fully-random\n");
        post += &format!("    {ip} saddr != {cluster_text} {ip} daddr {cluster_text} masquerade fully-random\n");
    }
    format!(
        "table inet {table}\n\
         delete table inet {table}\n\
         table inet {table} {{\n\
         \x20 chain postrouting {{\n\
         \x20   type nat hook postrouting priority srcnat; policy accept;\n\
         \x20   meta mark & {MASQUERADE_MARK} == {MASQUERADE_MARK} return\n\
         {post}\
         \x20 }}\n\
         \x20 chain forward {{\n\
         \x20   type filter hook forward priority filter; policy accept;\n\
         {forward}\
         \x20 }}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(cidrs: &[&str]) -> Vec<IpNet> {
        cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect()
    }

    #[test]
    fn rules_of_two_families() {
        let text = ruleset(
            "edge_agent_test",
            &Masquerade {
                cluster_cidrs: nets(&["10.42.0.0/16", "fd00:42::/56"]),
                pod_cidrs: nets(&["10.42.3.0/24", "fd00:42:0:3::/64"]),
                ipv6: false,
            },
        );
        insta::assert_snapshot!(text);
    }

    #[test]
    fn ipv6_is_masqueraded_on_request_only() {
        let mut masquerade = Masquerade { cluster_cidrs: nets(&["fd00:42::/56"]), pod_cidrs: nets(&["fd00:42:0:3::/64"]), ipv6: false };
        assert!(!ruleset("t", &masquerade).contains("masquerade"));
        masquerade.ipv6 = true;
        assert!(ruleset("t", &masquerade).contains("ip6 daddr != ff00::/8 masquerade"));
    }

    #[test]
    fn table_names_are_made_of_what_nftables_takes() {
        assert_eq!(Firewall::new("node-1; flush").table(), "edge_agent_node_1__flush");
    }
}
