//! QEMU's events, typed where novaferry acts on them (`qapi/*.json`, "Event:" sections).

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::words::{
    ErrorAction, IoOperation, JobStatus, JobType, MigrationStatus, PanicAction, ShutdownCause,
};

/// Something that happened in QEMU.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// When, by the host's clock, since the Unix epoch, in microseconds; `None` if QEMU could not read the clock.
    pub at: Option<Duration>,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum EventKind {
    /// The guest's processors stopped.
    Stop,
    /// The guest's processors run (again).
    Resume,
    /// The guest ends; `guest` tells whether by its own will.
    Shutdown {
        /// Whether the guest itself asked for it.
        guest: bool,
        /// Why.
        reason: ShutdownCause,
    },
    /// The guest was reset.
    Reset {
        /// Whether the guest itself asked for it.
        guest: bool,
        /// Why.
        reason: ShutdownCause,
    },
    /// The power button was pressed for the guest.
    PowerDown,
    /// The migration changed its state. Only with the capability `events`. The machine's own state
    /// ([`Qmp::query_status`](super::Qmp::query_status)) follows a moment later (seen with 10.0.2: still
    /// `finish-migrate` after `completed`).
    Migration(MigrationStatus),
    /// The migration began a pass over the dirty memory; the first is 1. Only with the capability `events`.
    MigrationPass(u64),
    /// A mirror has caught up.
    JobReady(JobProgress),
    /// A job ended: well if there is no `error`. A ready mirror that is cancelled without force ends this way.
    JobCompleted(JobProgress),
    /// A job was cancelled before its end.
    JobCancelled(JobProgress),
    /// A job met an I/O error.
    JobError {
        /// The job.
        device: String,
        /// Which way.
        operation: IoOperation,
        /// What QEMU did about it.
        action: ErrorAction,
    },
    /// A job changed its state.
    JobStatusChange {
        /// The job.
        id: String,
        /// Its new state.
        status: JobStatus,
    },
    /// An export is gone; only now its node is free.
    ExportDeleted {
        /// The export.
        id: String,
    },
    /// The guest's request to a disk failed.
    BlockIoError {
        /// The device; empty for devices made with `-blockdev`.
        device: String,
        /// The block node, if it has a name.
        node_name: Option<String>,
        /// Which way.
        operation: IoOperation,
        /// What QEMU did about it.
        action: ErrorAction,
        /// Whether it failed for lack of room.
        no_space: bool,
        /// The operating system's text.
        reason: String,
    },
    /// The guest's kernel panicked and said so.
    GuestPanicked(PanicAction),
    /// An event that this program does not act on.
    Unknown {
        /// QEMU's name for it.
        name: String,
        /// What came with it; `Null` if nothing did.
        data: Value,
    },
}

/// Where a block job is.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct JobProgress {
    /// What the job does.
    #[serde(rename = "type")]
    pub kind: JobType,
    /// The job's id (QEMU's name for it comes from older days).
    pub device: String,
    /// Bytes to be done in all; grows as the guest writes.
    pub len: u64,
    /// Bytes done.
    pub offset: u64,
    /// Its speed limit in bytes a second; 0 for none.
    pub speed: u64,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// QEMU's timestamp: -1 in both when the clock could not be read (`monitor_qapi_event_emit`, `qobject_from_jsonf`).
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

impl Timestamp {
    fn since_epoch(self) -> Option<Duration> {
        let seconds = Duration::from_secs(u64::try_from(self.seconds).ok()?);
        seconds.checked_add(Duration::from_micros(u64::try_from(self.microseconds).ok()?))
    }
}

#[derive(Deserialize)]
struct Ended {
    guest: bool,
    reason: ShutdownCause,
}

#[derive(Deserialize)]
struct Migration {
    status: MigrationStatus,
}

#[derive(Deserialize)]
struct Pass {
    pass: u64,
}

#[derive(Deserialize)]
struct JobFailure {
    device: String,
    operation: IoOperation,
    action: ErrorAction,
}

#[derive(Deserialize)]
struct Job {
    id: String,
    status: JobStatus,
}

#[derive(Deserialize)]
struct Export {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct IoFailure {
    device: String,
    node_name: Option<String>,
    operation: IoOperation,
    action: ErrorAction,
    #[serde(default)]
    nospace: bool,
    reason: String,
}

#[derive(Deserialize)]
struct Panic {
    action: PanicAction,
}

impl Event {
    /// Types an event. An event that is known but does not have its fields is an error: to drop it could make
    /// somebody wait forever.
    pub(super) fn parse(
        name: String,
        data: Option<Value>,
        timestamp: Timestamp,
    ) -> Result<Self, serde_json::Error> {
        let data = data.unwrap_or(Value::Null);
        let kind = match name.as_str() {
            "STOP" => EventKind::Stop,
            "RESUME" => EventKind::Resume,
            "POWERDOWN" => EventKind::PowerDown,
            "SHUTDOWN" => {
                let Ended { guest, reason } = serde_json::from_value(data)?;
                EventKind::Shutdown { guest, reason }
            }
            "RESET" => {
                let Ended { guest, reason } = serde_json::from_value(data)?;
                EventKind::Reset { guest, reason }
            }
            "MIGRATION" => EventKind::Migration(serde_json::from_value::<Migration>(data)?.status),
            "MIGRATION_PASS" => EventKind::MigrationPass(serde_json::from_value::<Pass>(data)?.pass),
            "BLOCK_JOB_READY" => EventKind::JobReady(serde_json::from_value(data)?),
            "BLOCK_JOB_COMPLETED" => EventKind::JobCompleted(serde_json::from_value(data)?),
            "BLOCK_JOB_CANCELLED" => EventKind::JobCancelled(serde_json::from_value(data)?),
            "BLOCK_JOB_ERROR" => {
                let JobFailure { device, operation, action } = serde_json::from_value(data)?;
                EventKind::JobError { device, operation, action }
            }
            "JOB_STATUS_CHANGE" => {
                let Job { id, status } = serde_json::from_value(data)?;
                EventKind::JobStatusChange { id, status }
            }
            "BLOCK_EXPORT_DELETED" => {
                EventKind::ExportDeleted { id: serde_json::from_value::<Export>(data)?.id }
            }
            "BLOCK_IO_ERROR" => {
                let IoFailure { device, node_name, operation, action, nospace, reason } =
                    serde_json::from_value(data)?;
                EventKind::BlockIoError { device, node_name, operation, action, no_space: nospace, reason }
            }
            "GUEST_PANICKED" => EventKind::GuestPanicked(serde_json::from_value::<Panic>(data)?.action),
            _ => EventKind::Unknown { name, data },
        };
        Ok(Self { at: timestamp.since_epoch(), kind })
    }
}
