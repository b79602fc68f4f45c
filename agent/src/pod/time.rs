//! Instants as the runtime gives them (nanoseconds since the epoch) and as the API writes them (RFC 3339, seconds).

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Nanoseconds since the epoch.
pub type Nanos = i64;

/// One second in [`Nanos`].
pub const SECOND: Nanos = 1_000_000_000;

/// The clock of the machine.
pub fn now() -> Nanos {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// `2026-11-23T02:51:47Z`: whole seconds, as status fields have them.
pub fn rfc3339(at: Nanos) -> String {
    OffsetDateTime::from_unix_timestamp(at.div_euclid(SECOND))
        .ok()
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

/// The instant of an API timestamp.
pub fn parse(text: &str) -> Option<Nanos> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos()).ok()
}

/// A span as Go prints it, for messages: `10s`, `1m20s`, `5m0s`.
pub fn go_seconds(span: Nanos) -> String {
    let seconds = span / SECOND;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

/// A short span as Go prints it with milliseconds: `812ms`, `1.203s`, `1m2.5s`.
pub fn go_millis(span: Nanos) -> String {
    let millis = span / 1_000_000;
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let fraction = format!("{:03}", millis % 1000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    let seconds = millis / 1000;
    if seconds < 60 { format!("{seconds}{dot}{fraction}s") } else { format!("{}m{}{dot}{fraction}s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_times_have_whole_seconds() {
        assert_eq!(rfc3339(1_795_402_307_999_999_999), "2026-11-23T02:51:47Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(parse("2026-11-23T02:51:47Z"), Some(1_795_402_307_000_000_000));
        assert_eq!(parse("yesterday"), None);
    }

    #[test]
    fn spans_read_as_go_prints_them() {
        assert_eq!(go_seconds(10 * SECOND), "10s");
        assert_eq!(go_seconds(80 * SECOND), "1m20s");
        assert_eq!(go_seconds(300 * SECOND), "5m0s");
        assert_eq!(go_millis(812_000_000), "812ms");
        assert_eq!(go_millis(1_203_000_000), "1.203s");
        assert_eq!(go_millis(62_500_000_000), "1m2.5s");
        assert_eq!(go_millis(2_000_000_000), "2s");
    }
}
