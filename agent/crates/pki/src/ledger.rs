//! What a CA did, one JSON object a line, appended durably before the effect it describes.
//!
//! So a certificate that exists anywhere is in the ledger and can be revoked, and a CRL number is never used twice.
//! A last line without its newline is what a crash left of an append that had no effect yet: it is cut off.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::{PkiError, PkiErrorKind};
use super::files;
use super::name::PeerName;

/// Largest ledger that is read: about 200,000 entries.
const MAX_LEDGER: u64 = 64 << 20;

/// A certificate's serial number: 128 bits from the kernel's generator of which the first two are fixed to 01, so
/// that the DER integer is positive and always 16 bytes long. 126 random bits are left (RFC 5280 asks for
/// uniqueness; the CA/Browser Forum for at least 64 random bits).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Serial(pub [u8; 16]);

impl Serial {
    /// A number that no other certificate has: 126 random bits.
    ///
    /// # Errors
    /// [`PkiErrorKind::Io`] when the kernel gives no random numbers.
    pub fn random() -> Result<Self, PkiError> {
        let mut bytes = [0; 16];
        files::fill_random(&mut bytes)?;
        bytes[0] = bytes[0] & 0x3f | 0x40;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Serial {
    type Err = PkiError;
    /// Takes 32 hexadecimal digits in either case, with or without the colons that openssl prints.
    fn from_str(text: &str) -> Result<Self, PkiError> {
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        let invalid = || {
            PkiError::new(
                PkiErrorKind::Invalid,
                format!("{:?} is not a serial number", text.chars().take(64).collect::<String>()),
                "write 32 hexadecimal digits, as `pki show` and the ledger print them",
            )
        };
        if digits.len() != 32 || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        u128::from_str_radix(&digits, 16)
            .map(|number| Self(number.to_be_bytes()))
            .map_err(|error| invalid().caused_by(error))
    }
}

impl Serialize for Serial {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Serial {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// RFC 3339 in UTC with whole seconds, as `2026-01-31T12:00:00Z`.
pub(super) mod moment {
    use super::*;
    use serde::de::Error as _;

    pub(crate) fn text(time: SystemTime) -> String {
        let time = OffsetDateTime::from(time);
        let seconds = time.replace_nanosecond(0).unwrap_or(time);
        // Years beyond 9999 cannot be written; X.509 does not have them either.
        seconds.format(&Rfc3339).unwrap_or_else(|_| seconds.unix_timestamp().to_string())
    }

    pub(crate) fn serialize<S: serde::Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&text(*time))
    }

    pub(crate) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        OffsetDateTime::parse(&text, &Rfc3339).map(SystemTime::from).map_err(D::Error::custom)
    }
}

/// One line of the ledger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase", deny_unknown_fields)]
pub enum Entry {
    /// A certificate was about to be signed.
    Issued {
        /// When.
        #[serde(with = "moment")]
        time: SystemTime,
        /// For which host.
        name: PeerName,
        /// Its serial number.
        serial: Serial,
        /// End of its validity.
        #[serde(with = "moment")]
        not_after: SystemTime,
    },
    /// A certificate was revoked.
    Revoked {
        /// When.
        #[serde(with = "moment")]
        time: SystemTime,
        /// Of which host.
        name: PeerName,
        /// Its serial number.
        serial: Serial,
    },
    /// A revocation list was about to be signed.
    Crl {
        /// When.
        #[serde(with = "moment")]
        time: SystemTime,
        /// Its number, higher than every earlier one.
        number: u64,
        /// When the next one is due.
        #[serde(with = "moment")]
        next_update: SystemTime,
    },
}

/// The open ledger. Holding it excludes every other process from the CA (advisory lock).
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
}

impl Ledger {
    /// Makes an empty ledger; fails when there is one.
    pub(super) fn create(path: &Path) -> Result<(), PkiError> {
        files::write_new(path, b"", files::PRIVATE)
    }

    /// Opens, locks and reads a ledger.
    pub(super) fn open(path: &Path) -> Result<Self, PkiError> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .mode(files::PRIVATE)
            .open(path)
            .map_err(|error| PkiError::io("open ledger", path, error))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            PkiError::new(
                PkiErrorKind::Busy,
                format!("the CA of {} is in use by another command", path.display()),
                "wait until it has finished and run this one again",
            )
            .caused_by(std::io::Error::from(error))
        })?;
        let mut bytes = Vec::new();
        (&mut file)
            .take(MAX_LEDGER + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| PkiError::io("read ledger", path, error))?;
        if bytes.len() as u64 > MAX_LEDGER {
            return Err(PkiError::malformed(path, "a ledger of a size that this agent writes"));
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(|error| PkiError::io("repair ledger", path, error))?;
            file.seek(SeekFrom::End(0)).map_err(|error| PkiError::io("repair ledger", path, error))?;
        }
        let mut entries = Vec::new();
        for (index, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let entry = serde_json::from_slice(line).map_err(|error| {
                PkiError::new(
                    PkiErrorKind::Malformed,
                    format!("line {} of the ledger {} cannot be read", index + 1, path.display()),
                    "restore the ledger from a backup: without it, revocations would be forgotten",
                )
                .caused_by(error)
            })?;
            entries.push(entry);
        }
        Ok(Self { path: path.to_owned(), file, entries })
    }

    /// All entries, oldest first.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Appends one entry durably.
    pub(super) fn append(&mut self, entry: Entry) -> Result<(), PkiError> {
        let mut line = serde_json::to_vec(&entry).map_err(|error| {
            PkiError::new(PkiErrorKind::Invalid, "a ledger entry cannot be written", "report this as a bug")
                .caused_by(error)
        })?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.sync_all())
            .map_err(|error| PkiError::io("append to ledger", &self.path, error))?;
        self.entries.push(entry);
        Ok(())
    }

    /// Whether a serial was revoked.
    pub(super) fn is_revoked(&self, wanted: Serial) -> bool {
        self.entries.iter().any(|entry| matches!(entry, Entry::Revoked { serial, .. } if *serial == wanted))
    }

    /// Certificates that are neither revoked nor expired at `now`.
    pub(super) fn live(&self, now: SystemTime) -> impl Iterator<Item = (&PeerName, Serial)> {
        self.entries.iter().filter_map(move |entry| match entry {
            Entry::Issued { name, serial, not_after, .. }
                if *not_after > now && !self.is_revoked(*serial) =>
            {
                Some((name, *serial))
            }
            _ => None,
        })
    }

    /// The number that the next revocation list gets.
    pub(super) fn next_crl_number(&self) -> u64 {
        let number = |entry: &Entry| match entry {
            Entry::Crl { number, .. } => Some(*number),
            _ => None,
        };
        self.entries.iter().filter_map(number).max().unwrap_or(0).saturating_add(1)
    }
}
