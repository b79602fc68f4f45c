//! Network devices: finding them, and making the vxlan one.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::libc;

use super::{Netlink, address, attribute, attributes, octets, u32_at};
use crate::vxlan::Mac;
use crate::{Error, Result};

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

/// What a vxlan device is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceOptions {
    pub(crate) name: String,
    pub(crate) vni: u32,
    pub(crate) port: u16,
    /// Index of the device that carries the packets.
    pub(crate) underlay: u32,
    pub(crate) local: IpAddr,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<Mac>,
}

/// A device with the facts that decide whether it can be used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) interface: Interface,
    pub(crate) mac: Option<Mac>,
    /// `None` for a device of another kind.
    pub(crate) vxlan: Option<VxlanFacts>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VxlanFacts {
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) underlay: Option<u32>,
    pub(crate) local: Option<IpAddr>,
    pub(crate) learning: bool,
}

const BODY: usize = 16;
const ADDRESS_BODY: usize = 8;
/// `linux/if_link.h` and `linux/if_addr.h`, where libc lacks them.
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VXLAN_ID: u16 = 1;
const VXLAN_LINK: u16 = 3;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

impl Netlink {
    /// A device by its index. `/sys` would not do: after `nsenter --net` it still shows the other namespace's devices.
    pub(crate) fn interface(&mut self, index: u32) -> Result<Interface> {
        let mut body = vec![0; BODY];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        match self.get_link(&body)? {
            Some(device) => Ok(device.interface),
            None => Err(Error::Answer { detail: "no device in the answer" }),
        }
    }

    /// A device by its name, `None` if there is none.
    pub(crate) fn device(&mut self, name: &str) -> Result<Option<Device>> {
        let mut body = vec![0; BODY];
        attribute(&mut body, libc::IFLA_IFNAME, &c_string(name));
        match self.get_link(&body) {
            Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            other => other,
        }
    }

    fn get_link(&mut self, body: &[u8]) -> Result<Option<Device>> {
        let mut found = None;
        let flags = libc::NLM_F_REQUEST;
        self.request(libc::RTM_GETLINK, flags, body, "look at a device", |message| {
            found = Some(decode(message.body)?);
            Ok(())
        })?;
        Ok(found)
    }

    /// Makes a vxlan device. One of that name must not be there.
    pub(crate) fn create_vxlan(&mut self, options: &DeviceOptions) -> Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.request(libc::RTM_NEWLINK, flags, &encode_vxlan(options), "make the vxlan device", |_| Ok(()))
    }

    /// Switches a device on and sets its MTU.
    pub(crate) fn set_up(&mut self, index: u32, mtu: u32) -> Result<()> {
        let mut body = vec![0; BODY];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let up = libc::IFF_UP as u32;
        body[8..12].copy_from_slice(&up.to_ne_bytes());
        body[12..16].copy_from_slice(&up.to_ne_bytes());
        attribute(&mut body, libc::IFLA_MTU, &mtu.to_ne_bytes());
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        self.request(libc::RTM_NEWLINK, flags, &body, "switch a device on", |_| Ok(()))
    }

    /// Removes a device.
    pub(crate) fn delete_link(&mut self, index: u32) -> Result<()> {
        let mut body = vec![0; BODY];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        self.request(libc::RTM_DELLINK, flags, &body, "remove a device", |_| Ok(()))
    }

    /// The addresses of all devices that are not link-local, with the device's index.
    pub(crate) fn addresses(&mut self) -> Result<Vec<(u32, IpNet)>> {
        let mut found = Vec::new();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        let body = [0; ADDRESS_BODY];
        self.request(libc::RTM_GETADDR, flags, &body, "list addresses", |message| {
            if message.kind == libc::RTM_NEWADDR {
                found.extend(decode_address(message.body)?);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Gives a device an address; one that it has already is fine.
    pub(crate) fn add_address(&mut self, index: u32, net: IpNet) -> Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        match self.request(libc::RTM_NEWADDR, flags, &encode_address(index, net), "give a device an address", |_| Ok(())) {
            Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Takes an address from a device.
    pub(crate) fn delete_address(&mut self, index: u32, net: IpNet) -> Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        self.request(libc::RTM_DELADDR, flags, &encode_address(index, net), "take an address from a device", |_| Ok(()))
    }
}

/// The device of the default route (IPv4 first), by which other nodes reach this one; `None` without such a route.
pub fn default_interface() -> Result<Option<Interface>> {
    let mut netlink = Netlink::open()?;
    let index = netlink.routes()?.iter().find(|route| route.destination.prefix_len() == 0).and_then(|route| route.interface);
    index.map(|index| netlink.interface(index)).transpose()
}

/// The device of that name; `None` if there is none.
pub fn interface(name: &str) -> Result<Option<Interface>> {
    Ok(Netlink::open()?.device(name)?.map(|device| device.interface))
}

/// The device that has this address; `None` if none has.
pub fn interface_with(ip: IpAddr) -> Result<Option<Interface>> {
    let mut netlink = Netlink::open()?;
    let addresses = netlink.addresses()?;
    let found = addresses.iter().find(|(_, net)| net.addr() == ip);
    found.map(|(index, _)| netlink.interface(*index)).transpose()
}

/// Removes a device, such as the bridge that the CNI plugin made for us; one that is not there is removed already.
pub fn delete_interface(name: &str) -> Result<()> {
    let mut netlink = Netlink::open()?;
    match netlink.device(name)? {
        Some(device) => netlink.delete_link(device.interface.index),
        None => Ok(()),
    }
}

fn c_string(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn decode_address(body: &[u8]) -> Result<Option<(u32, IpNet)>> {
    if body.len() < ADDRESS_BODY {
        return Err(Error::Answer { detail: "address shorter than its fixed part" });
    }
    let (mut local, mut peer) = (None, None);
    for (kind, value) in attributes(&body[ADDRESS_BODY..])? {
        match kind {
            IFA_LOCAL => local = Some(address(value)?),
            IFA_ADDRESS => peer = Some(address(value)?),
            _ => {}
        }
    }
    let Some(ip) = local.or(peer) else {
        return Ok(None);
    };
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80);
    let net = IpNet::new(ip, body[1]).map_err(|_| Error::Answer { detail: "prefix longer than the address" })?;
    Ok((!link_local).then_some((u32_at(body, 4), net)))
}

fn encode_address(index: u32, net: IpNet) -> Vec<u8> {
    let family = match net {
        IpNet::V4(_) => libc::AF_INET,
        IpNet::V6(_) => libc::AF_INET6,
    };
    let mut body = vec![family as u8, net.prefix_len(), 0, libc::RT_SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    let octets = octets(net.addr());
    attribute(&mut body, IFA_LOCAL, &octets);
    attribute(&mut body, IFA_ADDRESS, &octets);
    body
}

fn encode_vxlan(options: &DeviceOptions) -> Vec<u8> {
    let mut data = Vec::new();
    attribute(&mut data, VXLAN_ID, &options.vni.to_ne_bytes());
    attribute(&mut data, VXLAN_LINK, &options.underlay.to_ne_bytes());
    let local = if options.local.is_ipv4() { VXLAN_LOCAL } else { VXLAN_LOCAL6 };
    attribute(&mut data, local, &octets(options.local));
    attribute(&mut data, VXLAN_LEARNING, &[0]);
    attribute(&mut data, VXLAN_PORT, &options.port.to_be_bytes());
    let mut info = Vec::new();
    attribute(&mut info, IFLA_INFO_KIND, b"vxlan");
    attribute(&mut info, IFLA_INFO_DATA, &data);

    let mut body = vec![0; BODY];
    attribute(&mut body, libc::IFLA_IFNAME, &c_string(&options.name));
    attribute(&mut body, libc::IFLA_MTU, &options.mtu.to_ne_bytes());
    if let Some(mac) = options.mac {
        attribute(&mut body, libc::IFLA_ADDRESS, &mac.0);
    }
    attribute(&mut body, libc::IFLA_LINKINFO, &info);
    body
}

fn decode(body: &[u8]) -> Result<Device> {
    if body.len() < BODY {
        return Err(Error::Answer { detail: "device shorter than its fixed part" });
    }
    let mut device = Device { interface: Interface { name: String::new(), index: u32_at(body, 4), mtu: 1500 }, mac: None, vxlan: None };
    for (kind, value) in attributes(&body[BODY..])? {
        match kind {
            libc::IFLA_IFNAME => {
                let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                device.interface.name = String::from_utf8_lossy(text).into_owned();
            }
            libc::IFLA_MTU if value.len() == 4 => device.interface.mtu = u32_at(value, 0),
            libc::IFLA_ADDRESS => device.mac = value.try_into().ok().map(Mac),
            libc::IFLA_LINKINFO => device.vxlan = decode_info(value)?,
            _ => {}
        }
    }
    Ok(device)
}

fn decode_info(value: &[u8]) -> Result<Option<VxlanFacts>> {
    let (mut is_vxlan, mut facts) = (false, VxlanFacts::default());
    for (kind, value) in attributes(value)? {
        match kind {
            IFLA_INFO_KIND => is_vxlan = value.strip_suffix(&[0]).unwrap_or(value) == b"vxlan",
            IFLA_INFO_DATA if is_vxlan => {
                for (kind, value) in attributes(value)? {
                    match (kind, value.len()) {
                        (VXLAN_ID, 4) => facts.vni = u32_at(value, 0),
                        (VXLAN_LINK, 4) => facts.underlay = Some(u32_at(value, 0)).filter(|index| *index != 0),
                        (VXLAN_LOCAL | VXLAN_LOCAL6, _) => {
                            facts.local = Some(address(value)?).filter(|ip| !ip.is_unspecified());
                        }
                        (VXLAN_LEARNING, 1) => facts.learning = value[0] != 0,
                        (VXLAN_PORT, 2) => facts.port = u16::from_be_bytes([value[0], value[1]]),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(is_vxlan.then_some(facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vxlan_device_reads_back_as_it_was_written() {
        for local in ["192.168.1.13", "fd01::13"] {
            let options = DeviceOptions {
                name: "flannel.1".to_owned(),
                vni: 1,
                port: 8472,
                underlay: 3,
                local: local.parse().unwrap(),
                mtu: 1450,
                mac: Some(Mac([0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff])),
            };
            let device = decode(&encode_vxlan(&options)).unwrap();
            assert_eq!(device.interface.name, "flannel.1");
            assert_eq!((device.interface.mtu, device.mac), (1450, options.mac));
            let wanted = VxlanFacts { vni: 1, port: 8472, underlay: Some(3), local: Some(options.local), learning: false };
            assert_eq!(device.vxlan, Some(wanted));
        }
    }
}
