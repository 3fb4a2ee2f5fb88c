//! QEMU's enumerations as Rust's. Newer versions of QEMU add words, so every one of them has `Unknown`, which keeps
//! the word: nothing is lost or guessed. Spelling and meaning: QEMU's `qapi/*.json`.

/// An enumeration of words that is open at its end.
macro_rules! open_enum {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, Debug)]
        #[expect(missing_docs, reason = "each variant is QEMU's word of that name")]
        pub enum $name {
            $($variant,)+
            /// A word that this program does not know.
            Unknown(String),
        }

        impl $name {
            /// QEMU's word.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)+
                    Self::Unknown(word) => word,
                }
            }
        }

        impl From<String> for $name {
            fn from(word: String) -> Self {
                match word.as_str() {
                    $($word => Self::$variant,)+
                    _ => Self::Unknown(word),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&crate::qmp::error::printable(self.as_str()))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer).map(Self::from)
            }
        }
    };
}

open_enum! {
    /// Class of an error answer (`qapi/error.json`, `QapiErrorClass`).
    ErrorClass {
        Generic = "GenericError",
        CommandNotFound = "CommandNotFound",
        DeviceNotActive = "DeviceNotActive",
        DeviceNotFound = "DeviceNotFound",
        KvmMissingCapability = "KVMMissingCap",
    }
}

open_enum! {
    /// State of the virtual machine (`qapi/run-state.json`, `RunState`).
    RunState {
        Debug = "debug",
        InMigrate = "inmigrate",
        InternalError = "internal-error",
        IoError = "io-error",
        Paused = "paused",
        PostMigrate = "postmigrate",
        PreLaunch = "prelaunch",
        FinishMigrate = "finish-migrate",
        RestoreVm = "restore-vm",
        Running = "running",
        SaveVm = "save-vm",
        Shutdown = "shutdown",
        Suspended = "suspended",
        Watchdog = "watchdog",
        GuestPanicked = "guest-panicked",
        Colo = "colo",
    }
}

open_enum! {
    /// State of a migration (`qapi/migration.json`, `MigrationStatus`).
    MigrationStatus {
        None = "none",
        Setup = "setup",
        Cancelling = "cancelling",
        Cancelled = "cancelled",
        Active = "active",
        PostcopyActive = "postcopy-active",
        PostcopyPaused = "postcopy-paused",
        PostcopyRecoverSetup = "postcopy-recover-setup",
        PostcopyRecover = "postcopy-recover",
        Completed = "completed",
        Failed = "failed",
        Colo = "colo",
        PreSwitchover = "pre-switchover",
        Device = "device",
        WaitUnplug = "wait-unplug",
    }
}

impl MigrationStatus {
    /// Whether the migration is over, however it ended. An unknown state is not.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

open_enum! {
    /// What a migration can be told to do (`qapi/migration.json`, `MigrationCapability`).
    MigrationCapability {
        Xbzrle = "xbzrle",
        AutoConverge = "auto-converge",
        Events = "events",
        PostcopyRam = "postcopy-ram",
        ReleaseRam = "release-ram",
        ReturnPath = "return-path",
        PauseBeforeSwitchover = "pause-before-switchover",
        Multifd = "multifd",
        DirtyBitmaps = "dirty-bitmaps",
        PostcopyBlocktime = "postcopy-blocktime",
        LateBlockActivate = "late-block-activate",
        ValidateUuid = "validate-uuid",
        ZeroCopySend = "zero-copy-send",
        PostcopyPreempt = "postcopy-preempt",
        SwitchoverAck = "switchover-ack",
        DirtyLimit = "dirty-limit",
        MappedRam = "mapped-ram",
    }
}

open_enum! {
    /// How multifd compresses (`qapi/migration.json`, `MultiFDCompression`).
    MultifdCompression {
        None = "none",
        Zlib = "zlib",
        Zstd = "zstd",
    }
}

open_enum! {
    /// Who finds zero pages (`qapi/migration.json`, `ZeroPageDetection`; QEMU 9.0 and later).
    ZeroPageDetection {
        None = "none",
        Legacy = "legacy",
        Multifd = "multifd",
    }
}

open_enum! {
    /// State of a dirty-rate measurement (`qapi/migration.json`, `DirtyRateStatus`).
    DirtyRateStatus {
        Unstarted = "unstarted",
        Measuring = "measuring",
        Measured = "measured",
    }
}

open_enum! {
    /// How the dirty rate is measured (`qapi/migration.json`, `DirtyRateMeasureMode`).
    DirtyRateMode {
        PageSampling = "page-sampling",
        DirtyRing = "dirty-ring",
        DirtyBitmap = "dirty-bitmap",
    }
}

open_enum! {
    /// State of a background job (`qapi/job.json`, `JobStatus`).
    JobStatus {
        Undefined = "undefined",
        Created = "created",
        Running = "running",
        Paused = "paused",
        Ready = "ready",
        Standby = "standby",
        Waiting = "waiting",
        Pending = "pending",
        Aborting = "aborting",
        Concluded = "concluded",
        Null = "null",
    }
}

open_enum! {
    /// What a block job does (`qapi/job.json`, `JobType`).
    JobType {
        Commit = "commit",
        Stream = "stream",
        Mirror = "mirror",
        Backup = "backup",
    }
}

open_enum! {
    /// What a copy job copies (`qapi/block-core.json`, `MirrorSyncMode`).
    SyncMode {
        Top = "top",
        Full = "full",
        None = "none",
        Incremental = "incremental",
        Bitmap = "bitmap",
    }
}

open_enum! {
    /// When a mirror writes to its target (`qapi/block-core.json`, `MirrorCopyMode`).
    CopyMode {
        Background = "background",
        WriteBlocking = "write-blocking",
    }
}

open_enum! {
    /// What a job does about an I/O error (`qapi/block-core.json`, `BlockdevOnError`).
    OnError {
        Report = "report",
        Ignore = "ignore",
        NoSpace = "enospc",
        Stop = "stop",
        Auto = "auto",
    }
}

open_enum! {
    /// What QEMU did about an I/O error (`qapi/block-core.json`, `BlockErrorAction`).
    ErrorAction {
        Ignore = "ignore",
        Report = "report",
        Stop = "stop",
    }
}

open_enum! {
    /// Direction of a failed request (`qapi/block-core.json`, `IoOperationType`).
    IoOperation {
        Read = "read",
        Write = "write",
    }
}

open_enum! {
    /// How far a job's device is from failing (`qapi/block-core.json`, `BlockDeviceIoStatus`).
    IoStatus {
        Ok = "ok",
        Failed = "failed",
        NoSpace = "nospace",
    }
}

open_enum! {
    /// Why a guest stopped or was reset (`qapi/run-state.json`, `ShutdownCause`).
    ShutdownCause {
        None = "none",
        HostError = "host-error",
        HostQmpQuit = "host-qmp-quit",
        HostQmpSystemReset = "host-qmp-system-reset",
        HostSignal = "host-signal",
        HostUi = "host-ui",
        GuestShutdown = "guest-shutdown",
        GuestReset = "guest-reset",
        GuestPanic = "guest-panic",
        SubsystemReset = "subsystem-reset",
        SnapshotLoad = "snapshot-load",
    }
}

open_enum! {
    /// What QEMU did when the guest panicked (`qapi/run-state.json`, `GuestPanicAction`).
    PanicAction {
        Pause = "pause",
        PowerOff = "poweroff",
        Run = "run",
    }
}

open_enum! {
    /// How a CPU model is spelled out (`qapi/machine-target.json`, `CpuModelExpansionType`).
    CpuExpansion {
        Static = "static",
        Full = "full",
    }
}

open_enum! {
    /// Whether a removed export waits for its clients (`qapi/block-export.json`, `BlockExportRemoveMode`).
    ExportRemoval {
        Safe = "safe",
        Hard = "hard",
    }
}

open_enum! {
    /// Whether the guest's file systems are frozen (QEMU `qga/qapi-schema.json`, `GuestFsfreezeStatus`).
    FreezeStatus {
        Thawed = "thawed",
        Frozen = "frozen",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_known_or_not() {
        for word in ["pre-switchover", "active", "a-state-of-2031", ""] {
            let status: MigrationStatus = serde_json::from_value(word.into()).unwrap();
            assert_eq!(status.as_str(), word);
            assert_eq!(serde_json::to_value(&status).unwrap(), serde_json::Value::from(word));
        }
        assert_eq!(MigrationStatus::from("postcopy-paused".to_owned()), MigrationStatus::PostcopyPaused);
        assert_eq!(RunState::from("x\n".to_owned()), RunState::Unknown("x\n".to_owned()));
        assert_eq!(RunState::Unknown("a\nb".to_owned()).to_string(), "a b");
    }
}
