//! Receipts: the signed statement of what a sink durably holds (design rule 2).
//!
//! A receipt is JSON for people and programs; what is signed is a fixed text built from its fields
//! ([`Body::signed_text`]), so that no JSON canonicalisation is needed. The signature is Ed25519 (RFC 8032) by the
//! receiving agent's identity key over a text that starts with its own context line, which no TLS handshake ever signs.

use std::fmt::Write as _;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// Longest receipt that is read, bytes.
pub const MAX_BYTES: usize = 32 << 10;

/// What is no receipt.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReceiptError {
    /// Longer than any receipt of ours.
    #[error("the receipt is longer than any receipt of ours")]
    TooLong,
    /// Not what a receipt is written as.
    #[error("this is no receipt: {0}")]
    Malformed(String),
    /// Of a newer release.
    #[error("the receipt has version {0}, this program knows 1")]
    Version(u32),
}

/// How the content was verified before sealing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verified {
    /// Every chunk by its id when it arrived, the volume by its root.
    Sink,
    /// In addition everything was read back from the target.
    Readback,
}

/// How the volume came about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiptMode {
    /// Copied onto nothing.
    Create,
    /// Re-synced, believing the sealed leaf table.
    ResyncTrusted,
    /// Re-synced, reading both sides.
    ResyncFull,
    /// Mirrored while a guest ran; the root is what both ends had at the instant of the cut-over.
    Live,
    /// Copied in rounds while a guest ran, the last when it was stopped; the root is what both ends had then.
    Warm,
    /// Copied for a VM that was off; the root is what both ends had.
    Cold,
}

/// What is signed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Body {
    /// Version of the receipt format: 1.
    pub version: u32,
    /// The volume: `POOL/NAME`, or the path at the receiver.
    pub volume: String,
    /// Length in bytes.
    pub size: u64,
    /// Merkle root, hexadecimal.
    pub root: String,
    /// Which key the root was computed with.
    pub key_id: String,
    /// Generation in which it was sealed.
    pub generation: u64,
    /// Session that sealed it.
    pub session: String,
    /// How it came about.
    pub mode: ReceiptMode,
    /// How it was verified.
    pub verified: Verified,
    /// Who owns it.
    pub owner: String,
    /// Who holds it and signed.
    pub receiver: String,
    /// When, seconds since the epoch by the receiver's clock.
    pub time: u64,
}

/// A receipt as it is stored and handed out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// What is stated.
    #[serde(flatten)]
    pub body: Body,
    /// Ed25519 signature over [`Body::signed_text`], hexadecimal; empty when the receiver has no identity (a copy
    /// between two local volumes).
    pub signature: String,
    /// The signer's certificate chain, PEM, leaf first.
    pub certificates: String,
}

/// What the receiving agent signs with.
pub struct ReceiptSigner {
    key: SigningKey,
    chain_pem: String,
    name: String,
}

impl std::fmt::Debug for ReceiptSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReceiptSigner({})", self.name)
    }
}

impl ReceiptSigner {
    /// A signer with an identity's key and certificates.
    #[must_use]
    pub fn new(key: SigningKey, chain_pem: String, name: String) -> Self {
        Self { key, chain_pem, name }
    }

    /// The host's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Body {
    /// The text that is signed: a context line, then one `field=value` line each, in this order.
    #[must_use]
    pub fn signed_text(&self) -> String {
        let mut text = String::from("novaferry receipt, to be signed\n");
        let mode = match self.mode {
            ReceiptMode::Create => "create",
            ReceiptMode::ResyncTrusted => "resync-trusted",
            ReceiptMode::ResyncFull => "resync-full",
            ReceiptMode::Live => "live",
            ReceiptMode::Warm => "warm",
            ReceiptMode::Cold => "cold",
        };
        let verified = match self.verified {
            Verified::Sink => "sink",
            Verified::Readback => "readback",
        };
        let numbers = [
            self.version.to_string(),
            self.size.to_string(),
            self.generation.to_string(),
            self.time.to_string(),
        ];
        let [version, size, generation, time] = &numbers;
        for (field, value) in [
            ("version", version.as_str()),
            ("volume", &self.volume),
            ("size", size),
            ("root", &self.root),
            ("key_id", &self.key_id),
            ("generation", generation),
            ("session", &self.session),
            ("mode", mode),
            ("verified", verified),
            ("owner", &self.owner),
            ("receiver", &self.receiver),
            ("time", time),
        ] {
            // Debug form: a line break inside a value cannot forge a line.
            writeln!(text, "{field}={value:?}").expect("writing to a String does not fail");
        }
        text
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a String does not fail");
        out
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (nth, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * nth..2 * nth + 2], 16).ok()?;
    }
    Some(out)
}

impl Receipt {
    /// Signs a statement; without a signer the receipt is unsigned.
    #[must_use]
    pub fn issue(body: Body, signer: Option<&ReceiptSigner>) -> Self {
        match signer {
            Some(signer) => {
                let signature = signer.key.sign(body.signed_text().as_bytes());
                Self { body, signature: hex(&signature.to_bytes()), certificates: signer.chain_pem.clone() }
            }
            None => Self { body, signature: String::new(), certificates: String::new() },
        }
    }

    /// Reads a receipt.
    ///
    /// # Errors
    /// When it is none of ours.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReceiptError> {
        if bytes.len() > MAX_BYTES {
            return Err(ReceiptError::TooLong);
        }
        let receipt: Self =
            serde_json::from_slice(bytes).map_err(|error| ReceiptError::Malformed(error.to_string()))?;
        if receipt.body.version != 1 {
            return Err(ReceiptError::Version(receipt.body.version));
        }
        Ok(receipt)
    }

    /// The receipt as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a receipt has only strings and numbers");
        bytes.push(b'\n');
        bytes
    }

    /// True when the receiver signed it (whether rightly is for [`Self::verify_signature`] to say).
    #[must_use]
    pub fn is_signed(&self) -> bool {
        !self.signature.is_empty()
    }

    /// Checks the signature with the signer's public key, which the caller took from a certificate that it trusts.
    #[must_use]
    pub fn verify_signature(&self, public_key: &[u8; 32]) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(public_key) else { return false };
        let Some(signature) = unhex::<64>(&self.signature) else { return false };
        key.verify_strict(self.body.signed_text().as_bytes(), &Signature::from_bytes(&signature)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Body {
        Body {
            version: 1,
            volume: "fast/web-1".to_owned(),
            size: 1 << 30,
            root: "ab".repeat(32),
            key_id: "cd".repeat(16),
            generation: 3,
            session: "ef".repeat(16),
            mode: ReceiptMode::Create,
            verified: Verified::Sink,
            owner: "host-a".to_owned(),
            receiver: "host-b".to_owned(),
            time: 1_790_000_000,
        }
    }

    #[test]
    fn signed_receipts_verify_and_any_change_is_found() {
        let key = SigningKey::from_bytes(&[5; 32]);
        let public = key.verifying_key().to_bytes();
        let signer = ReceiptSigner::new(key, "-----BEGIN CERTIFICATE-----".to_owned(), "host-b".to_owned());
        let receipt = Receipt::issue(body(), Some(&signer));
        let back = Receipt::parse(&receipt.to_json()).unwrap();
        assert_eq!(back, receipt);
        assert!(back.verify_signature(&public));
        let changes: [fn(&mut Body); 12] = [
            |b| b.version = 2,
            |b| b.volume.push('x'),
            |b| b.size += 1,
            |b| b.root.push('0'),
            |b| b.key_id.push('0'),
            |b| b.generation += 1,
            |b| b.session.push('0'),
            |b| b.mode = ReceiptMode::ResyncFull,
            |b| b.verified = Verified::Readback,
            |b| b.owner = "host-c".to_owned(),
            |b| b.receiver = "host-c".to_owned(),
            |b| b.time += 1,
        ];
        for change in changes {
            let mut forged = receipt.clone();
            change(&mut forged.body);
            assert!(!forged.verify_signature(&public), "{:?}", forged.body);
        }
        assert!(!receipt.verify_signature(&SigningKey::from_bytes(&[6; 32]).verifying_key().to_bytes()));
    }

    #[test]
    fn what_is_signed_is_fixed() {
        let text =
            "novaferry receipt, to be signed\nversion=\"1\"\nvolume=\"fast/web-1\"\nsize=\"1073741824\"\n";
        assert!(body().signed_text().starts_with(text), "{}", body().signed_text());
        let words = [
            (ReceiptMode::Create, "create"),
            (ReceiptMode::ResyncTrusted, "resync-trusted"),
            (ReceiptMode::ResyncFull, "resync-full"),
            (ReceiptMode::Live, "live"),
            (ReceiptMode::Warm, "warm"),
            (ReceiptMode::Cold, "cold"),
        ];
        for (mode, word) in words {
            let text = Body { mode, ..body() }.signed_text();
            assert!(text.contains(&format!("\nmode={word:?}\nverified=\"sink\"\n")), "{text}");
            assert_eq!(serde_json::to_value(mode).unwrap(), word);
        }
        let readback = Body { verified: Verified::Readback, ..body() };
        assert!(readback.signed_text().contains("\nverified=\"readback\"\n"));
    }

    #[test]
    fn what_is_no_receipt_of_ours_is_refused() {
        let unsigned = Receipt::issue(body(), None);
        assert!(!unsigned.is_signed() && !unsigned.verify_signature(&[0; 32]));
        assert_eq!(Receipt::parse(&unsigned.to_json()).unwrap(), unsigned);
        let refused = |bytes: &[u8]| Receipt::parse(bytes).unwrap_err().to_string();
        assert!(refused(b"{}").contains("no receipt"));
        assert!(refused(&vec![b' '; MAX_BYTES + 1]).contains("longer"));
        let newer = Receipt { body: Body { version: 2, ..body() }, ..unsigned };
        assert!(refused(&newer.to_json()).contains("version 2"));
        let signer = ReceiptSigner::new(SigningKey::from_bytes(&[5; 32]), String::new(), "host-b".to_owned());
        assert_eq!((signer.name(), format!("{signer:?}").as_str()), ("host-b", "ReceiptSigner(host-b)"));
        let public = SigningKey::from_bytes(&[5; 32]).verifying_key().to_bytes();
        let signed = Receipt::issue(body(), Some(&signer));
        assert!(signed.is_signed() && signed.verify_signature(&public));
        for signature in ["", "zz", &"z".repeat(128), &"é".repeat(64), &signed.signature[2..]] {
            assert!(!Receipt { signature: signature.to_owned(), ..signed.clone() }.verify_signature(&public));
        }
    }

    #[test]
    fn a_line_break_in_a_value_cannot_stand_for_another_field() {
        let mut forged = body();
        forged.volume = "a\nsize=\"5\"".to_owned();
        assert!(!forged.signed_text().contains("\nsize=\"5\""));
    }
}
