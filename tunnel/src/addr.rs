//! Addresses of servers: `host:port`, printed the way they are dialled and logged.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::error::{Error, Result};

/// One server: a DNS name or an IP address (without brackets), and the TCP port of supervisor and apiserver.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerAddr {
    /// DNS name, IPv4 or IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl ServerAddr {
    /// From parts; `host` may be an IPv6 address with or without brackets.
    pub fn new(host: &str, port: u16) -> ServerAddr {
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        ServerAddr { host: host.to_owned(), port }
    }

    /// From the URL of the configuration, `https://HOST[:PORT]`, port 443 when absent as in K3s. Trailing
    /// slashes are dropped (k3s-agent.md 1.4); a path is refused.
    pub fn from_url(url: &str) -> Result<ServerAddr> {
        let err = |reason| Error::Address { value: url.to_owned(), reason };
        let rest = url.trim().strip_prefix("https://").ok_or_else(|| err("it does not start with https://"))?;
        let rest = rest.trim_end_matches('/');
        if rest.contains(['/', '?', '#', '@']) {
            return Err(err("only a host and a port can follow https://"));
        }
        split(rest, Some(443)).map_err(err)
    }

    /// The URL form, as kubeconfigs and the balancer's file have it.
    pub fn url(&self) -> String {
        format!("https://{self}")
    }

    /// The host as an IP address, when it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// `host:port`, `[v6]:port`, and both without port when a default is given.
fn split(text: &str, default_port: Option<u16>) -> std::result::Result<ServerAddr, &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, tail) = rest.split_once(']').ok_or("a bracket is not closed")?;
        host.parse::<Ipv6Addr>().map_err(|_| "what stands in brackets is not an IPv6 address")?;
        match tail.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if tail.is_empty() => (host, None),
            None => return Err("something other than a port follows the bracket"),
        }
    } else {
        match text.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => return Err("an IPv6 address needs brackets"),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(valid) {
        return Err("the host is empty or has characters no host name has");
    }
    let port = match (port, default_port) {
        (Some(port), _) => port.parse::<u16>().ok().filter(|p| *p != 0).ok_or("the port is not a number from 1 to 65535")?,
        (None, Some(port)) => port,
        (None, None) => return Err("the port is missing"),
    };
    Ok(ServerAddr { host: host.to_owned(), port })
}

impl FromStr for ServerAddr {
    type Err = Error;

    /// `host:port`, as `/v1-k3s/apiservers` lists servers; a full `https://` URL is accepted too.
    fn from_str(text: &str) -> Result<ServerAddr> {
        if text.starts_with("https://") {
            return ServerAddr::from_url(text);
        }
        split(text, None).map_err(|reason| Error::Address { value: text.to_owned(), reason })
    }
}

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_pairs_parse_or_say_why_not() {
        let ok = [
            ("https://10.99.0.1:6443", "10.99.0.1:6443"),
            ("https://k3s.example:6443///", "k3s.example:6443"),
            ("https://k3s.example", "k3s.example:443"),
            ("https://[fd00::1]:6443", "[fd00::1]:6443"),
            ("[::1]:6443", "[::1]:6443"),
            ("10.0.0.1:6443", "10.0.0.1:6443"),
        ];
        for (text, want) in ok {
            let addr: ServerAddr = text.parse().unwrap();
            assert_eq!(addr.to_string(), want, "{text}");
            assert_eq!(ServerAddr::from_url(&addr.url()).unwrap(), addr);
        }
        for bad in [
            "http://h:1",
            "https://",
            "https://h:0",
            "https://h:70000",
            "https://h/p",
            "h",
            "fd00::1:6443",
            "[::1",
            "a b:1",
            "https://u@h:1",
        ] {
            let err = bad.parse::<ServerAddr>().unwrap_err().to_string();
            assert!(err.contains(bad), "{err}");
        }
    }
}
