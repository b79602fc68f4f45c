//! Recorded exchanges of a real K3s v1.36.3 server, for the tests of this crate.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio_rustls::rustls::pki_types::UnixTime;

#[path = "recorded_tests.rs"]
mod recorded_tests;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/recordings/k3s")
}

/// The text of a recording, by file name.
pub(crate) fn read(name: &str) -> String {
    let path = folder().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Names of all recordings, without extension, that hold one exchange each.
pub(crate) fn exchanges() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().into_string().unwrap().strip_suffix(".json").map(str::to_owned))
        .filter(|n| {
            let file: Value = serde_json::from_str(&read(&format!("{n}.json"))).unwrap();
            file["request"]["path"].is_string()
        })
        .collect();
    names.sort();
    names
}

/// A moment at which every recorded certificate is valid.
pub(crate) fn now_of_recordings() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_795_500_000))
}

/// One recorded request and its answer.
pub(crate) struct Recording(pub(crate) Value);

impl Recording {
    pub(crate) fn load(name: &str) -> Recording {
        Recording(serde_json::from_str(&read(&format!("{name}.json"))).unwrap())
    }

    pub(crate) fn status(&self) -> u16 {
        u16::try_from(self.0["response"]["status"].as_u64().unwrap()).unwrap()
    }

    pub(crate) fn path(&self) -> &str {
        self.0["request"]["path"].as_str().unwrap()
    }

    pub(crate) fn response_body(&self) -> Vec<u8> {
        body(&self.0["response"])
    }

    pub(crate) fn request_body(&self) -> Vec<u8> {
        body(&self.0["request"])
    }

    pub(crate) fn request_header(&self, name: &str) -> Option<&str> {
        let headers = self.0["request"]["headers"].as_array()?;
        headers.iter().find(|h| h[0].as_str().is_some_and(|n| n.eq_ignore_ascii_case(name)))?[1].as_str()
    }
}

fn body(part: &Value) -> Vec<u8> {
    match (part["body_text"].as_str(), part["body_base64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(coded)) => STANDARD.decode(coded).unwrap(),
        (None, None) => Vec::new(),
    }
}
