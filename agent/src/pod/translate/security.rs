//! Security contexts: the container's fields win over the pod's (kubelet-contract 6).

use runtime::{ContainerId, cri};

use crate::api::pod::{Container, Pod, PodSecurityContext, SeLinuxOptions, SecurityContext, SecurityProfile};

/// Whom the image wants to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    Uid(i64),
    Name(String),
}

impl ImageUser {
    /// From ImageStatus: a uid, else a name, else root.
    pub fn of(image: &cri::Image) -> ImageUser {
        match &image.uid {
            Some(uid) => ImageUser::Uid(uid.value),
            None if image.username.is_empty() => ImageUser::Uid(0),
            None => ImageUser::Name(image.username.clone()),
        }
    }
}

/// Why `runAsNonRoot` forbids this container, in the kubelet's words.
pub fn check_non_root(pod: &Pod, container: &Container, user: &ImageUser) -> Result<(), String> {
    let (own, of_pod) = (container.security_context.as_ref(), pod.spec.security_context.as_ref());
    let wanted = own.and_then(|c| c.run_as_non_root).or(of_pod.and_then(|c| c.run_as_non_root));
    if wanted != Some(true) {
        return Ok(());
    }
    let meta = &pod.metadata;
    let whose = format!("(pod: \"{}_{}({})\", container: {})", meta.name, meta.namespace, meta.uid, container.name);
    match (run_as_user(pod, container), user) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {whose}")),
        (Some(_), _) => Ok(()),
        (None, ImageUser::Uid(0)) => Err(format!("container has runAsNonRoot and image will run as root {whose}")),
        (None, ImageUser::Uid(_)) => Ok(()),
        (None, ImageUser::Name(name)) => {
            Err(format!("container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {whose}"))
        }
    }
}

fn run_as_user(pod: &Pod, container: &Container) -> Option<i64> {
    let own = container.security_context.as_ref().and_then(|c| c.run_as_user);
    own.or(pod.spec.security_context.as_ref().and_then(|c| c.run_as_user))
}

fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    let spec = &pod.spec;
    let host = |yes| {
        if yes { cri::NamespaceMode::Node } else { cri::NamespaceMode::Pod }
    };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (true, _) => cri::NamespaceMode::Node,
        (false, Some(true)) => cri::NamespaceMode::Pod,
        (false, _) => cri::NamespaceMode::Container,
    };
    cri::NamespaceOption { network: host(spec.host_network).into(), ipc: host(spec.host_ipc).into(), pid: pid.into(), ..Default::default() }
}

/// The configuration of a container that shares the processes of another one, unless the whole pod shares them anyway.
pub fn sees_processes_of(mut config: cri::ContainerConfig, target: Option<&ContainerId>) -> cri::ContainerConfig {
    let context = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    if let (Some(target), Some(options)) = (target, context.and_then(|context| context.namespace_options.as_mut())) {
        if options.pid() == cri::NamespaceMode::Container {
            options.set_pid(cri::NamespaceMode::Target);
            options.target_id = target.to_string();
        }
    }
    config
}

fn groups(context: Option<&PodSecurityContext>) -> Vec<i64> {
    let Some(context) = context else {
        return Vec::new();
    };
    context.fs_group.into_iter().chain(context.supplemental_groups.iter().copied()).collect()
}

fn number(value: Option<i64>) -> Option<cri::Int64Value> {
    value.map(|value| cri::Int64Value { value })
}

/// Security context of the sandbox.
pub(super) fn sandbox(pod: &Pod) -> cri::LinuxSandboxSecurityContext {
    let context = pod.spec.security_context.as_ref();
    let privileged = pod.every_container().any(|c| c.security_context.as_ref().is_some_and(|s| s.privileged == Some(true)));
    let user = number(context.and_then(|c| c.run_as_user));
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        selinux_options: context.and_then(|c| c.se_linux_options.as_ref()).map(selinux),
        // A group without a user is refused by the runtime.
        run_as_group: user.is_some().then(|| number(context.and_then(|c| c.run_as_group))).flatten(),
        run_as_user: user,
        supplemental_groups: groups(context),
        privileged,
        seccomp: Some(profile(cri::security_profile::ProfileType::RuntimeDefault, "")),
        ..Default::default()
    }
}

/// Security context of a container.
pub(super) fn container(pod: &Pod, container: &Container, image_user: &ImageUser, seccomp_dir: &str) -> cri::LinuxContainerSecurityContext {
    let empty = SecurityContext::default();
    let own = container.security_context.as_deref().unwrap_or(&empty);
    let of_pod = pod.spec.security_context.as_ref();
    let privileged = own.privileged == Some(true);
    let user = run_as_user(pod, container);
    let (uid, name) = match (user, image_user) {
        (Some(uid), _) => (Some(uid), String::new()),
        (None, ImageUser::Uid(uid)) => (Some(*uid), String::new()),
        (None, ImageUser::Name(name)) => (None, name.clone()),
    };
    let added = own.capabilities.as_ref().map(|c| c.add.as_slice()).unwrap_or_default();
    let admin = added.iter().any(|c| c == "SYS_ADMIN" || c == "CAP_SYS_ADMIN");
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let seccomp = own.seccomp_profile.as_ref().or(of_pod.and_then(|c| c.seccomp_profile.as_ref()));
    let apparmor = own.app_armor_profile.as_ref().or(of_pod.and_then(|c| c.app_armor_profile.as_ref()));
    cri::LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(|c| cri::Capability {
            add_capabilities: c.add.clone(),
            drop_capabilities: c.drop.clone(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        selinux_options: own.se_linux_options.as_ref().or(of_pod.and_then(|c| c.se_linux_options.as_ref())).map(selinux),
        run_as_user: number(uid),
        run_as_group: number(own.run_as_group.or(of_pod.and_then(|c| c.run_as_group))),
        run_as_username: name,
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(of_pod),
        no_new_privs: own.allow_privilege_escalation == Some(false) && !privileged && !admin,
        masked_paths: if unmasked { Vec::new() } else { MASKED.iter().map(|p| (*p).to_owned()).collect() },
        readonly_paths: if unmasked { Vec::new() } else { READ_ONLY.iter().map(|p| (*p).to_owned()).collect() },
        seccomp: Some(match seccomp {
            Some(wanted) => security_profile(wanted, &format!("{seccomp_dir}/")),
            None => profile(cri::security_profile::ProfileType::Unconfined, ""),
        }),
        apparmor: apparmor.map(|wanted| security_profile(wanted, "localhost/")),
        ..Default::default()
    }
}

/// What the runtime hides of `/proc` and `/sys` by default.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// What stays visible but not writable.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn profile(kind: cri::security_profile::ProfileType, reference: &str) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: reference.to_owned() }
}

fn security_profile(wanted: &SecurityProfile, prefix: &str) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    match wanted.kind.as_str() {
        "RuntimeDefault" => profile(ProfileType::RuntimeDefault, ""),
        "Localhost" => profile(ProfileType::Localhost, &format!("{prefix}{}", wanted.localhost_profile.as_deref().unwrap_or_default())),
        _ => profile(ProfileType::Unconfined, ""),
    }
}

fn selinux(options: &SeLinuxOptions) -> cri::SeLinuxOption {
    cri::SeLinuxOption {
        user: options.user.clone(),
        role: options.role.clone(),
        r#type: options.kind.clone(),
        level: options.level.clone(),
    }
}
