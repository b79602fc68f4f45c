//! remotedialer messages to and from bytes (k3s-agent.md 4.3). One message is one binary WebSocket message.

use bytes::{BufMut, Bytes, BytesMut};

/// The largest payload of one Data message, in bytes.
pub const MAX_DATA: usize = 32 * 1024;

/// How much of a Connect body is looked at, in bytes (100 before 2025).
const MAX_ADDRESS: usize = 266;

/// How much of an Error body is kept, in bytes.
const MAX_ERROR: usize = 100;

/// Constant third header field of Data and Connect; receivers ignore it.
const DEADLINE: i64 = 15_000;

/// A connection inside a session, chosen by the side that dials: from 2 upwards, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub i64);

/// One message without its counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Bytes of a connection.
    Data(ConnId, Bytes),
    /// Open a connection: `tcp`, `127.0.0.1:10250`.
    Connect(ConnId, String, String),
    /// End of a connection, both ways. `EOF` is the orderly one.
    Error(ConnId, String),
    /// Stop sending Data for this connection.
    Pause(ConnId),
    /// Go on sending Data for this connection.
    Resume(ConnId),
    /// All connections the sender still knows.
    SyncConnections(Vec<ConnId>),
    /// Peering of servers, and types from the future: ignored.
    Other(i64),
}

/// Why bytes are not a message. The session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The header is cut off or a number in it is longer than 64 bits.
    #[error("truncated header")]
    Header,
    /// A Connect body without `/`.
    #[error("connect without address")]
    Address,
    /// A SyncConnections body that is not a list of 8-byte numbers.
    #[error("connection list of odd length")]
    List,
}

/// Appends `value` as Go's `binary.PutVarint`: zig-zag, seven bits a byte, least significant first.
fn put_varint(out: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.put_u8((rest as u8) | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// Reads one number from the front; at most 10 bytes.
fn take_varint(bytes: &mut Bytes) -> Result<i64, Malformed> {
    let mut value: u64 = 0;
    for at in 0..10 {
        let byte = *bytes.get(at).ok_or(Malformed::Header)?;
        if at == 9 && byte > 1 {
            return Err(Malformed::Header);
        }
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let _ = bytes.split_to(at + 1);
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    Err(Malformed::Header)
}

impl Message {
    /// The bytes on the wire, with `id` as the message counter.
    pub fn encode(&self, id: i64) -> Bytes {
        let (conn, kind, body): (i64, i64, &[u8]) = match self {
            Message::Data(conn, data) => (conn.0, 1, data),
            Message::Connect(conn, ..) => (conn.0, 2, &[]),
            Message::Error(conn, text) => (conn.0, 3, text.as_bytes()),
            Message::Pause(conn) => (conn.0, 6, &[]),
            Message::Resume(conn) => (conn.0, 7, &[]),
            Message::SyncConnections(_) => (0, 8, &[]),
            Message::Other(kind) => (0, *kind, &[]),
        };
        let mut out = BytesMut::with_capacity(40 + body.len());
        put_varint(&mut out, id);
        put_varint(&mut out, conn);
        put_varint(&mut out, kind);
        if kind == 1 || kind == 2 {
            put_varint(&mut out, DEADLINE);
        }
        out.put_slice(body);
        match self {
            Message::Connect(_, network, address) => {
                out.put_slice(network.as_bytes());
                out.put_u8(b'/');
                out.put_slice(address.as_bytes());
            }
            Message::SyncConnections(conns) => {
                let mut sorted: Vec<i64> = conns.iter().map(|c| c.0).collect();
                sorted.sort_unstable();
                for conn in sorted {
                    out.put_i64_le(conn);
                }
            }
            _ => {}
        }
        out.freeze()
    }

    /// Reads one message; gives its counter too, which receivers ignore.
    pub fn decode(mut bytes: Bytes) -> Result<(i64, Message), Malformed> {
        let id = take_varint(&mut bytes)?;
        let conn = ConnId(take_varint(&mut bytes)?);
        let kind = take_varint(&mut bytes)?;
        if kind == 1 || kind == 2 {
            take_varint(&mut bytes)?;
        }
        let message = match kind {
            1 => Message::Data(conn, bytes),
            2 => {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_ADDRESS)]);
                let (network, address) = text.split_once('/').ok_or(Malformed::Address)?;
                Message::Connect(conn, network.to_owned(), address.to_owned())
            }
            3 => Message::Error(conn, String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_ERROR)]).into_owned()),
            6 => Message::Pause(conn),
            7 => Message::Resume(conn),
            8 => {
                let (numbers, rest) = bytes.as_ref().split_at(bytes.len() - bytes.len() % 8);
                if !rest.is_empty() {
                    return Err(Malformed::List);
                }
                let number = |c: &[u8]| c.iter().rev().fold(0i64, |n, b| (n << 8) | i64::from(*b));
                Message::SyncConnections(numbers.chunks_exact(8).map(|c| ConnId(number(c))).collect())
            }
            other => Message::Other(other),
        };
        Ok((id, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Bytes {
        text.split_whitespace().map(|b| u8::from_str_radix(b, 16).unwrap()).collect()
    }

    #[test]
    fn byte_vectors_of_the_protocol_read_and_write_the_same() {
        let c2 = ConnId(2);
        let rows = [
            (
                1,
                Message::Connect(c2, "tcp".into(), "127.0.0.1:10250".into()),
                "02 04 04 b0 ea 01 74 63 70 2f 31 32 37 2e 30 2e 30 2e 31 3a 31 30 32 35 30",
            ),
            (300, Message::Data(c2, Bytes::from_static(b"hi")), "d8 04 04 02 b0 ea 01 68 69"),
            (5, Message::Error(c2, "EOF".into()), "0a 04 06 45 4f 46"),
            (6, Message::Pause(c2), "0c 04 0c"),
            (7, Message::Resume(c2), "0e 04 0e"),
            (8, Message::SyncConnections(vec![c2, ConnId(5)]), "10 00 10 02 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00"),
            (9, Message::SyncConnections(vec![]), "12 00 10"),
        ];
        for (id, message, text) in rows {
            assert_eq!(message.encode(id), hex(text), "{message:?}");
            assert_eq!(Message::decode(hex(text)), Ok((id, message)));
        }
        let mut largest = BytesMut::new();
        put_varint(&mut largest, i64::MAX);
        assert_eq!(largest.freeze(), hex("fe ff ff ff ff ff ff ff ff 01"));
    }

    #[test]
    fn connection_lists_are_sorted_whatever_the_caller_gives() {
        let list = |a: i64, b: i64| Message::SyncConnections(vec![ConnId(a), ConnId(b)]).encode(1);
        assert_eq!(list(5, 2), list(2, 5));
    }

    #[test]
    fn what_ends_a_session_is_told_apart() {
        for (text, want) in [
            ("", Malformed::Header),
            ("02 04", Malformed::Header),
            ("02 04 02", Malformed::Header),
            ("ff ff ff ff ff ff ff ff ff 02 04 02", Malformed::Header),
            ("ff ff ff ff ff ff ff ff ff ff ff", Malformed::Header),
            ("02 04 04 00 74 63 70", Malformed::Address),
            ("10 00 10 02 00", Malformed::List),
        ] {
            assert_eq!(Message::decode(hex(text)), Err(want), "{text}");
        }
    }

    #[test]
    fn unknown_types_and_peering_are_only_recognised() {
        assert_eq!(Message::decode(hex("02 00 08 66 6f 6f")), Ok((1, Message::Other(4))));
        assert_eq!(Message::decode(hex("02 00 9a 01 78")), Ok((1, Message::Other(77))));
    }

    fn messages() -> impl Strategy<Value = Message> {
        let conn = any::<i64>().prop_map(ConnId);
        prop_oneof![
            (conn.clone(), proptest::collection::vec(any::<u8>(), 0..2000)).prop_map(|(c, d)| Message::Data(c, d.into())),
            (conn.clone(), "[a-z0-9]{0,10}", "[ -~]{0,200}").prop_map(|(c, n, a)| Message::Connect(c, n, a)),
            (conn.clone(), "[ -~]{0,100}").prop_map(|(c, t)| Message::Error(c, t)),
            conn.clone().prop_map(Message::Pause),
            conn.clone().prop_map(Message::Resume),
            proptest::collection::btree_set(any::<i64>(), 0..50)
                .prop_map(|s| Message::SyncConnections(s.into_iter().map(ConnId).collect())),
        ]
    }

    proptest! {
        #[test]
        fn every_message_survives_the_wire(id in any::<i64>(), message in messages()) {
            prop_assert_eq!(Message::decode(message.encode(id)), Ok((id, message)));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::decode(bytes.into());
        }
    }
}
