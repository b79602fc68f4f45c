//! A link, its session and its connections through random faults of a simulated network, on a paused clock: 10,000 of
//! them, or as many as `EDGE_TEST_FAULTS` says. Each must be found and recovered from within its bound, without a hang, a
//! leak or a wrong byte. `EDGE_TEST_SEED` repeats one schedule of faults; it is printed when one fails.

#![allow(clippy::unwrap_used, reason = "test code; the exemption covers test functions only, not their helpers")]

mod sim;

use std::sync::atomic::Ordering;
use std::time::Duration;

use sim::wire::Pace;
use sim::world::{Outcome, Rng, Road, Use, World, on_paused_clock, seed_jitter, settled, used};
use tokio::time::{Instant, sleep, timeout};
use tunnel::link::LinkState;
use tunnel::session::Timing;

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Both ends are told, the way stays open.
    Cut,
    /// Both ends are told, and nobody answers for a while.
    ServerDown(Duration),
    /// Nothing moves for a moment: the link has to live through it.
    Stall(Duration),
    /// Nothing moves for so long that the link has to be given up; new connections hang, too.
    Freeze(Duration),
    /// What the node says vanishes.
    HalfOpenUp,
    /// What the server says vanishes.
    HalfOpenDown,
    /// The link has to live through it.
    Slow(Pace, Duration),
}

impl Fault {
    fn random(rng: &mut Rng) -> Fault {
        match rng.within(0, 6) {
            0 => Fault::Cut,
            1 => Fault::ServerDown(rng.millis(500, 60_000)),
            2 => Fault::Stall(rng.millis(10, 2500)),
            3 => Fault::Freeze(rng.millis(15_000, 90_000)),
            4 => Fault::HalfOpenUp,
            5 => Fault::HalfOpenDown,
            _ => {
                let pace = Pace { latency: rng.millis(20, 500), rate: rng.within(20_000, 300_000) as u32 };
                Fault::Slow(pace, rng.millis(1000, 30_000))
            }
        }
    }

    fn is_survived(self) -> bool {
        matches!(self, Fault::Stall(_) | Fault::Slow(..))
    }
}

/// Nobody waits longer than this for the end of a connection: the server's own 60 s, its last write, the node's linger.
const ENDS: Duration = Duration::from_secs(90);
/// From a way that is open again to a connection that works: the rest of a hanging attempt, one wait, a round trip.
const BACK: Duration = Duration::from_secs(10 + 10 + 1);
const SLACK: Duration = Duration::from_millis(700);

async fn one_fault(world: &World, rng: &mut Rng, tasks: usize) {
    // Some use the link while it happens.
    let session = world.net.newest_session().expect("a session");
    let mut users = Vec::new();
    for _ in 0..rng.within(0, 3) {
        let how = [Use::Echo, Use::Download, Use::Upload][rng.within(0, 2) as usize];
        let len = if rng.within(0, 3) == 0 { rng.within(0, 200_000) } else { rng.within(0, 5_000) };
        users.push(tokio::spawn(used(session.clone(), how, rng.next() as u8, len as usize)));
    }
    // In the middle of it, or while nothing is said for a while.
    let pause = if rng.within(0, 1) == 0 { rng.millis(0, 60) } else { rng.millis(0, 12_000) };
    sleep(pause).await;

    let wire = world.net.newest_wire();
    let mut state = world.state.clone();
    state.mark_unchanged();
    let (began, attempts) = (Instant::now(), world.net.attempts.load(Ordering::SeqCst));
    let fault = Fault::random(rng);
    match fault {
        Fault::Cut => wire.cut(),
        Fault::ServerDown(_) => {
            world.net.road.send_replace(Road::Refused);
            wire.cut();
        }
        Fault::Stall(_) => wire.freeze(true),
        Fault::Freeze(_) => {
            world.net.road.send_replace(Road::Silent);
            wire.freeze(true);
        }
        Fault::HalfOpenUp => wire.lose(0),
        Fault::HalfOpenDown => wire.lose(1),
        Fault::Slow(pace, _) => wire.pace(pace),
    }

    if fault.is_survived() {
        let (Fault::Stall(lasts) | Fault::Slow(_, lasts)) = fault else { unreachable!() };
        sleep(lasts).await;
        wire.freeze(false);
        wire.pace(Pace::GOOD);
        let took = world.works(Duration::from_secs(10)).await;
        assert!(took.is_some(), "{fault:?}: the link does not work afterwards");
        assert!(!state.has_changed().unwrap(), "{fault:?}: the link was given up: {:?}", *state.borrow());
    } else {
        // Found in time, whatever was under way.
        let left = timeout(Timing::default().found_within() + SLACK, state.wait_for(|s| *s != LinkState::Connected)).await.is_ok();
        assert!(left, "{fault:?}: not found after {:?}", began.elapsed());
        if let Fault::ServerDown(lasts) | Fault::Freeze(lasts) = fault {
            tokio::time::sleep_until(began + lasts).await;
            world.net.road.send_replace(Road::Open);
            wire.freeze(false);
        }
        let took = world.works(BACK + SLACK).await;
        assert!(took.is_some(), "{fault:?}: not recovered; link {:?}", *world.state.borrow());
        let (tries, seconds) = (world.net.attempts.load(Ordering::SeqCst) - attempts, began.elapsed().as_secs() as usize);
        assert!(tries <= 4 + seconds / 4, "{fault:?}: {tries} attempts in {seconds} s");
    }

    for user in users {
        let outcome = timeout(ENDS, user).await.unwrap_or_else(|_| panic!("{fault:?}: a user hangs")).unwrap();
        assert!(!fault.is_survived() || outcome == Outcome::Complete, "{fault:?}: a connection was lost");
    }
    // Nothing is left of what was: one connection, one session, no local side, no task.
    settled(ENDS, &format!("{fault:?}"), || {
        let (left, locals) = (world.net.left(), world.locals.load(Ordering::SeqCst));
        let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        (left != (1, 1) || locals != 0 || alive != tasks)
            .then(|| format!("{left:?} connections and sessions, {locals} local sides, {alive} tasks instead of {tasks}"))
    })
    .await;
}

fn run(seed: u64, faults: usize) {
    on_paused_clock(async {
        let mut rng = Rng(seed);
        seed_jitter(!seed);
        let world = World::start().await;
        assert!(world.works(BACK).await.is_some(), "comes up");
        settled(ENDS, "at the start", || (world.net.left() != (1, 1)).then(|| "more than one session".to_owned())).await;
        sleep(Duration::from_secs(30)).await;
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        for number in 0..faults {
            let report = Report { seed, number, state: rng.0 };
            seed_jitter(!rng.0);
            one_fault(&world, &mut rng, tasks).await;
            std::mem::forget(report);
        }
        world.stop().await;
    });
}

/// Says which schedule it was when a fault panics.
struct Report {
    seed: u64,
    number: usize,
    state: u64,
}

impl Drop for Report {
    fn drop(&mut self) {
        let Report { seed, number, state } = self;
        eprintln!("fault {number} of seed {seed}; EDGE_TEST_SEED={state} begins with it");
    }
}

#[test]
fn ten_thousand_random_faults_are_all_recovered_from() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let faults = number("EDGE_TEST_FAULTS").unwrap_or(10_000) as usize;
    let first = number("EDGE_TEST_SEED").unwrap_or(0x5eed);
    let worlds = if std::env::var_os("EDGE_TEST_SEED").is_some() { 1 } else { 4 };
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for world in 0..worlds {
            scope.spawn(move || run(first + world as u64, faults / worlds));
        }
    });
    println!("{faults} faults in {:.1} s, seeds {first} to {}", began.elapsed().as_secs_f64(), first + worlds as u64 - 1);
}

/// 32 kbit/s up, full of our own bulk data for minutes: a question waits behind it, and so does its answer.
#[test]
fn a_slow_uplink_full_of_our_own_data_is_not_taken_for_dead() {
    for (rate, latency) in [(4_000, 300), (10_000, 600), (50_000, 50)] {
        on_paused_clock(async move {
            seed_jitter(1);
            let world = World::start().await;
            assert!(world.works(BACK).await.is_some(), "comes up");
            settled(ENDS, "at the start", || (world.net.left() != (1, 1)).then(|| "more than one session".to_owned())).await;
            let mut state = world.state.clone();
            state.mark_unchanged();
            world.net.newest_wire().pace(Pace { latency: Duration::from_millis(latency), rate });
            let session = world.net.newest_session().expect("a session");
            let len = rate as usize * 120;
            let began = Instant::now();
            let users = [(Use::Download, 1), (Use::Download, 2), (Use::Echo, 3)];
            let users = users.map(|(how, tag)| tokio::spawn(used(session.clone(), how, tag, len / 2)));
            for user in users {
                let outcome = timeout(Duration::from_secs(900), user).await.expect("no hang").unwrap();
                assert_eq!(outcome, Outcome::Complete, "{rate} bytes a second: lost after {:?}, {:?}", began.elapsed(), *state.borrow());
            }
            assert!(began.elapsed() > Duration::from_secs(120), "the way was full: {:?}", began.elapsed());
            assert!(!state.has_changed().unwrap(), "{rate} bytes a second: given up: {:?}", *state.borrow());
            world.stop().await;
        });
    }
}
