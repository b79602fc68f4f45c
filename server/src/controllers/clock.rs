//! Times as the API writes them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// `2026-11-23T04:30:00Z`, whole seconds.
pub fn text(time: OffsetDateTime) -> String {
    time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

/// Now, as [`text`].
pub fn now() -> String {
    text(OffsetDateTime::now_utc())
}

/// Reads either precision.
pub fn parse(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}
