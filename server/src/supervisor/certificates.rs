//! Certificates for agents: which subject a path means, and which node may have it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::Method;
use hyper::http::request::Parts;
use time::OffsetDateTime;

use super::node_password::{self, Verdict};
use super::{Failure, Supervisor};
use crate::api::kind;
use crate::auth::Identity;
use crate::pki::{self, Leaf, Usage};

/// The four certificates an agent asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ServingKubelet,
    ClientKubelet,
    KubeProxy,
    Controller,
}

impl Supervisor {
    /// Checks the node headers where the kind has them, then signs the key of the request in `body`.
    pub(super) async fn certificate(&self, kind: Kind, parts: &Parts, body: &[u8], identity: &Identity) -> Result<String, Failure> {
        let leaf = match kind {
            Kind::KubeProxy => Leaf::client("system:kube-proxy", None),
            Kind::Controller => Leaf::client("system:k3s-controller", None),
            Kind::ServingKubelet => {
                let node = self.verified_node(parts, identity).await?;
                serving_kubelet(node, header(parts, "k3s-node-ip"))?
            }
            Kind::ClientKubelet => {
                let node = self.verified_node(parts, identity).await?;
                Leaf::client(&format!("system:node:{node}"), Some("system:nodes"))
            }
        };
        if parts.method != Method::POST {
            return Err(Failure::bad_request("body is not a DER encoded certificate signing request"));
        }
        let ca = match leaf.usage {
            Usage::Server => &self.pki.server_ca,
            Usage::Client => &self.pki.client_ca,
        };
        ca.sign_csr(&leaf, body, OffsetDateTime::now_utc()).map_err(|error| match error {
            pki::Error::NotACsr => Failure::bad_request(&error.to_string()),
            error => Failure::internal(&error.to_string()),
        })
    }

    /// The node the headers name, after its password was compared with the one first used under that name.
    async fn verified_node(&self, parts: &Parts, identity: &Identity) -> Result<String, Failure> {
        let claim = claim(header(parts, "k3s-node-name"), header(parts, "k3s-node-password"), identity.node())?;
        if claim.by_certificate {
            // The certificate outlives its Node; the name may meanwhile belong to another machine.
            if let Err(error) = self.registry.get(&kind::NODE, None, &claim.node) {
                return Err(Failure::unauthorized(&format!("unable to verify node identity: {error}")));
            }
        }
        match node_password::verify(&self.registry, &claim.node, &claim.password).await {
            Verdict::Accepted => Ok(claim.node),
            Verdict::Mismatch => {
                Err(Failure::forbidden(&format!("unable to verify password for node {}: hash does not match", claim.node)))
            }
            Verdict::Unknown(error) => Err(Failure::unavailable(&format!("unable to verify password for node {}: {error}", claim.node))),
        }
    }
}

struct Claim {
    node: String,
    password: String,
    by_certificate: bool,
}

/// What the headers claim. `authenticated` is the node name of the caller's certificate, if that is how they came.
fn claim(name: Option<&str>, password: Option<&str>, authenticated: Option<&str>) -> Result<Claim, Failure> {
    let node = name.filter(|name| !name.is_empty()).ok_or_else(|| Failure::bad_request("node name not set"))?.to_lowercase();
    let password = password.filter(|password| !password.is_empty()).ok_or_else(|| Failure::bad_request("node password not set"))?;
    // K3s signs any name and then fails for ever to store its password; a name no Node can have is refused here.
    if !is_subdomain(&node) {
        return Err(Failure::bad_request(&format!("node name {node:?} is not a lower case RFC 1123 subdomain")));
    }
    if authenticated.is_some_and(|name| name != node) {
        return Err(Failure::bad_request("header node name does not match auth node name"));
    }
    Ok(Claim { node, password: password.to_owned(), by_certificate: authenticated.is_some() })
}

fn serving_kubelet(node: String, ips: Option<&str>) -> Result<Leaf, Failure> {
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    for text in ips.unwrap_or_default().split(',').filter(|text| !text.is_empty()) {
        // K3s prints the parsed address, which is nil at this point.
        let ip = text.parse().map_err(|_| Failure::internal("invalid node IP address <nil>"))?;
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    Ok(Leaf {
        dns: vec![node.clone(), "localhost".to_owned()],
        common_name: node,
        organization: None,
        usage: Usage::Server,
        ips: addresses,
    })
}

fn header<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    parts.headers.get(name).and_then(|value| value.to_str().ok())
}

/// RFC 1123 subdomain: dot separated labels of lower case letters, digits and inner hyphens, 253 in all.
fn is_subdomain(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_checked_as_k3s_does() {
        const PASSWORD: Option<&str> = Some("0123456789abcdef0123456789abcdef");
        type Row = (&'static str, Option<&'static str>, Option<&'static str>, Option<&'static str>, u16);
        let rows: &[Row] = &[
            ("cert-client-kubelet", Some("wire1"), PASSWORD, None, 200),
            ("cert-client-kubelet-renewal", Some("wire1"), PASSWORD, Some("wire1"), 200),
            ("upper case is lowered", Some("Wire1"), PASSWORD, Some("wire1"), 200),
            ("cert-no-node-name", None, PASSWORD, None, 400),
            ("cert-no-node-password", Some("wire1"), None, None, 400),
            ("empty password", Some("wire1"), Some(""), None, 400),
            ("cert-by-certificate-other-node", Some("wire2"), PASSWORD, Some("wire1"), 400),
            ("no node can be called so", Some("bad_name!"), PASSWORD, None, 400),
        ];
        for (name, node, password, certificate, code) in rows {
            let got = claim(*node, *password, *certificate).map_or_else(|failure| failure.code(), |_| 200);
            assert_eq!(got, *code, "{name}");
        }
    }

    #[test]
    fn serving_certificate_has_loopback_and_every_node_address() {
        let leaf = serving_kubelet("wire1".to_owned(), Some("10.99.0.41,fd00::1,127.0.0.1")).unwrap();
        let ips: Vec<String> = leaf.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["127.0.0.1", "::1", "10.99.0.41", "fd00::1"]);
        assert_eq!(leaf.dns, ["wire1", "localhost"]);
        assert_eq!(serving_kubelet("a".to_owned(), None).unwrap().ips.len(), 2);
        let failure = serving_kubelet("a".to_owned(), Some("10.99.0.41, 10.99.0.42")).unwrap_err();
        assert_eq!(
            failure.body(),
            "{\"kind\":\"Status\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"Internal error occurred: invalid node IP \
             address \\u003cnil\\u003e\",\"reason\":\"InternalError\",\"details\":{\"causes\":[{\"message\":\"invalid node IP \
             address \\u003cnil\\u003e\"}]},\"code\":500}\n"
        );
    }
}
