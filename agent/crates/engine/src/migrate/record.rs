//! What a host remembers of its migrations: one folder each, with a record that is replaced as a whole. It is what
//! tells the truth after a restart.
//!
//! ```text
//! STATE/migrations/ID/record     JSON, see [`Record`]
//! STATE/migrations/ID/receipts   the receipts of the cut-over, as the destination signed them; there once it has
//!                                said that the VM is its own
//! STATE/generations/VM           the newest generation of a VM that this host has seen, decimal
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize};
use session::cutover::{DestinationState, SourceState};
use volume::{Generation, SessionId};

use super::cutover::Cutover;
use super::destination::Sealed;
use super::message::DiskRoot;
use super::mode::Mode;
use super::report::Report;
use crate::error::EngineError;
use crate::folder::Folder;

/// Version of the records.
const VERSION: u32 = 1;
const RECORD: &str = "record";
const RECEIPTS: &str = "receipts";
/// Migrations that are kept after they ended; older ones are forgotten.
const KEPT: usize = 256;

/// One migration at one host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The migration.
    pub migration: String,
    /// The VM's id.
    pub vm: String,
    /// The other host.
    pub peer: String,
    /// How the VM is moved.
    #[serde(default)]
    pub mode: Mode,
    /// At the source: when it may switch over.
    #[serde(default, skip_serializing_if = "Cutover::is_now")]
    pub cutover: Cutover,
    /// At the destination: the guest's memory may follow while it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub postcopy: bool,
    /// Fencing number of the VM; 0 at the source until the destination gave one.
    pub generation: u64,
    /// When it began, seconds since 1970.
    pub began: u64,
    /// When the record last changed, seconds since 1970.
    pub changed: u64,
    /// Which end this is, and where it stands.
    pub role: Role,
    /// What it came to, as far as it is known.
    pub report: Report,
    /// At the source, from the cut-over on: what its disks were then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<DiskRoot>,
    /// At the destination, from the permit on: what its receipts state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
}

/// Which end of a migration.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The VM leaves this host.
    Source {
        /// Where it stands.
        state: SourceState,
        /// `HOST:PORT` of the destination.
        address: String,
        /// More of them, the best first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        alternates: Vec<String>,
        /// The VM's QMP socket here.
        qmp: String,
        /// The VM's folder here, if NovaCron's layout has one.
        folder: Option<String>,
        /// The guest's process here: id and start time (`/proc/PID/stat`, field 22).
        process: Option<(u32, u64)>,
        /// A fence was begun: it must be lifted before the guest runs here again.
        fenced: bool,
        /// The guest was paused before the migration, and stays so when it is undone.
        was_paused: bool,
    },
    /// The VM comes to this host.
    Destination {
        /// Where it stands.
        state: DestinationState,
        /// Files that were made for its disks.
        disks: Vec<String>,
    },
}

impl Record {
    /// A new record.
    #[must_use]
    pub fn new(migration: SessionId, vm: &str, peer: &str, role: Role) -> Self {
        let now = now();
        Self {
            version: VERSION,
            migration: migration.to_string(),
            vm: vm.to_owned(),
            peer: peer.to_owned(),
            mode: Mode::default(),
            cutover: Cutover::Now,
            postcopy: false,
            generation: 0,
            began: now,
            changed: now,
            role,
            report: Report::default(),
            roots: Vec::new(),
            sealed: None,
        }
    }

    /// The state's name.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        match &self.role {
            Role::Source { state, .. } => state.name(),
            Role::Destination { state, .. } => state.name(),
        }
    }

    /// Whether nothing will happen any more without an operator.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match &self.role {
            Role::Source { state, .. } => state.is_final(),
            Role::Destination { state, .. } => state.is_final(),
        }
    }
}

pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// All records of this host.
#[derive(Clone, Debug)]
pub struct Records {
    migrations: Folder,
    generations: Folder,
}

impl Records {
    /// Opens the records in a state folder.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(state: &Path) -> Result<Self, EngineError> {
        let state = Folder::open_or_create(state)?;
        Ok(Self {
            migrations: state.make_folder("migrations")?,
            generations: state.make_folder("generations")?,
        })
    }

    /// The folder of one migration, made when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, migration: SessionId) -> Result<Folder, EngineError> {
        self.migrations.make_folder(&migration.to_string())
    }

    /// Writes a record durably.
    ///
    /// # Errors
    /// When it cannot be written: then nothing may be done that relies on it.
    pub fn save(&self, record: &mut Record) -> Result<(), EngineError> {
        record.changed = now();
        let text = serde_json::to_vec_pretty(record).map_err(|error| {
            EngineError::Corrupt(format!("a migration's record cannot be written: {error}"))
        })?;
        self.migrations.make_folder(&record.migration)?.replace(RECORD, &text)
    }

    /// One record.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load(&self, migration: SessionId) -> Result<Option<Record>, EngineError> {
        let name = migration.to_string();
        if !self.migrations.has(&name)? {
            return Ok(None);
        }
        self.read(&name)
    }

    fn read(&self, name: &str) -> Result<Option<Record>, EngineError> {
        let folder = self.migrations.folder(name)?;
        let Some(bytes) = folder.read(RECORD)? else { return Ok(None) };
        let damaged =
            |why: String| EngineError::Corrupt(format!("{}: {why}", folder.path().join(RECORD).display()));
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if record.version != VERSION {
            return Err(damaged(format!("version {} is not known", record.version)));
        }
        Ok(Some(record))
    }

    /// All records, newest first. Damaged ones are named in the log and left out.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn all(&self) -> Result<Vec<Record>, EngineError> {
        let mut records = Vec::new();
        for name in self.migrations.folders()? {
            match self.read(&name) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => {}
                Err(error) => tracing::error!(error = %error.chain(), "a migration's record is passed over"),
            }
        }
        records.sort_by(|a, b| b.began.cmp(&a.began).then_with(|| a.migration.cmp(&b.migration)));
        Ok(records)
    }

    /// Keeps the receipts that the destination gave: the end of a migration at its source.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn keep_receipts(&self, migration: SessionId, text: &str) -> Result<(), EngineError> {
        self.folder(migration)?.replace(RECEIPTS, text.as_bytes())
    }

    /// Whether the destination has said that the VM is its own. Until then a source that gave its copy up goes on
    /// telling it.
    ///
    /// # Errors
    /// When the folder cannot be looked at.
    pub fn is_acknowledged(&self, record: &Record) -> Result<bool, EngineError> {
        self.migrations.folder(&record.migration)?.has(RECEIPTS)
    }

    /// Removes the oldest ended migrations beyond those that are kept.
    ///
    /// # Errors
    /// When a folder cannot be removed.
    pub fn forget_old(&self) -> Result<(), EngineError> {
        for record in self.all()?.into_iter().filter(Record::is_final).skip(KEPT) {
            self.migrations.folder(&record.migration)?.clear(&[RECORD, RECEIPTS])?;
        }
        Ok(())
    }

    /// The newest generation of a VM that this host has seen; 0 for none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn generation(&self, vm: &str) -> Result<Generation, EngineError> {
        let Some(bytes) = self.generations.read(vm)? else { return Ok(Generation(0)) };
        let text = String::from_utf8_lossy(&bytes);
        let number = text.trim().parse().map_err(|error| {
            EngineError::Corrupt(format!("the generation of VM {vm} is damaged: {error}"))
        })?;
        Ok(Generation(number))
    }

    /// Makes a VM's generation durable. One that is not newer changes nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn raise_generation(&self, vm: &str, to: Generation) -> Result<(), EngineError> {
        if self.generation(vm)? < to {
            self.generations.replace(vm, format!("{}\n", to.0).as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_generations_last() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path()).unwrap();
        let id = SessionId([7; 16]);
        assert!(records.load(id).unwrap().is_none());
        let role = Role::Destination {
            state: DestinationState::Waiting { complete: false },
            disks: vec!["/srv/a".to_owned()],
        };
        let mut record = Record::new(id, "vm-1", "host-a", role);
        let sealed = r#"{"pool":"p","key_id":"k","readback":true,"time":7,
            "disks":[{"id":"d","size":512,"root":"ab"}]}"#;
        record.sealed = Some(serde_json::from_str(sealed).unwrap());
        records.save(&mut record).unwrap();
        let again = Records::open(folder.path()).unwrap();
        assert_eq!(again.load(id).unwrap(), Some(record.clone()));
        assert_eq!(again.all().unwrap(), [record]);
        assert_eq!(again.generation("vm-1").unwrap(), Generation(0));
        again.raise_generation("vm-1", Generation(5)).unwrap();
        again.raise_generation("vm-1", Generation(3)).unwrap();
        assert_eq!(records.generation("vm-1").unwrap(), Generation(5));
        std::fs::write(folder.path().join("migrations").join(id.to_string()).join("record"), "{").unwrap();
        assert!(records.load(id).is_err());
        assert_eq!(records.all().unwrap(), []);
    }
}
