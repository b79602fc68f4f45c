//! `edge-agent status --watch`: a board that is painted again every second on a terminal, lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{ClientError, get};
use super::screen::{self, Look};
use super::{ActionLine, Status};
use crate::memory;

/// Between two paintings.
const PAINT: Duration = Duration::from_secs(1);
/// Between two lines.
const LINE: Duration = Duration::from_secs(2);

const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Watches until interrupted.
pub(super) async fn client_watch(run_dir: &Path, json: bool) -> anyhow::Result<()> {
    let out = io::stdout();
    if json {
        return each(run_dir, |body, _| writeln!(io::stdout(), "{}", String::from_utf8_lossy(body))).await;
    }
    if out.is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb") {
        paint(run_dir).await
    } else {
        lines(run_dir).await
    }
}

/// Calls `show` with every answer, and with the time since the last. Only a first look without an answer is an error: an agent that
/// is restarted is found again.
async fn each(run_dir: &Path, mut show: impl FnMut(&[u8], Duration) -> io::Result<()>) -> anyhow::Result<()> {
    let mut body = get(run_dir, "/status").await.map(Some)?;
    let mut last = Instant::now();
    let mut told = false;
    loop {
        if let Some(body) = body {
            match show(&body, last.elapsed()) {
                // Whoever read has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                shown => shown?,
            }
            (last, told) = (Instant::now(), false);
        }
        tokio::time::sleep(LINE).await;
        body = match get(run_dir, "/status").await {
            Ok(body) => Some(body),
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    let _ = writeln!(io::stderr(), "edge-agent: {error}");
                }
                None
            }
        };
    }
}

async fn lines(run_dir: &Path) -> anyhow::Result<()> {
    let mut before: Vec<ActionLine> = Vec::new();
    each(run_dir, |body, passed| {
        let status: Status = serde_json::from_slice(body)?;
        let mut out = io::stdout().lock();
        let clock = clock();
        for news in screen::news(&before, &status.governor.actions, passed.as_secs_f64().round() as u64, &clock) {
            writeln!(out, "{news}")?;
        }
        writeln!(out, "{}", screen::line(&status, &clock))?;
        before = status.governor.actions;
        out.flush()
    })
    .await
}

/// The terminal as it was, also when something fails in between.
struct Screen;

impl Screen {
    fn enter() -> io::Result<Screen> {
        let mut out = io::stdout().lock();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(Screen)
    }

    fn show(&self, rows: &[String]) -> io::Result<()> {
        // One write: a frame that is half painted flickers.
        let mut text = String::from("\x1b[H");
        for (number, row) in rows.iter().enumerate() {
            text += if number == 0 { "" } else { "\r\n" };
            text += row;
            text += "\x1b[K";
        }
        text += "\x1b[J";
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes());
        let _ = out.flush();
    }
}

async fn paint(run_dir: &Path) -> anyhow::Result<()> {
    let mut resized = signal(SignalKind::window_change())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    // What the first look meets is said as an error, with the terminal untouched.
    let mut seen: Status = serde_json::from_slice(&get(run_dir, "/status").await?)?;
    let mut answered = Instant::now();
    let mut trouble: Option<String> = None;
    let screen = Screen::enter()?;
    loop {
        screen.show(&screen::frame(&seen, trouble.as_deref(), &clock(), &look()))?;
        // Nothing is lost with an arm that is dropped.
        tokio::select! {
            () = tokio::time::sleep(PAINT) => match get(run_dir, "/status").await {
                Ok(body) => {
                    (seen, answered, trouble) = (serde_json::from_slice(&body)?, Instant::now(), None);
                }
                Err(error) => trouble = Some(older(&error, answered.elapsed())),
            },
            _ = resized.recv() => {}
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
            _ = hung_up.recv() => return Ok(()),
        }
    }
}

fn older(error: &ClientError, since: Duration) -> String {
    format!("as of {} s ago: {error}", since.as_secs())
}

fn look() -> Look {
    let (width, height) = memory::terminal_size().unwrap_or((80, 24));
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default().to_uppercase();
    Look { width, height, colour: set("NO_COLOR").is_none(), blocks: locale.contains("UTF-8") || locale.contains("UTF8") }
}

/// Of the day, UTC as everywhere in the cluster.
fn clock() -> String {
    let (hour, minute, second) = OffsetDateTime::now_utc().to_hms();
    format!("{hour:02}:{minute:02}:{second:02}Z")
}
