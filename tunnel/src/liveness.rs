//! Whether the peer of a session still lives, decided from times alone. Part of [`crate::session`].
//!
//! The node asks: a Data frame for a connection that never exists makes the server's session answer with an Error
//! (k3s-agent.md 4.4), which a proxy, a kernel or a WebSocket library cannot do in its place. A pong proves less and
//! is not counted. A WebSocket ping is still due now and then, because nothing else moves the server's read deadline.
//! The server's end only listens.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// When things are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The node: no message for this long, and the server is asked for a sign of life. A question and its answer cost
    /// 314 bytes on the wire, headers and acknowledgement included: 3.9 MB a day at 7 s.
    pub probe_after: Duration,
    /// The node: a question unanswered for this long while nothing else moves either means that the link is dead. So a
    /// link that died is found within `probe_after + answer_within`.
    pub answer_within: Duration,
    /// The node: between WebSocket pings at most, whatever else is said. K3s' server ends a session 60 s after the last one
    /// (k3s-agent.md 4.5), so two should fit. One that would come due before the next question goes along with this one:
    /// 140 bytes instead of 250, 0.4 MB a day.
    pub ping_every: Duration,
    /// No frame for this long: dead, whatever the socket takes. K3s 60 s.
    pub dead_after: Duration,
    /// Between SyncConnections of the client. K3s: 60 s.
    pub sync_every: Duration,
    /// One message that takes longer to write than this ends the session.
    pub write_limit: Duration,
}

/// A server forgets a session this long after the last ping.
pub const PING_WAIT: Duration = Duration::from_secs(60);

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            probe_after: Duration::from_secs(7),
            answer_within: Duration::from_secs(3),
            ping_every: Duration::from_secs(29),
            dead_after: Duration::from_secs(20),
            sync_every: Duration::from_secs(60),
            write_limit: Duration::from_secs(10),
        }
    }
}

impl Timing {
    /// What a K3s server uses: it waits 60 s for a sign of life.
    pub fn server() -> Timing {
        Timing { dead_after: PING_WAIT, ..Timing::default() }
    }

    /// The node's, with these intervals; the rest follows. `probe_after` is kept below what a server waits for a ping.
    pub fn client(probe_after: Duration, answer_within: Duration) -> Timing {
        let probe_after = probe_after.clamp(Duration::from_millis(100), PING_WAIT - Duration::from_secs(10));
        // With every second question where they are far apart.
        let ping_every =
            (probe_after * 2 + Duration::from_secs(5)).clamp(Timing::default().ping_every, PING_WAIT - Duration::from_secs(15));
        Timing { probe_after, answer_within, ping_every, dead_after: (probe_after + answer_within) * 2, ..Timing::default() }
    }

    /// The longest a dead link goes unnoticed while nothing else is under way.
    pub fn found_within(&self) -> Duration {
        self.probe_after + self.answer_within
    }
}

/// What is due now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Due {
    /// Ask for a sign of life.
    pub(crate) probe: bool,
    /// Say that we live.
    pub(crate) ping: bool,
}

/// The clock of one session's node end.
#[derive(Debug)]
pub(crate) struct Liveness {
    timing: Timing,
    /// The last message of the peer's session.
    proof: Instant,
    /// The open question.
    asked: Option<Instant>,
    /// Until when bytes moved that the socket had refused before: the peer's kernel acknowledges.
    moved: Instant,
    ping_due: Instant,
}

impl Liveness {
    pub(crate) fn new(timing: Timing, now: Instant) -> Liveness {
        Liveness { timing, proof: now, asked: None, moved: now, ping_due: now + timing.ping_every }
    }

    /// The peer's session said something.
    pub(crate) fn proven(&mut self, now: Instant) {
        self.proof = now;
        self.asked = None;
        self.moved = self.moved.min(now);
    }

    /// Bytes that the socket had refused before move until then. A question may wait behind them.
    pub(crate) fn moved(&mut self, at: Instant) {
        self.moved = self.moved.max(at);
    }

    /// When the open question counts as unanswered.
    fn hopeless(&self, asked: Instant) -> Instant {
        let patient = asked.max(self.moved) + self.timing.answer_within;
        // Acknowledgements alone keep no session: never longer than this after both the proof and the question.
        patient.min(self.proof.max(asked) + self.timing.dead_after.max(self.timing.answer_within))
    }

    /// When [`Liveness::tick`] has something to do at the latest.
    pub(crate) fn deadline(&self) -> Instant {
        let next = match self.asked {
            Some(asked) => self.hopeless(asked),
            None => self.proof + self.timing.probe_after,
        };
        next.min(self.ping_due)
    }

    /// Time passed. Nobody is declared dead without having been asked, so a process that was stopped or a machine that
    /// slept asks first.
    pub(crate) fn tick(&mut self, now: Instant) -> Result<Due> {
        let mut due = Due::default();
        match self.asked {
            Some(asked) if now >= self.hopeless(asked) => {
                return Err(Error::Silent { after: now.saturating_duration_since(self.proof) });
            }
            None if now >= self.proof + self.timing.probe_after => {
                self.asked = Some(now);
                due.probe = true;
            }
            Some(_) | None => {}
        }
        let with_question = due.probe && self.ping_due <= now + self.timing.probe_after;
        if with_question || now >= self.ping_due {
            self.ping_due = now + self.timing.ping_every;
            due.ping = true;
        }
        Ok(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Message,
        Moved,
    }
    use Event::{Message, Moved};

    /// Plays events (at seconds after the start, in order) against ticks at each deadline until `until`; what was due
    /// when, and when the link counted as dead.
    fn play(events: &[(u64, Event)], until: u64) -> (Vec<u64>, Vec<u64>, Option<u64>) {
        let start = Instant::now();
        let mut live = Liveness::new(Timing::default(), start);
        let at = |s: u64| start + Duration::from_secs(s);
        let mut events = events.iter().copied().peekable();
        let (mut probes, mut pings) = (Vec::new(), Vec::new());
        loop {
            let now = match events.peek() {
                Some((s, event)) if at(*s) <= live.deadline() => {
                    match event {
                        Message => live.proven(at(*s)),
                        Moved => live.moved(at(*s)),
                    }
                    events.next();
                    continue;
                }
                _ => live.deadline(),
            };
            let second = (now - start).as_secs();
            if second > until {
                return (probes, pings, None);
            }
            match live.tick(now) {
                Ok(due) => {
                    probes.extend(due.probe.then_some(second));
                    pings.extend(due.ping.then_some(second));
                    assert!(live.deadline() > now, "no busy loop");
                }
                Err(Error::Silent { .. }) => return (probes, pings, Some(second)),
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn what_is_asked_and_when_it_is_given_up() {
        let every = |step: u64, until: u64| (1..=until).filter(|s| s % step == 0).map(|s| (s, Message)).collect::<Vec<_>>();
        type Row<'a> = (&'a str, Vec<(u64, Event)>, u64, Vec<u64>, Option<u64>);
        let rows: Vec<Row<'_>> = vec![
            ("nothing is ever heard: found within 10 s", vec![], 60, vec![7], Some(10)),
            ("answers come: asked again 7 s after each", vec![(8, Message), (16, Message)], 24, vec![7, 15, 23], None),
            ("a talking peer is not asked", every(5, 60), 60, vec![], None),
            ("talks, then falls silent", vec![(4, Message), (9, Message)], 60, vec![16], Some(19)),
            ("an answer at the last moment counts", vec![(10, Message)], 19, vec![7, 17], None),
            ("acknowledged bytes put the end off", vec![(8, Moved), (11, Moved)], 60, vec![7], Some(14)),
            ("bytes moved before the question do not", vec![(6, Moved)], 60, vec![7], Some(10)),
            ("but not for ever", (1..60).map(|s| (s, Moved)).collect(), 60, vec![7], Some(27)),
        ];
        for (name, events, until, probes, dead) in rows {
            let got = play(&events, until);
            assert_eq!((got.0, got.2), (probes, dead), "{name}");
        }
    }

    #[test]
    fn pings_keep_their_rhythm_whatever_else_is_said() {
        let busy: Vec<(u64, Event)> = (1..=130).map(|s| (s, Message)).collect();
        assert_eq!(play(&busy, 130).1, [29, 58, 87, 116]);
        // With the question before, where there is one.
        let answered: Vec<(u64, Event)> = (1..10).map(|n| (8 * n, Message)).collect();
        let (questions, pings, _) = play(&answered, 72);
        assert_eq!((questions.len(), pings), (9, vec![23, 47, 71]));
        // Two fit into what a server waits for.
        assert!(Timing::default().ping_every * 2 < PING_WAIT);
        assert!(Timing::default().found_within() <= Duration::from_secs(10));
    }

    #[test]
    fn a_process_that_slept_asks_before_it_judges() {
        let start = Instant::now();
        let mut live = Liveness::new(Timing::default(), start);
        let late = start + Duration::from_secs(3600);
        assert_eq!(live.tick(late).unwrap(), Due { probe: true, ping: true });
        assert_eq!(live.tick(late + Duration::from_secs(2)).unwrap(), Due::default());
        assert!(live.tick(late + Duration::from_secs(3)).is_err());
    }

    #[test]
    fn intervals_stay_below_what_a_server_waits() {
        let s = Duration::from_secs;
        for (asked, given) in [(s(1), s(1)), (s(20), s(20)), (s(50), s(50)), (s(3600), s(50)), (s(0), Duration::from_millis(100))] {
            assert_eq!(Timing::client(asked, s(3)).probe_after, given, "{asked:?}");
        }
        assert_eq!(Timing::client(s(20), s(5)).found_within(), s(25));
        for (asked, pings) in [(s(1), s(29)), (s(7), s(29)), (s(20), s(45)), (s(50), s(45))] {
            assert_eq!(Timing::client(asked, s(3)).ping_every, pings, "{asked:?}");
        }
    }

    proptest! {
        /// Whatever is heard and whenever: time moves on at each tick, and silence from any moment on ends within
        /// `found_within` of it, or of the last acknowledged bytes.
        #[test]
        fn silence_ends_the_link_in_time_and_never_spins(steps in proptest::collection::vec((0u64..9000, any::<bool>()), 0..60)) {
            let timing = Timing::default();
            let start = Instant::now();
            let mut live = Liveness::new(timing, start);
            let (mut now, mut sign) = (start, start);
            for (millis, message) in steps {
                let next = now + Duration::from_millis(millis);
                while live.deadline() <= next {
                    let due = live.deadline().max(now);
                    now = due;
                    if live.tick(now).is_err() {
                        prop_assert!(now - sign <= timing.found_within() + timing.dead_after);
                        return Ok(());
                    }
                    prop_assert!(live.deadline() > now);
                }
                now = next;
                if message { live.proven(now); sign = now; } else { live.moved(now); }
            }
            let silent = now;
            loop {
                now = live.deadline().max(now);
                if live.tick(now).is_err() {
                    break;
                }
                prop_assert!(live.deadline() > now);
            }
            prop_assert!(now - silent <= timing.found_within());
        }
    }
}
