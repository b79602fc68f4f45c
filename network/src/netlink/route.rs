//! Routes of the main table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::libc;

use super::{Netlink, address, attribute, attributes, octets, u32_at};
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

const BODY: usize = 12;
const TABLE_MAIN: u8 = 254;
const RTNH_F_ONLINK: u32 = 4;

impl Netlink {
    /// All unicast routes of the main table, of both families.
    pub(crate) fn routes(&mut self) -> Result<Vec<ExistingRoute>> {
        let mut routes = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut body = vec![0; BODY];
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
                        there.destination == route.destination && there.gateway == Some(route.gateway) && there.protocol == protocol
                    });
                if same {
                    return Ok(());
                }
                Err(Error::Route { operation: "add", destination: route.destination, source })
            }
            other => other,
        }
    }

    /// Deletes a route of that protocol; one that is not there is deleted already.
    pub(crate) fn delete_route(&mut self, route: &Route, protocol: u8) -> Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let body = encode_route(route, protocol);
        match self.request(libc::RTM_DELROUTE, flags, &body, "delete a route", |_| Ok(())) {
            Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            Err(Error::Netlink { source, .. }) => Err(Error::Route { operation: "delete", destination: route.destination, source }),
            other => other,
        }
    }
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
    ];
    // A next hop outside the device's own network is taken at its word.
    let flags: u32 = if route.device.is_some() { RTNH_F_ONLINK } else { 0 };
    body.extend(flags.to_ne_bytes());
    attribute(&mut body, libc::RTA_DST, &octets(route.destination.network()));
    attribute(&mut body, libc::RTA_GATEWAY, &octets(route.gateway));
    if let Some(device) = route.device {
        attribute(&mut body, libc::RTA_OIF, &device.to_ne_bytes());
    }
    body
}

/// `None` for a route that is not a unicast one of the main table.
fn decode_route(body: &[u8]) -> Result<Option<ExistingRoute>> {
    if body.len() < BODY {
        return Err(Error::Answer { detail: "route shorter than its fixed part" });
    }
    let (family, prefix, table, protocol, kind) = (body[0], body[1], body[4], body[5], body[7]);
    if table != TABLE_MAIN || kind != libc::RTN_UNICAST {
        return Ok(None);
    }
    let v4 = i32::from(family) == libc::AF_INET;
    let mut destination = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let (mut gateway, mut interface) = (None, None);
    for (kind, value) in attributes(&body[BODY..])? {
        match kind {
            libc::RTA_DST => destination = address(value)?,
            libc::RTA_GATEWAY => gateway = Some(address(value)?),
            libc::RTA_OIF if value.len() == 4 => interface = Some(u32_at(value, 0)),
            _ => {}
        }
    }
    let destination = IpNet::new(destination, prefix).map_err(|_| Error::Answer { detail: "prefix longer than the address" })?;
    Ok(Some(ExistingRoute { destination, gateway, protocol, interface }))
}

#[cfg(test)]
mod tests {
    use super::super::{decode, encode};
    use super::*;

    fn route(destination: &str, gateway: &str) -> Route {
        Route { destination: destination.parse().unwrap(), gateway: gateway.parse().unwrap(), device: None }
    }

    #[test]
    fn a_route_reads_back_as_it_was_written() {
        for (destination, gateway) in [("10.42.1.0/24", "192.168.1.11"), ("fd00:42:0:1::/64", "fd01::b")] {
            let route = route(destination, gateway);
            let found = decode_route(&encode_route(&route, 233)).unwrap().unwrap();
            assert_eq!(
                found,
                ExistingRoute { destination: route.destination, gateway: Some(route.gateway), protocol: 233, interface: None }
            );
        }
    }

    #[test]
    fn the_bytes_are_the_kernels() {
        let body = encode_route(&route("10.42.1.0/24", "192.168.1.11"), 233);
        assert_eq!(body[..12], [2, 24, 0, 0, 254, 233, 0, 1, 0, 0, 0, 0]);
        #[cfg(target_endian = "little")]
        assert_eq!(body[12..], [8, 0, 1, 0, 10, 42, 1, 0, 8, 0, 5, 0, 192, 168, 1, 11]);
    }

    #[test]
    fn broken_answers_are_errors_not_panics() {
        let good = encode(24, 0, 7, &encode_route(&route("10.42.1.0/24", "192.168.1.11"), 1));
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
