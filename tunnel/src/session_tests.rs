use super::*;
use crate::testing;
use bytes::Bytes;
use serde_json::Value;

const C2: ConnId = ConnId(2);
const C3: ConnId = ConnId(3);

fn limits() -> Limits {
    Limits { pause_above: 20, resume_below: 5, capacity: 40, connections: 2 }
}

/// A session with a clock of its own; each step gives what was asked for.
struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn new(role: Role) -> Bench {
        let now = Instant::now();
        let timing = if role == Role::Server { Timing::server() } else { Timing::default() };
        Bench { session: Session::new(role, timing, limits(), now), now }
    }

    fn receive(&mut self, message: Message) -> Vec<Action> {
        self.try_receive(message).unwrap()
    }

    fn try_receive(&mut self, message: Message) -> Result<Vec<Action>> {
        let mut out = Vec::new();
        self.session.receive(self.now, message.encode(1), &mut out)?;
        Ok(out)
    }

    fn run(&mut self, step: impl FnOnce(&mut Session, Instant, &mut Vec<Action>)) -> Vec<Action> {
        let mut out = Vec::new();
        step(&mut self.session, self.now, &mut out);
        out
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn connect(&mut self, conn: ConnId) -> Vec<Action> {
        self.receive(Message::Connect(conn, "tcp".into(), "127.0.0.1:10250".into()))
    }

    fn data(&mut self, conn: ConnId, len: usize) -> Vec<Action> {
        self.receive(Message::Data(conn, bytes(len)))
    }
}

fn bytes(len: usize) -> Bytes {
    Bytes::from(vec![b'x'; len])
}

fn error(conn: ConnId, text: &str) -> Action {
    Action::Send(Message::Error(conn, text.into()))
}

fn deliver(conn: ConnId, len: usize) -> Action {
    Action::Deliver(conn, bytes(len))
}

fn finish(conn: ConnId, text: &str) -> Action {
    Action::Finish(conn, text.into())
}

#[test]
fn a_connection_is_registered_before_its_dial_is_done() {
    let mut bench = Bench::new(Role::Client);
    assert_eq!(bench.connect(C2), [Action::Open(C2, "tcp".into(), "127.0.0.1:10250".into())]);
    assert_eq!(bench.data(C2, 3), [deliver(C2, 3)]);
    assert_eq!(bench.session.connections(), [C2]);
}

#[test]
fn a_refused_dial_ends_the_connection_and_not_the_session() {
    let mut bench = Bench::new(Role::Client);
    bench.connect(C2);
    bench.connect(C3);
    let out = bench.run(|s, _, out| s.local_end(C2, "connection refused", out));
    assert_eq!(out, [finish(C2, "connection refused"), error(C2, "connection refused")]);
    assert_eq!(bench.data(C2, 3), [error(C2, "connection not found 2")]);
    assert_eq!(bench.data(C3, 3), [deliver(C3, 3)]);
}

#[test]
fn what_is_said_about_unknown_connections() {
    let mut bench = Bench::new(Role::Client);
    assert_eq!(bench.data(ConnId(99), 4), [error(ConnId(99), "connection not found 99")]);
    let ignored = [
        Message::Error(ConnId(99), "EOF".into()),
        Message::Pause(ConnId(99)),
        Message::Resume(ConnId(99)),
        Message::SyncConnections(vec![]),
        Message::Other(4),
        Message::Other(77),
    ];
    for message in ignored {
        assert_eq!(bench.receive(message.clone()), [], "{message:?}");
    }
    assert_eq!(bench.run(|s, _, out| s.local_data(C2, bytes(3), out)), []);
    assert_eq!(bench.run(|s, _, out| s.local_end(C2, EOF, out)), []);
    assert_eq!(bench.run(|s, _, out| s.drained(C2, 3, out)), []);
}

#[test]
fn an_end_is_final_both_ways_and_echoed_once() {
    let mut bench = Bench::new(Role::Client);
    bench.connect(C2);
    assert_eq!(bench.receive(Message::Error(C2, EOF.into())), [finish(C2, EOF), error(C2, EOF)]);
    assert_eq!(bench.receive(Message::Error(C2, EOF.into())), []);
    // No Data follows an Error, also when the local side had some on its way.
    assert_eq!(bench.run(|s, _, out| s.local_data(C2, bytes(3), out)), []);
    assert_eq!(bench.run(|s, _, out| s.local_end(C2, EOF, out)), []);
}

#[test]
fn local_data_is_cut_into_messages_of_at_most_32_kib() {
    let mut bench = Bench::new(Role::Client);
    bench.connect(C2);
    let out = bench.run(|s, _, out| s.local_data(C2, bytes(MAX_DATA * 2 + 1), out));
    let sizes: Vec<usize> = out
        .iter()
        .map(|a| match a {
            Action::Send(Message::Data(C2, data)) => data.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes, [MAX_DATA, MAX_DATA, 1]);
}

#[test]
fn the_peer_is_paused_and_resumed_by_what_waits() {
    let mut bench = Bench::new(Role::Client);
    bench.connect(C2);
    assert_eq!(bench.data(C2, 20), [deliver(C2, 20)]);
    assert_eq!(bench.data(C2, 1), [deliver(C2, 1), Action::Send(Message::Pause(C2))]);
    // What was on its way when the peer was paused is taken, and said nothing of again.
    assert_eq!(bench.data(C2, 10), [deliver(C2, 10)]);
    assert_eq!(bench.run(|s, _, out| s.drained(C2, 26, out)), []);
    assert_eq!(bench.run(|s, _, out| s.drained(C2, 1, out)), [Action::Send(Message::Resume(C2))]);
    assert_eq!(bench.run(|s, _, out| s.drained(C2, 4, out)), []);
    bench.data(C2, 20);
    assert_eq!(bench.data(C2, 1).len(), 2, "pauses again");
}

#[test]
fn a_peer_that_ignores_pause_loses_the_connection_only() {
    let mut bench = Bench::new(Role::Client);
    bench.connect(C2);
    bench.connect(C3);
    bench.data(C2, 30);
    let out = bench.data(C2, 11);
    assert_eq!(out, [finish(C2, "receive buffer full"), error(C2, "receive buffer full")]);
    assert_eq!(bench.session.connections(), [C3]);
}

#[test]
fn pausing_the_peer_and_being_paused_do_not_mix() {
    let mut bench = Bench::new(Role::Client);
    bench.connect(C2);
    assert_eq!(bench.receive(Message::Pause(C2)), [Action::Hold(C2, true)]);
    assert_eq!(bench.receive(Message::Pause(C2)), []);
    // Our own pause and resume come and go without touching the peer's.
    bench.data(C2, 30);
    assert_eq!(bench.run(|s, _, out| s.drained(C2, 30, out)), [Action::Send(Message::Resume(C2))]);
    assert_eq!(bench.receive(Message::Resume(C2)), [Action::Hold(C2, false)]);
    assert_eq!(bench.receive(Message::Resume(C2)), []);
}

#[test]
fn too_many_connections_cost_the_newest_only() {
    let mut bench = Bench::new(Role::Client);
    bench.connect(C2);
    bench.connect(C3);
    assert_eq!(bench.connect(ConnId(4)), [error(ConnId(4), "too many connections")]);
    assert_eq!(bench.session.connections(), [C2, C3]);
}

#[test]
fn broken_protocol_ends_the_session() {
    let mut bench = Bench::new(Role::Client);
    bench.connect(C2);
    let twice = bench.try_receive(Message::Connect(C2, "tcp".into(), "a".into())).unwrap_err();
    assert!(twice.to_string().contains("opened twice"));
    for bytes in [&b""[..], b"\x02", b"\x02\x04\x04\x00tcp", b"\x10\x00\x10\x01"] {
        let result = bench.session.receive(bench.now, Bytes::copy_from_slice(bytes), &mut Vec::new());
        assert!(matches!(result, Err(Error::Protocol { .. })), "{bytes:?}");
    }
    let mut server = Bench::new(Role::Server);
    let backwards = server.try_receive(Message::Connect(C2, "tcp".into(), "a".into()));
    assert!(matches!(backwards, Err(Error::Protocol { .. })));
}

/// Ticks every second until `until`; the server answers what it is asked while `answers`. Gives what was due when, and
/// when the session counted as dead.
fn idle(bench: &mut Bench, until: u64, answers: bool) -> (Vec<(u64, Action)>, Option<u64>) {
    let mut seen = Vec::new();
    for second in 1..=until {
        bench.wait(1);
        // Pongs, which prove nothing.
        bench.session.heard(bench.now);
        let mut out = Vec::new();
        match bench.session.tick(bench.now, &mut out) {
            Ok(()) => {}
            Err(Error::Silent { .. }) => return (seen, Some(second)),
            Err(other) => panic!("{other}"),
        }
        assert!(bench.session.deadline() > bench.now);
        if answers && out.contains(&Action::Probe) {
            let text = "connection not found wire1/1267075176142012149/-1";
            assert_eq!(bench.receive(Message::Error(NOBODY, text.into())), []);
        }
        seen.extend(out.into_iter().map(|a| (second, a)));
    }
    (seen, None)
}

fn seconds(seen: &[(u64, Action)], wanted: &Action) -> Vec<u64> {
    seen.iter().filter(|(_, a)| a == wanted).map(|(t, _)| *t).collect()
}

#[test]
fn the_client_asks_after_7_s_pings_every_29_s_and_tells_its_connections_every_60_s() {
    let mut bench = Bench::new(Role::Client);
    bench.connect(C3);
    bench.connect(C2);
    let (seen, dead) = idle(&mut bench, 120, true);
    assert_eq!(dead, None);
    let sync = Action::Send(Message::SyncConnections(vec![C2, C3]));
    assert_eq!(seconds(&seen, &Action::Probe), (1..=17).map(|n| n * 7).collect::<Vec<_>>());
    assert_eq!(seconds(&seen, &Action::Ping), [28, 56, 84, 112], "with the question before it is due");
    assert_eq!(seconds(&seen, &sync), [60, 120]);
    assert_eq!(seen.len(), 17 + 4 + 2);
}

#[test]
fn a_server_that_answers_pings_but_has_forgotten_the_session_is_dead_within_10_s() {
    let mut bench = Bench::new(Role::Client);
    idle(&mut bench, 13, true);
    let (seen, dead) = idle(&mut bench, 60, false);
    assert_eq!((seconds(&seen, &Action::Probe), dead), (vec![1], Some(4)));
    let mut bench = Bench::new(Role::Client);
    assert_eq!(idle(&mut bench, 60, false).1, Some(10));
    assert!(Error::Silent { after: Duration::ZERO }.is_retryable());
}

#[test]
fn the_server_hears_once_that_no_connection_is_left() {
    let mut bench = Bench::new(Role::Client);
    bench.connect(C2);
    let (mut seen, _) = idle(&mut bench, 62, true);
    bench.run(|s, _, out| s.local_end(C2, EOF, out));
    seen.extend(idle(&mut bench, 240, true).0.into_iter().map(|(t, a)| (t + 62, a)));
    let lists: Vec<(u64, usize)> = seen
        .iter()
        .filter_map(|(t, a)| match a {
            Action::Send(Message::SyncConnections(list)) => Some((*t, list.len())),
            _ => None,
        })
        .collect();
    assert_eq!(lists, [(60, 1), (120, 0)]);
}

#[test]
fn the_server_opens_from_2_upwards_and_waits_60_s_for_a_sign_of_life() {
    let mut bench = Bench::new(Role::Server);
    let open = |bench: &mut Bench| {
        let mut out = Vec::new();
        let conn = bench.session.open(bench.now, "tcp", "127.0.0.1:10250", &mut out);
        (conn, out)
    };
    let connect = |conn| vec![Action::Send(Message::Connect(conn, "tcp".into(), "127.0.0.1:10250".into()))];
    assert_eq!(open(&mut bench), (Some(C2), connect(C2)));
    assert_eq!(bench.receive(Message::Error(C2, EOF.into())).len(), 2);
    // Never used again.
    assert_eq!(open(&mut bench), (Some(C3), connect(C3)));
    assert_eq!(open(&mut bench).0, Some(ConnId(4)));
    assert_eq!(open(&mut bench).0, None, "full");
    bench.wait(59);
    let mut out = Vec::new();
    bench.session.tick(bench.now, &mut out).unwrap();
    assert_eq!(out, [], "the server never pings");
    bench.wait(1);
    assert!(bench.session.tick(bench.now, &mut out).is_err());
}

#[test]
fn the_server_drops_what_its_client_no_longer_knows_without_a_word() {
    let mut bench = Bench::new(Role::Server);
    let mut out = Vec::new();
    bench.session.open(bench.now, "tcp", "a", &mut out);
    bench.wait(10);
    bench.session.open(bench.now, "tcp", "b", &mut out);
    assert_eq!(bench.receive(Message::SyncConnections(vec![C3, C2])), []);
    // The list may have been sent before the client heard of the newest.
    assert_eq!(bench.receive(Message::SyncConnections(vec![])), [finish(C2, EOF)]);
    assert_eq!(bench.session.connections(), [C3]);
    bench.wait(10);
    assert_eq!(bench.receive(Message::SyncConnections(vec![])), [finish(C3, EOF)]);
}

struct Frame {
    at: Duration,
    from_server: bool,
    opcode: u64,
    bytes: Bytes,
}

fn capture(name: &str) -> Vec<Frame> {
    let frame = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        let hex = value["hex"].as_str().unwrap();
        let bytes = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        Frame {
            at: Duration::from_secs_f64(value["t"].as_f64().unwrap()),
            from_server: value["dir"] == "server->agent",
            opcode: value["opcode"].as_u64().unwrap(),
            bytes,
        }
    };
    testing::read(name).lines().map(frame).collect()
}

/// Plays a capture of a real K3s server against our client: the server's frames come in, the local side says what the
/// captured agent's local side said, and every message must be the captured one but for its counter.
#[test]
fn captured_sessions_of_a_real_server_replay_to_the_same_messages() {
    for name in ["tunnel-logs.jsonl", "tunnel-port-forward-404.jsonl"] {
        let frames = capture(name);
        let start = Instant::now();
        let mut client = Session::new(Role::Client, Timing::default(), Limits::default(), start);
        let mut sent = Vec::new();
        let mut delivered = 0;
        for frame in frames.iter().filter(|f| f.opcode == 2) {
            let now = start + frame.at;
            let mut out = Vec::new();
            let (id, message) = Message::decode(frame.bytes.clone()).unwrap();
            assert_eq!(message.encode(id), frame.bytes, "{name}: encodes to the same bytes");
            if frame.from_server {
                client.receive(now, frame.bytes.clone(), &mut out).unwrap();
            } else {
                match message.clone() {
                    Message::Data(conn, data) => client.local_data(conn, data, &mut out),
                    Message::Error(conn, reason) => client.local_end(conn, &reason, &mut out),
                    Message::SyncConnections(_) => continue,
                    other => panic!("{other:?}"),
                }
                // An Error the session has already echoed is not sent twice.
                if !sent.contains(&message) {
                    assert!(out.contains(&Action::Send(message.clone())), "{name}: {message:?}");
                }
            }
            for action in out {
                match action {
                    Action::Send(message) => sent.push(message),
                    Action::Deliver(conn, data) => {
                        delivered += data.len();
                        let mut more = Vec::new();
                        client.drained(conn, data.len(), &mut more);
                        assert_eq!(more, []);
                    }
                    Action::Open(_, network, address) => {
                        assert_eq!((network, address), ("tcp".into(), "127.0.0.1:10250".into()))
                    }
                    Action::Finish(..) => {}
                    other => panic!("{name}: {other:?}"),
                }
            }
        }
        let captured: Vec<Message> = frames
            .iter()
            .filter(|f| f.opcode == 2 && !f.from_server)
            .map(|f| Message::decode(f.bytes.clone()).unwrap().1)
            .filter(|m| !matches!(m, Message::SyncConnections(_)))
            .collect();
        assert_eq!(sent, captured, "{name}");
        assert!(delivered > 500, "{name}: {delivered} bytes");
        assert_eq!(client.connections(), [], "{name}: every connection ended");
    }
}

#[test]
fn a_captured_idle_minute_has_the_frames_our_timers_make() {
    let frames = capture("tunnel-idle-minute.jsonl");
    // The capture starts when the reference agent's minute is full.
    let begin = Instant::now();
    // The reference pings every 5 s and asks nothing.
    let theirs = Timing { ping_every: Duration::from_secs(5), probe_after: Duration::from_secs(3600), ..Timing::default() };
    let mut client = Session::new(Role::Client, theirs, Limits::default(), begin);
    let mut out = Vec::new();
    for conn in [3, 2] {
        let connect = Message::Connect(ConnId(conn), "tcp".into(), "127.0.0.1:10250".into());
        client.receive(begin, connect.encode(1), &mut out).unwrap();
    }
    let mut ours = Vec::new();
    let mut now = begin;
    while now < begin + Duration::from_secs(120) {
        now = client.deadline();
        client.heard(now);
        let mut out = Vec::new();
        client.tick(now, &mut out).unwrap();
        if now >= begin + Duration::from_secs(60) {
            ours.extend(out.into_iter().map(|action| match action {
                Action::Ping => "ping".to_owned(),
                Action::Send(message) => format!("{message:?}"),
                other => panic!("{other:?}"),
            }));
        }
    }
    let theirs: Vec<String> = frames
        .iter()
        .filter(|f| !f.from_server)
        .map(|f| match f.opcode {
            9 => {
                assert!(f.bytes.is_empty());
                "ping".to_owned()
            }
            2 => format!("{:?}", Message::decode(f.bytes.clone()).unwrap().1),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(ours, theirs);
}

/// What the real server did with single messages, our server's end does too.
#[test]
fn recorded_single_messages_get_the_recorded_answers() {
    let cases: Value = serde_json::from_str(&testing::read("tunnel-cases.json")).unwrap();
    let mut seen = 0;
    for case in cases.as_array().unwrap() {
        let name = case["case"].as_str().unwrap();
        let mut server = Bench::new(Role::Server);
        let mut whole = String::new();
        let mut answers = Vec::new();
        let mut wanted = Vec::new();
        for frame in case["frames"].as_array().unwrap() {
            let hex = frame["hex"].as_str().unwrap();
            let decode =
                |hex: &str| -> Bytes { (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect() };
            match (frame["dir"].as_str().unwrap(), frame["op"].as_u64().unwrap()) {
                // Pings, text and close frames are the WebSocket library's and the driver's, tested there.
                (_, 1 | 8 | 9 | 10) => {}
                ("agent->server", _) => {
                    whole.push_str(hex);
                    if frame["fin"] == 1 {
                        server.session.receive(server.now, decode(&whole), &mut answers).unwrap();
                        whole.clear();
                        seen += 1;
                    }
                }
                _ => wanted.push(Message::decode(decode(hex)).unwrap().1),
            }
        }
        let conn = |m: &Message| match m {
            Message::Error(conn, text) => {
                assert!(text.starts_with("connection not found"), "{name}: {text}");
                *conn
            }
            other => panic!("{name}: {other:?}"),
        };
        let got: Vec<ConnId> = answers
            .iter()
            .map(|a| match a {
                Action::Send(message) => conn(message),
                other => panic!("{name}: {other:?}"),
            })
            .collect();
        assert_eq!(got, wanted.iter().map(conn).collect::<Vec<_>>(), "{name}");
    }
    assert_eq!(seen, 8);
}
