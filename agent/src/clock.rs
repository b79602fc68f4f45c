//! Timestamps as Kubernetes writes them.

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

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn both_forms_are_as_the_api_server_writes_them() {
        let at = datetime!(2026-11-23 02:28:04.5 +1);
        assert_eq!(seconds(at), "2026-11-23T01:28:04Z");
        assert_eq!(micros(at), "2026-11-23T01:28:04.500000Z");
        assert_eq!(parse("2026-11-23T01:28:04.500000Z"), Some(at));
    }
}
