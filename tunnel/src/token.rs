//! Join tokens (k3s-agent.md 1.1): what they pin and what is sent for them.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, Result};

/// A parsed join token. `Debug` and errors never show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    ca_hash: Option<String>,
    credentials: Credentials,
}

#[derive(Clone, PartialEq, Eq)]
enum Credentials {
    Basic { user: String, password: String },
    Bootstrap { id: String, secret: String },
}

impl Token {
    /// Parses a token the way an agent does: whatever user it names, `node` is sent (k3s-agent.md 1.1: with the
    /// right password, user `server` gets 403 on every agent endpoint).
    pub fn parse(text: &str) -> Result<Token> {
        let mut token = Token::parse_raw(text)?;
        if let Credentials::Basic { user, .. } = &mut token.credentials {
            "node".clone_into(user);
        }
        Ok(token)
    }

    /// Parses a token and keeps its user, as a server needs it.
    pub fn parse_raw(text: &str) -> Result<Token> {
        let err = |reason| Error::Token { reason };
        let text = text.trim();
        if text.is_empty() {
            return Err(err("it is empty"));
        }
        let rest = match text.strip_prefix("K10") {
            Some(rest) => rest,
            None => {
                let credentials = match bootstrap(text) {
                    Some(credentials) => credentials,
                    None => Credentials::Basic { user: String::new(), password: text.to_owned() },
                };
                return Ok(Token { ca_hash: None, credentials });
            }
        };
        let (hash, credentials) = match rest.split_once("::") {
            Some(("", credentials)) => (None, credentials),
            Some((hash, credentials)) if hash.len() == 64 => (Some(hash.to_ascii_lowercase()), credentials),
            Some(_) => return Err(err("the CA hash after K10 is not 64 characters long")),
            None => (None, rest),
        };
        if let Some(credentials) = bootstrap(credentials) {
            return Ok(Token { ca_hash: hash, credentials });
        }
        match credentials.split_once(':') {
            Some((_, "")) => Err(err("its password is empty")),
            Some((user, password)) => {
                let credentials = Credentials::Basic { user: user.to_owned(), password: password.to_owned() };
                Ok(Token { ca_hash: hash, credentials })
            }
            None => Err(err("it has neither user:password nor a bootstrap token after K10")),
        }
    }

    /// The pinned CA hash, 64 lower-case hex characters.
    pub fn ca_hash(&self) -> Option<&str> {
        self.ca_hash.as_deref()
    }

    /// Whether it is a bootstrap token (`id.secret`), which expires and is sent as bearer.
    pub fn is_bootstrap(&self) -> bool {
        matches!(self.credentials, Credentials::Bootstrap { .. })
    }

    /// User of a basic token.
    pub fn user(&self) -> Option<&str> {
        match &self.credentials {
            Credentials::Basic { user, .. } => Some(user),
            Credentials::Bootstrap { .. } => None,
        }
    }

    /// Password of a basic token.
    pub fn password(&self) -> Option<&str> {
        match &self.credentials {
            Credentials::Basic { password, .. } => Some(password),
            Credentials::Bootstrap { .. } => None,
        }
    }

    /// Value of the `Authorization` header: `Basic …` or `Bearer …`.
    pub fn authorization(&self) -> String {
        match &self.credentials {
            Credentials::Basic { user, password } => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
            }
            Credentials::Bootstrap { id, secret } => format!("Bearer {id}.{secret}"),
        }
    }

    /// The full form `K10<hash>::user:password` a server writes to its token file.
    pub fn full(ca_hash: &str, user: &str, password: &str) -> String {
        format!("K10{ca_hash}::{user}:{password}")
    }
}

/// `[a-z0-9]{6}.[a-z0-9]{16}`.
fn bootstrap(text: &str) -> Option<Credentials> {
    let (id, secret) = text.split_once('.')?;
    let good = |s: &str, len| s.len() == len && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (good(id, 6) && good(secret, 16)).then(|| Credentials::Bootstrap { id: id.to_owned(), secret: secret.to_owned() })
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("ca_hash", &self.ca_hash).field("bootstrap", &self.is_bootstrap()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "f5aca231df6e09ec78c40ecdedb171fe5745535cb4d3362da64e8dc7cd73f189";

    fn sent(text: &str) -> (Option<String>, String) {
        let token = Token::parse(text).unwrap();
        let value = token.authorization();
        let value = match value.strip_prefix("Basic ") {
            Some(coded) => format!("basic {}", String::from_utf8(STANDARD.decode(coded).unwrap()).unwrap()),
            None => value,
        };
        (token.ca_hash().map(str::to_owned), value)
    }

    #[test]
    fn every_form_parses_to_what_the_agent_sends() {
        let rows = [
            ("full", format!("K10{HASH}::server:pass"), Some(HASH), "basic node:pass"),
            ("full, colons in the password", format!("K10{HASH}::node:a::b:c"), Some(HASH), "basic node:a::b:c"),
            ("full without hash", "K10::node:pass".into(), None, "basic node:pass"),
            ("full without double colon", "K10node:pass".into(), None, "basic node:pass"),
            ("short password", "secret".into(), None, "basic node:secret"),
            ("short password with a colon", "a:b".into(), None, "basic node:a:b"),
            ("short password starting with colons", "::x".into(), None, "basic node:::x"),
            ("bootstrap alone", "abcdef.0123456789abcdef".into(), None, "Bearer abcdef.0123456789abcdef"),
            ("bootstrap in full", format!("K10{HASH}::abcdef.0123456789abcdef"), Some(HASH), "Bearer abcdef.0123456789abcdef"),
            ("almost a bootstrap", "ABCDEF.0123456789abcdef".into(), None, "basic node:ABCDEF.0123456789abcdef"),
            ("newline of a file", format!("K10{HASH}::server:pass\n"), Some(HASH), "basic node:pass"),
        ];
        for (name, text, hash, value) in rows {
            assert_eq!(sent(&text), (hash.map(str::to_owned), value.to_owned()), "{name}");
        }
    }

    #[test]
    fn bad_tokens_say_what_is_wrong_and_hide_the_secret() {
        for (text, reason) in [
            ("", "empty"),
            ("  \n", "empty"),
            ("K10abc::node:hush", "64 characters"),
            ("K10::node:", "password is empty"),
            ("K10hush", "neither"),
            ("K10", "neither"),
        ] {
            let err = Token::parse(text).unwrap_err();
            assert!(err.to_string().contains(reason), "{err}");
            assert!(!err.to_string().contains("hush") && !err.is_retryable());
        }
        assert!(!format!("{:?}", Token::parse("hush").unwrap()).contains("hush"));
    }

    #[test]
    fn the_raw_form_keeps_the_user() {
        assert_eq!(Token::parse_raw("K10::server:x").unwrap().user(), Some("server"));
        assert_eq!(Token::parse_raw("x").unwrap().user(), Some(""));
        assert_eq!(Token::parse_raw(&Token::full(HASH, "server", "x")).unwrap().ca_hash(), Some(HASH));
    }
}
