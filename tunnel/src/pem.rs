//! PEM text, split into its blocks without losing a byte: answers of a server are sorted by block type, bundles
//! are hashed as they came (k3s-agent.md 1.3, 2.4).

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

const LENIENT: GeneralPurpose =
    GeneralPurpose::new(&base64::alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// One `-----BEGIN …-----` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What stands after `BEGIN`, e.g. `CERTIFICATE`.
    pub label: String,
    /// The block as it stood in the text, with a final newline.
    pub text: String,
    /// The decoded content.
    pub der: Vec<u8>,
    /// Whether RFC 1421 headers stood before the content.
    pub headers: bool,
}

impl Block {
    /// Key material is any type containing `PRIVATE KEY` (k3s-agent.md 2.4).
    pub fn is_private_key(&self) -> bool {
        self.label.contains("PRIVATE KEY")
    }

    /// A certificate without headers, as Go's `CertificatesFromPEM` counts them.
    pub fn is_certificate(&self) -> bool {
        self.label == "CERTIFICATE" && !self.headers
    }
}

/// All blocks of a text, in order. Text between blocks is skipped, a block that does not decode too.
pub fn blocks(text: &[u8]) -> Vec<Block> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    let mut open: Option<(String, Vec<&str>)> = None;
    for line in text.lines() {
        let trimmed = line.trim_end();
        if let Some(label) = trimmed.strip_prefix("-----BEGIN ").and_then(|l| l.strip_suffix("-----")) {
            open = Some((label.to_owned(), vec![line]));
            continue;
        }
        let Some((label, mut lines)) = open.take() else {
            continue;
        };
        lines.push(line);
        let end = trimmed.strip_prefix("-----END ").and_then(|l| l.strip_suffix("-----"));
        match end {
            None => open = Some((label, lines)),
            Some(end) if end == label => found.extend(finish(label, &lines)),
            Some(_) => {}
        }
    }
    found
}

fn finish(label: String, lines: &[&str]) -> Option<Block> {
    let inner = &lines[1..lines.len() - 1];
    let headers = inner.iter().any(|l| l.contains(':'));
    let start = if headers { inner.iter().position(|l| l.trim().is_empty()).map(|at| at + 1)? } else { 0 };
    let mut body = String::new();
    for line in &inner[start..] {
        body.push_str(line.trim());
    }
    let der = LENIENT.decode(body).ok()?;
    Some(Block { label, text: lines.join("\n") + "\n", der, headers })
}

/// DER of every certificate in the text, in order.
pub fn certificates(text: &[u8]) -> Vec<Vec<u8>> {
    blocks(text).into_iter().filter(Block::is_certificate).map(|b| b.der).collect()
}

/// A block as text, 64 characters a line.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_their_order_and_type() {
        let cert = encode("CERTIFICATE", &[1; 70]);
        let key = encode("EC PRIVATE KEY", &[2; 5]);
        let text = format!("noise\n{cert}between\r\n{key}-----BEGIN X-----\nAAAA\n-----END Y-----\n-----BEGIN OPEN-----\nAA");
        let found = blocks(text.as_bytes());
        assert_eq!(found.len(), 2);
        assert!(found[0].is_certificate() && found[0].der == [1; 70] && found[0].text == cert);
        assert!(found[1].is_private_key() && found[1].der == [2; 5]);
        assert_eq!(certificates(text.as_bytes()), vec![vec![1; 70]]);
    }

    #[test]
    fn headers_are_noticed() {
        let text = "-----BEGIN CERTIFICATE-----\nProc-Type: 4\n\nAQI=\n-----END CERTIFICATE-----\n";
        let found = blocks(text.as_bytes());
        assert_eq!(found[0].der, [1, 2]);
        assert!(!found[0].is_certificate());
    }
}
