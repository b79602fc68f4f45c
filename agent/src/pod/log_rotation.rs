//! Keeps container logs from filling the disk: a log that has grown too large is set aside and the runtime opens a new
//! one (kubelet-contract 10). Set-aside logs stay uncompressed: compressing costs an SD card a second write.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::ContainerId;

use super::{Deps, View, time};

/// How often sizes are looked at; one `stat` a running container.
const PERIOD: Duration = Duration::from_secs(10);

/// Watches the logs of running containers, for ever.
pub(super) async fn run(deps: Deps, view: View) {
    let (limit, keep) = (deps.config.container_log_max_size, deps.config.container_log_max_files);
    if limit == 0 {
        return;
    }
    loop {
        tokio::time::sleep(PERIOD).await;
        for (id, log) in running_logs(&view) {
            if fs::metadata(&log).is_ok_and(|m| m.len() > limit) {
                if let Err(error) = rotate(&deps, &id, log.clone(), keep).await {
                    tracing::warn!(path = %log.display(), error = %error, "log not rotated");
                }
            }
        }
    }
}

fn running_logs(view: &View) -> Vec<(ContainerId, PathBuf)> {
    let pods = view.list();
    let containers = pods.iter().flat_map(|pod| pod.containers.values()).filter(|c| c.running);
    containers.filter_map(|c| Some((c.id.clone()?, c.log_path.clone()?))).collect()
}

async fn rotate(deps: &Deps, id: &ContainerId, log: PathBuf, keep: u32) -> anyhow::Result<()> {
    let at = log.clone();
    let aside = tokio::task::spawn_blocking(move || set_aside(&at, keep, time::now())).await??;
    if let Err(error) = deps.runtime.reopen_log(id).await {
        // The container still writes to the old file: it gets its name back.
        fs::rename(&aside, &log)?;
        return Err(error.into());
    }
    Ok(())
}

/// Renames the log to `<log>.<YYYYMMDD-HHMMSS>` and removes the oldest beyond `keep` files, the live one included.
fn set_aside(log: &Path, keep: u32, now: time::Nanos) -> io::Result<PathBuf> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return Err(io::Error::other("a log without a name"));
    };
    let mut old: Vec<PathBuf> = fs::read_dir(dir)?
        .flatten()
        .filter(|e| e.file_name().to_str().and_then(|n| n.strip_prefix(name)).is_some_and(|rest| rest.starts_with('.')))
        .map(|e| e.path())
        .collect();
    old.sort();
    // One place is the live log's, one is taken now.
    let room = usize::try_from(keep.saturating_sub(2)).unwrap_or(0);
    for path in &old[..old.len().saturating_sub(room)] {
        fs::remove_file(path)?;
    }
    let digits: String = time::rfc3339(now).chars().filter(char::is_ascii_digit).collect();
    let aside = dir.join(format!("{name}.{}-{}", &digits[..8], &digits[8..14]));
    fs::rename(log, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for second in 0..5 {
            fs::write(&log, format!("{second}")).unwrap();
            set_aside(&log, 3, (1_795_402_307 + second) * time::SECOND).unwrap();
        }
        let mut names: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        assert_eq!(names, ["0.log.20261123-025150", "0.log.20261123-025151"], "two and the live one");
    }
}
