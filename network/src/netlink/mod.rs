//! The few routing messages we send, over a plain netlink socket: list, add and delete routes, neighbours and
//! devices. Encoding and decoding are pure and tested on bytes; numbers are in host byte order, addresses in network order.

mod link;
mod neighbour;
mod route;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

pub(crate) use link::{Device, DeviceOptions};
pub use link::{Interface, default_interface, delete_interface, interface, interface_with};
pub(crate) use neighbour::Neighbour;
pub use route::ExistingRoute;

use crate::{Error, Result};

const HEADER: usize = 16;
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
            let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            // The kernel answers at once; the limit only keeps a bug from hanging the agent.
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
            Ok(socket)
        };
        Ok(Netlink { socket: open().map_err(failed("open a socket"))?, sequence: 0 })
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
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(failed(operation))?;
            for message in decode(&buffer[..length])? {
                if message.sequence != self.sequence {
                    continue;
                }
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        let number = message.body.first_chunk().ok_or(Error::Answer { detail: "error without a number" })?;
                        return match i32::from_ne_bytes(*number) {
                            0 => Ok(()),
                            negative => Err(Error::Netlink { operation, source: io::Error::from_raw_os_error(-negative) }),
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

fn failed(operation: &'static str) -> impl FnOnce(nix::errno::Errno) -> Error {
    move |errno| Error::Netlink { operation, source: errno.into() }
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
            return Err(Error::Answer { detail: "length of a message beyond its packet" });
        }
        messages.push(Message { kind: u16_at(packet, 4), sequence: u32_at(packet, 8), body: &packet[HEADER..length] });
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
            return Err(Error::Answer { detail: "length of an attribute beyond its message" });
        }
        // The upper two bits are flags (nested, network order).
        all.push((u16_at(bytes, 2) & 0x3fff, &bytes[4..length]));
        bytes = &bytes[aligned(length).min(bytes.len())..];
    }
    Ok(all)
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
        _ => Err(Error::Answer { detail: "address of neither 4 nor 16 bytes" }),
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
