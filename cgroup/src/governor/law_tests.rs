use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::sim::{Sim, TICK, actor};
use super::*;
use crate::QosClass;

const MIB: u64 = 1 << 20;
const UP: Duration = Duration::from_secs(1000);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn hog(name: &str, qos: QosClass, rate: u64) -> sim::Actor {
    sim::Actor { grows: rate * MIB, until: 1000 * MIB, ..actor(name, qos, 10) }
}

/// All that it holds it uses: below that it waits.
fn full() -> sim::Actor {
    let mut web = hog("web", QosClass::BestEffort, 20);
    web.until = 60 * MIB;
    web.pod.used.memory = 60 * MIB;
    web.pod.used.relief = 60 * MIB;
    web
}

#[test]
fn a_calm_machine_is_left_alone() {
    let mut sim = Sim::new(UP, vec![actor("web", QosClass::Burstable, 40), actor("db", QosClass::Guaranteed, 40)]);
    sim.run(seconds(60));
    assert!(sim.orders.is_empty(), "{:?}", sim.orders);
    assert_eq!(sim.law.state(), State::Calm);
    assert_eq!(sim.law.period(), Duration::from_secs(1));
    assert!(!sim.law.wants_pods());
}

#[test]
fn a_fast_hog_is_braked_frozen_and_evicted_and_nobody_else() {
    let mut sim = Sim::new(
        UP,
        vec![actor("web", QosClass::Burstable, 30), actor("quiet", QosClass::BestEffort, 20), hog("hog", QosClass::BestEffort, 170)],
    );
    sim.run(seconds(40));
    assert_eq!(sim.names(), ["web", "quiet"]);
    let acts = sim.ordered(Resource::Memory);
    assert_eq!(acts, ["memory_high", "freeze", "thaw", "evict", "kill"], "{:#?}", sim.orders);
    let touched: BTreeSet<_> = sim.orders.iter().map(|(_, order)| order.action.target().clone()).collect();
    assert_eq!(touched.len(), 1, "{touched:?}");
    assert!(sim.touched.is_empty(), "{:?}", sim.touched);
    let ended = sim.orders.last().unwrap().0;
    sim.run(seconds(40));
    assert_eq!(sim.law.state(), State::Calm, "{:?}, ended {ended:?}", sim.states);
    assert!(sim.law.held().next().is_none());
}

#[test]
fn the_first_action_follows_the_crossing_at_once() {
    let mut sim = Sim::new(UP, vec![hog("hog", QosClass::BestEffort, 170)]);
    let mut crossed = None;
    while sim.orders.is_empty() && sim.sample.at < UP + seconds(10) {
        sim.tick();
        if crossed.is_none() && sim.sample.best_effort.high_events > 0 {
            crossed = Some(sim.sample.at);
        }
    }
    let reaction = sim.orders[0].0 - crossed.unwrap();
    assert!(reaction <= Duration::from_millis(700), "{reaction:?}");
}

#[test]
fn a_spike_that_ends_costs_the_pod_nothing_but_time() {
    let mut spike = hog("spike", QosClass::BestEffort, 100);
    spike.until = 205 * MIB;
    let mut sim = Sim::new(UP, vec![spike]);
    while sim.law.state() < State::Brake && sim.sample.at < UP + seconds(20) {
        sim.tick();
    }
    // It gives back what it took.
    sim.actors[0].until = 0;
    sim.actors[0].pod.used.memory = 60 * MIB;
    sim.actors[0].pod.used.relief = 60 * MIB;
    sim.run(seconds(10));
    assert!(sim.touched.is_empty(), "all limits are back within 10 s: {:?}", sim.touched);
    assert_eq!(sim.names(), ["spike"]);
    sim.run(seconds(30));
    assert_eq!(sim.law.state(), State::Calm, "{:?}", sim.states);
}

#[test]
fn a_pod_at_its_own_limit_is_its_own_affair() {
    let mut own = hog("own", QosClass::Burstable, 50);
    own.until = 60 * MIB;
    let mut sim = Sim::new(UP, vec![own]);
    for _ in 0..600 {
        // It waits for memory in its own group; neither its class nor the agent does.
        sim.actors[0].pod.used.memory_stall_us += 40_000;
        sim.tick();
    }
    assert!(sim.orders.is_empty(), "{:?}", sim.orders);
}

#[test]
fn when_the_agent_itself_starves_it_is_quick() {
    let mut sim = Sim::new(UP, vec![hog("hog", QosClass::BestEffort, 5), actor("web", QosClass::Burstable, 40)]);
    sim.run(seconds(5));
    let began = sim.sample.at;
    while sim.names().contains(&"hog") && sim.sample.at < began + seconds(5) {
        sim.hurt(0.5, 0.0);
        sim.tick();
    }
    assert!(sim.sample.at - began < seconds(1), "{:?}", sim.sample.at - began);
    assert_eq!(sim.names(), ["web"]);
    assert_eq!(sim.law.state(), State::Cull);
    sim.run(seconds(5));
    assert_eq!(sim.names(), ["web"], "one was enough");
}

#[test]
fn a_booting_machine_is_only_watched() {
    let mut sim = Sim::new(seconds(5), vec![hog("hog", QosClass::BestEffort, 170)]);
    sim.run(seconds(50));
    assert!(sim.orders.iter().all(|(_, order)| matches!(order.action, Action::Reclaim { .. })), "{:?}", sim.orders);
    sim.run(seconds(40));
    assert!(sim.names().is_empty());
}

#[test]
fn all_pods_write_less_when_the_card_is_slow_for_us_and_as_before_when_it_is_not() {
    let mut writer = actor("writer", QosClass::BestEffort, 20);
    writer.writes = 50 * MIB;
    let mut sim = Sim::new(UP, vec![writer, actor("web", QosClass::Burstable, 20)]);
    sim.run(seconds(2));
    sim.sample.write_age = seconds(2);
    sim.run(seconds(20));
    assert_eq!(&sim.ordered(Resource::Io)[..2], ["io_max", "freeze"], "{:#?}", sim.orders);
    assert!(sim.law.stance().no_pulls);
    sim.sample.write_age = Duration::from_millis(5);
    sim.actors[0].writes = 0;
    sim.run(seconds(10));
    assert!(sim.touched.is_empty(), "{:?}", sim.touched);
    assert_eq!(sim.law.state(), State::Calm);
    assert_eq!(sim.names(), ["writer", "web"]);
}

#[test]
fn a_writer_that_keeps_the_card_stuck_is_evicted_in_the_end() {
    let mut writer = actor("writer", QosClass::BestEffort, 20);
    writer.writes = 50 * MIB;
    let mut sim = Sim::new(UP, vec![writer]);
    sim.sample.write_age = seconds(6);
    sim.run(seconds(60));
    assert!(sim.ordered(Resource::Io).contains(&"evict"), "{:#?}", sim.orders);
}

#[test]
fn an_eviction_for_the_disk_leaves_nobody_standing_still() {
    let mut first = actor("first", QosClass::BestEffort, 20);
    first.writes = 50 * MIB;
    let mut sim = Sim::new(UP, vec![first, actor("second", QosClass::BestEffort, 20)]);
    // Half a minute of emergency is over while the first stands still.
    sim.sample.write_age = seconds(2);
    sim.run(seconds(3));
    sim.sample.write_age = seconds(6);
    while sim.law.state() < State::Evict && sim.sample.at < UP + seconds(120) {
        // Whoever stands still writes nothing, so that the other is blamed next.
        let frozen = sim.actors[0].frozen;
        sim.actors[1].writes = if frozen { 50 * MIB } else { 0 };
        sim.tick();
    }
    assert_eq!(sim.orders.iter().filter(|(_, o)| matches!(o.action, Action::Evict { .. })).count(), 1, "{:#?}", sim.orders);
    assert!(sim.touched.keys().all(|(_, knob)| *knob != Knob::Freeze), "{:?}", sim.touched);
}

#[test]
fn nine_seconds_a_write_are_stuck_as_well_as_one_that_never_ends() {
    let mut writer = actor("writer", QosClass::BestEffort, 20);
    writer.writes = 50 * MIB;
    let mut sim = Sim::new(UP, vec![writer]);
    for tick in 0..1200u64 {
        sim.sample.write_age = Duration::from_millis(tick * 50 % 9000);
        sim.tick();
    }
    assert!(sim.ordered(Resource::Io).contains(&"evict"), "{:#?}", sim.orders);
}

#[test]
fn without_a_limit_of_throughput_the_ladder_is_left_too() {
    let mut writer = actor("writer", QosClass::BestEffort, 20);
    writer.writes = 2 * MIB;
    let mut sim = Sim::new(UP, vec![writer]);
    sim.law = Law::new(Settings { io: None, ..sim::settings() });
    sim.sample.write_age = seconds(2);
    sim.run(seconds(5));
    assert_eq!((sim.law.state() > State::Watch, sim.law.stance().no_pulls), (true, true));
    // The disk stays busy; only nothing of ours waits for it any more.
    sim.sample.write_age = Duration::ZERO;
    sim.run(seconds(25));
    assert_eq!((sim.law.state(), sim.law.stance().no_pulls), (State::Calm, false));
}

#[test]
fn heat_is_shed_from_best_effort_and_stays_shed_while_it_is_hot() {
    let mut sim = Sim::new(UP, vec![actor("busy", QosClass::Burstable, 20), actor("loop", QosClass::BestEffort, 20)]);
    sim.sample.frequency = Some(0.5);
    for _ in 0..300 {
        sim.actors[1].pod.used.cpu_us += 50_000;
        sim.tick();
    }
    let set: Vec<_> = sim.touched.keys().cloned().collect();
    assert_eq!(set, [(Target::BestEffort, Knob::CpuMax)], "{:#?}", sim.orders);
    assert_eq!(sim.orders.len(), 1, "once: {:#?}", sim.orders);
    assert_eq!(sim.law.period(), seconds(1), "it cools in its own time");
    sim.sample.frequency = None;
    sim.run(seconds(30));
    assert!(sim.touched.is_empty());
}

#[test]
fn a_braked_pod_that_only_wants_back_what_it_had_gets_it() {
    let mut sim = Sim::new(UP, vec![full()]);
    // Something outside all pods makes the agent wait for a moment.
    while sim.touched.is_empty() && sim.sample.at < UP + seconds(5) {
        sim.hurt(0.1, 0.0);
        sim.tick();
    }
    assert_eq!(sim.ordered(Resource::Memory), ["memory_high"]);
    sim.actors[0].pod.used.memory = 54 * MIB;
    sim.actors[0].pod.used.relief = 54 * MIB;
    sim.run(seconds(30));
    assert_eq!(sim.ordered(Resource::Memory), ["memory_high", "release"], "{:#?}", sim.orders);
    assert_eq!(sim.names(), ["web"]);
}

#[test]
fn two_bursts_of_others_do_not_end_a_pod_that_wants_back_what_it_had() {
    let mut sim = Sim::new(UP, vec![full()]);
    for _ in 0..2 {
        for tick in 0..30 {
            sim.hurt(if tick < 10 { 0.15 } else { 0.0 }, 0.0);
            sim.tick();
            // Below its brake it has to do with less.
            let actor = &mut sim.actors[0];
            if let Some(high) = actor.high {
                actor.pod.used.memory = actor.pod.used.memory.min(high);
                actor.pod.used.relief = actor.pod.used.memory;
            }
        }
        sim.run(seconds(2));
    }
    sim.run(seconds(40));
    assert_eq!(sim.names(), ["web"], "{:#?}", sim.orders);
    assert!(sim.touched.is_empty(), "{:?}", sim.touched);
}

#[test]
fn whom_wishes_and_priorities_put_last_goes_last_also_when_it_waits_most() {
    let mut dear = actor("dear", QosClass::BestEffort, 40);
    dear.pod.facts.priority = 1000;
    let mut spared = actor("spared", QosClass::BestEffort, 40);
    spared.pod.facts.preference = Preference::Avoid;
    let mut sim = Sim::new(UP, vec![dear, spared, actor("plain", QosClass::BestEffort, 40)]);
    let began = sim.sample.at;
    while sim.names().len() == 3 && sim.sample.at < began + seconds(5) {
        sim.hurt(0.5, 0.0);
        for actor in &mut sim.actors[..2] {
            actor.pod.used.memory_stall_us += 40_000;
        }
        sim.tick();
    }
    assert_eq!(sim.names(), ["dear", "spared"], "{:#?}", sim.orders);
}

#[test]
fn the_disk_has_to_be_stuck_when_somebody_is_ended_for_it() {
    let mut writer = actor("writer", QosClass::BestEffort, 20);
    writer.writes = 50 * MIB;
    let mut sim = Sim::new(UP, vec![writer]);
    // One long write, and then what a card does when it is busy.
    sim.sample.write_age = seconds(6);
    sim.tick();
    for tick in 0..2000u64 {
        sim.sample.write_age = Duration::from_millis(tick * 50 % 3000);
        sim.tick();
    }
    assert!(!sim.ordered(Resource::Io).contains(&"evict"), "{:#?}", sim.orders);
}

#[test]
fn heat_that_finds_nobody_looks_again() {
    let mut sim = Sim::new(UP, vec![actor("loop", QosClass::BestEffort, 20)]);
    sim.sample.frequency = Some(0.5);
    sim.run(seconds(30));
    assert_eq!((sim.law.state(), sim.touched.len()), (State::Calm, 0), "it sleeps");
    for _ in 0..1000 {
        sim.actors[0].pod.used.cpu_us += 50_000;
        sim.tick();
    }
    assert_eq!(sim.touched.keys().collect::<Vec<_>>(), [&(Target::BestEffort, Knob::CpuMax)]);
}

#[test]
fn a_brake_without_a_memory_limit_is_let_off_too() {
    let mut sim = Sim::new(UP, vec![hog("hog", QosClass::BestEffort, 170)]);
    while sim.touched.is_empty() && sim.sample.at < UP + seconds(10) {
        sim.actors[0].pod.used.thrash += 100;
        sim.tick();
    }
    assert_eq!(sim.touched.len(), 3, "{:?}", sim.touched);
    // The kernel refused one of the three.
    let whom = sim.orders[0].1.action.target().clone();
    sim.law.failed(&Action::Set { target: whom.clone(), setting: Setting::MemoryHigh(0) }, false);
    sim.touched.remove(&(whom, Knob::MemoryHigh));
    sim.actors[0] = actor("hog", QosClass::BestEffort, 10);
    sim.run(seconds(15));
    assert!(sim.touched.is_empty(), "{:?}", sim.touched);
    assert!(!sim.law.stance().guaranteed_only);
}

#[test]
fn one_late_heartbeat_ends_one_pod_at_most() {
    let mut sim = Sim::new(UP, (0..4).map(|i| actor(&format!("pod-{i}"), QosClass::BestEffort, 30)).collect());
    sim.run(seconds(2));
    for tick in 0..60 {
        sim.hurt(0.1, 0.0);
        // The worst lag of the last two seconds is what is read.
        sim.sample.heartbeat_lag = if tick < 40 { seconds(2) } else { Duration::ZERO };
        sim.tick();
    }
    let kills = sim.orders.iter().filter(|(_, order)| matches!(order.action, Action::Kill { .. })).count();
    assert_eq!(kills, 1, "{:#?}", sim.orders);
}

#[test]
fn full_compressed_swap_is_as_bad_as_the_memory_it_takes() {
    let level = |zram: u64| {
        let mut sim = Sim::new(UP, vec![]);
        sim.sample.swap_total = 208 * MIB;
        sim.sample.swap_used = 206 * MIB;
        sim.sample.zram = zram * MIB;
        sim.run(seconds(5));
        sim.law.signals().of(Signal::Swap).level
    };
    assert_eq!((level(0), level(70), level(340)), (Level::Emergency, Level::Calm, Level::Act));
}

#[test]
fn who_did_nothing_is_not_ended_for_who_did() {
    let idle = actor("idle", QosClass::BestEffort, 120);
    let mut leak = hog("leak", QosClass::BestEffort, 5);
    leak.pod.used.memory = 60 * MIB;
    leak.pod.used.relief = 60 * MIB;
    let mut sim = Sim::new(UP, vec![idle, leak]);
    sim.run(seconds(60));
    assert_eq!(sim.names(), ["idle"], "{:#?}", sim.orders);
    let touched: BTreeSet<_> = sim.orders.iter().map(|(_, order)| order.action.target().clone()).collect();
    assert_eq!(touched.len(), 1, "{touched:?}");
}

#[test]
fn tasks_that_others_have_are_no_reason_to_end_a_pod() {
    let run = |others: u64| {
        let mut pod = actor("pod", QosClass::BestEffort, 20);
        pod.pod.used.tasks = 400;
        let mut sim = Sim::new(UP, vec![pod]);
        sim.others = others;
        sim.run(seconds(3));
        (sim.names().len(), sim.law.signals().of(Signal::Tasks).now)
    };
    assert_eq!(run(2850), (1, Level::Act));
    assert_eq!(run(120), (1, Level::Calm));
}

#[test]
fn the_processor_is_taken_from_best_effort_first_and_nobody_is_ended_for_it() {
    let mut sim = Sim::new(UP, vec![actor("busy", QosClass::Burstable, 20), actor("idle", QosClass::BestEffort, 20)]);
    for _ in 0..200 {
        sim.hurt(0.0, 0.5);
        sim.actors[0].pod.used.cpu_us += 100_000;
        sim.tick();
    }
    assert_eq!(sim.ordered(Resource::Cpu), ["cpu_idle", "cpu_max"], "{:#?}", sim.orders);
    assert_eq!(sim.touched.len(), 3);
    sim.run(seconds(10));
    assert!(sim.touched.is_empty(), "{:?}", sim.touched);
    assert_eq!(sim.names().len(), 2);
}

#[test]
fn a_fork_bomb_ends_before_the_last_task_is_taken() {
    let mut bomb = actor("bomb", QosClass::BestEffort, 20);
    bomb.forks = 2000;
    let mut sim = Sim::new(UP, vec![bomb, actor("web", QosClass::Burstable, 20)]);
    sim.run(seconds(3));
    assert_eq!(sim.ordered(Resource::Tasks), ["kill"]);
    assert_eq!(sim.names(), ["web"]);
}

#[test]
fn the_same_workload_over_and_over_has_to_wait() {
    let mut sim = Sim::new(UP, Vec::new());
    for round in 0..3 {
        let mut again = hog(&format!("hog-{round}"), QosClass::BestEffort, 170);
        again.pod.facts.workload = "set".to_owned();
        sim.actors.push(again);
        let began = sim.sample.at;
        while !sim.actors.is_empty() && sim.sample.at < began + seconds(120) {
            sim.tick();
        }
        sim.run(seconds(20));
    }
    let waiting = sim.law.waiting();
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert_eq!(waiting[0].0, "set");
}

#[test]
fn what_cannot_be_set_is_not_held() {
    let mut law = Law::new(sim::settings());
    let mut sim = Sim::new(UP, vec![hog("hog", QosClass::BestEffort, 170)]);
    while sim.orders.is_empty() {
        sim.tick();
    }
    std::mem::swap(&mut law, &mut sim.law);
    let action = sim.orders[0].1.action.clone();
    assert!(law.held().next().is_some());
    law.failed(&action, true);
    assert!(law.held().next().is_none());
    assert!(law.release().is_empty());
}

fn anybody() -> impl Strategy<Value = sim::Actor> {
    let class = prop_oneof![Just(QosClass::Guaranteed), Just(QosClass::Burstable), Just(QosClass::BestEffort)];
    let wish = prop_oneof![3 => Just(Preference::Usual), 1 => Just(Preference::Prefer), 1 => Just(Preference::Avoid)];
    (class, wish, any::<bool>(), 1u64..120, 0u64..200, 0u64..60, prop_oneof![4 => Just(0u64), 1 => 0u64..3000], 0u64..100).prop_map(
        |(qos, preference, protected, mib, grows, writes, forks, request)| {
            let mut one = actor("x", qos, mib);
            one.pod.facts.preference = preference;
            one.pod.facts.protected = protected;
            one.pod.facts.memory_request = request * MIB;
            one.grows = grows * MIB;
            one.until = 400 * MIB;
            one.writes = writes * MIB;
            one.forks = forks;
            one.stubborn = seconds(writes % 5);
            one
        },
    )
}

#[derive(Debug, Clone)]
struct Weather {
    memory: f64,
    cpu: f64,
    write_age: u64,
    lag: u64,
    ticks: u32,
}

fn weather() -> impl Strategy<Value = Weather> {
    let some = prop_oneof![2 => Just(0.0), 1 => 0.0..0.1f64, 1 => 0.0..1.0f64];
    (some.clone(), some, prop_oneof![2 => Just(0u64), 1 => 0u64..40_000], prop_oneof![2 => Just(0u64), 1 => 0u64..3000], 1u32..120)
        .prop_map(|(memory, cpu, write_age, lag, ticks)| Weather { memory, cpu, write_age, lag, ticks })
}

fn check(sim: &Sim, before: &[sim::Actor], orders: &[(Duration, Order)]) -> Result<(), TestCaseError> {
    for (_, order) in orders {
        let Target::Pod { uid, .. } = order.action.target() else { continue };
        let Some(actor) = before.iter().find(|actor| actor.pod.facts.uid == *uid) else { continue };
        let undoes = matches!(order.action, Action::Restore { .. } | Action::Reclaim { .. });
        prop_assert!(undoes || !actor.pod.facts.protected, "{order:?}");
        if !undoes && actor.pod.facts.qos == QosClass::Guaranteed {
            prop_assert!(matches!(order.action, Action::Kill { .. }), "{order:?}");
            let another = before.iter().any(|other| {
                let (facts, used) = (&other.pod.facts, &other.pod.used);
                let share = order.resource != Resource::Tasks || used.tasks > sim.sample.kubepods.tasks / 10;
                facts.qos != QosClass::Guaranteed && !facts.protected && share && facts.uid != *uid
            });
            prop_assert!(!another, "a Guaranteed pod while another candidate exists: {order:?}");
        }
    }
    // Whom its owner asked to spare is spared while anybody else could be ended.
    for (_, order) in orders.iter().filter(|(_, order)| order.resource == Resource::Memory && order.action.name() == "kill") {
        let of = |uid: &str| before.iter().find(|actor| actor.pod.facts.uid == uid);
        let Target::Pod { uid, .. } = order.action.target() else { continue };
        let spare = |actor: &&sim::Actor| actor.pod.facts.preference == Preference::Avoid;
        let usual = |actor: &&sim::Actor| {
            let (facts, used) = (&actor.pod.facts, &actor.pod.used);
            !facts.protected && facts.qos != QosClass::Guaranteed && used.relief >= 16 * MIB && actor.asked_to_stop.is_none()
        };
        let another = before.iter().filter(|actor| !spare(actor)).any(|actor| usual(&actor));
        prop_assert!(!(of(uid).filter(spare).is_some() && another), "{order:?}");
    }
    let frozen = sim.touched.keys().filter(|(_, knob)| *knob == Knob::Freeze).count();
    prop_assert!(frozen <= 1, "{:?}", sim.touched);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_is_undone_in_measure_and_never_a_protected_pod(
        actors in prop::collection::vec(anybody(), 0..6),
        weathers in prop::collection::vec(weather(), 1..30),
        system in 100u64..260,
    ) {
        let mut actors = actors;
        for (i, actor) in actors.iter_mut().enumerate() {
            actor.pod.facts.uid = format!("uid-{i}");
            actor.pod.facts.name = format!("default/pod-{i}");
            actor.pod.facts.workload = format!("set-{}", i % 3);
        }
        let mut sim = Sim::new(UP, actors);
        sim.system = system * MIB;
        for weather in &weathers {
            for _ in 0..weather.ticks {
                sim.hurt(weather.memory, weather.cpu);
                sim.sample.write_age = Duration::from_millis(weather.write_age);
                sim.sample.heartbeat_lag = Duration::from_millis(weather.lag);
                let before = sim.actors.clone();
                let from = sim.orders.len();
                sim.tick();
                check(&sim, &before, &sim.orders[from..])?;
            }
        }

        // Rate limits.
        let evictions: Vec<Duration> = sim.orders.iter().filter(|(_, o)| matches!(o.action, Action::Evict { .. })).map(|(at, _)| *at).collect();
        prop_assert!(evictions.windows(2).all(|two| two[1] - two[0] >= seconds(10)), "{evictions:?}");
        prop_assert!(evictions.windows(4).all(|four| four[3] - four[0] >= seconds(300)), "{evictions:?}");
        let ended_first: BTreeSet<_> = sim.orders.iter().filter(|(_, o)| matches!(o.action, Action::Evict { .. })).map(|(_, o)| o.action.target().clone()).collect();
        let kills: Vec<Duration> = sim
            .orders
            .iter()
            .filter(|(_, o)| matches!(o.action, Action::Kill { .. }) && !ended_first.contains(o.action.target()))
            .map(|(at, _)| *at)
            .collect();
        prop_assert!(kills.windows(2).all(|two| two[1] - two[0] >= Duration::from_millis(500)), "{kills:?}");

        // Nobody wants anything any more: everything comes back by itself.
        for actor in &mut sim.actors {
            actor.until = 0;
            actor.writes = 0;
            actor.forks = 0;
            actor.pod.used.memory = actor.pod.used.memory.min(5 * MIB);
            actor.pod.used.relief = actor.pod.used.relief.min(5 * MIB);
            actor.pod.used.tasks = 2;
        }
        sim.system = 100 * MIB;
        sim.sample.write_age = Duration::ZERO;
        sim.sample.heartbeat_lag = Duration::ZERO;
        sim.run(seconds(130));
        prop_assert!(sim.touched.is_empty(), "{:?}", sim.touched);
        prop_assert!(sim.law.held().next().is_none());
        prop_assert_eq!(sim.law.state(), State::Calm);
        prop_assert_eq!(sim.law.stance(), Stance::default());
    }

    #[test]
    fn the_same_trace_gives_the_same_orders(rate in 1u64..300, up in 0u64..200) {
        let run = || {
            let mut sim = Sim::new(seconds(up), vec![hog("a", QosClass::BestEffort, rate), hog("b", QosClass::Burstable, rate / 2)]);
            sim.run(seconds(20));
            (sim.orders, sim.states)
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn ticks_are_what_the_law_asks_for_while_it_acts() {
    let mut sim = Sim::new(UP, vec![hog("hog", QosClass::BestEffort, 170)]);
    while sim.law.state() < State::Brake {
        sim.tick();
    }
    assert_eq!(sim.law.period(), TICK);
}
