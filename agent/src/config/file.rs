//! The file as it is written: every key optional, nothing checked but the types.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::error::{ConfigError, Warning};
use super::units::{ByteSize, Rate};

/// The whole file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key or section of its name; Config explains them")]
pub struct FileConfig {
    pub listen: FileListen,
    pub identity: FileIdentity,
    pub pool: Vec<FilePool>,
    pub metrics: FileMetrics,
    pub limits: FileLimits,
    pub control: FileControl,
    pub log: FileLog,
    pub otlp: Option<FileOtlp>,
    pub vms: FileVms,
    pub vm: Vec<FileVm>,
    pub migrate_in: FileMigrateIn,
    pub coordinator: Option<FileCoordinator>,
    pub state_dir: Option<PathBuf>,
}

/// `[listen]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct FileListen {
    pub address: Option<String>,
}

/// `[identity]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct FileIdentity {
    pub dir: Option<PathBuf>,
    pub key_credential: Option<String>,
}

/// `[[pool]]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name; Pool explains them")]
pub struct FilePool {
    pub name: Option<String>,
    pub path: Option<PathBuf>,
    pub quota: Option<ByteSize>,
    pub push: Vec<String>,
    pub pull: Vec<String>,
}

/// `[metrics]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct FileMetrics {
    pub listen: Option<String>,
}

/// `[limits]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name; Limits explains them")]
pub struct FileLimits {
    pub sessions: Option<u32>,
    pub sessions_per_peer: Option<u32>,
    pub session_memory: Option<ByteSize>,
    pub total_memory: Option<ByteSize>,
    pub dedup_memory: Option<ByteSize>,
    pub rate: Option<Rate>,
    pub migrations: Option<u32>,
}

/// `[control]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct FileControl {
    pub socket: Option<PathBuf>,
}

/// `[log]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct FileLog {
    pub format: Option<String>,
    pub level: Option<String>,
}

/// `[otlp]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct FileOtlp {
    pub endpoint: Option<String>,
}

/// `[vms]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name; Vms explains them")]
pub struct FileVms {
    pub folder: Option<PathBuf>,
    pub vmd: Option<PathBuf>,
    pub runtime: Option<PathBuf>,
}

/// `[[vm]]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name; NamedVm explains them")]
pub struct FileVm {
    pub name: Option<String>,
    pub qmp: Option<PathBuf>,
    pub folder: Option<PathBuf>,
    pub tenant: Option<String>,
    pub labels: BTreeMap<String, String>,
}

/// `[migrate_in]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name; MigrateIn explains them")]
pub struct FileMigrateIn {
    pub allow: Vec<String>,
    pub pool: Option<String>,
    pub default_bridge: Option<String>,
    pub bridges: BTreeMap<String, String>,
    pub boot: Option<PathBuf>,
    pub firmware: Option<PathBuf>,
    pub ram_cache: Option<ByteSize>,
}

/// `[coordinator]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the key of its name; Coordinator explains them")]
pub struct FileCoordinator {
    pub address: Option<String>,
    pub advertise: Vec<String>,
    pub reachable: Option<bool>,
}

impl FileConfig {
    /// Reads TOML; keys that mean nothing come back as warnings.
    pub(super) fn parse(text: &str) -> Result<(Self, Vec<Warning>), ConfigError> {
        let document = toml::Deserializer::parse(text).map_err(ConfigError::syntax)?;
        let mut warnings = Vec::new();
        let file =
            serde_ignored::deserialize(document, |key| warnings.push(Warning { key: key.to_string() }))
                .map_err(|mut error: toml::de::Error| {
                    // Without the text, the message lacks the line that it is about.
                    error.set_input(Some(text));
                    ConfigError::syntax(error)
                })?;
        Ok((file, warnings))
    }
}
