//! The status words of a pod, as `printPod` derives them. Pure.

use serde_json::Value;
use time::OffsetDateTime;

use super::{meta, table};

/// READY, STATUS and RESTARTS.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) ready: String,
    pub(super) status: String,
    pub(super) restarts: String,
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn condition<'a>(pod: &'a Value, ty: &str) -> Option<&'a Value> {
    list(&pod["status"]["conditions"]).iter().find(|c| c["type"] == ty)
}

fn is_true(pod: &Value, ty: &str) -> bool {
    condition(pod, ty).is_some_and(|c| c["status"] == "True")
}

struct Restarts {
    count: i64,
    last: Option<OffsetDateTime>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += status["restartCount"].as_i64().unwrap_or(0);
        let ended = status["lastState"]["terminated"]["finishedAt"].as_str().and_then(meta::parse_time);
        self.last = self.last.max(ended);
    }
}

/// What ended a container, when it says no reason.
fn exit(terminated: &Value) -> String {
    match text(&terminated["reason"]) {
        "" => match terminated["signal"].as_i64().unwrap_or(0) {
            0 => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
            signal => format!("Signal:{signal}"),
        },
        reason => reason.to_owned(),
    }
}

pub(super) fn summary(pod: &Value, now: OffsetDateTime) -> Summary {
    let status = &pod["status"];
    let sidecar = |name: &Value| list(&pod["spec"]["initContainers"]).iter().any(|c| c["name"] == *name && c["restartPolicy"] == "Always");
    let sidecars = list(&pod["spec"]["initContainers"]).iter().filter(|c| c["restartPolicy"] == "Always").count();
    let total = list(&pod["spec"]["containers"]).len() + sidecars;
    let mut reason = match text(&status["reason"]) {
        "" => text(&status["phase"]),
        reason => reason,
    }
    .to_owned();
    if condition(pod, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
        reason = "SchedulingGated".to_owned();
    }
    let (mut ready, mut initializing) = (0, false);
    let mut restarts = Restarts { count: 0, last: None };
    let mut sidecar_restarts = Restarts { count: 0, last: None };
    for (index, container) in list(&status["initContainerStatuses"]).iter().enumerate() {
        restarts.add(container);
        let beside = sidecar(&container["name"]);
        if beside {
            sidecar_restarts.add(container);
        }
        let state = &container["state"];
        if state["terminated"].is_object() && state["terminated"]["exitCode"].as_i64() == Some(0) {
            continue;
        }
        if beside && container["started"] == true {
            ready += usize::from(container["ready"] == true);
            continue;
        }
        reason = if state["terminated"].is_object() {
            format!("Init:{}", exit(&state["terminated"]))
        } else if !["", "PodInitializing"].contains(&text(&state["waiting"]["reason"])) {
            format!("Init:{}", text(&state["waiting"]["reason"]))
        } else {
            format!("Init:{index}/{}", list(&pod["spec"]["initContainers"]).len())
        };
        initializing = true;
        break;
    }
    if !initializing || is_true(pod, "Initialized") {
        restarts = sidecar_restarts;
        let mut running = false;
        for container in list(&status["containerStatuses"]).iter().rev() {
            restarts.add(container);
            let state = &container["state"];
            if !text(&state["waiting"]["reason"]).is_empty() {
                reason = text(&state["waiting"]["reason"]).to_owned();
            } else if state["terminated"].is_object() {
                reason = exit(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            reason = if is_true(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if meta::is_deleting(pod) {
        if status["reason"] == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if !["Succeeded", "Failed"].contains(&text(&status["phase"])) {
            reason = "Terminating".to_owned();
        }
    }
    let restarts = match (restarts.count, restarts.last) {
        (count, Some(last)) if count != 0 => {
            format!("{count} ({} ago)", table::human_duration((now - last).whole_seconds()))
        }
        (count, _) => count.to_string(),
    };
    Summary { ready: format!("{ready}/{total}"), status: reason, restarts }
}

/// How many of the pod's readiness gates hold.
pub(super) fn readiness_gates(pod: &Value) -> String {
    let gates = list(&pod["spec"]["readinessGates"]);
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let held = gates.iter().filter(|g| is_true(pod, text(&g["conditionType"]))).count();
    format!("{held}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn status_words_follow_the_containers() {
        let running = json!({"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}});
        let crashed = json!({"name": "c", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:00Z"}}});
        let killed = json!({"name": "c", "restartCount": 0, "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}});
        let nameless = json!({"name": "c", "restartCount": 0, "state": {"terminated": {"exitCode": 3}}});
        let done = json!({"name": "c", "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let init = json!({"name": "i", "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}});
        let rows = [
            ("pending", json!({"phase": "Pending"}), false, "0/1", "Pending", "0"),
            ("running", json!({"phase": "Running", "containerStatuses": [running]}), false, "1/1", "Running", "0"),
            ("crash loop", json!({"phase": "Running", "containerStatuses": [crashed]}), false, "0/1", "CrashLoopBackOff", "3 (60s ago)"),
            ("killed", json!({"phase": "Running", "containerStatuses": [killed]}), false, "0/1", "OOMKilled", "0"),
            ("no reason", json!({"phase": "Failed", "containerStatuses": [nameless]}), false, "0/1", "ExitCode:3", "0"),
            ("done", json!({"phase": "Succeeded", "containerStatuses": [done]}), false, "0/1", "Completed", "0"),
            ("init", json!({"phase": "Pending", "initContainerStatuses": [init]}), false, "0/1", "Init:0/1", "0"),
            ("evicted", json!({"phase": "Failed", "reason": "Evicted"}), false, "0/1", "Evicted", "0"),
            ("terminating", json!({"phase": "Running", "containerStatuses": [running]}), true, "1/1", "Terminating", "0"),
        ];
        let now = meta::parse_time("2026-01-01T00:01:00Z").unwrap();
        for (name, status, deleting, ready, word, restarts) in rows {
            let mut pod =
                json!({"metadata": {}, "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]}, "status": status});
            if deleting {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            let expected = Summary { ready: ready.to_owned(), status: word.to_owned(), restarts: restarts.to_owned() };
            assert_eq!(summary(&pod, now), expected, "{name}");
        }
    }
}
