//! Specs and what the runtime is asked for.

use std::collections::BTreeMap;

use runtime::cri::security_profile::ProfileType;
use runtime::cri::{self, NamespaceMode};
use serde_json::{Value, json};

use super::*;
use crate::api::pod::Pod;
use crate::pod::NodeFacts;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u-1", "labels": {"app": "x"}, "deletionGracePeriodSeconds": 3}, "spec": spec})).unwrap()
}

fn sandbox(spec: Value) -> cri::PodSandboxConfig {
    let node = NodeFacts::default();
    let inputs = SandboxInputs {
        attempt: 2,
        hostname: "p".to_owned(),
        log_directory: "/logs/n_p_u-1".to_owned(),
        dns: cri::DnsConfig::default(),
        cgroup_parent: "/kubepods/besteffort/podu-1".to_owned(),
        node: &node,
        cgroup_v2: false,
    };
    sandbox_config(&pod(spec), inputs)
}

fn container_of(spec: Value, user: ImageUser) -> cri::ContainerConfig {
    let (pod, node) = (pod(spec), NodeFacts::default());
    let env = BTreeMap::from([("WHO".to_owned(), b"world".to_vec()), ("RAW".to_owned(), vec![0xff])]);
    let inputs = ContainerInputs {
        attempt: 4,
        image: "sha256:1".to_owned(),
        image_user: user,
        env: &env,
        mounts: Vec::new(),
        node: &node,
        cgroup_v2: true,
        seccomp_dir: "/var/lib/kubelet/seccomp",
    };
    container_config(&pod, &pod.spec.containers[0], inputs)
}

fn security(spec: Value) -> cri::LinuxContainerSecurityContext {
    container_of(spec, ImageUser::Uid(0)).linux.unwrap().security_context.unwrap()
}

#[test]
fn a_sandbox_carries_names_ports_and_namespaces() {
    let config = sandbox(json!({
        "shareProcessNamespace": true, "hostIPC": true,
        "securityContext": {"fsGroup": 2000, "supplementalGroups": [4000], "sysctls": [{"name": "net/ipv4/tcp_syncookies", "value": "0"}]},
        "containers": [
            {"name": "a", "ports": [{"containerPort": 80, "hostPort": 8080, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"}]},
            {"name": "b", "ports": [{"containerPort": 53, "protocol": "UDP"}], "securityContext": {"privileged": true}},
        ],
    }));
    let metadata = config.metadata.unwrap();
    assert_eq!((metadata.name.as_str(), metadata.uid.as_str(), metadata.namespace.as_str(), metadata.attempt), ("p", "u-1", "n", 2));
    assert_eq!(config.labels["app"], "x");
    assert_eq!(config.labels["io.kubernetes.pod.uid"], "u-1");
    let ports: Vec<(i32, i32)> = config.port_mappings.iter().map(|p| (p.container_port, p.host_port)).collect();
    assert_eq!(ports, [(80, 8080), (53, 0)], "the same port twice is asked for once");
    let linux = config.linux.unwrap();
    assert_eq!(linux.cgroup_parent, "/kubepods/besteffort/podu-1");
    assert_eq!(linux.sysctls["net.ipv4.tcp_syncookies"], "0");
    let context = linux.security_context.unwrap();
    assert!(context.privileged, "one privileged container makes the sandbox so");
    assert_eq!(context.supplemental_groups, [2000, 4000]);
    let namespaces = context.namespace_options.unwrap();
    assert_eq!((namespaces.network(), namespaces.pid(), namespaces.ipc()), (NamespaceMode::Pod, NamespaceMode::Pod, NamespaceMode::Node));
    assert_eq!(sandbox(json!({"hostNetwork": true})).hostname, "", "the host has its own");
}

#[test]
fn a_container_carries_expanded_words_and_the_kubelets_marks() {
    let config = container_of(
        json!({"terminationGracePeriodSeconds": 30, "containers": [{
            "name": "c", "image": "i:1", "command": ["echo", "$(WHO) $$(WHO) $(NO)"], "args": ["$(WHO)"], "tty": true,
            "ports": [{"containerPort": 80}], "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
        }]}),
        ImageUser::Uid(0),
    );
    assert_eq!(config.command, ["echo", "world $(WHO) $(NO)"]);
    assert_eq!(config.args, ["world"]);
    assert_eq!(config.log_path, "c/4.log");
    assert!(config.tty);
    assert_eq!(config.envs[0].value.as_ref(), [0xff], "values may be any bytes");
    let image = config.image.unwrap();
    assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:1", "i:1"));
    let notes = config.annotations;
    assert_eq!(notes["io.kubernetes.container.restartCount"], "4");
    assert_eq!(notes["io.kubernetes.container.terminationMessagePath"], "/dev/termination-log");
    assert_eq!(notes["io.kubernetes.container.terminationMessagePolicy"], "File");
    assert_eq!(notes["io.kubernetes.container.ports"], "[{\"containerPort\":80}]");
    assert_eq!(notes["io.kubernetes.container.preStopHandler"], "{\"exec\":{\"command\":[\"true\"]}}");
    assert_eq!(
        (notes["io.kubernetes.pod.terminationGracePeriod"].as_str(), notes["io.kubernetes.pod.deletionGracePeriod"].as_str()),
        ("30", "3")
    );
}

#[test]
fn the_hash_follows_name_and_image_only() {
    let hash = |c: Value| container_hash(&serde_json::from_value(c).unwrap());
    let plain = hash(json!({"name": "c", "image": "a"}));
    assert_eq!(plain, hash(json!({"name": "c", "image": "a", "env": [{"name": "X"}]})));
    assert_ne!(plain, hash(json!({"name": "c", "image": "b"})));
    assert_ne!(plain, hash(json!({"name": "d", "image": "a"})));
}

#[test]
fn the_containers_security_wins_over_the_pods() {
    let spec = |own: Value| json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "seccompProfile": {"type": "RuntimeDefault"}}, "containers": [{"name": "c", "securityContext": own}]});
    let of_pod = security(spec(json!(null)));
    assert_eq!((of_pod.run_as_user.unwrap().value, of_pod.run_as_group.unwrap().value), (1000, 3000));
    assert_eq!(of_pod.seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault);
    let own = security(spec(
        json!({"runAsUser": 5, "seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}, "readOnlyRootFilesystem": true, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}),
    ));
    assert_eq!(own.run_as_user.unwrap().value, 5);
    assert_eq!(own.seccomp.unwrap().localhost_ref, "/var/lib/kubelet/seccomp/p.json");
    assert!(own.readonly_rootfs);
    let capabilities = own.capabilities.unwrap();
    assert_eq!((capabilities.add_capabilities, capabilities.drop_capabilities), (vec!["NET_ADMIN".to_owned()], vec!["ALL".to_owned()]));
}

#[test]
fn privileges_and_masks() {
    let one = |own: Value| security(json!({"containers": [{"name": "c", "securityContext": own}]}));
    assert_eq!(one(json!({})).seccomp.unwrap().profile_type(), ProfileType::Unconfined);
    assert!(!one(json!({})).no_new_privs);
    assert!(one(json!({"allowPrivilegeEscalation": false})).no_new_privs);
    assert!(!one(json!({"allowPrivilegeEscalation": false, "privileged": true})).no_new_privs);
    assert!(one(json!({})).masked_paths.contains(&"/proc/kcore".to_owned()));
    assert!(one(json!({"procMount": "Unmasked"})).masked_paths.is_empty());
}

#[test]
fn users_of_the_image() {
    let named =
        container_of(json!({"containers": [{"name": "c"}]}), ImageUser::Name("www".to_owned())).linux.unwrap().security_context.unwrap();
    assert_eq!((named.run_as_user, named.run_as_username.as_str()), (None, "www"));
    let check = |own: Value, user: ImageUser| {
        let pod = pod(json!({"containers": [{"name": "c", "securityContext": own}]}));
        check_non_root(&pod, &pod.spec.containers[0], &user).err()
    };
    let whose = "(pod: \"p_n(u-1)\", container: c)";
    let table = [
        (json!({}), ImageUser::Uid(0), None),
        (json!({"runAsNonRoot": true}), ImageUser::Uid(7), None),
        (json!({"runAsNonRoot": true, "runAsUser": 7}), ImageUser::Uid(0), None),
        (json!({"runAsNonRoot": true}), ImageUser::Uid(0), Some(format!("container has runAsNonRoot and image will run as root {whose}"))),
        (
            json!({"runAsNonRoot": true, "runAsUser": 0}),
            ImageUser::Uid(7),
            Some(format!("container's runAsUser breaks non-root policy {whose}")),
        ),
        (
            json!({"runAsNonRoot": true}),
            ImageUser::Name("www".to_owned()),
            Some(format!("container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root {whose}")),
        ),
    ];
    for (own, user, wanted) in table {
        assert_eq!(check(own, user), wanted);
    }
}

#[test]
fn a_debug_container_sees_the_processes_of_its_target() {
    let options = |spec: Value, target: Option<&str>| {
        let config = sees_processes_of(container_of(spec, ImageUser::Uid(0)), target.map(Into::into).as_ref());
        config.linux.unwrap().security_context.unwrap().namespace_options.unwrap()
    };
    let one = || json!({"containers": [{"name": "a"}]});
    let with = options(one(), Some("c1"));
    assert_eq!((with.pid(), with.target_id.as_str()), (NamespaceMode::Target, "c1"));
    assert_eq!(options(one(), None).pid(), NamespaceMode::Container);
    let shared = options(json!({"shareProcessNamespace": true, "containers": [{"name": "a"}]}), Some("c1"));
    assert_eq!((shared.pid(), shared.target_id.as_str()), (NamespaceMode::Pod, ""));
    // The runtime takes a privileged one only if the sandbox it is told of is, too.
    let privileged = json!([{"name": "d", "securityContext": {"privileged": true}}]);
    let told = sandbox(json!({"containers": [{"name": "a"}], "ephemeralContainers": privileged}));
    assert!(told.linux.unwrap().security_context.unwrap().privileged);
}
