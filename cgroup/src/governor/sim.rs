//! A board on paper for the tests of the law: pods that grow, write and fork against limits, and that obey orders.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Action, Knob, Law, Order, Pod, PodFacts, PodUse, Resource, Sample, Setting, Settings, Stall, State, Target};
use crate::QosClass;

const MIB: u64 = 1 << 20;
pub(super) const TICK: Duration = Duration::from_millis(50);

/// A pod with what it is up to.
#[derive(Debug, Clone, Default)]
pub(super) struct Actor {
    pub(super) pod: Pod,
    /// Bytes it would grow by in a second.
    pub(super) grows: u64,
    /// Where it stops growing.
    pub(super) until: u64,
    /// Bytes a second it would write.
    pub(super) writes: u64,
    /// Tasks it would make in a second.
    pub(super) forks: u64,
    pub(super) high: Option<u64>,
    pub(super) frozen: bool,
    pub(super) asked_to_stop: Option<Duration>,
    /// Goes on for so long after it was asked.
    pub(super) stubborn: Duration,
}

/// A 512 MB board of the reference: 212 MiB for pods, the brake at 195.
#[derive(Debug)]
pub(super) struct Sim {
    pub(super) law: Law,
    pub(super) sample: Sample,
    pub(super) actors: Vec<Actor>,
    pub(super) orders: Vec<(Duration, Order)>,
    pub(super) states: Vec<(Duration, State)>,
    /// Knobs that differ from their originals.
    pub(super) touched: BTreeMap<(Target, Knob), Setting>,
    class_high: u64,
    /// What of the machine is not pods.
    pub(super) system: u64,
    /// Tasks outside all pods.
    pub(super) others: u64,
    io: u64,
}

pub(super) fn settings() -> Settings {
    Settings {
        memory: 416 * MIB,
        headroom: 24 * MIB,
        pods_max: 212 * MIB,
        cpus: 4,
        io: Some(super::IoLimits { rbps: 20 * MIB, wbps: 5 * MIB, riops: 1000, wiops: 200 }),
        read_bps: 20 * MIB,
        page: 4096,
        zram: false,
    }
}

pub(super) fn actor(name: &str, qos: QosClass, mib: u64) -> Actor {
    let facts = PodFacts {
        uid: name.to_owned(),
        name: name.to_owned(),
        workload: name.to_owned(),
        qos,
        grace: Duration::from_secs(30),
        ..PodFacts::default()
    };
    let used = PodUse { memory: mib * MIB, relief: mib * MIB, tasks: 2, ..PodUse::default() };
    Actor { pod: Pod { facts, used }, stubborn: Duration::from_secs(60), ..Actor::default() }
}

impl Sim {
    /// So long after boot.
    pub(super) fn new(up: Duration, actors: Vec<Actor>) -> Sim {
        let mut sample = Sample { at: up, tasks_max: 3300, ..Sample::default() };
        sample.kubepods.tasks_max = Some(1990);
        for scope in [&mut sample.agent, &mut sample.kubepods, &mut sample.burstable, &mut sample.best_effort] {
            scope.stalls = super::Stalls { cpu: Some(Stall::default()), memory: Some(Stall::default()), io: Some(Stall::default()) };
        }
        sample.node = sample.agent.stalls;
        Sim {
            law: Law::new(settings()),
            sample,
            actors,
            orders: Vec::new(),
            states: Vec::new(),
            touched: BTreeMap::new(),
            class_high: 195 * MIB,
            system: 150 * MIB,
            others: 120,
            io: 5 * MIB,
        }
    }

    pub(super) fn run(&mut self, time: Duration) {
        let until = self.sample.at + time;
        while self.sample.at < until {
            self.tick();
        }
    }

    /// Adds stall to the agent, as shares of the tick.
    pub(super) fn hurt(&mut self, memory: f64, cpu: f64) {
        // Whoever is in the agent's way waits himself.
        stall(&mut self.sample.best_effort.stalls.cpu, cpu);
        stall(&mut self.sample.agent.stalls.memory, memory);
        stall(&mut self.sample.agent.stalls.cpu, cpu);
    }

    pub(super) fn tick(&mut self) {
        self.sample.at += TICK;
        self.live();
        let sample = self.sample;
        self.law.observe(&sample);
        let pods: Vec<Pod> = if self.law.wants_pods() { self.actors.iter().map(|actor| actor.pod.clone()).collect() } else { Vec::new() };
        let orders = self.law.decide(&pods);
        for order in orders {
            self.obey(&order);
            self.orders.push((self.sample.at, order));
        }
        // What a group held goes with it.
        self.touched.retain(|(of, _), _| match of {
            Target::Pod { uid, .. } => self.actors.iter().any(|actor| actor.pod.facts.uid == *uid),
            Target::BestEffort | Target::Burstable | Target::Kubepods => true,
        });
        let state = self.law.state();
        if self.states.last().map(|(_, last)| *last) != Some(state) {
            self.states.push((self.sample.at, state));
        }
    }

    /// One tick of everybody's life.
    fn live(&mut self) {
        let share = TICK.as_secs_f64();
        let now = self.sample.at;
        self.actors.retain(|actor| actor.asked_to_stop.is_none_or(|at| now < at + actor.stubborn));
        for qos in [QosClass::Burstable, QosClass::BestEffort] {
            let class: u64 = self.actors.iter().filter(|a| a.pod.facts.qos == qos).map(|a| a.pod.used.memory).sum();
            let mut room = self.class_high.saturating_sub(class);
            let mut stalled = false;
            let mut hit = false;
            for actor in self.actors.iter_mut().filter(|a| a.pod.facts.qos == qos && !a.frozen) {
                let wants = ((actor.grows as f64 * share) as u64).min(actor.until.saturating_sub(actor.pod.used.memory));
                let own = actor.high.map_or(u64::MAX, |high| high.saturating_sub(actor.pod.used.memory));
                let gets = wants.min(own).min(room);
                actor.pod.used.memory += gets;
                actor.pod.used.relief += gets;
                room -= gets;
                if gets < wants {
                    actor.pod.used.memory_stall_us += (share * 0.7 * 1e6) as u64;
                    stalled = true;
                    hit |= own >= wants;
                }
            }
            let scope = if qos == QosClass::Burstable { &mut self.sample.burstable } else { &mut self.sample.best_effort };
            if hit {
                scope.high_events += 3;
            }
            if stalled {
                stall(&mut scope.stalls.memory, 0.7);
            }
        }
        let mut budget = (self.io as f64 * share) as u64;
        let mut wanted = 0;
        for actor in self.actors.iter_mut().filter(|a| !a.frozen) {
            let writes = (actor.writes as f64 * share) as u64;
            wanted += writes;
            let gets = writes.min(budget);
            budget -= gets;
            actor.pod.used.written += gets;
            let forks = (actor.forks as f64 * share) as u64;
            let room = self.sample.kubepods.tasks_max.unwrap_or(u64::MAX).saturating_sub(self.sample.kubepods.tasks);
            actor.pod.used.tasks += forks.min(room);
            actor.pod.used.fork_failures += forks - forks.min(room);
        }
        if wanted > 0 {
            stall(&mut self.sample.node.io, 0.5);
            stall(&mut self.sample.kubepods.stalls.io, 0.5);
        }
        self.sample.kubepods.tasks = self.actors.iter().map(|a| a.pod.used.tasks).sum();
        self.sample.tasks = self.sample.kubepods.tasks + self.others;
        let pods: u64 = self.actors.iter().map(|a| a.pod.used.memory).sum();
        self.sample.available = (416 * MIB).saturating_sub(self.system + pods).max(1);
    }

    fn obey(&mut self, order: &Order) {
        let now = self.sample.at;
        match &order.action {
            Action::Set { target, setting } => {
                self.touched.insert((target.clone(), setting.knob()), *setting);
                self.turn(target, Some(*setting), setting.knob());
            }
            Action::Restore { target, knob } => {
                self.touched.remove(&(target.clone(), *knob));
                self.turn(target, None, *knob);
            }
            Action::Reclaim { .. } => {}
            Action::Evict { target, .. } => {
                if let Some(actor) = self.actor(target) {
                    actor.asked_to_stop = Some(now);
                }
            }
            Action::Kill { target } => {
                self.actors.retain(|actor| !is(actor, target));
                self.touched.retain(|(of, _), _| of != target);
            }
        }
    }

    fn turn(&mut self, whom: &Target, to: Option<Setting>, knob: Knob) {
        if (whom, knob) == (&Target::Kubepods, Knob::IoMax) {
            self.io = match to {
                Some(Setting::IoMax(limits)) => limits.wbps,
                _ => 5 * MIB,
            };
        }
        let Some(actor) = self.actor(whom) else { return };
        match (knob, to) {
            (Knob::MemoryHigh, Some(Setting::MemoryHigh(high))) => actor.high = Some(high),
            (Knob::MemoryHigh, _) => actor.high = None,
            (Knob::Freeze, to) => actor.frozen = to.is_some(),
            (Knob::SwapMax | Knob::CpuMax | Knob::CpuIdle | Knob::IoMax, _) => {}
        }
        actor.pod.used.frozen = actor.frozen;
        actor.pod.used.high = actor.high;
    }

    fn actor(&mut self, whom: &Target) -> Option<&mut Actor> {
        self.actors.iter_mut().find(|actor| is(actor, whom))
    }

    /// The names of what was ordered for a resource, repeats of one after the other left out.
    pub(super) fn ordered(&self, resource: Resource) -> Vec<&'static str> {
        let mut names: Vec<_> =
            self.orders.iter().filter(|(_, order)| order.resource == resource).map(|(_, order)| order.action.name()).collect();
        names.dedup();
        names
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.actors.iter().map(|actor| actor.pod.facts.name.as_str()).collect()
    }
}

fn is(actor: &Actor, target: &Target) -> bool {
    matches!(target, Target::Pod { uid, .. } if *uid == actor.pod.facts.uid)
}

fn stall(of: &mut Option<Stall>, share: f64) {
    let us = (TICK.as_secs_f64() * share * 1e6) as u64;
    if let Some(stall) = of {
        stall.some_us += us;
        stall.full_us += us;
    }
}
