//! Servers of other versions than ours: what we say we are, and which are accepted. The only place that looks at a
//! server's version.
//!
//! Everything else that differs between v1.28 and v1.37 is handled by what a server does and not by what it calls itself:
//!
//! | Difference | Handled by |
//! |---|---|
//! | before v1.31.5 and v1.32.1 a certificate comes with a key shared by all nodes | a key in the answer replaces ours, with a warning |
//! | fields of `/v1-k3s/config` come and go | unknown ones are ignored, missing ones have K3s' defaults |
//! | from v1.32 lists of nodes and pods need field selectors | always sent |
//! | before v1.31 a server ignores `SyncConnections` | it answers nothing, and nothing waits for an answer |
//! | a starting supervisor answers 500 or 503 | every 5xx means not ready |
//! | node status fields of newer kubelets (`features`, `runtimeHandlers`) | an older server drops what it does not know |

/// Kubernetes minor versions this agent is made for.
const OLDEST: u32 = 28;
const NEWEST: u32 = 37;
/// The kubelet whose behaviour we have.
const OURS: u32 = 36;
const OUR_PATCH: u32 = 3;

/// Of `/version`: distributions append a `+`.
pub fn minor(text: &str) -> Option<u32> {
    text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok()
}

/// The version we speak, or that of an older server: a kubelet must not be newer than its API server. `edge1` marks it as
/// ours.
pub fn kubelet_version(server: Option<u32>) -> String {
    match server {
        Some(minor) if minor < OURS => format!("v1.{minor}.0+edge1"),
        Some(_) | None => format!("v1.{OURS}.{OUR_PATCH}+edge1"),
    }
}

/// What there is to say about a server of this version; nothing about those we are made for.
pub fn concern(server: u32) -> Option<&'static str> {
    match server {
        OLDEST..=NEWEST => None,
        0..OLDEST => Some("this server is older than v1.28, the oldest this agent is made for; upgrade it"),
        _ => Some("this server is newer than v1.37, the newest this agent is made for; upgrade the agent when there is a newer one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_every_version_and_what_they_are_told() {
        for (server, told, accepted) in [
            ("27", "v1.27.0+edge1", false),
            ("28", "v1.28.0+edge1", true),
            ("29", "v1.29.0+edge1", true),
            ("30", "v1.30.0+edge1", true),
            ("31", "v1.31.0+edge1", true),
            ("32+", "v1.32.0+edge1", true),
            ("33", "v1.33.0+edge1", true),
            ("34", "v1.34.0+edge1", true),
            ("35", "v1.35.0+edge1", true),
            ("36", "v1.36.3+edge1", true),
            ("37", "v1.36.3+edge1", true),
            ("38", "v1.36.3+edge1", false),
        ] {
            let minor = minor(server).unwrap();
            assert_eq!(kubelet_version(Some(minor)), told);
            assert_eq!(concern(minor).is_none(), accepted, "{server}");
        }
        assert_eq!(minor("unknown"), None);
        assert_eq!(kubelet_version(None), "v1.36.3+edge1");
    }
}
