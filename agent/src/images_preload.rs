//! Image archives beside the data directory are imported before pods start, and listed images are pulled
//! (k3s-agent.md 10.6).

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::ledger::write_whole;
use crate::pod::images::with_tag;

/// What K3s takes for archives. Those that are not plain are unpacked with the machine's `gzip`, `zstd`, `bzip2`, `lz4`.
const ARCHIVES: [&str; 8] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz", ".tar.lz4"];

/// How long one listed image may take.
const PULL: Duration = Duration::from_secs(1800);

/// What is to be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Archive,
    /// One image a line.
    List,
    /// Somebody put it there for a reason that is not known here.
    Stranger,
}

/// Imports every archive of the directories that is new or changed since the last import, and begins to pull what
/// lists name. A broken archive is reported and does not stop the others. `pause_image` is marked as never to be
/// collected. Returns how many archives were imported.
pub async fn run(runtime: &runtime::Client, directories: &[PathBuf], done_file: &Path, pause_image: &str) -> usize {
    let present = match tokio::time::timeout(Duration::from_secs(30), runtime.list_images()).await {
        Ok(Ok(images)) => images.len(),
        Ok(Err(_)) | Err(_) => 0,
    };
    let done = std::fs::read_to_string(done_file).unwrap_or_default();
    // An empty image store means that it was made anew: what was imported before is gone.
    let done: Vec<&str> = if present == 0 { Vec::new() } else { done.lines().collect() };
    let mut marks = Vec::new();
    let mut imported = 0;
    let mut lists = Vec::new();
    for (path, mark) in find(directories) {
        match kind(&path) {
            Kind::Archive => {}
            Kind::List => {
                lists.push(path);
                continue;
            }
            Kind::Stranger => {
                tracing::warn!(path = %path.display(), "not imported: neither an image archive nor a list of images by its name; rename it to end in .tar, .tar.gz, .tar.zst, .tar.bz2, .tar.lz4 or .txt");
                continue;
            }
        }
        if done.contains(&mark.as_str()) {
            marks.push(mark);
            continue;
        }
        let began = std::time::Instant::now();
        match runtime::import::import_tar_pinned(runtime, &path, &[pause_image]).await {
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
    if !lists.is_empty() {
        // Pods do not wait for these: a node without its registry would never start any.
        crate::task::spawn(pull_listed(runtime.clone(), lists));
    }
    imported
}

/// Pulls what is not there yet, one after the other.
async fn pull_listed(runtime: runtime::Client, lists: Vec<PathBuf>) {
    for path in lists {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "list of images not read");
                continue;
            }
        };
        for name in listed(&text) {
            let image = match with_tag(name) {
                Ok(image) => image,
                Err(error) => {
                    tracing::error!(path = %path.display(), image = name, %error, "listed image not pulled");
                    continue;
                }
            };
            if matches!(runtime.image_status(&image).await, Ok(Some(_))) {
                continue;
            }
            match tokio::time::timeout(PULL, runtime.pull_image(&image, None, None)).await {
                Ok(Ok(_)) => tracing::info!(path = %path.display(), image, "listed image pulled"),
                Ok(Err(error)) => {
                    tracing::error!(path = %path.display(), image, error = %crate::telemetry::chain(&error), "listed image not pulled")
                }
                Err(_) => tracing::error!(path = %path.display(), image, limit = ?PULL, "listed image not pulled in time"),
            }
        }
    }
}

/// Image names of a list; blank lines and remarks are left out.
fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn kind(path: &Path) -> Kind {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if ARCHIVES.iter().any(|end| name.ends_with(end)) {
        Kind::Archive
    } else if name.ends_with(".txt") {
        Kind::List
    } else {
        Kind::Stranger
    }
}

/// Files with a mark that changes when the file does. Hidden ones are K3s' cache and our own unpacked copies.
fn find(directories: &[PathBuf]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in directories.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        if !meta.is_file() || entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
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
    fn files_are_told_by_name_and_marked_by_content() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.tar", "a.TAR.GZ", "notes.txt", "c.tgz", "d.tar.zst", "e.zst", ".cache.json", ".b.tar.7.unpacked"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        std::fs::create_dir(dir.path().join("old.tar")).unwrap();
        let found = find(&[dir.path().to_owned(), dir.path().join("absent")]);
        let names: Vec<_> = found.iter().map(|(path, _)| (path.file_name().unwrap().to_string_lossy().into_owned(), kind(path))).collect();
        let wanted = [
            ("a.TAR.GZ", Kind::Archive),
            ("b.tar", Kind::Archive),
            ("c.tgz", Kind::Archive),
            ("d.tar.zst", Kind::Archive),
            ("e.zst", Kind::Stranger),
            ("notes.txt", Kind::List),
        ];
        assert_eq!(names, wanted.map(|(name, kind)| (name.to_owned(), kind)));
        std::fs::write(dir.path().join("b.tar"), "changed!").unwrap();
        assert_ne!(find(&[dir.path().to_owned()])[1].1, found[1].1);
    }

    #[test]
    fn lists_name_one_image_a_line() {
        assert_eq!(
            listed("docker.io/library/busybox:1.36\r\n\n# later\n  nginx \n").collect::<Vec<_>>(),
            ["docker.io/library/busybox:1.36", "nginx"]
        );
    }
}
