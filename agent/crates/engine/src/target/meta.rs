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
    use volume::{ByteLen, Generation, SessionId};

    use super::*;

    fn request(session: u8, mode: Mode) -> Request {
        Request {
            owner: "host-a".to_owned(),
            session: SessionId([session; 16]),
            mode,
            format: VolumeFormat::Qcow2,
            size: ByteLen(4096),
            generation: Generation(0),
            remembered_key: KeyId([0; 16]),
        }
    }

    #[test]
    fn a_record_tells_what_lies_in_the_file() {
        let new = Meta::new(&request(1, Mode::Create), KeyId([7; 16]));
        assert_eq!((new.state, new.resync, new.format), (State::Receiving, false, Format::Qcow2));
        let mut meta = new.clone();
        meta.begin(&request(2, Mode::Create));
        assert_eq!(
            (meta.resync, meta.session.as_str()),
            (false, "02".repeat(16).as_str()),
            "still nothing old"
        );
        let stamp = Stamp { inode: 5, size: 4096, modified: 1, modified_nanos: 2 };
        meta.seal(Root([9; 32]), Some(stamp));
        assert_eq!((meta.state, meta.resync, meta.stamp), (State::Sealed, false, Some(stamp)));
        assert_eq!(meta.root.as_deref(), Some("09".repeat(32).as_str()));
        assert_eq!(Meta::parse(&meta.to_json()).unwrap(), meta);
        // Over a sealed copy there are old bytes, also for those who come after one that did not finish.
        meta.begin(&request(3, Mode::Create));
        assert_eq!((meta.state, meta.resync, meta.root.is_none()), (State::Receiving, true, true));
        meta.begin(&request(4, Mode::Create));
        assert!(meta.resync);
        assert!(Meta::new(&request(1, Mode::ResyncFull), KeyId([7; 16])).resync);
        assert_eq!(Format::from(VolumeFormat::Raw).as_str(), "raw");
        assert_eq!(Format::Qcow2.as_str(), "qcow2");
    }

    #[test]
    fn records_of_this_version_are_read_as_they_were_written() {
        let text = r#"{"version":1,"owner":"host-a","session":"s","generation":3,"size":4096,"key_id":"k",
            "format":"raw","state":"sealed","resync":false,"root":"r",
            "stamp":{"inode":5,"size":4096,"modified":1,"modified_nanos":2}}"#;
        let meta = Meta::parse(text.as_bytes()).unwrap();
        assert_eq!((meta.generation, meta.format, meta.state), (3, Format::Raw, State::Sealed));
        assert_eq!((meta.root.as_deref(), meta.device), (Some("r"), None));
        let newer = text.replace("\"version\":1", "\"version\":2");
        assert_eq!(Meta::parse(newer.as_bytes()).unwrap_err(), "version 2 is unknown");
    }

    #[test]
    fn a_damaged_or_newer_record_is_refused_and_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let sidecar = Folder::open(folder.path()).unwrap();
        assert_eq!(Meta::load(&sidecar, "meta").unwrap(), None);
        let meta = Meta::new(&request(1, Mode::Create), KeyId([7; 16]));
        meta.store(&sidecar, "meta").unwrap();
        assert_eq!(Meta::load(&sidecar, "meta").unwrap(), Some(meta));
        for bad in [&b"{"[..], b"[]", b"\xff"] {
            sidecar.replace("meta", bad).unwrap();
            let error = Meta::load(&sidecar, "meta").unwrap_err().to_string();
            assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
        }
    }
}
