//! `status --watch` as a picture: one frame from one answer, pure text; colours only where they say something.

use super::{ActionLine, ReservationLine, Status};
use crate::metrics::governor::STATES;

/// How a terminal wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub width: usize,
    pub height: usize,
    pub colour: bool,
    /// Bars of block characters; `#` and `.` where the terminal may not know them.
    pub blocks: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ink {
    Plain,
    Faint,
    Strong,
    Good,
    Warn,
    Bad,
}

impl Ink {
    fn code(self) -> &'static str {
        match self {
            Ink::Plain => "",
            Ink::Faint => "\x1b[2m",
            Ink::Strong => "\x1b[1m",
            Ink::Good => "\x1b[32m",
            Ink::Warn => "\x1b[33m",
            Ink::Bad => "\x1b[1;31m",
        }
    }
}

/// Pieces of text; what does not fit in the width is cut.
#[derive(Default)]
struct Row(Vec<(Ink, String)>);

impl Row {
    fn add(mut self, ink: Ink, text: impl Into<String>) -> Row {
        self.0.push((ink, text.into()));
        self
    }

    fn draw(&self, look: &Look) -> String {
        let (mut out, mut room) = (String::new(), look.width);
        for (ink, text) in &self.0 {
            // Names come from servers: nothing in them may steer the terminal.
            let shown: String = text.chars().filter(|c| !c.is_control()).take(room).collect();
            room -= shown.chars().count();
            if look.colour && *ink != Ink::Plain && !shown.is_empty() {
                out.push_str(ink.code());
                out.push_str(&shown);
                out.push_str("\x1b[0m");
            } else {
                out.push_str(&shown);
            }
        }
        out
    }
}

/// The rows of one frame, at most `height` of them, none wider than `width`. `trouble`: why `status` is not of now.
pub(super) fn frame(status: &Status, trouble: Option<&str>, clock: &str, look: &Look) -> Vec<String> {
    let mut rows = head(status, trouble, clock);
    rows.extend(pressure(status, look));
    rows.extend(reservations(status, look));
    rows.extend(ladder(status, look));
    rows.extend(links(status));
    rows.extend(pods(status, look.height.saturating_sub(rows.len())));
    rows.truncate(look.height);
    rows.iter().map(|row| row.draw(look)).collect()
}

fn head(status: &Status, trouble: Option<&str>, clock: &str) -> Vec<Row> {
    let (ink, ready) = match status.ready {
        Some(true) => (Ink::Good, "Ready"),
        Some(false) => (Ink::Bad, "NotReady"),
        None => (Ink::Warn, "not reported yet"),
    };
    let lease = match status.lease_age_seconds {
        Some(age) => (if age > 20 { Ink::Bad } else { Ink::Plain }, format!("lease {age} s ago")),
        None => (Ink::Warn, "lease never renewed".to_owned()),
    };
    let row = Row::default().add(Ink::Strong, status.node.clone()).add(Ink::Plain, "  ").add(ink, ready).add(Ink::Plain, "  ");
    let row = row.add(lease.0, lease.1).add(Ink::Faint, format!("  edge-agent {}  {clock}", status.version));
    let mut rows = vec![row];
    if let Some(trouble) = trouble {
        rows.push(Row::default().add(Ink::Bad, trouble));
    }
    rows.extend(status.governor.degraded.iter().map(|why| Row::default().add(Ink::Warn, format!("degraded  {why}"))));
    rows
}

fn title(text: &str, hint: &str) -> [Row; 2] {
    [Row::default(), Row::default().add(Ink::Strong, text).add(Ink::Faint, hint)]
}

/// A share of one as a bar.
fn bar(share: f64, cells: usize, look: &Look) -> String {
    let (full, empty) = if look.blocks { ('█', '░') } else { ('#', '.') };
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let filled = (share * cells as f64).round() as usize;
    (0..cells).map(|cell| if cell < filled { full } else { empty }).collect()
}

/// What the text beside it leaves for a bar.
fn cells(look: &Look, text: usize) -> usize {
    look.width.saturating_sub(text).clamp(8, 40)
}

fn pressure(status: &Status, look: &Look) -> Vec<Row> {
    if status.pressure.is_empty() {
        return title("PRESSURE", "  not measured by this kernel").into();
    }
    let mut rows: Vec<Row> = title("PRESSURE", "  tasks waiting, of 10 s (60 s); all stalled, of 10 s").into();
    for line in &status.pressure {
        let ink = match line.waiting10 {
            share if share >= 40.0 => Ink::Bad,
            share if share >= 10.0 => Ink::Warn,
            _ => Ink::Good,
        };
        let numbers = format!(" {:5.1} % ({:5.1} %)  {:5.1} %", line.waiting10, line.waiting60, line.stalled10);
        let drawn = bar(f64::from(line.waiting10) / 100.0, cells(look, 12 + numbers.len()), look);
        rows.push(Row::default().add(Ink::Plain, format!("  {:<10}", line.resource)).add(ink, drawn).add(Ink::Plain, numbers));
    }
    rows
}

fn mib(bytes: u64) -> String {
    format!("{}", bytes >> 20)
}

fn reservations(status: &Status, look: &Look) -> Vec<Row> {
    if status.reservations.is_empty() {
        return Vec::new();
    }
    let mut rows: Vec<Row> = title("MEMORY", "  MiB used of planned; promised, braked and limited by the kernel").into();
    rows.extend(status.reservations.iter().map(|line| reservation(line, look)));
    rows
}

fn reservation(line: &ReservationLine, look: &Look) -> Row {
    let used = line.used.unwrap_or(0);
    let share = if line.planned == 0 { 0.0 } else { used as f64 / line.planned as f64 };
    let ink = match (line.used, share) {
        (None, _) => Ink::Faint,
        (_, share) if share > 1.0 => Ink::Bad,
        (_, share) if share > 0.85 => Ink::Warn,
        _ => Ink::Good,
    };
    let mut numbers = format!(" {:>5} of {:>5}", line.used.map_or("?".to_owned(), mib), mib(line.planned));
    for (word, value) in [("promise", line.min), ("brake", line.high), ("limit", line.max)] {
        if let Some(value) = value {
            numbers += &format!("  {word} {}", mib(value));
        }
    }
    Row::default().add(Ink::Plain, format!("  {:<10}", line.part)).add(ink, bar(share, cells(look, 54), look)).add(Ink::Plain, numbers)
}

fn ladder(status: &Status, look: &Look) -> Vec<Row> {
    let governor = &status.governor;
    let mut rows: Vec<Row> = title("GOVERNOR", &format!("  {}", governor.mode)).into();
    if !governor.state.is_empty() {
        let mut row = Row::default().add(Ink::Plain, "  ");
        for (rung, state) in STATES.iter().enumerate() {
            let ink = match (*state == governor.state, rung) {
                (false, _) => Ink::Faint,
                (true, 0) => Ink::Good,
                (true, 1 | 2) => Ink::Warn,
                (true, _) => Ink::Bad,
            };
            let here = if ink == Ink::Faint { (*state).to_owned() } else { format!("[{}]", state.to_uppercase()) };
            row = row.add(Ink::Faint, if rung == 0 { "" } else { " > " }).add(ink, here);
        }
        rows.push(row.add(Ink::Plain, format!("  for {}", age(governor.state_seconds))));
    }
    for signal in &governor.signals {
        let ink = if signal.level == "emergency" { Ink::Bad } else { Ink::Warn };
        rows.push(
            Row::default().add(ink, format!("  {:<10} {}", signal.level, signal.signal)).add(Ink::Plain, format!("  {}", signal.value)),
        );
    }
    rows.extend(governor.frozen.iter().map(|pod| Row::default().add(Ink::Bad, format!("  frozen     {pod}"))));
    rows.extend(governor.throttled.iter().map(|pod| Row::default().add(Ink::Warn, format!("  held       {pod}"))));
    let room = if look.height > 40 { 10 } else { 4 };
    rows.extend(governor.actions.iter().take(room).map(action));
    rows
}

fn action(line: &ActionLine) -> Row {
    let ink = if line.result == "ok" { Ink::Plain } else { Ink::Warn };
    Row::default()
        .add(Ink::Faint, format!("  {:>9}  ", format!("{} ago", age(line.seconds_ago))))
        .add(ink, format!("{} {} {}", line.action, line.target, line.result))
        .add(Ink::Faint, format!("  {}", line.reason))
}

fn links(status: &Status) -> Vec<Row> {
    let mut rows: Vec<Row> = title("LINKS", "").into();
    for link in &status.links {
        let ink = if link.state == "connected" { Ink::Good } else { Ink::Bad };
        let proof = link.last_proof_seconds.map_or(String::new(), |age| format!("  last proof of life {age} s ago"));
        rows.push(Row::default().add(Ink::Plain, format!("  {}  ", link.server)).add(ink, link.state.clone()).add(Ink::Faint, proof));
    }
    if status.links.is_empty() {
        rows.push(Row::default().add(Ink::Warn, "  none"));
    }
    rows
}

/// Pods that are not ready come first; `room` rows are left for all of it.
fn pods(status: &Status, room: usize) -> Vec<Row> {
    let ready = status.pods.iter().filter(|pod| pod.ready).count();
    let mut rows: Vec<Row> = title("PODS", &format!("  {ready} of {} ready", status.pods.len())).into();
    let mut sorted: Vec<_> = status.pods.iter().collect();
    sorted.sort_by_key(|pod| (pod.ready, &pod.namespace, &pod.name));
    let names = room.saturating_sub(rows.len());
    let shown = if sorted.len() > names { names.saturating_sub(1) } else { sorted.len() };
    for pod in sorted.iter().take(shown) {
        let ink = if pod.ready { Ink::Good } else { Ink::Warn };
        let row = Row::default().add(ink, format!("  {:<9}", pod.phase)).add(Ink::Plain, format!("  {}/{}", pod.namespace, pod.name));
        rows.push(row.add(Ink::Faint, format!("  restarts {}  {}", pod.restarts, pod.ip)));
    }
    if shown < sorted.len() {
        rows.push(Row::default().add(Ink::Faint, format!("  and {} more", sorted.len() - shown)));
    }
    rows
}

fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// One look as one line, for what is no terminal.
pub(super) fn line(status: &Status, clock: &str) -> String {
    let ready = match status.ready {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "unreported",
    };
    let mut text = format!("{clock} {} {ready}", status.node);
    text += &status.lease_age_seconds.map_or(" lease never".to_owned(), |age| format!(" lease {age} s"));
    let up = status.links.iter().filter(|link| link.state == "connected").count();
    text += &format!(" links {up}/{}", status.links.len());
    let ready = status.pods.iter().filter(|pod| pod.ready).count();
    text += &format!(" pods {ready}/{}", status.pods.len());
    for line in &status.pressure {
        text += &format!(" {} {:.1} %", line.resource, line.waiting10);
    }
    for line in status.reservations.iter().filter(|line| line.part == "kubepods") {
        text += &format!(" kubepods {}/{} MiB", line.used.map_or("?".to_owned(), mib), mib(line.planned));
    }
    let governor = &status.governor;
    text += &format!(" governor {}", governor.mode);
    if !governor.state.is_empty() {
        text += &format!(" {}", governor.state);
    }
    for (word, pods) in [("frozen", &governor.frozen), ("held", &governor.throttled)] {
        if !pods.is_empty() {
            text += &format!(" {word} {}", pods.len());
        }
    }
    text.chars().filter(|c| !c.is_control()).collect()
}

/// Actions that are in `now` but were not in `before`, oldest first, as lines. `passed`: seconds between the two.
pub(super) fn news(before: &[ActionLine], now: &[ActionLine], passed: u64, clock: &str) -> Vec<String> {
    // Ages are whole seconds, cut off at both ends.
    let known = |line: &ActionLine| {
        let same = |old: &ActionLine| {
            (&old.action, &old.target, &old.result, &old.reason) == (&line.action, &line.target, &line.result, &line.reason)
        };
        before.iter().any(|old| same(old) && line.seconds_ago.abs_diff(old.seconds_ago + passed) <= 1)
    };
    let say = |line: &ActionLine| {
        let text = format!("{clock} {} ago {} {} {}: {}", age(line.seconds_ago), line.action, line.target, line.result, line.reason);
        text.chars().filter(|c| !c.is_control()).collect()
    };
    now.iter().filter(|line| !known(line)).rev().map(say).collect()
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
