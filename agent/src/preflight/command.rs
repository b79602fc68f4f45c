//! Programs of the system, with fixed arguments and a limit in time. No shell, and nothing that came from a network.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a question may take.
const ASK: Duration = Duration::from_secs(5);
/// Between looks at a program that runs.
const LOOK: Duration = Duration::from_millis(5);

/// Standard output of a program that only answers. The error is one line.
pub(super) fn ask(argv: &[&str]) -> Result<String, String> {
    finish(argv, ASK, true)
}

/// Runs a program that changes something; what it prints goes to standard error.
pub(super) fn run(argv: &[&str], at_most: Duration) -> Result<(), String> {
    finish(argv, at_most, false).map(drop)
}

fn finish(argv: &[&str], at_most: Duration, answers: bool) -> Result<String, String> {
    let [program, arguments @ ..] = argv else { return Err("no program was named".to_owned()) };
    let (out, err) = if answers { (Stdio::piped(), Stdio::null()) } else { (Stdio::from(std::io::stderr()), Stdio::inherit()) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(out).stderr(err).env("LC_ALL", "C").env("SYSTEMD_PAGER", "");
    // A package that asks would ask nobody.
    command.env("DEBIAN_FRONTEND", "noninteractive");
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let reader = child.stdout.take().map(|mut out| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = out.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let until = Instant::now() + at_most;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{program}: no answer within {} s", at_most.as_secs()));
            }
            Err(error) => return Err(format!("{program}: {error}")),
        }
    };
    if !status.success() {
        return Err(format!("{}: {status}", argv.join(" ")));
    }
    Ok(reader.and_then(|reader| reader.join().ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_an_absence_a_failure_and_silence_are_told_apart() {
        assert_eq!(ask(&["echo", "a b"]).as_deref(), Ok("a b\n"));
        assert!(ask(&["edge-agent-no-such-program"]).unwrap_err().contains("No such file"));
        assert_eq!(ask(&["printenv", "DEBIAN_FRONTEND"]).as_deref(), Ok("noninteractive\n"));
        assert_eq!(ask(&["false"]).unwrap_err(), "false: exit status: 1");
        assert_eq!(finish(&["sleep", "60"], Duration::ZERO, true).unwrap_err(), "sleep: no answer within 0 s");
    }
}
