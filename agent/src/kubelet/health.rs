//! `/healthz`: the kubelet's checks `ping`, `log` and `syncloop` by their names, and `lease` for the heartbeat's thread.

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};

use super::serve::{self, Body};
use crate::metrics::{Loop, Pulse};

/// Checks by name. That this is answered at all is what `ping` and `log` say.
const CHECKS: [(&str, Option<Loop>); 4] = [("ping", None), ("log", None), ("syncloop", Some(Loop::Sync)), ("lease", Some(Loop::Lease))];

/// Answer of `/healthz` and `/healthz/<check>`.
pub(super) fn answer(pulse: &Pulse, request: &Request<Incoming>) -> Response<Body> {
    let verbose = serve::query_pairs(request.uri().query()).iter().any(|(key, _)| key == "verbose");
    let (status, body) = judge(request.uri().path(), verbose, |which| pulse.trouble(which));
    serve::text(status, body)
}

/// Status and body, as the API machinery words them; a failure comes with its reason instead of `reason withheld`.
fn judge(path: &str, verbose: bool, trouble: impl Fn(Loop) -> Option<String>) -> (StatusCode, String) {
    let not_found = (StatusCode::NOT_FOUND, "404 page not found\n".to_owned());
    let Some(rest) = path.trim_end_matches('/').strip_prefix("/healthz") else { return not_found };
    let of = |check: Option<Loop>| check.and_then(&trouble);
    if let Some(name) = rest.strip_prefix('/') {
        return match CHECKS.iter().find(|(known, _)| *known == name) {
            None => not_found,
            Some((_, check)) => match of(*check) {
                None => (StatusCode::OK, "ok".to_owned()),
                Some(why) => (StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n")),
            },
        };
    }
    if !rest.is_empty() {
        return not_found;
    }
    let mut words = String::new();
    let mut healthy = true;
    for (name, check) in CHECKS {
        match of(check) {
            None => words.push_str(&format!("[+]{name} ok\n")),
            Some(why) => {
                healthy = false;
                words.push_str(&format!("[-]{name} failed: {why}\n"));
            }
        }
    }
    match (healthy, verbose) {
        (true, false) => (StatusCode::OK, "ok".to_owned()),
        (true, true) => (StatusCode::OK, words + "healthz check passed\n"),
        (false, _) => (StatusCode::INTERNAL_SERVER_ERROR, words + "healthz check failed\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_judged_and_all_together() {
        let well = |_| None;
        let sick = |which| (which == Loop::Sync).then(|| "slow".to_owned());
        assert_eq!(judge("/healthz", false, well), (StatusCode::OK, "ok".to_owned()));
        assert_eq!(judge("/healthz/", true, well).1, "[+]ping ok\n[+]log ok\n[+]syncloop ok\n[+]lease ok\nhealthz check passed\n");
        let (status, words) = judge("/healthz", false, sick);
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(words, "[+]ping ok\n[+]log ok\n[-]syncloop failed: slow\n[+]lease ok\nhealthz check failed\n");
        assert_eq!(judge("/healthz/ping", false, sick).0, StatusCode::OK);
        assert_eq!(judge("/healthz/syncloop", false, sick).1, "internal server error: slow\n");
        for path in ["/healthz/other", "/healthzz", "/"] {
            assert_eq!(judge(path, false, well).0, StatusCode::NOT_FOUND, "{path}");
        }
    }
}
