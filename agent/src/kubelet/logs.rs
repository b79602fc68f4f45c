//! `kubectl logs`: what a client may ask for, and the CRI log format.
//!
//! The runtime writes one line per write of the container: `<RFC 3339 time> <stdout|stderr> <P|F> <text>`. `P` parts
//! are joined with what follows until an `F`. Only the live file is read, never rotated ones: that is what a kubelet does.
//! Reading and following the file itself is in [`super::log_stream`].

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Which of the two streams are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    All,
    Stdout,
    Stderr,
}

/// A request for logs, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// The instance before the current one.
    pub previous: bool,
    /// Prefix each line with its time.
    pub timestamps: bool,
    /// Nothing older than this.
    pub since: Option<OffsetDateTime>,
    /// Only so many lines from the end of the file, counted raw.
    pub tail: Option<u64>,
    /// Stop after so many bytes, also in the middle of a line.
    pub limit: Option<u64>,
    pub streams: Streams,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { follow: false, previous: false, timestamps: false, since: None, tail: None, limit: None, streams: Streams::All }
    }
}

/// Why the options are no good: HTTP status and body as a kubelet gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// 400: a value does not parse.
    Undecodable,
    /// 422: values that contradict each other or are out of range.
    Invalid,
}

impl LogOptions {
    /// From the decoded query; parameters for others (`container`, `insecureSkip…`) are passed over.
    pub fn parse(query: &[(String, String)], now: OffsetDateTime) -> Result<Self, Invalid> {
        let mut options = Self::default();
        let (mut since_seconds, mut since_time) = (None, None);
        for (key, value) in query {
            let number = || value.parse::<i64>().map_err(|_| Invalid::Undecodable);
            // Go's conversion of query booleans: everything is true except "false" and "0".
            let boolean = !matches!(value.as_str(), "false" | "0");
            match key.as_str() {
                "follow" => options.follow = boolean,
                "previous" => options.previous = boolean,
                "timestamps" => options.timestamps = boolean,
                "sinceSeconds" => since_seconds = Some(number()?),
                "sinceTime" if !value.is_empty() => {
                    since_time = Some(OffsetDateTime::parse(value, &Rfc3339).map_err(|_| Invalid::Undecodable)?);
                }
                "tailLines" => options.tail = Some(u64::try_from(number()?).map_err(|_| Invalid::Invalid)?),
                "limitBytes" => {
                    let limit = u64::try_from(number()?).map_err(|_| Invalid::Invalid)?;
                    options.limit = Some((limit > 0).then_some(limit).ok_or(Invalid::Invalid)?);
                }
                "stream" => {
                    options.streams = match value.as_str() {
                        "" | "All" => Streams::All,
                        "Stdout" => Streams::Stdout,
                        "Stderr" => Streams::Stderr,
                        _ => return Err(Invalid::Invalid),
                    }
                }
                _ => {}
            }
        }
        if options.tail.is_some() && options.streams != Streams::All {
            return Err(Invalid::Invalid);
        }
        options.since = match (since_seconds, since_time) {
            (Some(_), Some(_)) => return Err(Invalid::Invalid),
            (Some(seconds), None) if seconds < 1 => return Err(Invalid::Invalid),
            (Some(seconds), None) => Some(now.checked_sub(time::Duration::seconds(seconds)).unwrap_or(OffsetDateTime::UNIX_EPOCH)),
            (None, time) => time,
        };
        Ok(options)
    }
}

/// One raw line of a log file.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    time: &'a str,
    stderr: bool,
    partial: bool,
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// `None` when the line is not in CRI format.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stderr = match parts.next()? {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        // Tags are separated by colons; the first says partial or full.
        let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self { time, stderr, partial, text: parts.next().unwrap_or_default() })
    }
}

/// Time as kubectl shows it: nanoseconds always nine digits, the log's own zone.
fn fixed_width(time: &str) -> String {
    let zone_at = time.char_indices().skip(19).find(|(_, c)| !c.is_ascii_digit() && *c != '.').map_or(time.len(), |(at, _)| at);
    let (stamp, zone) = time.split_at(zone_at);
    let (seconds, fraction) = stamp.split_once('.').unwrap_or((stamp, ""));
    format!("{seconds}.{fraction:0<9}{zone}")
}

/// Turns raw lines into what the client gets. Pure.
#[derive(Debug)]
pub(crate) struct Formatter {
    timestamps: bool,
    since: Option<OffsetDateTime>,
    streams: Streams,
    left: Option<u64>,
    at_line_start: bool,
}

impl Formatter {
    pub(crate) fn new(options: &LogOptions) -> Self {
        Self { timestamps: options.timestamps, since: options.since, streams: options.streams, left: options.limit, at_line_start: true }
    }

    /// Adds what `line` (without its newline) gives to `out`. Lines that are not CRI are passed over.
    pub(crate) fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = Entry::parse(line) else { return };
        let wanted = match self.streams {
            Streams::All => true,
            Streams::Stdout => !entry.stderr,
            Streams::Stderr => entry.stderr,
        };
        if !wanted || self.is_full() || self.too_old(entry.time) {
            return;
        }
        if self.timestamps && self.at_line_start {
            self.put(fixed_width(entry.time).as_bytes(), out);
            self.put(b" ", out);
        }
        self.put(entry.text, out);
        if !entry.partial {
            self.put(b"\n", out);
        }
        self.at_line_start = !entry.partial;
    }

    fn too_old(&mut self, time: &str) -> bool {
        let Some(since) = self.since else { return false };
        match OffsetDateTime::parse(time, &Rfc3339) {
            Ok(time) if time < since => true,
            // Lines are in order of time: from here on nothing needs parsing.
            Ok(_) => {
                self.since = None;
                false
            }
            Err(_) => true,
        }
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let room = self.left.map_or(bytes.len(), |left| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
        out.extend_from_slice(&bytes[..room]);
        if let Some(left) = &mut self.left {
            *left -= room as u64;
        }
    }

    /// The byte limit is reached.
    pub(crate) fn is_full(&self) -> bool {
        self.left == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn pairs(query: &str) -> Vec<(String, String)> {
        super::super::serve::query_pairs(Some(query))
    }

    #[test]
    fn options_are_parsed_and_checked() {
        let now = datetime!(2026-11-23 03:00:00 UTC);
        let parse = |query: &str| LogOptions::parse(&pairs(query), now);
        assert_eq!(parse("container=c&insecureSkipTLSVerifyBackend=true"), Ok(LogOptions::default()));
        assert_eq!(
            parse("follow=true&previous=1&timestamps=true&tailLines=0&limitBytes=7&sinceSeconds=60"),
            Ok(LogOptions {
                follow: true,
                previous: true,
                timestamps: true,
                tail: Some(0),
                limit: Some(7),
                since: Some(datetime!(2026-11-23 02:59:00 UTC)),
                streams: Streams::All
            })
        );
        assert_eq!(
            parse("sinceTime=2026-11-23T02:00:00%2B01:00&stream=Stderr").map(|o| (o.since, o.streams)),
            Ok((Some(datetime!(2026-11-23 01:00:00 UTC)), Streams::Stderr))
        );
        for (query, wanted) in [
            ("tailLines=x", Invalid::Undecodable),
            ("sinceTime=yesterday", Invalid::Undecodable),
            ("tailLines=-1", Invalid::Invalid),
            ("limitBytes=0", Invalid::Invalid),
            ("sinceSeconds=0", Invalid::Invalid),
            ("sinceSeconds=1&sinceTime=2026-11-23T02:00:00Z", Invalid::Invalid),
            ("stream=stdout", Invalid::Invalid),
            ("stream=Stdout&tailLines=1", Invalid::Invalid),
        ] {
            assert_eq!(parse(query), Err(wanted), "{query}");
        }
    }

    const FILE: &[&str] = &[
        "2026-11-23T02:00:00.5Z stdout F one",
        "2026-11-23T02:00:01.000000001Z stderr P tw",
        "2026-11-23T02:00:01.25Z stderr F o",
        "not a log line",
        "2026-11-23T02:00:02Z stdout F ",
        "2026-11-23T02:00:03.123456789+01:00 stdout F:x three words here",
    ];

    fn shown(options: &LogOptions) -> String {
        let (mut formatter, mut out) = (Formatter::new(options), Vec::new());
        for line in FILE {
            formatter.push(line.as_bytes(), &mut out);
        }
        String::from_utf8(out).expect("utf-8")
    }

    #[test]
    fn lines_come_out_as_the_client_asked() {
        let plain = LogOptions::default();
        let cases = [
            (plain.clone(), "one\ntwo\n\nthree words here\n"),
            (LogOptions { streams: Streams::Stderr, ..plain.clone() }, "two\n"),
            (LogOptions { limit: Some(6), ..plain.clone() }, "one\ntw"),
            (
                LogOptions { timestamps: true, limit: Some(101), ..plain.clone() },
                "2026-11-23T02:00:00.500000000Z one\n2026-11-23T02:00:01.000000001Z two\n2026-11-23T02:00:02.000000000Z ",
            ),
            (LogOptions { since: Some(datetime!(2026-11-23 02:00:01.2 UTC)), ..plain }, "o\n\nthree words here\n"),
        ];
        for (options, wanted) in cases {
            assert_eq!(shown(&options), wanted, "{options:?}");
        }
    }

    #[test]
    fn zones_keep_their_place_behind_nine_digits() {
        assert_eq!(fixed_width("2026-11-23T02:00:03.12+01:00"), "2026-11-23T02:00:03.120000000+01:00");
        assert_eq!(fixed_width("2026-11-23T02:00:03-07:00"), "2026-11-23T02:00:03.000000000-07:00");
    }
}
