//! Two keys of containerd's configuration, changed line by line so that everything else stays as its owner wrote it.

/// Names under which CRI is switched off.
const CRI: [&str; 4] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"];

/// Takes CRI out of `disabled_plugins`. The error says what to do by hand.
pub(super) fn enable_cri(text: &str) -> Result<String, String> {
    let mut changed = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let list = line.trim_start().strip_prefix("disabled_plugins").and_then(|rest| rest.trim_start().strip_prefix('='));
        let Some(list) = list else {
            lines.push(line.to_owned());
            continue;
        };
        let inner = list.trim().strip_prefix('[').and_then(|list| list.split_once(']'));
        let Some((inner, _)) = inner else { return Err("disabled_plugins is not on one line: remove \"cri\" from it by hand".to_owned()) };
        let kept: Vec<&str> =
            inner.split(',').map(str::trim).filter(|item| !item.is_empty() && !CRI.contains(&item.trim_matches(['"', '\'']))).collect();
        let new = format!("disabled_plugins = [{}]", kept.join(", "));
        changed |= kept.len() != inner.split(',').filter(|item| !item.trim().is_empty()).count();
        lines.push(new);
    }
    if !changed {
        return Err("disabled_plugins does not name CRI; look at: journalctl -u containerd".to_owned());
    }
    Ok(lines.join("\n") + "\n")
}

/// Has runc manage cgroups through systemd. The error says what to do by hand.
pub(super) fn systemd_cgroup(text: &str) -> Result<String, String> {
    let is_key = |line: &str| line.trim_start().strip_prefix("SystemdCgroup").is_some_and(|rest| rest.trim_start().starts_with('='));
    let indent = |line: &str| line[..line.len() - line.trim_start().len()].to_owned();
    if text.lines().any(is_key) {
        let set = |line: &str| if is_key(line) { format!("{}SystemdCgroup = true", indent(line)) } else { line.to_owned() };
        return Ok(text.lines().map(set).collect::<Vec<_>>().join("\n") + "\n");
    }
    let is_options = |line: &str| line.trim().starts_with('[') && line.trim().ends_with("containerd.runtimes.runc.options]");
    if text.lines().any(is_options) {
        let mut lines = Vec::new();
        for line in text.lines() {
            lines.push(line.to_owned());
            if is_options(line) {
                lines.push(format!("{}  SystemdCgroup = true", indent(line)));
            }
        }
        return Ok(lines.join("\n") + "\n");
    }
    let version = text.lines().find_map(|line| line.trim().strip_prefix("version")?.trim_start().strip_prefix('='));
    let plugin = match version.map(str::trim) {
        Some("2") => "\"io.containerd.grpc.v1.cri\"",
        Some("3") => "'io.containerd.cri.v1.runtime'",
        Some(_) | None => {
            return Err("the version of the configuration is not 2 or 3: set SystemdCgroup = true for runc by hand".to_owned());
        }
    };
    let runc = format!("[plugins.{plugin}.containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n");
    let there = text.lines().any(|line| line.trim().starts_with('[') && line.trim().ends_with("containerd.runtimes.runc]"));
    let runc = if there { "" } else { &runc };
    Ok(format!(
        "{}\n{runc}[plugins.{plugin}.containerd.runtimes.runc.options]\n  SystemdCgroup = true\n",
        text.trim_end_matches('\n').to_owned() + "\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cri_is_taken_out_of_the_list_and_nothing_else_is() {
        let docker = "# comment\ndisabled_plugins = [\"cri\"]\n\n#root = \"/var/lib/containerd\"\n";
        assert_eq!(enable_cri(docker).unwrap(), "# comment\ndisabled_plugins = []\n\n#root = \"/var/lib/containerd\"\n");
        let several = "disabled_plugins = ['io.containerd.internal.v1.opt', \"io.containerd.grpc.v1.cri\", \"aufs\"]\n";
        assert_eq!(enable_cri(several).unwrap(), "disabled_plugins = ['io.containerd.internal.v1.opt', \"aufs\"]\n");
        assert!(enable_cri("disabled_plugins = [\n  \"cri\",\n]\n").unwrap_err().contains("by hand"));
        assert!(enable_cri("version = 2\n").unwrap_err().contains("does not name"));
    }

    #[test]
    fn the_driver_is_changed_where_it_stands_or_added() {
        let there = "version = 2\n  [plugins.x.containerd.runtimes.runc.options]\n    SystemdCgroup = false\n    Root = \"\"\n";
        assert_eq!(systemd_cgroup(there).unwrap(), there.replace("false", "true"));
        let section = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n  Root = \"\"\n";
        assert_eq!(systemd_cgroup(section).unwrap(), section.replace("options]\n", "options]\n  SystemdCgroup = true\n"));
        let debian = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n";
        let added = systemd_cgroup(debian).unwrap();
        assert!(
            added.starts_with(debian) && added.contains("runtime_type") && added.ends_with("runc.options]\n  SystemdCgroup = true\n"),
            "{added}"
        );
        assert_eq!(systemd_cgroup(&added).unwrap(), added);
        assert!(systemd_cgroup("root = \"/x\"\n").is_err());
    }
}
