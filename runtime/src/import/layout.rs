//! Which images an archive holds and which contents they are made of: the two formats in use, read into one plan.

use std::collections::{BTreeMap, BTreeSet};

use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};

use super::reference::normalise;
use super::tar::{Archive, Extent, damaged, file_error};
use crate::Result;

/// What to do with an archive: store the blobs in this order, then name the images.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Children before parents, so that no stored manifest ever lacks its parts.
    pub(crate) blobs: Vec<Blob>,
    pub(crate) images: Vec<Image>,
}

#[derive(Debug)]
pub(crate) struct Blob {
    /// `sha256:…`
    pub(crate) digest: String,
    pub(crate) content: Content,
    /// What keeps the garbage collector away from the parts this one names.
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Debug)]
pub(crate) enum Content {
    Archived(Extent),
    Made(Vec<u8>),
}

impl Content {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Content::Archived(extent) => extent.size,
            Content::Made(bytes) => bytes.len() as u64,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// Full name with registry and tag.
    pub(crate) name: String,
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: i64,
}

impl Image {
    /// `registry/path@sha256:…`
    pub(crate) fn by_digest(&self) -> String {
        let path = self.name.split('@').next().unwrap_or_default();
        let path = path.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(path, |(path, _)| path);
        format!("{path}@{}", self.digest)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: i64,
    #[serde(default, skip_serializing)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// One entry of `manifest.json`, the format of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Deepest nesting of indexes that is followed.
const DEEPEST: usize = 4;

/// Reads the plan of an archive. Blocks.
pub(crate) fn plan(archive: &Archive) -> Result<Plan> {
    let index = archive.find("index.json");
    let saved = archive.find("manifest.json");
    if let Some(extent) = index {
        let index: Index = document(archive, extent, "index.json")?;
        let plan = oci(archive, index)?;
        if !plan.images.is_empty() || saved.is_none() {
            return named(archive, plan);
        }
    }
    let Some(extent) = saved else {
        return Err(damaged(archive.path(), "it has neither index.json (OCI layout) nor manifest.json (docker save)"));
    };
    let list: Vec<Saved> = document(archive, extent, "manifest.json")?;
    named(archive, docker(archive, list)?)
}

fn named(archive: &Archive, plan: Plan) -> Result<Plan> {
    if plan.images.is_empty() {
        return Err(damaged(archive.path(), "no image in it has a name; save it with name and tag"));
    }
    Ok(plan)
}

fn document<T: serde::de::DeserializeOwned>(archive: &Archive, extent: Extent, name: &str) -> Result<T> {
    serde_json::from_slice(&archive.read(extent)?).map_err(|e| damaged(archive.path(), format!("{name}: {e}")))
}

fn oci(archive: &Archive, index: Index) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut seen = BTreeSet::new();
    for descriptor in index.manifests {
        let Some(name) = name_of(&descriptor.annotations) else {
            continue;
        };
        if !take(archive, &descriptor, &mut plan, &mut seen, 0)? {
            return Err(damaged(archive.path(), format!("{name} lacks blob {}", descriptor.digest)));
        }
        plan.images.push(Image { name, media_type: descriptor.media_type, digest: descriptor.digest, size: descriptor.size });
    }
    Ok(plan)
}

/// containerd's own annotation, or the standard one where it holds a whole name and not just a tag.
fn name_of(annotations: &BTreeMap<String, String>) -> Option<String> {
    annotations
        .get("io.containerd.image.name")
        .or_else(|| annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/'])))
        .map(|name| normalise(name))
}

/// Adds a blob and what it names. `false`: it is not in the archive, which is in order for the platforms of an index
/// that were not saved.
fn take(archive: &Archive, descriptor: &Descriptor, plan: &mut Plan, seen: &mut BTreeSet<String>, depth: usize) -> Result<bool> {
    let Some(hex) = descriptor.digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    else {
        return Err(damaged(archive.path(), format!("digest {:?} is not a sha256", descriptor.digest)));
    };
    let Some(extent) = archive.find(&format!("blobs/sha256/{hex}")) else {
        return Ok(false);
    };
    if depth > DEEPEST {
        return Err(damaged(archive.path(), "indexes are nested too deep"));
    }
    if seen.contains(&descriptor.digest) {
        return Ok(true);
    }
    let missing = |part: &Descriptor| damaged(archive.path(), format!("manifest {} lacks blob {}", descriptor.digest, part.digest));
    let mut labels = BTreeMap::new();
    match descriptor.media_type.as_str() {
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
            let index: Index = document(archive, extent, &descriptor.digest)?;
            let mut any = false;
            for (i, child) in index.manifests.iter().enumerate() {
                any |= take(archive, child, plan, seen, depth + 1)?;
                labels.insert(format!("containerd.io/gc.ref.content.m.{i}"), child.digest.clone());
            }
            if !any {
                return Err(damaged(archive.path(), format!("none of the manifests of index {} is in it", descriptor.digest)));
            }
        }
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
            let manifest: Manifest = document(archive, extent, &descriptor.digest)?;
            if !take(archive, &manifest.config, plan, seen, depth + 1)? {
                return Err(missing(&manifest.config));
            }
            for layer in &manifest.layers {
                if !take(archive, layer, plan, seen, depth + 1)? {
                    return Err(missing(layer));
                }
            }
            labels = manifest_labels(&manifest);
        }
        _ => {}
    }
    seen.insert(descriptor.digest.clone());
    plan.blobs.push(Blob { digest: descriptor.digest.clone(), content: Content::Archived(extent), labels });
    Ok(true)
}

/// The labels containerd's own client puts on a manifest.
fn manifest_labels(manifest: &Manifest) -> BTreeMap<String, String> {
    let layers = manifest.layers.iter().enumerate().map(|(i, layer)| (format!("containerd.io/gc.ref.content.l.{i}"), layer.digest.clone()));
    std::iter::once(("containerd.io/gc.ref.content.config".to_owned(), manifest.config.digest.clone())).chain(layers).collect()
}

/// `docker save` has no manifest of its own; one is made from the files, with the media types Docker's registry uses.
fn docker(archive: &Archive, list: Vec<Saved>) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut seen = BTreeSet::new();
    for saved in list {
        let tags = saved.repo_tags.unwrap_or_default();
        if tags.is_empty() {
            continue;
        }
        let mut part = |name: &str, config: bool| -> Result<Descriptor> {
            let extent = archive.find(name).ok_or_else(|| damaged(archive.path(), format!("{} lacks file {name}", tags[0])))?;
            let (digest, gzip) = hash(archive, extent)?;
            let media_type = match (config, gzip) {
                (true, _) => "application/vnd.docker.container.image.v1+json",
                (false, true) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
                (false, false) => "application/vnd.docker.image.rootfs.diff.tar",
            };
            if seen.insert(digest.clone()) {
                plan.blobs.push(Blob { digest: digest.clone(), content: Content::Archived(extent), labels: BTreeMap::new() });
            }
            Ok(Descriptor {
                media_type: media_type.to_owned(),
                digest,
                size: i64::try_from(extent.size).unwrap_or(i64::MAX),
                annotations: BTreeMap::new(),
            })
        };
        let config = part(&saved.config, true)?;
        let layers = saved.layers.iter().map(|layer| part(layer, false)).collect::<Result<Vec<_>>>()?;
        let manifest =
            Manifest { schema_version: 2, media_type: "application/vnd.docker.distribution.manifest.v2+json".to_owned(), config, layers };
        let bytes = serde_json::to_vec(&manifest).map_err(|e| damaged(archive.path(), format!("manifest: {e}")))?;
        let name = format!("sha256:{}", hex(digest(&SHA256, &bytes).as_ref()));
        plan.images.extend(tags.iter().map(|tag| Image {
            name: normalise(tag),
            media_type: manifest.media_type.clone(),
            digest: name.clone(),
            size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        }));
        if seen.insert(name.clone()) {
            plan.blobs.push(Blob { digest: name, labels: manifest_labels(&manifest), content: Content::Made(bytes) });
        }
    }
    Ok(plan)
}

/// Digest of a piece of the archive, and whether it is gzip.
fn hash(archive: &Archive, extent: Extent) -> Result<(String, bool)> {
    use std::io::{Read, Seek, SeekFrom};
    let failed = |e| file_error("read", archive.path(), e);
    let mut file = std::fs::File::open(archive.path()).map_err(failed)?;
    file.seek(SeekFrom::Start(extent.offset)).map_err(failed)?;
    let mut left = extent.size;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 256 << 10];
    let mut gzip = None;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..want]).map_err(failed)?;
        gzip.get_or_insert(buffer[..want].starts_with(&[0x1f, 0x8b]));
        context.update(&buffer[..want]);
        left -= want as u64;
    }
    Ok((format!("sha256:{}", hex(context.finish().as_ref())), gzip.unwrap_or(false)))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    fn pack(files: &[(String, Vec<u8>)]) -> (tempfile::TempDir, Archive) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for (name, content) in files {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let tar = dir.path().join("image.tar");
        let status = Command::new("tar").args([Path::new("-C"), &root, Path::new("-cf"), &tar]).arg(".").status().unwrap();
        assert!(status.success());
        let archive = Archive::open(&tar).unwrap();
        (dir, archive)
    }

    fn blob(content: &str) -> (String, (String, Vec<u8>)) {
        let name = hex(digest(&SHA256, content.as_bytes()).as_ref());
        let file = (format!("blobs/sha256/{name}"), content.as_bytes().to_vec());
        (format!("sha256:{name}"), file)
    }

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

    /// An OCI layout whose index also names a platform that was not saved.
    fn layout() -> Vec<(String, Vec<u8>)> {
        let (config, config_file) = blob("{}");
        let (layer, layer_file) = blob("layer");
        let (manifest, manifest_file) = blob(&format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{config}","size":2}},"layers":[{{"mediaType":"l","digest":"{layer}","size":5}}]}}"#
        ));
        let (other, _) = blob("not saved");
        let (index, index_file) = blob(&format!(
            r#"{{"manifests":[{{"mediaType":"{MANIFEST}","digest":"{other}","size":1}},{{"mediaType":"{MANIFEST}","digest":"{manifest}","size":9}}]}}"#
        ));
        let top = format!(
            r#"{{"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{index}","size":7,"annotations":{{"io.containerd.image.name":"docker.io/library/a:1","org.opencontainers.image.ref.name":"1"}}}}]}}"#
        );
        vec![config_file, layer_file, manifest_file, index_file, ("index.json".into(), top.into_bytes())]
    }

    #[test]
    fn an_oci_layout_stores_parts_before_what_names_them() {
        let (_dir, archive) = pack(&layout());
        let plan = plan(&archive).unwrap();
        assert_eq!(plan.images.len(), 1);
        assert_eq!(plan.images[0].name, "docker.io/library/a:1");
        let sizes: Vec<u64> = plan.blobs.iter().map(|b| b.content.size()).collect();
        assert_eq!(sizes[..2], [2, 5], "config, layer, then manifest and index");
        assert_eq!(plan.blobs.len(), 4);
        let labels = &plan.blobs[2].labels;
        assert_eq!(labels["containerd.io/gc.ref.content.config"], plan.blobs[0].digest);
        assert_eq!(labels["containerd.io/gc.ref.content.l.0"], plan.blobs[1].digest);
        let labels = &plan.blobs[3].labels;
        assert_eq!(labels["containerd.io/gc.ref.content.m.1"], plan.blobs[2].digest);
        assert_eq!(plan.images[0].digest, plan.blobs[3].digest);
    }

    #[test]
    fn docker_save_gets_a_manifest() {
        let files = vec![
            ("c.json".to_owned(), b"{}".to_vec()),
            ("l/layer.tar".to_owned(), b"layer".to_vec()),
            (
                "manifest.json".to_owned(),
                br#"[{"Config":"c.json","RepoTags":["a:1","b"],"Layers":["l/layer.tar"]},{"Config":"x","RepoTags":null,"Layers":[]}]"#
                    .to_vec(),
            ),
        ];
        let (_dir, archive) = pack(&files);
        let plan = plan(&archive).unwrap();
        let names: Vec<&str> = plan.images.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["docker.io/library/a:1", "docker.io/library/b:latest"]);
        assert_eq!(plan.blobs.len(), 3);
        let Content::Made(made) = &plan.blobs[2].content else {
            panic!("the manifest comes last");
        };
        let manifest: Manifest = serde_json::from_slice(made).unwrap();
        assert_eq!(manifest.config.digest, plan.blobs[0].digest);
        assert_eq!(manifest.layers[0].media_type, "application/vnd.docker.image.rootfs.diff.tar");
    }

    #[test]
    fn what_is_missing_is_named() {
        let without = |prefix: &str| {
            let mut files = layout();
            files.retain(|(_, content)| !content.starts_with(prefix.as_bytes()));
            files
        };
        let nameless = |mut files: Vec<(String, Vec<u8>)>| {
            let top = files.pop().unwrap().1;
            let top = String::from_utf8(top).unwrap().replace("io.containerd.image.name", "x");
            files.push(("index.json".into(), top.into_bytes()));
            files
        };
        let table = [
            (without("layer"), "lacks blob"),
            (without(r#"{"schema"#), "none of the manifests"),
            (nameless(layout()), "no image in it has a name"),
            (vec![("readme".into(), vec![])], "neither index.json"),
            (vec![("index.json".into(), b"{".to_vec())], "index.json: EOF"),
        ];
        for (files, words) in table {
            let (_dir, archive) = pack(&files);
            let error = plan(&archive).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
