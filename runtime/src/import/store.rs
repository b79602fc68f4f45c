//! containerd's content store, image names and leases, over its own API.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1 as api;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::types::Descriptor;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::layout::{Blob, Content, Image};
use crate::client::{failed, in_namespace};
use crate::{Client, Error, Result};

/// Bytes of a layer in memory at a time.
const CHUNK: u64 = 1 << 20;
/// An import interrupted for good is forgotten after this.
const LEASE: Duration = Duration::from_secs(3600);

/// One import's view of the store. All it writes is under a lease until [`Store::finish`].
pub(crate) struct Store {
    channel: Channel,
    lease: String,
    header: MetadataValue<Ascii>,
}

impl Store {
    pub(crate) async fn begin(client: &Client) -> Result<Self> {
        let channel = client.channel();
        let now = OffsetDateTime::now_utc();
        let lease = format!("edge-import-{}-{}", std::process::id(), now.unix_timestamp_nanos());
        let end = (now + LEASE).format(&Rfc3339).unwrap_or_default();
        let request = api::CreateRequest { id: lease.clone(), labels: HashMap::from([("containerd.io/gc.expire".to_owned(), end)]) };
        LeasesClient::new(channel.clone())
            .create(in_namespace(Request::new(request)))
            .await
            .map_err(|s| failed("leases.Create", &lease, s))?;
        let header =
            lease.parse().map_err(|_| Error::Incomplete { verb: "leases.Create", subject: lease.clone(), missing: "usable id" })?;
        Ok(Self { channel, lease, header })
    }

    /// Ends the lease: from here on the image names hold the content.
    pub(crate) async fn finish(self) -> Result<()> {
        let request = api::DeleteRequest { id: self.lease.clone(), sync: false };
        LeasesClient::new(self.channel)
            .delete(in_namespace(Request::new(request)))
            .await
            .map_err(|s| failed("leases.Delete", &self.lease, s))?;
        Ok(())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = in_namespace(Request::new(message));
        request.metadata_mut().insert("containerd-lease", self.header.clone());
        request
    }

    /// Stores a blob unless it is there, and sees to its labels either way.
    pub(crate) async fn put(&self, archive: &Path, blob: &Blob) -> Result<()> {
        let mut content = ContentClient::new(self.channel.clone());
        let present = content.info(self.request(api::InfoRequest { digest: blob.digest.clone() })).await;
        let labels = match present {
            Ok(answer) => answer.into_inner().info.unwrap_or_default().labels,
            Err(status) if status.code() == Code::NotFound => {
                return self.write(archive, blob).await;
            }
            Err(status) => return Err(failed("content.Info", &blob.digest, status)),
        };
        let lacking: BTreeMap<_, _> = blob.labels.iter().filter(|(key, value)| labels.get(*key) != Some(*value)).collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let request = api::UpdateRequest {
            update_mask: Some(prost_types::FieldMask { paths: lacking.keys().map(|key| format!("labels.{key}")).collect() }),
            info: Some(api::Info {
                digest: blob.digest.clone(),
                labels: lacking.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
                ..Default::default()
            }),
        };
        content.update(self.request(request)).await.map_err(|s| failed("content.Update", &blob.digest, s))?;
        Ok(())
    }

    /// Streams a blob in pieces; containerd checks digest and size at the end.
    async fn write(&self, archive: &Path, blob: &Blob) -> Result<()> {
        let total = blob.content.size();
        let state = Upload {
            reader: match &blob.content {
                Content::Made(bytes) => Reader::Bytes(Bytes::copy_from_slice(bytes)),
                Content::Archived(extent) => {
                    let broken = |source| Error::File { action: "read", path: archive.to_owned(), source };
                    let mut file = tokio::fs::File::open(archive).await.map_err(broken)?;
                    file.seek(std::io::SeekFrom::Start(extent.offset)).await.map_err(broken)?;
                    Reader::File(file)
                }
            },
            reference: format!("{}-{}", self.lease, blob.digest),
            digest: blob.digest.clone(),
            labels: blob.labels.clone().into_iter().collect(),
            total,
            at: 0,
            done: false,
        };
        let stream = futures_util::stream::unfold(state, Upload::next);
        let answer = ContentClient::new(self.channel.clone()).write(self.request(stream)).await;
        let written = match answer {
            Ok(answers) => drain(answers.into_inner()).await,
            Err(status) => Err(status),
        };
        match written {
            Ok(true) => Ok(()),
            // Somebody else stored it meanwhile.
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            // The stream ended before the commit was answered: the archive could not be read to its end.
            Ok(false) => Err(super::tar::damaged(archive, format!("blob {} could not be read to its end", blob.digest))),
            Err(status) if status.code() == Code::FailedPrecondition => {
                Err(super::tar::damaged(archive, format!("blob {} is damaged: {}", blob.digest, status.message())))
            }
            Err(status) => Err(failed("content.Write", &blob.digest, status)),
        }
    }

    /// Gives an image its name, moving the name if it stood for other content, and the name with its digest, by which CRI
    /// tells what a container runs.
    pub(crate) async fn name(&self, image: &Image, pinned: bool) -> Result<()> {
        self.name_one(&Image { name: image.by_digest(), ..image.clone() }, pinned).await?;
        self.name_one(image, pinned).await
    }

    async fn name_one(&self, image: &Image, pinned: bool) -> Result<()> {
        let mut labels = HashMap::from([("io.cri-containerd.image".to_owned(), "managed".to_owned())]);
        if pinned {
            labels.insert("io.cri-containerd.pinned".to_owned(), "pinned".to_owned());
        }
        let mut paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
        paths.push("target".to_owned());
        let record = api::Image {
            name: image.name.clone(),
            labels,
            target: Some(Descriptor {
                media_type: image.media_type.clone(),
                digest: image.digest.clone(),
                size: image.size,
                annotations: HashMap::new(),
            }),
            ..Default::default()
        };
        let mut images = ImagesClient::new(self.channel.clone());
        let create = api::CreateImageRequest { image: Some(record.clone()), source_date_epoch: None };
        match images.create(self.request(create)).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(failed("images.Create", &image.name, status)),
        }
        let update =
            api::UpdateImageRequest { image: Some(record), update_mask: Some(prost_types::FieldMask { paths }), source_date_epoch: None };
        images.update(self.request(update)).await.map_err(|s| failed("images.Update", &image.name, s))?;
        Ok(())
    }
}

/// Reads the answers to their end; whether the last was to a commit.
async fn drain(mut answers: tonic::Streaming<api::WriteContentResponse>) -> std::result::Result<bool, tonic::Status> {
    let mut committed = false;
    while let Some(answer) = answers.message().await? {
        committed = answer.action() == api::WriteAction::Commit;
    }
    Ok(committed)
}

enum Reader {
    Bytes(Bytes),
    File(tokio::fs::File),
}

struct Upload {
    reader: Reader,
    reference: String,
    digest: String,
    labels: HashMap<String, String>,
    total: u64,
    at: u64,
    done: bool,
}

impl Upload {
    /// The next message; `None` after the commit, or when the archive cannot be read any further.
    async fn next(mut self) -> Option<(api::WriteContentRequest, Self)> {
        if self.done {
            return None;
        }
        let message = api::WriteContentRequest {
            r#ref: self.reference.clone(),
            total: i64::try_from(self.total).ok()?,
            offset: i64::try_from(self.at).ok()?,
            ..Default::default()
        };
        if self.at == self.total {
            self.done = true;
            let commit = api::WriteContentRequest {
                action: api::WriteAction::Commit.into(),
                expected: self.digest.clone(),
                labels: std::mem::take(&mut self.labels),
                ..message
            };
            return Some((commit, self));
        }
        let want = usize::try_from((self.total - self.at).min(CHUNK)).ok()?;
        let data = match &mut self.reader {
            Reader::Bytes(bytes) => bytes.split_to(want).to_vec(),
            Reader::File(file) => {
                let mut data = vec![0; want];
                file.read_exact(&mut data).await.ok()?;
                data
            }
        };
        self.at += want as u64;
        let write = api::WriteContentRequest { action: api::WriteAction::Write.into(), data, ..message };
        Some((write, self))
    }
}
