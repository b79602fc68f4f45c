//! The ladder for tasks has one rung: who forks until nobody can is ended (governor reference, section 3.6).
//!
//! A pod at its own limit harms only itself; this is for pods that fill the limit of all.

use std::time::Duration;

use super::action::{Action, Order, Resource, Target};
use super::law::{Scene, State, target};
use super::signal::{Level, Signal};
use super::track::Tracked;
use crate::QosClass;

/// Its tasks are gone within this, or somebody else has to go.
const ENDS: Duration = Duration::from_secs(2);
/// Who has less than this share of all pods' tasks is not why there are none left.
const A_SHARE: u64 = 10;

/// Where it stands.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    ending: Option<(Target, Duration)>,
    watching: bool,
}

impl Ladder {
    pub(super) fn state(&self) -> State {
        match (&self.ending, self.watching) {
            (Some(_), _) => State::Cull,
            (None, true) => State::Watch,
            (None, false) => State::Calm,
        }
    }

    pub(super) fn step(&mut self, scene: &mut Scene<'_>) -> Vec<Order> {
        let now = scene.now;
        if let Some((whom, until)) = &self.ending {
            let alive = scene.pod(whom).is_some_and(|pod| pod.pod.used.tasks > 0);
            if alive && now < *until {
                return Vec::new();
            }
            if !alive {
                scene.book.forget(whom);
            }
            self.ending = None;
        }
        let full = scene.signals.of(Signal::Tasks);
        self.watching = full.level >= Level::Warn && full.now >= Level::Warn;
        if full.now < Level::Emergency || scene.booting() {
            return Vec::new();
        }
        if !scene.rates.may_kill(now) {
            scene.suppressed.rate_limit += 1;
            return Vec::new();
        }
        let Some(pod) = forker(scene) else {
            scene.suppressed.no_candidate += 1;
            return Vec::new();
        };
        let whom = target(pod);
        let why = format!(
            "{}; {} has {} tasks and was refused {:.0} more a second",
            scene.signals.say(Signal::Tasks),
            pod.pod.facts.name,
            pod.pod.used.tasks,
            pod.forks_refused
        );
        scene.rates.killed(now, &pod.pod.facts.workload);
        self.ending = Some((whom.clone(), now + ENDS));
        vec![Order { action: Action::Kill { target: whom }, resource: Resource::Tasks, why }]
    }
}

/// Who was refused most forks; among those, who has most tasks. A Guaranteed pod only where no other has its share.
fn forker<'a>(scene: &Scene<'a>) -> Option<&'a Tracked> {
    let least = scene.sample.kubepods.tasks / A_SHARE;
    let worst = |guaranteed: bool| {
        scene
            .pods
            .iter()
            .filter(|pod| !pod.pod.facts.protected && (pod.pod.facts.qos == QosClass::Guaranteed) == guaranteed)
            .filter(|pod| pod.pod.used.tasks > least.max(1))
            .max_by(|a, b| {
                let key = |pod: &Tracked| (pod.forks_refused, pod.pod.used.tasks as f64);
                let (a_key, b_key) = (key(a), key(b));
                a_key.0.total_cmp(&b_key.0).then(a_key.1.total_cmp(&b_key.1)).then_with(|| b.pod.facts.uid.cmp(&a.pod.facts.uid))
            })
    };
    worst(false).or_else(|| worst(true))
}
