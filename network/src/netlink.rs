//! The few routing messages we send, over a plain netlink socket: list routes, add and delete one, find and remove a
//! device. Encoding and decoding are pure and tested on bytes; numbers are in host byte order, addresses in network order.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use ipnet::IpNet;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::routes::Route;
use crate::{Error, Result};

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExistingRoute {
    /// Where it leads; the default route is `0.0.0.0/0` or `::/0`.
    pub destination: IpNet,
    /// The next hop, if there is one.
    pub gateway: Option<IpAddr>,
    /// Who made it (`/etc/iproute2/rt_protos`).
    pub protocol: u8,
    /// Index of the device.
    pub interface: Option<u32>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MTU, bytes.
    pub mtu: u32,
}

const HEADER: usize = 16;
const ROUTE_BODY: usize = 12;
const LINK_BODY: usize = 16;
const TABLE_MAIN: u8 = 254;

/// A socket of the routing family, bound to the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A message of the kernel: its type and what follows the header.
struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Netlink {
    pub(crate) fn open() -> Result<Netlink> {
        let open = || -> nix::Result<OwnedFd> {
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            // The kernel answers at once; the limit only keeps a bug from hanging the agent.
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
            Ok(socket)
        };
        Ok(Netlink {
            socket: open().map_err(failed("open a socket"))?,
            sequence: 0,
        })
    }

    /// All unicast routes of the main table, of both families.
    pub(crate) fn routes(&mut self) -> Result<Vec<ExistingRoute>> {
        let mut routes = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut body = vec![0; ROUTE_BODY];
            body[0] = family as u8;
            let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
            self.request(libc::RTM_GETROUTE, flags, &body, "list routes", |message| {
                if message.kind == libc::RTM_NEWROUTE {
                    routes.extend(decode_route(message.body)?);
                }
                Ok(())
            })?;
        }
        Ok(routes)
    }

    /// Adds a route; the same one being there already is fine, another one to the same place is not.
    pub(crate) fn add_route(&mut self, route: &Route, protocol: u8) -> Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let body = encode_route(route, protocol);
        match self.request(libc::RTM_NEWROUTE, flags, &body, "add a route", |_| Ok(())) {
            Err(Error::Netlink { source, .. }) => {
                let same = source.raw_os_error() == Some(libc::EEXIST)
                    && self.routes()?.iter().any(|there| {
                        there.destination == route.destination
                            && there.gateway == Some(route.gateway)
                            && there.protocol == protocol
                    });
                if same {
                    return Ok(());
                }
                Err(Error::Route {
                    operation: "add",
                    destination: route.destination,
                    source,
                })
            }
            other => other,
        }
    }

    /// Deletes a route of that protocol; one that is not there is deleted already.
    pub(crate) fn delete_route(&mut self, route: &Route, protocol: u8) -> Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let body = encode_route(route, protocol);
        match self.request(libc::RTM_DELROUTE, flags, &body, "delete a route", |_| {
            Ok(())
        }) {
            Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {
                Ok(())
            }
            Err(Error::Netlink { source, .. }) => Err(Error::Route {
                operation: "delete",
                destination: route.destination,
                source,
            }),
            other => other,
        }
    }

    /// A device by its index. `/sys` would not do: after `nsenter --net` it still shows the other namespace's devices.
    pub(crate) fn interface(&mut self, index: u32) -> Result<Interface> {
        let mut body = vec![0; LINK_BODY];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut found = None;
        let flags = libc::NLM_F_REQUEST;
        self.request(
            libc::RTM_GETLINK,
            flags,
            &body,
            "look at a device",
            |message| {
                found = Some(decode_link(message.body)?);
                Ok(())
            },
        )?;
        found.ok_or(Error::Answer {
            detail: "no device in the answer",
        })
    }

    /// Sends one request and hands every answer to `each` until the kernel says that it is done.
    fn request(
        &mut self,
        kind: u16,
        flags: i32,
        body: &[u8],
        operation: &'static str,
        mut each: impl FnMut(&Message<'_>) -> Result<()>,
    ) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let packet = encode(kind, flags as u16, self.sequence, body);
        send(self.socket.as_raw_fd(), &packet, MsgFlags::empty()).map_err(failed(operation))?;
        let many = flags & libc::NLM_F_DUMP == libc::NLM_F_DUMP;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .map_err(failed(operation))?;
            for message in decode(&buffer[..length])? {
                if message.sequence != self.sequence {
                    continue;
                }
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        let number = message.body.first_chunk().ok_or(Error::Answer {
                            detail: "error without a number",
                        })?;
                        return match i32::from_ne_bytes(*number) {
                            0 => Ok(()),
                            negative => Err(Error::Netlink {
                                operation,
                                source: io::Error::from_raw_os_error(-negative),
                            }),
                        };
                    }
                    _ => {
                        each(&message)?;
                        if !many && flags & libc::NLM_F_ACK == 0 {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

/// The device of the default route (IPv4 first), by which other nodes reach this one; `None` without such a route.
pub fn default_interface() -> Result<Option<Interface>> {
    let routes = Netlink::open()?.routes()?;
    let index = routes
        .iter()
        .find(|route| route.destination.prefix_len() == 0)
        .and_then(|route| route.interface);
    let Some(index) = index else {
        return Ok(None);
    };
    Netlink::open()?.interface(index).map(Some)
}

/// Removes a device, such as the bridge that the CNI plugin made for us; one that is not there is removed already.
pub fn delete_interface(name: &str) -> Result<()> {
    let index = match nix::net::if_::if_nametoindex(name) {
        Ok(index) => index,
        Err(nix::errno::Errno::ENODEV | nix::errno::Errno::ENXIO) => return Ok(()),
        Err(error) => return Err(failed("find a device")(error)),
    };
    let mut body = vec![0; LINK_BODY];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    Netlink::open()?.request(libc::RTM_DELLINK, flags, &body, "remove a device", |_| {
        Ok(())
    })
}

fn failed(operation: &'static str) -> impl FnOnce(nix::errno::Errno) -> Error {
    move |errno| Error::Netlink {
        operation,
        source: errno.into(),
    }
}

fn encode(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).expect("messages are small");
    let mut packet = Vec::with_capacity(HEADER + body.len());
    packet.extend(length.to_ne_bytes());
    packet.extend(kind.to_ne_bytes());
    packet.extend(flags.to_ne_bytes());
    packet.extend(sequence.to_ne_bytes());
    packet.extend(0u32.to_ne_bytes());
    packet.extend(body);
    packet
}

fn decode(mut packet: &[u8]) -> Result<Vec<Message<'_>>> {
    let mut messages = Vec::new();
    while packet.len() >= HEADER {
        let length = u32_at(packet, 0) as usize;
        if length < HEADER || length > packet.len() {
            return Err(Error::Answer {
                detail: "length of a message beyond its packet",
            });
        }
        messages.push(Message {
            kind: u16_at(packet, 4),
            sequence: u32_at(packet, 8),
            body: &packet[HEADER..length],
        });
        packet = &packet[aligned(length).min(packet.len())..];
    }
    Ok(messages)
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes are small");
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(aligned(out.len()), 0);
}

fn attributes(mut bytes: &[u8]) -> Result<Vec<(u16, &[u8])>> {
    let mut all = Vec::new();
    while bytes.len() >= 4 {
        let length = usize::from(u16_at(bytes, 0));
        if length < 4 || length > bytes.len() {
            return Err(Error::Answer {
                detail: "length of an attribute beyond its message",
            });
        }
        all.push((u16_at(bytes, 2), &bytes[4..length]));
        bytes = &bytes[aligned(length).min(bytes.len())..];
    }
    Ok(all)
}

fn encode_route(route: &Route, protocol: u8) -> Vec<u8> {
    let family = match route.destination {
        IpNet::V4(_) => libc::AF_INET,
        IpNet::V6(_) => libc::AF_INET6,
    };
    let mut body = vec![
        family as u8,
        route.destination.prefix_len(),
        0, // source prefix
        0, // type of service
        TABLE_MAIN,
        protocol,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    attribute(
        &mut body,
        libc::RTA_DST,
        &octets(route.destination.network()),
    );
    attribute(&mut body, libc::RTA_GATEWAY, &octets(route.gateway));
    body
}

/// `None` for a route that is not a unicast one of the main table.
fn decode_route(body: &[u8]) -> Result<Option<ExistingRoute>> {
    if body.len() < ROUTE_BODY {
        return Err(Error::Answer {
            detail: "route shorter than its fixed part",
        });
    }
    let (family, prefix, table, protocol, kind) = (body[0], body[1], body[4], body[5], body[7]);
    if table != TABLE_MAIN || kind != libc::RTN_UNICAST {
        return Ok(None);
    }
    let v4 = i32::from(family) == libc::AF_INET;
    let mut destination = if v4 {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let (mut gateway, mut interface) = (None, None);
    for (kind, value) in attributes(&body[ROUTE_BODY..])? {
        match kind {
            libc::RTA_DST => destination = address(value)?,
            libc::RTA_GATEWAY => gateway = Some(address(value)?),
            libc::RTA_OIF if value.len() == 4 => interface = Some(u32_at(value, 0)),
            _ => {}
        }
    }
    let destination = IpNet::new(destination, prefix).map_err(|_| Error::Answer {
        detail: "prefix longer than the address",
    })?;
    Ok(Some(ExistingRoute {
        destination,
        gateway,
        protocol,
        interface,
    }))
}

fn decode_link(body: &[u8]) -> Result<Interface> {
    if body.len() < LINK_BODY {
        return Err(Error::Answer {
            detail: "device shorter than its fixed part",
        });
    }
    let mut interface = Interface {
        name: String::new(),
        index: u32_at(body, 4),
        mtu: 1500,
    };
    for (kind, value) in attributes(&body[LINK_BODY..])? {
        match kind {
            libc::IFLA_IFNAME => {
                let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                interface.name = String::from_utf8_lossy(text).into_owned();
            }
            libc::IFLA_MTU if value.len() == 4 => interface.mtu = u32_at(value, 0),
            _ => {}
        }
    }
    Ok(interface)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr> {
    match bytes.len() {
        4 => Ok(IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])),
        16 => {
            let mut octets = [0; 16];
            octets.copy_from_slice(bytes);
            Ok(IpAddr::from(octets))
        }
        _ => Err(Error::Answer {
            detail: "address of neither 4 nor 16 bytes",
        }),
    }
}

fn aligned(length: usize) -> usize {
    length.div_ceil(4) * 4
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, gateway: &str) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
        }
    }

    #[test]
    fn a_route_reads_back_as_it_was_written() {
        for (destination, gateway) in [
            ("10.42.1.0/24", "192.168.1.11"),
            ("fd00:42:0:1::/64", "fd01::b"),
        ] {
            let route = route(destination, gateway);
            let found = decode_route(&encode_route(&route, 233)).unwrap().unwrap();
            assert_eq!(
                found,
                ExistingRoute {
                    destination: route.destination,
                    gateway: Some(route.gateway),
                    protocol: 233,
                    interface: None
                }
            );
        }
    }

    #[test]
    fn the_bytes_are_the_kernels() {
        let body = encode_route(&route("10.42.1.0/24", "192.168.1.11"), 233);
        assert_eq!(body[..12], [2, 24, 0, 0, 254, 233, 0, 1, 0, 0, 0, 0]);
        #[cfg(target_endian = "little")]
        assert_eq!(
            body[12..],
            [8, 0, 1, 0, 10, 42, 1, 0, 8, 0, 5, 0, 192, 168, 1, 11]
        );
    }

    #[test]
    fn broken_answers_are_errors_not_panics() {
        let good = encode(
            24,
            0,
            7,
            &encode_route(&route("10.42.1.0/24", "192.168.1.11"), 1),
        );
        assert_eq!(decode(&good).unwrap().len(), 1);
        for cut in 0..good.len() {
            for message in decode(&good[..cut]).unwrap_or_default() {
                let _ = decode_route(message.body);
            }
        }
        let mut long = good.clone();
        long[0] = 255;
        assert!(decode(&long).is_err());
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 0x3f;
            for message in decode(&bad).unwrap_or_default() {
                let _ = decode_route(message.body);
            }
        }
    }
}
