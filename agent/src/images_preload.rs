//! Image archives beside the data directory are imported before pods start (k3s-agent.md 10.6).

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::ledger::write_whole;

/// Imports every `*.tar` and `*.tar.gz` of the directories that is new or changed since the last import.
/// A broken archive is reported and does not stop the others. Returns how many archives were imported.
pub async fn run(runtime: &runtime::Client, directories: &[PathBuf], done_file: &Path) -> usize {
    let archives = find(directories);
    let present = match tokio::time::timeout(Duration::from_secs(30), runtime.list_images()).await {
        Ok(Ok(images)) => images.len(),
        Ok(Err(_)) | Err(_) => 0,
    };
    let done = std::fs::read_to_string(done_file).unwrap_or_default();
    // An empty image store means that it was made anew: what was imported before is gone.
    let done: Vec<&str> = if present == 0 { Vec::new() } else { done.lines().collect() };
    let mut marks = Vec::new();
    let mut imported = 0;
    for (path, mark) in archives {
        if done.contains(&mark.as_str()) {
            marks.push(mark);
            continue;
        }
        let began = std::time::Instant::now();
        match runtime::import::import_tar(runtime, &path).await {
            Ok(names) => {
                tracing::info!(path = %path.display(), images = ?names, elapsed = ?began.elapsed(), "images imported");
                imported += 1;
                marks.push(mark);
            }
            Err(error) => tracing::error!(path = %path.display(), error = %crate::telemetry::chain(&error), "image archive not imported"),
        }
    }
    if imported > 0 {
        if let Err(error) = write_whole(done_file, marks.join("\n").as_bytes()) {
            tracing::warn!(error = %format!("{error:#}"), "imported archives not noted, they are imported again next time");
        }
    }
    imported
}

/// Archives with a mark that changes when the file does.
fn find(directories: &[PathBuf]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in directories.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if !(name.ends_with(".tar") || name.ends_with(".tar.gz") || name.ends_with(".tgz")) {
            continue;
        }
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        let modified = meta.modified().ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
        found.push((path.clone(), format!("{} {} {}", path.display(), meta.len(), modified.as_nanos())));
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_found_by_name_and_marked_by_content() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.tar", "a.TAR.GZ", "notes.txt", "c.tgz"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let found = find(&[dir.path().to_owned(), dir.path().join("absent")]);
        let names: Vec<_> = found.iter().map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["a.TAR.GZ", "b.tar", "c.tgz"]);
        std::fs::write(dir.path().join("b.tar"), "changed!").unwrap();
        assert_ne!(find(&[dir.path().to_owned()])[1].1, found[1].1);
    }
}
