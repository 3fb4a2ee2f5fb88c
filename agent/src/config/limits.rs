//! `[limits]`: bounds of everything that peers can make the agent use.

use super::error::ConfigError;
use super::file::FileLimits;
use super::units::{ByteSize, Rate};

const MIB: u64 = 1 << 20;

/// Sessions at once: at the default memory of each, what the default total allows twice over; the rest wait.
const SESSIONS: u32 = 64;
/// Sessions of one peer: a quarter of all, so that one peer cannot shut the others out.
const SESSIONS_PER_PEER: u32 = 16;
/// Buffers of one session: 64 MiB hold 256 reads of 256 KiB, or a gigabit link's 500 ms.
const SESSION_MEMORY: ByteSize = ByteSize(64 * MIB);
/// Least buffers of one session: below, one batch of 1 MiB a stage does not fit through the pipeline.
const LEAST_SESSION_MEMORY: ByteSize = ByteSize(16 * MIB);
/// Buffers of all sessions: 32 sessions with all they may have. Guessed for hosts with 64 GiB and more.
const TOTAL_MEMORY: ByteSize = ByteSize(2048 * MIB);
/// Memory of one session's table of known chunks: about a million chunks of 64 KiB, which is 64 GiB of data.
const DEDUP_MEMORY: ByteSize = ByteSize(64 * MIB);
/// Least memory of that table: smaller ones find too little to be worth their cost.
const LEAST_DEDUP_MEMORY: ByteSize = ByteSize(MIB);
/// Slowest rate that can be asked for: below, keep-alives and acknowledgements take most of it.
const LEAST_RATE: Rate = Rate::from_bytes_per_second(100_000 / 8);

/// Migrations at once, both ways: each reads or writes a VM's disks and memory as fast as the link.
const MIGRATIONS: u32 = 4;

/// Bounds of what peers can make the agent use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Sessions at once, of all peers.
    pub sessions: u32,
    /// Sessions at once, of one peer.
    pub sessions_per_peer: u32,
    /// Buffers of one session.
    pub session_memory: ByteSize,
    /// Buffers of all sessions together.
    pub total_memory: ByteSize,
    /// Memory of one session's table of known chunks; `None` when dedup is off (`dedup_memory = "0"`).
    pub dedup_memory: Option<ByteSize>,
    /// Rate of each session, both directions together; `None` for as fast as the link.
    pub rate: Option<Rate>,
    /// Migrations that move data at once, of both directions together.
    pub migrations: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: SESSIONS,
            sessions_per_peer: SESSIONS_PER_PEER,
            session_memory: SESSION_MEMORY,
            total_memory: TOTAL_MEMORY,
            dedup_memory: Some(DEDUP_MEMORY),
            rate: None,
            migrations: MIGRATIONS,
        }
    }
}

impl Limits {
    pub(super) fn from_file(file: FileLimits) -> Result<Self, ConfigError> {
        let FileLimits {
            sessions,
            sessions_per_peer,
            session_memory,
            total_memory,
            dedup_memory,
            rate,
            migrations,
        } = file;
        let sessions = sessions.unwrap_or(SESSIONS);
        if sessions == 0 {
            return Err(ConfigError::value(
                "limits.sessions",
                "0",
                format!("write 1 or more, such as {SESSIONS}"),
            ));
        }
        // A default must not contradict what was written for another key.
        let sessions_per_peer = sessions_per_peer.unwrap_or_else(|| SESSIONS_PER_PEER.min(sessions));
        if sessions_per_peer == 0 || sessions_per_peer > sessions {
            return Err(ConfigError::value(
                "limits.sessions_per_peer",
                &sessions_per_peer.to_string(),
                format!("write 1 to {sessions} (limits.sessions)"),
            ));
        }
        let session_memory =
            super::byte_size("limits.session_memory", session_memory, SESSION_MEMORY, LEAST_SESSION_MEMORY)?;
        let total_memory = super::byte_size(
            "limits.total_memory",
            total_memory,
            TOTAL_MEMORY.max(session_memory),
            session_memory,
        )?;
        let dedup_memory = match dedup_memory {
            Some(ByteSize(0)) => None,
            other => Some(super::byte_size("limits.dedup_memory", other, DEDUP_MEMORY, LEAST_DEDUP_MEMORY)?),
        };
        if let Some(rate) = rate.filter(|rate| *rate < LEAST_RATE) {
            return Err(ConfigError::value(
                "limits.rate",
                &rate.to_string(),
                format!("write {LEAST_RATE} or more, or remove the key for no limit"),
            ));
        }
        let migrations = migrations.unwrap_or(MIGRATIONS);
        if migrations == 0 {
            let advice =
                format!("write 1 or more, such as {MIGRATIONS}; [migrate_in] allow says who may come");
            return Err(ConfigError::value("limits.migrations", "0", advice));
        }
        Ok(Self { sessions, sessions_per_peer, session_memory, total_memory, dedup_memory, rate, migrations })
    }
}
