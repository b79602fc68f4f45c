//! Neighbour entries (address to MAC) and forwarding entries of a vxlan device (MAC to the node behind it).

use std::net::IpAddr;

use nix::libc;

use super::{Netlink, address, attribute, attributes, octets, u16_at, u32_at};
use crate::vxlan::Mac;
use crate::{Error, Result};

/// A permanent entry of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Neighbour {
    /// The address is at that MAC.
    Address(IpAddr, Mac),
    /// The MAC is behind that node.
    Forward(Mac, IpAddr),
}

const BODY: usize = 12;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;

impl Netlink {
    /// The permanent entries of a device.
    pub(crate) fn neighbours(&mut self, device: u32) -> Result<Vec<Neighbour>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6, libc::AF_BRIDGE] {
            let mut body = vec![0; BODY];
            body[0] = family as u8;
            let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
            self.request(libc::RTM_GETNEIGH, flags, &body, "list neighbours", |message| {
                if message.kind == libc::RTM_NEWNEIGH {
                    found.extend(decode(message.body, device)?);
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Adds an entry, or gives an existing one the new value.
    pub(crate) fn set_neighbour(&mut self, device: u32, entry: &Neighbour) -> Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        self.request(libc::RTM_NEWNEIGH, flags, &encode(device, entry), "set a neighbour", |_| Ok(()))
    }

    /// Removes an entry; one that is not there is removed already.
    pub(crate) fn delete_neighbour(&mut self, device: u32, entry: &Neighbour) -> Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        match self.request(libc::RTM_DELNEIGH, flags, &encode(device, entry), "remove a neighbour", |_| Ok(())) {
            Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

fn encode(device: u32, entry: &Neighbour) -> Vec<u8> {
    let (ip, mac) = match entry {
        Neighbour::Address(ip, mac) | Neighbour::Forward(mac, ip) => (*ip, *mac),
    };
    let (family, flags) = match entry {
        Neighbour::Address(IpAddr::V4(_), _) => (libc::AF_INET, 0),
        Neighbour::Address(IpAddr::V6(_), _) => (libc::AF_INET6, 0),
        Neighbour::Forward(..) => (libc::AF_BRIDGE, NTF_SELF),
    };
    let mut body = vec![family as u8, 0, 0, 0];
    body.extend(device.to_ne_bytes());
    body.extend(NUD_PERMANENT.to_ne_bytes());
    body.push(flags);
    body.push(0);
    attribute(&mut body, libc::NDA_DST, &octets(ip));
    attribute(&mut body, libc::NDA_LLADDR, &mac.0);
    body
}

/// `None` for an entry of another device, or one that the kernel learned.
fn decode(body: &[u8], device: u32) -> Result<Option<Neighbour>> {
    if body.len() < BODY {
        return Err(Error::Answer { detail: "neighbour shorter than its fixed part" });
    }
    if u32_at(body, 4) != device || u16_at(body, 8) & NUD_PERMANENT == 0 {
        return Ok(None);
    }
    let (mut ip, mut mac) = (None, None);
    for (kind, value) in attributes(&body[BODY..])? {
        match kind {
            libc::NDA_DST => ip = Some(address(value)?),
            libc::NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    Ok(match (ip, mac, i32::from(body[0]) == libc::AF_BRIDGE) {
        (Some(ip), Some(mac), true) => Some(Neighbour::Forward(mac, ip)),
        (Some(ip), Some(mac), false) => Some(Neighbour::Address(ip, mac)),
        (None, _, _) | (_, None, _) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_back_as_they_were_written() {
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        for ip in ["10.42.3.0", "fd42::"] {
            let ip = ip.parse().unwrap();
            for entry in [Neighbour::Address(ip, mac), Neighbour::Forward(mac, ip)] {
                let body = encode(7, &entry);
                assert_eq!(decode(&body, 7).unwrap(), Some(entry));
                assert_eq!(decode(&body, 8).unwrap(), None, "another device");
            }
        }
    }
}
