//! `edge-agent status --watch` on a real pseudo-terminal, made by `script`, and into a pipe; the agent that answers is the real socket with
//! fixed answers behind it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent::control::{self, ActionLine, GovernorStatus, PressureLine, Released, ReservationLine, Source, Status, Why};
use tokio::sync::watch;

const AGENT: &str = env!("CARGO_BIN_EXE_edge-agent");
const LIMIT: Duration = Duration::from_secs(30);
const LONG: &str = "own_mem 7.0 % over 5 % for 200 ms, brake 31.0 % over 10 %";

struct Fixed;

impl Source for Fixed {
    fn status(&self) -> Status {
        let action = |action: &str, target: &str| ActionLine {
            seconds_ago: 3,
            action: action.into(),
            target: target.into(),
            reason: LONG.into(),
            result: "ok".into(),
        };
        Status {
            node: "zero-2w".into(),
            ready: Some(true),
            pressure: vec![PressureLine { resource: "memory".into(), waiting10: 41.5, ..PressureLine::default() }],
            reservations: vec![ReservationLine {
                part: "kubepods".into(),
                planned: 212 << 20,
                used: Some(106 << 20),
                ..ReservationLine::default()
            }],
            governor: GovernorStatus {
                mode: "enforce".into(),
                state: "freeze".into(),
                actions: vec![action("freeze", "default/hog"), action("memory_high", "default/hog")],
                ..GovernorStatus::default()
            },
            ..Status::default()
        }
    }

    fn why(&self, _: &str) -> Vec<Why> {
        Vec::new()
    }

    fn release(&self) -> Result<Released, String> {
        Ok(Released::default())
    }
}

/// The socket of an agent, until dropped.
struct Agent {
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Agent {
    fn start(run_dir: &Path) -> Agent {
        let (stop, stopped) = watch::channel(false);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let run_dir = run_dir.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let listener = control::bind(&run_dir).expect("binds");
                ready.send(()).expect("test waits");
                control::serve(listener, Arc::new(Fixed), stopped).await;
            });
        });
        is_ready.recv().expect("starts");
        Agent { stop, thread: Some(thread) }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Terminal {
    child: Child,
    shown: Arc<Mutex<String>>,
    tty: PathBuf,
}

impl Terminal {
    fn start(dir: &Path, config: &Path) -> std::io::Result<Terminal> {
        let tty = dir.join("tty");
        let inside = format!("tty >{}; stty rows 24 cols 60; exec {AGENT} status --watch --config {}", tty.display(), config.display());
        let mut command = Command::new("script");
        command.args(["-qfec", &inside, "/dev/null"]).env("TERM", "xterm").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut out = child.stdout.take().expect("piped");
        let shown = Arc::new(Mutex::new(String::new()));
        let all = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(length) = out.read(&mut some) {
                if length == 0 {
                    return;
                }
                all.lock().expect("lock").push_str(&String::from_utf8_lossy(&some[..length]));
            }
        });
        Ok(Terminal { child, shown, tty })
    }

    fn shown(&self) -> String {
        self.shown.lock().expect("lock").clone()
    }

    fn wait_for(&self, what: &str) {
        let began = Instant::now();
        while !self.shown().contains(what) {
            assert!(began.elapsed() < LIMIT, "{what:?} not shown; the last frame is {:?}", self.shown().rsplit("\x1b[H").next());
            std::thread::yield_now();
        }
    }
}

fn config(dir: &Path) -> PathBuf {
    let config = dir.join("config.yaml");
    std::fs::write(&config, format!("run-dir: {}\n", dir.display())).expect("written");
    config
}

#[test]
fn a_terminal_is_painted_resized_and_given_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = config(dir.path());
    let agent = Agent::start(dir.path());
    let mut terminal = match Terminal::start(dir.path(), &config) {
        Ok(terminal) => terminal,
        Err(error) => return eprintln!("\nSKIP a_terminal_is_painted_resized_and_given_back: script (util-linux) does not run: {error}"),
    };
    terminal.wait_for("\x1b[?1049h");
    terminal.wait_for("[FREEZE]");
    terminal.wait_for("█████████░░░░░░░░░░░░");
    assert!(!terminal.shown().contains(LONG), "cut at 60 columns");

    let tty = std::fs::read_to_string(&terminal.tty).expect("written by then");
    let resized = Command::new("stty").args(["-F", tty.trim(), "rows", "40", "cols", "160"]).status().expect("stty runs");
    assert!(resized.success());
    terminal.wait_for(LONG);

    drop(agent);
    terminal.wait_for("is it running?");
    let agent = Agent::start(dir.path());
    let seen = terminal.shown().len();
    let began = Instant::now();
    // The frame after the last one with the trouble in it.
    while terminal.shown()[seen..].rsplit("\x1b[H").nth(1).is_none_or(|frame| frame.contains("is it running?")) {
        assert!(began.elapsed() < LIMIT, "the agent is not found again: {:?}", &terminal.shown()[seen..]);
        std::thread::yield_now();
    }

    terminal.child.stdin.as_mut().expect("piped").write_all(b"\x03").expect("typed");
    let status = terminal.child.wait().expect("ends");
    assert!(status.success(), "{status}");
    terminal.wait_for("\x1b[?25h\x1b[?1049l");
    drop(agent);
}

#[test]
fn a_pipe_gets_lines_and_each_action_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = config(dir.path());
    let _agent = Agent::start(dir.path());
    let mut command = Command::new(AGENT);
    command.args(["status", "--watch", "--config"]).arg(&config).stdout(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("more").expect("text");
    let action = next();
    assert!(action.contains("memory_high default/hog ok: own_mem"), "{action}");
    assert!(next().contains("freeze default/hog ok: own_mem"));
    let line = next();
    assert!(line.contains("zero-2w Ready") && line.contains("memory 41.5 %") && line.contains("governor enforce freeze"), "{line}");
    assert!(!line.contains('\x1b'), "{line}");
    child.kill().expect("runs until it is ended");
    child.wait().expect("ends");
}

#[test]
fn a_pipe_outlives_the_agent_and_is_told_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = config(dir.path());
    for json in [false, true] {
        let agent = Agent::start(dir.path());
        let mut command = Command::new(AGENT);
        command.args(["status", "--watch", "--config"]).arg(&config).args(json.then_some("--json"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut trouble = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut shown = || lines.by_ref().map(|line| line.expect("text")).find(|line| line.contains("zero-2w")).expect("a look");
        shown();
        drop(agent);
        let said = trouble.next().expect("goes on").expect("text");
        assert!(said.contains("is it running?"), "{said}");
        let agent = Agent::start(dir.path());
        shown();
        child.kill().expect("runs until it is ended");
        child.wait().expect("ends");
        drop(agent);
        assert_eq!(trouble.count(), 0, "one line for one silence");
    }
}

#[test]
fn without_an_agent_the_terminal_is_left_alone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let output = Command::new(AGENT).args(["status", "--watch", "--config"]).arg(config(dir.path())).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("is it running?"));
}
