use super::rollout::{HASH, REVISION, Step, View, decide};
use super::status::{Note, status};
use super::*;
use crate::controllers::clock;

fn deployment(replicas: i64, image: &str, strategy: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "web", "namespace": "default", "uid": "d", "generation": 1 },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": "web" } }, "strategy": strategy,
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2,
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "image": image }] } },
        },
    })
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } })
}

/// A set of `image`, of `size` pods of which `available` are, sized for a Deployment of `desired`.
fn set(image: &str, size: i64, available: i64, desired: i64) -> Value {
    let labels = json!({ "app": "web", HASH: image });
    json!({
        "metadata": {
            "name": format!("web-{image}"), "namespace": "default", "uid": image, "generation": 1,
            "creationTimestamp": format!("2026-11-23T00:00:0{}Z", image.len()),
            "annotations": {
                REVISION: image.len().to_string(), "deployment.kubernetes.io/desired-replicas": desired.to_string(),
                "deployment.kubernetes.io/max-replicas": (desired + 1).to_string(),
            },
        },
        "spec": { "replicas": size,
            "template": { "metadata": { "labels": labels }, "spec": { "containers": [{ "image": image }] } } },
        "status": { "replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1 },
    })
}

/// Steps in short: `+web-x 3`, `web-x 3->2`, `-web-x`; annotation steps left out.
fn short(deployment: &Value, sets: &[Value], old_pods: bool) -> Vec<String> {
    let sets: Vec<&Value> = sets.iter().collect();
    decide(&View::new(deployment, &sets), &|| old_pods)
        .iter()
        .filter_map(|step| match step {
            Step::CreateSet { replicas, .. } => Some(format!("+{replicas}")),
            Step::Scale { set, from, to, .. } => Some(format!("{set} {from}->{to}")),
            Step::DeleteSet(set) => Some(format!("-{set}")),
            Step::AnnotateSet { .. } | Step::SetRevision(_) => None,
        })
        .collect()
}

#[test]
fn rollout_takes_the_steps_of_the_real_controller() {
    let default = || rolling(json!("25%"), json!("25%"));
    type Row = (&'static str, Value, Vec<Value>, &'static [&'static str]);
    let rows: Vec<Row> = vec![
        ("first set", deployment(3, "a", default()), vec![], &["+3"]),
        ("done", deployment(3, "a", default()), vec![set("a", 3, 3, 3)], &[]),
        ("scale up", deployment(5, "a", default()), vec![set("a", 3, 3, 3)], &["web-a 3->5"]),
        ("scale to zero", deployment(0, "a", default()), vec![set("a", 3, 3, 3)], &["web-a 3->0"]),
        ("new template: one surge", deployment(3, "bb", default()), vec![set("a", 3, 3, 3)], &["+1"]),
        ("new one not ready: wait", deployment(3, "bb", default()), vec![set("a", 3, 3, 3), set("bb", 1, 0, 3)], &[]),
        ("new one ready: one old goes", deployment(3, "bb", default()), vec![set("a", 3, 3, 3), set("bb", 1, 1, 3)], &["web-a 3->2"]),
        ("room again: next new", deployment(3, "bb", default()), vec![set("a", 2, 2, 3), set("bb", 1, 1, 3)], &["web-bb 1->2"]),
        ("last old goes", deployment(3, "bb", default()), vec![set("a", 1, 1, 3), set("bb", 3, 3, 3)], &["web-a 1->0"]),
        ("broken old pods go first", deployment(3, "bb", default()), vec![set("a", 3, 1, 3), set("bb", 1, 1, 3)], &["web-a 3->2"]),
        (
            "no surge: old first",
            deployment(3, "bb", rolling(json!(0), json!(1))),
            vec![set("a", 3, 3, 3), set("bb", 0, 0, 3)],
            &["web-a 3->2"],
        ),
        ("back to the first template", deployment(3, "a", default()), vec![set("a", 0, 0, 3), set("bb", 3, 3, 3)], &["web-a 0->1"]),
        (
            "both limits zero still moves",
            deployment(1, "bb", rolling(json!("0%"), json!("0%"))),
            vec![set("a", 1, 1, 1), set("bb", 0, 0, 1)],
            &["web-a 1->0"],
        ),
        (
            "scaled in the middle: by share",
            deployment(6, "bb", rolling(json!(1), json!(0))),
            vec![set("a", 2, 2, 3), set("bb", 2, 2, 3)],
            &["web-bb 2->3", "web-a 2->4"],
        ),
        (
            "history is kept short",
            deployment(1, "dddd", default()),
            vec![set("a", 0, 0, 1), set("bb", 0, 0, 1), set("ccc", 0, 0, 1), set("dddd", 1, 1, 1)],
            &["-web-a"],
        ),
        ("recreate: old first", deployment(3, "bb", json!({ "type": "Recreate" })), vec![set("a", 3, 3, 3)], &["web-a 3->0"]),
    ];
    for (name, deployment, sets, expected) in rows {
        let got = short(&deployment, &sets, false);
        if name == "scaled in the middle: by share" {
            let total: i64 = got.iter().filter_map(|step| step.rsplit('>').next()?.parse::<i64>().ok()).sum();
            assert_eq!((got.len(), total), (2, 7), "{name}: {got:?}");
            continue;
        }
        assert_eq!(got, expected, "{name}");
    }
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let deployment = deployment(3, "bb", json!({ "type": "Recreate" }));
    assert_eq!(short(&deployment, &[set("a", 0, 0, 3)], true), Vec::<String>::new());
    assert_eq!(short(&deployment, &[set("a", 0, 0, 3)], false), ["+3"]);
}

#[test]
fn paused_deployment_scales_but_does_not_roll() {
    let mut deployment = deployment(5, "bb", rolling(json!(1), json!(1)));
    deployment["spec"]["paused"] = json!(true);
    assert_eq!(short(&deployment, &[set("a", 3, 3, 3)], false), ["web-a 3->5"]);
}

#[test]
fn new_set_carries_hash_revision_and_owner() {
    let deployment = deployment(3, "bb", json!({}));
    let old = set("a", 3, 3, 3);
    let steps = decide(&View::new(&deployment, &[&old]), &|| false);
    let Some(Step::CreateSet { set, .. }) = steps.first() else { panic!("{steps:?}") };
    let hash = set["metadata"]["labels"][HASH].as_str().unwrap();
    assert_eq!(object::name(set), format!("web-{hash}"));
    assert_eq!(set["spec"]["selector"]["matchLabels"], json!({ "app": "web", HASH: hash }));
    assert_eq!(set["spec"]["template"]["metadata"]["labels"][HASH], hash);
    assert_eq!(set["metadata"]["annotations"][REVISION], "2");
    assert_eq!(set["metadata"]["ownerReferences"][0]["controller"], true);
    assert!(steps.contains(&Step::SetRevision("2".to_owned())));
    // The set just made is recognised as that of the template.
    let mut made = (**set).clone();
    made["metadata"]["uid"] = json!("new");
    assert!(View::new(&deployment, &[&old, &made]).new.is_some());
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    status["conditions"].as_array().unwrap().iter().find(|condition| condition["type"] == kind).unwrap()
}

#[test]
fn conditions_tell_the_rollout() {
    let now = clock::parse("2026-11-23T00:10:00Z").unwrap();
    let mut deployment = deployment(3, "a", rolling(json!("25%"), json!("25%")));
    let created = [Note::Created("web-a".to_owned())];
    let (first, _) = status(&View::new(&deployment, &[]), &created, now);
    assert_eq!(condition(&first, "Progressing")["reason"], "NewReplicaSetCreated");
    assert_eq!(condition(&first, "Available")["status"], "False");
    deployment["status"] = first;

    let half = set("a", 3, 1, 3);
    let (second, again) = status(&View::new(&deployment, &[&half]), &[], now);
    assert_eq!(condition(&second, "Progressing")["reason"], "ReplicaSetUpdated");
    assert_eq!(condition(&second, "Progressing")["message"], "ReplicaSet \"web-a\" is progressing.");
    assert_eq!((second["readyReplicas"].clone(), second["unavailableReplicas"].clone()), (json!(1), json!(2)));
    assert_eq!(again, Some(Duration::from_secs(601)));
    deployment["status"] = second;

    let late = now + time::Duration::seconds(601);
    let (stuck, _) = status(&View::new(&deployment, &[&half]), &[], late);
    assert_eq!(condition(&stuck, "Progressing")["reason"], "ProgressDeadlineExceeded");
    assert_eq!(condition(&stuck, "Progressing")["status"], "False");

    let done = set("a", 3, 3, 3);
    let (done_status, again) = status(&View::new(&deployment, &[&done]), &[], late);
    assert_eq!(condition(&done_status, "Progressing")["reason"], "NewReplicaSetAvailable");
    assert_eq!(condition(&done_status, "Progressing")["message"], "ReplicaSet \"web-a\" has successfully progressed.");
    assert_eq!(condition(&done_status, "Available")["status"], "True");
    assert!(done_status.get("unavailableReplicas").is_none());
    assert_eq!(again, None);
    deployment["status"] = done_status.clone();
    let (same, _) = status(&View::new(&deployment, &[&done]), &[], late + time::Duration::seconds(5));
    assert_eq!(same, done_status, "nothing new, nothing written");
}
