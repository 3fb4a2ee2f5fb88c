//! Migration of memory and devices (`qapi/migration.json`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::words::{
    DirtyRateMode, DirtyRateStatus, MigrationCapability, MigrationStatus, MultifdCompression,
    ZeroPageDetection,
};
use super::{MonitorError, Qmp};

/// `query-migrate`. Times are in milliseconds.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationInfo {
    /// Where it is; `None` if there was none yet.
    pub status: Option<MigrationStatus>,
    /// Memory.
    pub ram: Option<Ram>,
    /// Since the start; with the end it stands still.
    pub total_time: Option<u64>,
    /// How long the guest stood still, by QEMU's own clock; at the end only.
    pub downtime: Option<u64>,
    /// How long it would stand still now.
    pub expected_downtime: Option<u64>,
    /// Spent before the first page.
    pub setup_time: Option<u64>,
    /// How much auto-converge takes from the processors, in percent.
    pub cpu_throttle_percentage: Option<u64>,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// Why it cannot be migrated (devices say so).
    pub blocked_reasons: Option<Vec<String>>,
}

/// Memory's part of `query-migrate` (`MigrationRAMInfo`): bytes and pages since the start of the migration.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Ram {
    /// Bytes sent.
    pub transferred: u64,
    /// Bytes that are yet to be sent, as far as is known.
    pub remaining: u64,
    /// Bytes of the guest's memory.
    pub total: u64,
    /// Pages that were zero.
    pub duplicate: u64,
    /// Pages that were sent whole.
    pub normal: u64,
    /// The same in bytes.
    pub normal_bytes: u64,
    /// How often the dirty pages were collected: 1 in the first pass.
    pub dirty_sync_count: u64,
    /// Pages that the guest dirties a second.
    pub dirty_pages_rate: u64,
    /// Throughput in 10^6 bits a second.
    pub mbps: f64,
    /// Bytes sent over multifd channels.
    pub multifd_bytes: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// Pages sent a second.
    pub pages_per_second: u64,
    /// Pages that the destination asked for.
    pub postcopy_requests: u64,
    /// Bytes sent before post-copy began.
    pub precopy_bytes: u64,
    /// Bytes sent while the guest stood still.
    pub downtime_bytes: u64,
    /// Bytes sent after post-copy began.
    pub postcopy_bytes: u64,
}

/// One capability, on or off.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CapabilityState {
    /// Which.
    pub capability: MigrationCapability,
    /// Whether it is on.
    pub state: bool,
}

/// Parameters of a migration (`MigrateSetParameters`). What is `None` is left as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationParameters {
    /// Bytes a second at most, of all channels together; 0 for no limit. QEMU's own choice is 128 MiB/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// Bytes a second that the end of the migration can count on; 0 lets QEMU measure. QEMU 8.2 and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avail_switchover_bandwidth: Option<u64>,
    /// Bytes a second at most in post-copy, without the pages that are asked for; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_postcopy_bandwidth: Option<u64>,
    /// Longest pause that QEMU aims at, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// Multifd connections; the same number on both sides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_channels: Option<u8>,
    /// How multifd compresses; novaferry reads only `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_compression: Option<MultifdCompression>,
    /// Who finds zero pages. QEMU 9.0 and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_page_detection: Option<ZeroPageDetection>,
    /// Pause before the second announcement, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_initial: Option<u64>,
    /// Longest pause between announcements, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_max: Option<u64>,
    /// Announcements after the migration; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_rounds: Option<u64>,
    /// What each pause is longer than the one before, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_step: Option<u64>,
    /// Dirtied memory that starts auto-converge, in percent of what was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle_trigger_threshold: Option<u8>,
    /// What auto-converge takes first, in percent of the processors' time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_initial: Option<u8>,
    /// What auto-converge takes more each time, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_increment: Option<u8>,
    /// Whether auto-converge takes smaller steps near the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_tailslow: Option<bool>,
    /// What auto-converge takes at most, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cpu_throttle: Option<u8>,
    /// Memory for XBZRLE's cache, in bytes; a power of two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xbzrle_cache_size: Option<u64>,
    /// The object with TLS credentials; empty for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<String>,
    /// The name that the destination's certificate must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_hostname: Option<String>,
}

/// A socket as QEMU names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SocketAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP.
    Inet {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

impl SocketAddress {
    /// QEMU's `SocketAddress`.
    pub(super) fn flat(&self) -> Result<Map<String, Value>, String> {
        let mut map = Map::new();
        match self {
            Self::Unix(path) => {
                let path = path.to_str().ok_or("a socket's path that is not UTF-8")?;
                map.insert("type".to_owned(), "unix".into());
                map.insert("path".to_owned(), path.into());
            }
            Self::Inet { host, port } => {
                map.insert("type".to_owned(), "inet".into());
                map.insert("host".to_owned(), host.as_str().into());
                map.insert("port".to_owned(), port.to_string().into());
            }
        }
        Ok(map)
    }

    /// QEMU's `SocketAddressLegacy`: the same in older clothes.
    pub(super) fn nested(&self) -> Result<Value, String> {
        let mut map = self.flat()?;
        let kind = map.remove("type");
        Ok(json!({ "type": kind, "data": map }))
    }
}

/// Where a migration goes to or comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MigrationAddress {
    /// QEMU's short form: `unix:PATH`, `tcp:HOST:PORT`, `fd:NAME`, `file:PATH`. (`exec:` hands a command to a shell:
    /// never put anything from outside into it.)
    Uri(String),
    /// The main channel's socket, spelled out. QEMU 8.2 and later.
    Channel(SocketAddress),
}

impl MigrationAddress {
    fn arguments(&self, command: &str) -> Result<Map<String, Value>, MonitorError> {
        let (name, value) = match self {
            Self::Uri(uri) => ("uri", uri.as_str().into()),
            Self::Channel(socket) => {
                let mut address = socket
                    .flat()
                    .map_err(|reason| MonitorError::Request { operation: command.to_owned(), reason })?;
                address.insert("transport".to_owned(), "socket".into());
                ("channels", json!([{ "channel-type": "main", "addr": address }]))
            }
        };
        Ok(Map::from_iter([(name.to_owned(), value)]))
    }
}

/// `calc-dirty-rate`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirtyRateRequest {
    /// How long to measure, in seconds: 1 to 60.
    pub calc_time: u64,
    /// Pages looked at in each GiB: 128 to 16384; QEMU's choice is 512. For page sampling only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_pages: Option<u64>,
    /// How; QEMU's choice is page sampling, which disturbs the guest least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<DirtyRateMode>,
}

/// `query-dirty-rate`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirtyRate {
    /// Whether there is a result.
    pub status: DirtyRateStatus,
    /// MiB a second; when measured.
    pub dirty_rate: Option<u64>,
    /// When the measurement began, in seconds since the host's start or the Unix epoch (QEMU's versions differ).
    pub start_time: i64,
    /// How long it takes, in seconds.
    pub calc_time: u64,
    /// How.
    pub mode: DirtyRateMode,
}

impl Qmp {
    /// `query-migrate`.
    ///
    /// # Errors
    /// As [`Qmp::execute`], here and below.
    pub async fn query_migrate(&self) -> Result<MigrationInfo, MonitorError> {
        self.execute("query-migrate", &()).await
    }

    /// `migrate`: starts to send; the answer does not wait for the end. `resume` continues a post-copy that was
    /// interrupted.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate(&self, to: &MigrationAddress, resume: bool) -> Result<(), MonitorError> {
        let mut arguments = to.arguments("migrate")?;
        if resume {
            arguments.insert("resume".to_owned(), true.into());
        }
        self.command("migrate", &arguments).await
    }

    /// `migrate-incoming`: listens, on a QEMU that was started with `-incoming defer`. Capabilities and parameters
    /// must be set before. With `exit_on_error` `Some(false)` a failure does not end the process (QEMU 9.1 and later);
    /// `None` leaves QEMU's own way, which is to end.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_incoming(
        &self,
        from: &MigrationAddress,
        exit_on_error: Option<bool>,
    ) -> Result<(), MonitorError> {
        let mut arguments = from.arguments("migrate-incoming")?;
        if let Some(exit) = exit_on_error {
            arguments.insert("exit-on-error".to_owned(), exit.into());
        }
        self.command("migrate-incoming", &arguments).await
    }

    /// `migrate-set-capabilities`: switches these and leaves the others.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_set_capabilities(&self, states: &[CapabilityState]) -> Result<(), MonitorError> {
        self.command("migrate-set-capabilities", &json!({ "capabilities": states })).await
    }

    /// `query-migrate-capabilities`: those that this QEMU knows.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_migrate_capabilities(&self) -> Result<Vec<CapabilityState>, MonitorError> {
        self.execute("query-migrate-capabilities", &()).await
    }

    /// `migrate-set-parameters`. Some take effect while a migration runs: bandwidths, the downtime limit, the
    /// processors' throttle.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_set_parameters(&self, parameters: &MigrationParameters) -> Result<(), MonitorError> {
        self.command("migrate-set-parameters", parameters).await
    }

    /// `query-migrate-parameters`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_migrate_parameters(&self) -> Result<MigrationParameters, MonitorError> {
        self.execute("query-migrate-parameters", &()).await
    }

    /// `migrate_cancel`: the guest stays here. Over when [`Qmp::query_migrate`] says `cancelled`; no effect where
    /// nothing migrates, nor in post-copy.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_cancel(&self) -> Result<(), MonitorError> {
        self.command("migrate_cancel", &()).await
    }

    /// `migrate-continue`: leaves a state in which the migration waits, such as
    /// [`MigrationStatus::PreSwitchover`].
    ///
    /// # Errors
    /// As [`Qmp::execute`]; refused if the migration is in another state.
    pub async fn migrate_continue(&self, state: &MigrationStatus) -> Result<(), MonitorError> {
        self.command("migrate-continue", &json!({ "state": state })).await
    }

    /// `migrate-start-postcopy`: from now on, losing either host loses the guest.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_start_postcopy(&self) -> Result<(), MonitorError> {
        self.command("migrate-start-postcopy", &()).await
    }

    /// `migrate-pause`, out of band: interrupts post-copy, so that it can be resumed over another connection.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_pause(&self) -> Result<(), MonitorError> {
        self.execute_out_of_band::<super::Nothing>("migrate-pause", &()).await.map(drop)
    }

    /// `migrate-recover`, out of band, at the destination of an interrupted post-copy: listens again, at `uri`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_recover(&self, uri: &str) -> Result<(), MonitorError> {
        let arguments = json!({ "uri": uri });
        self.execute_out_of_band::<super::Nothing>("migrate-recover", &arguments).await.map(drop)
    }

    /// The RAM blocks, as the human monitor lists them (`info ramblock`): there is no other list.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn ram_blocks(&self) -> Result<std::collections::BTreeMap<String, u64>, MonitorError> {
        let arguments = json!({ "command-line": "info ramblock" });
        let text: String = self.execute("human-monitor-command", &arguments).await?;
        Ok(crate::reclaim::ram_blocks(&text))
    }

    /// `calc-dirty-rate`: starts to measure; the answer does not wait for the result.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn calc_dirty_rate(&self, request: &DirtyRateRequest) -> Result<(), MonitorError> {
        self.command("calc-dirty-rate", request).await
    }

    /// `query-dirty-rate`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_dirty_rate(&self) -> Result<DirtyRate, MonitorError> {
        self.execute("query-dirty-rate", &()).await
    }
}
