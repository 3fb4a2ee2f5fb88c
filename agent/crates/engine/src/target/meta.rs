//! What is known of a volume besides its content, as JSON of version 1 in the sidecar's `meta`.

use reduce::Root;
use serde::{Deserialize, Serialize};
use volume::KeyId;
use wire::{Mode, VolumeFormat};

use super::Request;
use crate::error::EngineError;
use crate::folder::Folder;

/// Whether the volume is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being written; inconsistent.
    Receiving,
    /// Whole and verified.
    Sealed,
}

/// How the volume is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// A qcow2 image.
    Qcow2,
}

impl Format {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl From<VolumeFormat> for Format {
    fn from(format: VolumeFormat) -> Self {
        match format {
            VolumeFormat::Raw => Self::Raw,
            VolumeFormat::Qcow2 => Self::Qcow2,
        }
    }
}

/// What changes when somebody writes to a file. Not the change time, which the rename at sealing moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stamp {
    /// Inode number.
    pub inode: u64,
    /// Length.
    pub size: u64,
    /// Last change of the content, seconds.
    pub modified: i64,
    /// And nanoseconds.
    pub modified_nanos: i64,
}

/// The record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Meta {
    /// Version of this record: 1.
    pub version: u32,
    /// Who may overwrite it.
    pub owner: String,
    /// The session that wrote it last.
    pub session: String,
    /// Fencing number of the last attempt.
    pub generation: u64,
    /// Length in bytes.
    pub size: u64,
    /// Which key its ids were made with.
    pub key_id: String,
    /// How it is stored.
    pub format: Format,
    /// Whether it is whole.
    pub state: State,
    /// The write under way goes over an old copy.
    pub resync: bool,
    /// Root, when sealed.
    pub root: Option<String>,
    /// The file as it was when sealed.
    pub stamp: Option<Stamp>,
    /// Which device it was, for a block device.
    #[serde(default)]
    pub device: Option<String>,
}

impl Meta {
    pub(super) fn new(request: &Request, key_id: KeyId) -> Self {
        Self {
            version: 1,
            owner: request.owner.clone(),
            session: request.session.to_string(),
            generation: 0,
            size: request.size.0,
            key_id: key_id.to_string(),
            format: request.format.into(),
            state: State::Receiving,
            resync: request.mode != Mode::Create,
            root: None,
            stamp: None,
            device: None,
        }
    }

    /// Notes that a session begins to write.
    pub(super) fn begin(&mut self, request: &Request) {
        // Over a sealed copy, or over a re-sync that did not finish, old bytes lie where nothing was written yet.
        self.resync = request.mode != Mode::Create || self.state == State::Sealed || self.resync;
        self.state = State::Receiving;
        self.session = request.session.to_string();
        self.size = request.size.0;
        self.root = None;
        self.stamp = None;
    }

    pub(super) fn seal(&mut self, root: Root, stamp: Option<Stamp>) {
        self.state = State::Sealed;
        self.resync = false;
        self.root = Some(root.to_string());
        self.stamp = stamp;
    }

    /// Reads the record of a sidecar.
    pub fn load(sidecar: &Folder, name: &str) -> Result<Option<Self>, EngineError> {
        let Some(bytes) = sidecar.read(name)? else { return Ok(None) };
        Self::parse(&bytes).map(Some).map_err(|why| {
            EngineError::Corrupt(format!("the metadata in {} is damaged ({why})", sidecar.path().display()))
        })
    }

    /// Reads the record's bytes, or says what is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let meta: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if meta.version != 1 {
            return Err(format!("version {} is unknown", meta.version));
        }
        Ok(meta)
    }

    /// The record's bytes.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("metadata has only strings and numbers")
    }

    pub(super) fn store(&self, sidecar: &Folder, name: &str) -> Result<(), EngineError> {
        sidecar.replace(name, &self.to_json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_or_newer_record_is_refused_and_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let sidecar = Folder::open(folder.path()).unwrap();
        assert_eq!(Meta::load(&sidecar, "meta").unwrap(), None);
        for bad in [&b"{"[..], b"[]", b"\xff"] {
            sidecar.replace("meta", bad).unwrap();
            let error = Meta::load(&sidecar, "meta").unwrap_err().to_string();
            assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
        }
    }
}
