//! Timestamps as Kubernetes writes them, and waiting for a wall clock that was wrong at boot.

use std::time::{Duration, Instant, SystemTime};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

const SECONDS: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
const MICROS: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// `metav1.Time`: whole seconds, UTC.
pub fn seconds(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC).format(SECONDS).unwrap_or_default()
}

/// `metav1.MicroTime`.
pub fn micros(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC).format(MICROS).unwrap_or_default()
}

/// Now, in whole seconds.
pub fn now() -> String {
    seconds(OffsetDateTime::now_utc())
}

/// A timestamp of the server.
pub fn parse(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// The wall clock moved by more than this against a clock that nobody sets: it was set.
const SET: Duration = Duration::from_secs(5);
/// Between looks while something waits for it.
const LOOK: Duration = Duration::from_secs(1);

/// Waits until the wall clock is set, but not longer than `at_most`; whether it was.
pub async fn set_within(at_most: Duration) -> bool {
    let start = (SystemTime::now(), Instant::now());
    while start.1.elapsed() < at_most {
        tokio::time::sleep(LOOK.min(at_most)).await;
        if was_set(start, (SystemTime::now(), Instant::now())) {
            return true;
        }
    }
    false
}

/// Waits until `wall`, the wall clock, shows `time` or later.
pub async fn reached(time: SystemTime, wall: &impl Fn() -> SystemTime) {
    while wall() < time {
        tokio::time::sleep(LOOK).await;
    }
}

fn was_set(from: (SystemTime, Instant), to: (SystemTime, Instant)) -> bool {
    let expected = from.0 + to.1.duration_since(from.1);
    let off = expected.duration_since(to.0).or_else(|_| to.0.duration_since(expected)).unwrap_or_default();
    off > SET
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_clock_that_was_set_is_told_from_one_that_runs() {
        let (wall, mono) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000), Instant::now());
        let after = |wall_seconds: i64, seconds: u64| {
            let now = if wall_seconds < 0 {
                wall - Duration::from_secs(wall_seconds.unsigned_abs())
            } else {
                wall + Duration::from_secs(wall_seconds.unsigned_abs())
            };
            was_set((wall, mono), (now, mono + Duration::from_secs(seconds)))
        };
        assert!(!after(10, 10), "runs");
        assert!(!after(3603, 3600), "drifts");
        assert!(after(10_000, 10), "ahead");
        assert!(after(-10_000, 10) && after(0, 10), "back");
    }

    #[test]
    fn both_forms_are_as_the_api_server_writes_them() {
        let at = datetime!(2026-11-23 02:28:04.5 +1);
        assert_eq!(seconds(at), "2026-11-23T01:28:04Z");
        assert_eq!(micros(at), "2026-11-23T01:28:04.500000Z");
        assert_eq!(parse("2026-11-23T01:28:04.500000Z"), Some(at));
    }

    #[tokio::test]
    async fn a_clock_that_is_behind_is_waited_for_until_it_is_set() {
        use std::cell::Cell;
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let wall = Cell::new(made - Duration::from_secs(1));
        let read = || wall.get();
        let waiting = reached(made, &read);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(LOOK / 10, &mut waiting).await.is_err(), "it is a second too early");
        wall.set(made);
        assert!(tokio::time::timeout(10 * LOOK, &mut waiting).await.is_ok(), "it was set");
    }
}
