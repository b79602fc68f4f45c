//! Which server to use: sticks to one and fails over (k3s-agent.md 5.2). Pure; the caller dials and counts. The
//! list survives a restart in K3s' own file format (5.3).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::addr::ServerAddr;
use crate::error::{Error, Result};
use crate::files;

/// A preferred server nobody dials for this long is merely healthy again.
const PREFERENCE: Duration = Duration::from_secs(60);

/// How good a server looks, from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// A dial or its health failed.
    Failed,
    /// The configured address while it is not in the list: the last resort.
    Standby,
    /// Nothing known yet.
    Unchecked,
    /// Answered once after a failure.
    Recovering,
    /// Healthy and unused.
    Healthy,
    /// Healthy and next in line.
    Preferred,
    /// In use.
    Active,
}

#[derive(Debug, Clone, Copy)]
struct Server {
    state: State,
    connections: usize,
    since: Instant,
    /// Whether its tunnel is up, as last told. K3s asks every second; here each change is told once.
    up: Option<bool>,
}

impl Server {
    fn new(state: State, now: Instant) -> Server {
        Server { state, connections: 0, since: now, up: None }
    }
}

/// The servers, their states and open connections.
#[derive(Debug)]
pub struct Balancer {
    configured: ServerAddr,
    servers: BTreeMap<ServerAddr, Server>,
}

impl Balancer {
    /// Starts with the configured address and those known from before.
    pub fn new(configured: ServerAddr, known: &[ServerAddr], now: Instant) -> Balancer {
        let mut balancer = Balancer { configured, servers: BTreeMap::new() };
        if known.is_empty() {
            let configured = balancer.configured.clone();
            balancer.servers.insert(configured, Server::new(State::Unchecked, now));
        } else {
            balancer.set_servers(known, now);
        }
        balancer
    }

    /// A new list. An empty one is ignored. Returns servers that are gone and whose connections have to be closed.
    pub fn set_servers(&mut self, list: &[ServerAddr], now: Instant) -> Vec<ServerAddr> {
        if list.is_empty() {
            return Vec::new();
        }
        for addr in list {
            let entry = self.servers.entry(addr.clone()).or_insert(Server::new(State::Unchecked, now));
            if entry.state == State::Standby {
                *entry = Server { state: State::Unchecked, since: now, ..*entry };
            }
        }
        let configured = self.configured.clone();
        let gone: Vec<ServerAddr> = self.servers.keys().filter(|a| !list.contains(a) && **a != configured).cloned().collect();
        for addr in &gone {
            self.servers.remove(addr);
        }
        if !list.contains(&configured) {
            let standby = Server::new(State::Standby, now);
            let entry = self.servers.entry(configured).or_insert(standby);
            *entry = Server { connections: entry.connections, ..standby };
        }
        gone
    }

    /// Servers in the order to try: those whose tunnel is down last, best state first, then most connections.
    pub fn choose(&self) -> Vec<ServerAddr> {
        let mut all: Vec<(&ServerAddr, &Server)> = self.servers.iter().collect();
        all.sort_by_key(|(_, s)| std::cmp::Reverse((s.up != Some(false), s.state, s.connections)));
        all.into_iter().map(|(addr, _)| addr.clone()).collect()
    }

    /// A dial worked and its connection is open. Returns servers whose connections have to be closed, so that all
    /// clients meet on one server.
    pub fn dial_ok(&mut self, addr: &ServerAddr, now: Instant) -> Vec<ServerAddr> {
        let Some(server) = self.servers.get_mut(addr) else {
            return Vec::new();
        };
        server.connections += 1;
        match server.state {
            State::Failed | State::Unchecked => {
                self.enter(addr, State::Recovering, now);
                Vec::new()
            }
            State::Healthy | State::Preferred => self.activate(addr, now),
            State::Recovering if server.up == Some(true) => self.activate(addr, now),
            State::Standby | State::Recovering | State::Active => Vec::new(),
        }
    }

    /// A dial failed. Returns `addr` when its connections have to be closed.
    pub fn dial_failed(&mut self, addr: &ServerAddr, now: Instant) -> Vec<ServerAddr> {
        self.fail(addr, &[State::Unchecked, State::Recovering], now)
    }

    /// Same as [`Balancer::dial_failed`]; the name of the contract with the caller.
    pub fn failed(&mut self, addr: &ServerAddr, now: Instant) -> Vec<ServerAddr> {
        self.dial_failed(addr, now)
    }

    /// A connection was closed.
    pub fn closed(&mut self, addr: &ServerAddr) {
        if let Some(server) = self.servers.get_mut(addr) {
            server.connections = server.connections.saturating_sub(1);
        }
    }

    /// The tunnel to this server is up or down. Returns servers whose connections have to be closed.
    pub fn health(&mut self, addr: &ServerAddr, ok: bool, now: Instant) -> Vec<ServerAddr> {
        let Some(server) = self.servers.get_mut(addr) else {
            return Vec::new();
        };
        server.up = Some(ok);
        let server = *server;
        if !ok {
            return self.fail(addr, &[], now);
        }
        match server.state {
            State::Failed | State::Unchecked => self.enter(addr, State::Recovering, now),
            State::Recovering if server.connections > 0 => return self.activate(addr, now),
            State::Recovering => self.enter(addr, State::Preferred, now),
            State::Preferred if now.saturating_duration_since(server.since) > PREFERENCE => {
                self.enter(addr, State::Healthy, now);
            }
            State::Preferred | State::Healthy | State::Standby | State::Active => {}
        }
        Vec::new()
    }

    /// State of a server.
    pub fn state(&self, addr: &ServerAddr) -> Option<State> {
        self.servers.get(addr).map(|s| s.state)
    }

    fn enter(&mut self, addr: &ServerAddr, state: State, now: Instant) {
        if let Some(server) = self.servers.get_mut(addr) {
            *server = Server { state, since: now, ..*server };
        }
    }

    fn fail(&mut self, addr: &ServerAddr, also: &[State], now: Instant) -> Vec<ServerAddr> {
        match self.servers.get(addr).map(|s| s.state) {
            Some(State::Healthy | State::Preferred | State::Active) => {
                self.enter(addr, State::Failed, now);
                vec![addr.clone()]
            }
            Some(state) if also.contains(&state) => {
                self.enter(addr, State::Failed, now);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// Makes a server the active one, unless another active one has more connections.
    fn activate(&mut self, addr: &ServerAddr, now: Instant) -> Vec<ServerAddr> {
        let mine = self.servers.get(addr).map_or(0, |s| s.connections);
        let rival = self.servers.iter().find(|(a, s)| *a != addr && s.state == State::Active);
        if let Some((rival, connections)) = rival.map(|(a, s)| (a.clone(), s.connections)) {
            if connections > mine {
                self.enter(addr, State::Preferred, now);
                return Vec::new();
            }
            self.enter(&rival, State::Preferred, now);
        }
        self.enter(addr, State::Active, now);
        let leave = [State::Failed, State::Standby, State::Recovering, State::Healthy];
        let has = |s: &Server| leave.contains(&s.state) && s.connections > 0;
        self.servers.iter().filter(|(_, s)| has(s)).map(|(a, _)| a.clone()).collect()
    }
}

/// The file, with K3s' field names and two-space indentation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Stored {
    #[serde(rename = "ServerURL")]
    server_url: String,
    #[serde(default)]
    server_addresses: Option<Vec<String>>,
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/etc/k3s-agent-load-balancer.json")
}

/// The servers of an earlier run, when it was configured with the same address; else, or when the file cannot be
/// understood, none.
pub fn load(data_dir: &Path, configured: &ServerAddr) -> Result<Vec<ServerAddr>> {
    let Some(content) = files::read(&path(data_dir))? else {
        return Ok(Vec::new());
    };
    Ok(parse(&content, configured))
}

fn parse(content: &[u8], configured: &ServerAddr) -> Vec<ServerAddr> {
    let Ok(stored) = serde_json::from_slice::<Stored>(content) else {
        return Vec::new();
    };
    if ServerAddr::from_url(&stored.server_url).ok().as_ref() != Some(configured) {
        return Vec::new();
    }
    stored.server_addresses.unwrap_or_default().iter().filter_map(|a| a.parse().ok()).collect()
}

/// Keeps the servers for the next start.
pub fn save(data_dir: &Path, configured: &ServerAddr, servers: &[ServerAddr]) -> Result<()> {
    files::write(&path(data_dir), &format(configured, servers)?)
}

fn format(configured: &ServerAddr, servers: &[ServerAddr]) -> Result<Vec<u8>> {
    let addresses = servers.iter().map(ServerAddr::to_string).collect();
    let stored = Stored { server_url: configured.url(), server_addresses: Some(addresses) };
    serde_json::to_vec_pretty(&stored).map_err(|e| Error::Certificate { what: "load balancer file".into(), reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> ServerAddr {
        ServerAddr::new(text, 6443)
    }

    fn names(list: &[ServerAddr]) -> String {
        list.iter().map(|a| a.host.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Runs steps like `dial a`, `refuse a`, `up a`, `down a`, `close a`, `list a b`, `wait 61` on servers a, b and the
    /// configured `vip`; gives what had to be closed.
    fn run(steps: &[&str]) -> (Balancer, String) {
        let mut now = Instant::now();
        let mut balancer = Balancer::new(addr("vip"), &[addr("a"), addr("b")], now);
        let mut closed = Vec::new();
        for step in steps {
            let (verb, rest) = step.split_once(' ').unwrap();
            let server = addr(rest);
            closed = match verb {
                "dial" => balancer.dial_ok(&server, now),
                "refuse" => balancer.dial_failed(&server, now),
                "up" => balancer.health(&server, true, now),
                "down" => balancer.health(&server, false, now),
                "close" => {
                    balancer.closed(&server);
                    Vec::new()
                }
                "list" => {
                    let list: Vec<ServerAddr> = rest.split_whitespace().map(addr).collect();
                    balancer.set_servers(&list, now)
                }
                "wait" => {
                    now += Duration::from_secs(rest.parse().unwrap());
                    Vec::new()
                }
                other => panic!("{other}"),
            };
        }
        let closed = names(&closed);
        (balancer, closed)
    }

    #[test]
    fn servers_are_tried_and_closed_in_the_order_of_their_states() {
        let rows: &[(&str, &[&str], &str, &str)] = &[
            ("unchecked before the standby", &["wait 0"], "a b vip", ""),
            ("a working dial prefers that server", &["dial b"], "b a vip", ""),
            ("a refused one is last", &["refuse a"], "b vip a", ""),
            ("tunnel up with connections: active", &["dial b", "up b"], "b a vip", ""),
            ("tunnel up without: preferred after the second look", &["up a", "up a"], "a b vip", ""),
            ("an active server that goes down loses its connections", &["dial b", "up b", "down b"], "a vip b", "b"),
            ("one without a tunnel is tried last", &["down a"], "b vip a", ""),
            ("a dial after its tunnel came up: active", &["up a", "dial a"], "a b vip", ""),
            ("and then its tunnel goes down", &["up a", "dial a", "down a"], "b vip a", "a"),
            ("a server that came back waits its turn", &["dial b", "up b", "down b", "dial a", "up a", "up b"], "a b vip", ""),
            ("becoming active closes those still recovering", &["dial a", "dial b", "up b"], "b a vip", "a"),
            ("an active one with more connections stays", &["dial a", "up a", "dial a", "up b", "up b", "dial b"], "a b vip", ""),
            ("an active one with as many gives way", &["dial a", "up a", "up b", "up b", "dial b"], "b a vip", ""),
            ("preference fades", &["up a", "up a", "wait 61", "up a", "dial b", "up b"], "b a vip", ""),
            ("a server that left is closed", &["list b"], "b vip", "a"),
            ("an empty list changes nothing", &["list  "], "a b vip", ""),
            ("the configured one may be listed", &["list vip a"], "a vip", "b"),
        ];
        for (name, steps, order, closed) in rows {
            let (balancer, gone) = run(steps);
            assert_eq!(names(&balancer.choose()), *order, "{name}");
            assert_eq!(gone, *closed, "{name}");
        }
    }

    #[test]
    fn a_first_start_knows_only_the_configured_server() {
        let now = Instant::now();
        let balancer = Balancer::new(addr("vip"), &[], now);
        assert_eq!(names(&balancer.choose()), "vip");
        assert_eq!(balancer.state(&addr("vip")), Some(State::Unchecked));
    }

    #[test]
    fn the_file_reads_as_k3s_writes_it() {
        let text = "{\n  \"ServerURL\": \"https://k3s.example:6443\",\n  \"ServerAddresses\": [\n    \"192.168.1.10:6443\",\n    \"192.168.1.11:6443\"\n  ]\n}";
        let configured = addr("k3s.example");
        let servers = parse(text.as_bytes(), &configured);
        assert_eq!(names(&servers), "192.168.1.10 192.168.1.11");
        assert_eq!(String::from_utf8(format(&configured, &servers).unwrap()).unwrap(), text);
        assert!(parse(text.as_bytes(), &addr("other.example")).is_empty());
        assert!(parse(b"{\"ServerURL\":\"https://k3s.example:6443\",\"ServerAddresses\":null}", &configured).is_empty());
        assert!(parse(b"garbage", &configured).is_empty());
        let root = tempfile::tempdir().unwrap();
        assert!(load(root.path(), &configured).unwrap().is_empty());
        save(root.path(), &configured, &servers).unwrap();
        assert_eq!(load(root.path(), &configured).unwrap(), servers);
    }
}
