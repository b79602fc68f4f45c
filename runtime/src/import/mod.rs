//! Image archives into containerd's own store, so that a node can start pods with no registry in reach.
//!
//! Read are OCI layouts and `docker save` files, as plain or compressed tar (unpacked with the machine's own `gzip`,
//! `zstd`, `bzip2` or `lz4`). Layers are streamed, never held whole. Everything is written under a lease, so the garbage collector cannot come between a layer and its image's name; an import that
//! is cut off leaves nothing once the lease ends.

mod layout;
mod reference;
mod store;
mod tar;
mod unpack;

use std::path::Path;
use std::time::Duration;

use crate::{Client, Error, Result};

pub use reference::normalise;

/// How long CRI may take to notice a new image.
const NOTICE: Duration = Duration::from_secs(30);

/// Imports every image of an archive into containerd's namespace `k8s.io` and returns their full names. When it
/// returns, CRI knows them. Importing again changes nothing and is cheap: contents that are there are not sent.
pub async fn import_tar(client: &Client, path: &Path) -> Result<Vec<String>> {
    import_tar_pinned(client, path, &[]).await
}

/// As [`import_tar`], and marks the images named in `pinned` (in any spelling) as never to be collected: the pause
/// image, without which no pod starts.
pub async fn import_tar_pinned(client: &Client, path: &Path, pinned: &[&str]) -> Result<Vec<String>> {
    let pinned: Vec<String> = pinned.iter().map(|name| normalise(name)).collect();
    let archive = path.to_owned();
    let (plan, plain) = tokio::task::spawn_blocking(move || -> Result<_> {
        let plain = unpack::Plain::of(&archive)?;
        let plan = layout::plan(&tar::Archive::open(plain.path())?)?;
        Ok((plan, plain))
    })
    .await
    .map_err(|e| tar::damaged(path, format!("reading it panicked: {e}")))??;

    let store = store::Store::begin(client).await?;
    for blob in &plan.blobs {
        store.put(plain.path(), blob).await?;
    }
    for image in &plan.images {
        store.name(image, pinned.contains(&image.name)).await?;
    }
    store.finish().await?;

    let mut names = Vec::with_capacity(plan.images.len());
    for image in plan.images {
        noticed(client, &image.name).await?;
        tracing::info!(image = %image.name, archive = %path.display(), "image imported");
        names.push(image.name);
    }
    Ok(names)
}

/// CRI learns of new names from containerd's events, a moment after the import.
async fn noticed(client: &Client, name: &str) -> Result<()> {
    let end = tokio::time::Instant::now() + NOTICE;
    let mut pause = Duration::from_millis(2);
    loop {
        match client.image_status(name).await? {
            Some(_) => return Ok(()),
            None if tokio::time::Instant::now() >= end => {
                return Err(Error::Deadline { verb: "ImageStatus", subject: name.to_owned(), limit: NOTICE });
            }
            None => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}
