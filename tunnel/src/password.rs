//! The node password: a secret that binds a node name to the machine that used it first (k3s-agent.md 2.6).

use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};

use crate::cahash::hex;
use crate::error::{Error, Result};
use crate::files;

/// Reads the password, trimmed, or makes one: 16 random bytes as hex and a newline, 0600.
///
/// `old` is where versions of long ago kept it; it is moved. An empty file counts as missing: its password can
/// never have been used.
pub fn load_or_create(file: &Path, old: Option<&Path>) -> Result<String> {
    if let Some(password) = load(file)? {
        return Ok(password);
    }
    if let Some(old) = old {
        if files::take(old, file)? {
            if let Some(password) = load(file)? {
                return Ok(password);
            }
        }
    }
    let mut bytes = [0u8; 16];
    let random = SystemRandom::new().fill(&mut bytes);
    random.map_err(|_| Error::Certificate { what: "node password".into(), reason: "no random numbers from the system".into() })?;
    let password = hex(&bytes);
    files::write(file, format!("{password}\n").as_bytes())?;
    Ok(password)
}

fn load(file: &Path) -> Result<Option<String>> {
    let content = files::read(file)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let text = text.trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_made_once_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("node/password");
        let first = load_or_create(&file, None).unwrap();
        assert_eq!(first.len(), 32);
        assert!(first.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{first}\n"));
        assert_eq!(load_or_create(&file, None).unwrap(), first);
        std::fs::write(&file, "  given \n").unwrap();
        assert_eq!(load_or_create(&file, None).unwrap(), "given");
        std::fs::write(&file, "\n").unwrap();
        assert_eq!(load_or_create(&file, None).unwrap().len(), 32);
    }

    #[test]
    fn a_password_of_an_old_version_is_moved() {
        let root = tempfile::tempdir().unwrap();
        let (file, old) = (root.path().join("node/password"), root.path().join("node-password.txt"));
        std::fs::write(&old, "older\n").unwrap();
        assert_eq!(load_or_create(&file, Some(&old)).unwrap(), "older");
        assert!(!old.exists());
        assert_eq!(load_or_create(&file, Some(&old)).unwrap(), "older");
    }
}
