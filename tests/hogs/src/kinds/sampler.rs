//! No hog: reads numbers out of files again and again and prints each round as a line of JSON,
//! `{"at":1790000000123,"late_ms":0.1,"values":{"/sys/fs/cgroup/edge.slice/memory.stat pgmajfault":0}}`.
//! It is locked in memory and runs at real-time priority, so that what it tells is not what it suffers; `late_ms` says how far that
//! succeeded. A file that is not there has no values.
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Failed;
use crate::raw;
use crate::report::Run;

/// A file and the first words of the lines wanted of it; none are all.
struct Watched {
    path: String,
    keys: Vec<String>,
}

pub(crate) fn watch(run: &Run) -> Result<(), Failed> {
    let watched: Vec<Watched> = run
        .arguments
        .watch
        .iter()
        .map(|text| {
            let (path, keys) = text.split_once(':').unwrap_or((text, ""));
            Watched { path: path.to_owned(), keys: keys.split(',').filter(|key| !key.is_empty()).map(str::to_owned).collect() }
        })
        .collect();
    if watched.is_empty() {
        return Err("which files? --watch PATH or --watch PATH:KEY,KEY".to_owned());
    }
    for refused in [raw::lock_memory(), raw::real_time()].into_iter().filter_map(Result::err) {
        eprintln!("hog: the sampler is not protected: {refused}");
    }
    let mut line = String::with_capacity(64 << 10);
    let mut due = Instant::now();
    while !run.is_over() {
        let late = due.elapsed();
        line.clear();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let _ = write!(line, "{{\"at\":{at},\"late_ms\":{:.1},\"values\":{{", late.as_secs_f64() * 1000.0);
        for file in &watched {
            if let Ok(text) = std::fs::read_to_string(&file.path) {
                numbers(&text, &file.keys, |name, number| {
                    let comma = if line.ends_with('{') { "" } else { "," };
                    let space = if name.is_empty() { "" } else { " " };
                    let _ = write!(line, "{comma}\"{}{space}{name}\":{number}", file.path);
                });
            }
        }
        line.push_str("}}\n");
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
        run.did(1);
        due += run.arguments.report;
        if let Some(left) = due.checked_duration_since(Instant::now()) {
            run.pause(left);
        } else {
            due = Instant::now();
            run.pause(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Each number with its name: `KEY 5`, `KEY: 5 kB`, `some avg10=0.00 total=5` as "some total", or a lone number without a name.
/// What is no number (max, a path) is left out.
fn numbers(text: &str, keys: &[String], mut each: impl FnMut(&str, f64)) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let key = first.trim_end_matches(':');
        if !keys.is_empty() && !keys.iter().any(|wanted| wanted == key) {
            continue;
        }
        if let (Ok(number), None) = (first.parse(), words.clone().next()) {
            each("", number);
            continue;
        }
        for word in words {
            match word.split_once('=') {
                Some((name, value)) => {
                    if let Ok(number) = value.parse() {
                        each(&format!("{key} {name}"), number);
                    }
                }
                None => {
                    if let Ok(number) = word.parse() {
                        each(key, number);
                    }
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_the_kernel_has() {
        let seen = |text: &str, keys: &[&str]| {
            let mut out = Vec::new();
            let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            numbers(text, &keys, |name, number| out.push(format!("{name}={number}")));
            out
        };
        assert_eq!(seen("anon 5\nfile 7\n", &["file"]), ["file=7"]);
        assert_eq!(seen("MemTotal:   416 kB\n", &[]), ["MemTotal=416"]);
        assert_eq!(seen("some avg10=0.50 avg60=1 total=12\n", &[]), ["some avg10=0.5", "some avg60=1", "some total=12"]);
        assert_eq!(seen("4096\n", &[]), ["=4096"]);
        assert_eq!(seen("max\n", &[]), Vec::<String>::new());
        assert_eq!(seen("8:0 rbytes=1 wbytes=2", &[]), ["8:0 rbytes=1", "8:0 wbytes=2"]);
    }
}
