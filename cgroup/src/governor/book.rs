//! What the governor holds now: every setting it made and has not undone.

use std::collections::BTreeMap;
use std::time::Duration;

use super::action::{Action, Knob, Order, Resource, Setting, Target};

/// A setting is not made again at once after it was undone: it is held twice as long each time, up to this.
const LONGEST_HOLD: Duration = Duration::from_secs(60);
/// So long after an undo the next one counts as again.
const AGAIN: Duration = Duration::from_secs(60);

/// A setting that stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Held {
    /// The last value.
    pub setting: Setting,
    /// Why.
    pub resource: Resource,
    /// Since when.
    pub since: Duration,
    /// When it got the value it has.
    pub made: Duration,
    /// When it was needed last.
    pub needed: Duration,
    /// How far it was why pressure came back when it was let off.
    pub(super) strikes: u32,
    /// How often it was made again shortly after it was undone or let off.
    pub again: u32,
}

impl Held {
    /// For how long it stays after it was needed last.
    pub(super) fn patience(&self, first: Duration) -> Duration {
        first.saturating_mul(1 << self.again.min(5)).min(LONGEST_HOLD.max(first))
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Book {
    held: BTreeMap<(Target, Knob), Held>,
    undone: BTreeMap<(Target, Knob), (Duration, u32)>,
}

impl Book {
    /// Makes a setting and notes it.
    pub(super) fn set(&mut self, now: Duration, target: &Target, setting: Setting, resource: Resource, why: String) -> Order {
        let key = (target.clone(), setting.knob());
        let again = match self.undone.get(&key) {
            Some((at, times)) if now.saturating_sub(*at) < AGAIN => times + 1,
            Some(_) | None => 0,
        };
        self.held
            .entry(key)
            .and_modify(|held| {
                held.setting = setting;
                held.made = now;
                held.needed = now;
            })
            .or_insert(Held { setting, resource, since: now, made: now, needed: now, strikes: 0, again });
        Order { action: Action::Set { target: target.clone(), setting }, resource, why }
    }

    /// Undoes one; `None` if it is not held.
    pub(super) fn restore(&mut self, now: Duration, target: &Target, knob: Knob, why: &str) -> Option<Order> {
        let key = (target.clone(), knob);
        let held = self.held.remove(&key)?;
        self.undone.retain(|_, (at, _)| now.saturating_sub(*at) < AGAIN);
        self.undone.insert(key, (now, held.again));
        Some(Order { action: Action::Restore { target: target.clone(), knob }, resource: held.resource, why: why.to_owned() })
    }

    /// Undoes all that was set for `resource` and that `which` names.
    pub(super) fn restore_all(
        &mut self,
        now: Duration,
        resource: Resource,
        why: &str,
        which: impl Fn(&Target, &Held) -> bool,
    ) -> Vec<Order> {
        let keys: Vec<_> = self
            .held
            .iter()
            .filter(|((target, _), held)| held.resource == resource && which(target, held))
            .map(|(key, _)| key.clone())
            .collect();
        keys.iter().filter_map(|(target, knob)| self.restore(now, target, *knob, why)).collect()
    }

    pub(super) fn get(&self, target: &Target, knob: Knob) -> Option<&Held> {
        self.held.get(&(target.clone(), knob))
    }

    /// It is still needed.
    pub(super) fn needed(&mut self, now: Duration, target: &Target, knob: Knob) {
        if let Some(held) = self.held.get_mut(&(target.clone(), knob)) {
            held.needed = now;
        }
    }

    /// It was let off, and that went wrong.
    pub(super) fn strike(&mut self, target: &Target, knob: Knob, times: u32) {
        if let Some(held) = self.held.get_mut(&(target.clone(), knob)) {
            held.again += 1;
            held.strikes += times;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Target, Knob, &Held)> {
        self.held.iter().map(|((target, knob), held)| (target, *knob, held))
    }

    pub(super) fn holds(&self, resource: Resource) -> bool {
        self.held.values().any(|held| held.resource == resource)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The group is gone, and with it what was set.
    pub(super) fn forget(&mut self, target: &Target) {
        self.held.retain(|(of, _), _| of != target);
        self.undone.retain(|(of, _), _| of != target);
    }

    /// A setting that could not be made.
    pub(super) fn forget_one(&mut self, target: &Target, knob: Knob) {
        self.held.remove(&(target.clone(), knob));
    }

    /// Forgets pods that `lives` does not know.
    pub(super) fn keep(&mut self, lives: impl Fn(&str) -> bool) {
        let alive = |target: &Target| match target {
            Target::Pod { uid, .. } => lives(uid),
            Target::BestEffort | Target::Burstable | Target::Kubepods => true,
        };
        self.held.retain(|(target, _), _| alive(target));
        self.undone.retain(|(target, _), _| alive(target));
    }
}
