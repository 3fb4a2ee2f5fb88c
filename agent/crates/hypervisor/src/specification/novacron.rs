//! NovaCron's `config.json` (`VMConfig`, `backend/core/vm/vm.go`), as far as it may travel.
//!
//! NovaCron runs as root and believes its file, so paths, commands and mounts in it are not a peer's to choose: paths
//! are cut out at the source and filled in by the destination, the rest is dropped.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Finding, SpecificationError};

/// Longest configuration, bytes of JSON. Those of NovaCron are a few KiB; guessed.
pub(super) const MAX_CONFIG: usize = 64 << 10;

/// Keys that travel: what describes the VM. Not `command`, `args`, `mounts`, `env` and the paths.
const KEYS: &[&str] = &[
    "id",
    "name",
    "cpu_shares",
    "memory_mb",
    "disk_size_gb",
    "network_id",
    "owner_id",
    "tenant_id",
    "tags",
    "volume_attachments",
    "network_attachments",
    "placement",
    "migration",
    "replication",
    "mobility",
];
/// Paths of the source that the destination may leave out without loss, or fills in.
const PATHS: &[&str] = &["rootfs", "image", "cloud_init_iso", "work_dir"];

/// NovaCron's configuration of a VM without paths and commands.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NovaCronConfig(Map<String, Value>);

impl NovaCronConfig {
    /// Reads a `config.json`. What does not travel is a finding when it had content.
    ///
    /// # Errors
    /// When it is too long or no JSON object.
    pub fn read(json: &[u8]) -> Result<(Self, Vec<Finding>), SpecificationError> {
        if json.len() > MAX_CONFIG {
            return Err(too_long(json.len()));
        }
        let no_object = || SpecificationError::value("novacron", "", "config.json is no JSON object");
        let all: Map<String, Value> = serde_json::from_slice(json).ok().ok_or_else(no_object)?;
        let mut findings = Vec::new();
        let mut kept = Map::new();
        for (key, value) in all {
            let empty = matches!(&value, Value::Null)
                || value.as_str().is_some_and(str::is_empty)
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty);
            if KEYS.contains(&key.as_str()) {
                kept.insert(key, value);
            } else if key == "type" || PATHS.contains(&key.as_str()) || empty {
                // The type is KVM's by being here; paths are the destination's.
            } else {
                findings.push(Finding::warning(
                    "novacron-config",
                    format!("config.json has {key:?}, which does not travel"),
                    "set it at the destination after the move, if NovaCron still needs it",
                ));
            }
        }
        Ok((Self(kept), findings))
    }

    /// `id` or `name`.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    pub(super) fn check(&self) -> Result<(), SpecificationError> {
        if let Some(key) = self.0.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(SpecificationError::value("novacron", key, "this key does not travel"));
        }
        let length = serde_json::to_vec(&self.0).map_or(usize::MAX, |json| json.len());
        if length > MAX_CONFIG { Err(too_long(length)) } else { Ok(()) }
    }

    /// The `config.json` of the destination: with its id and its root disk.
    #[must_use]
    pub fn file(&self, id: &str, root_disk: Option<&Path>) -> Vec<u8> {
        let mut all = self.0.clone();
        all.insert("id".to_owned(), id.into());
        all.insert("type".to_owned(), "kvm".into());
        if let Some(path) = root_disk {
            all.insert("rootfs".to_owned(), path.to_string_lossy().into());
        }
        let mut text = format!("{:#}", Value::Object(all)).into_bytes();
        text.push(b'\n');
        text
    }
}

fn too_long(found: usize) -> SpecificationError {
    SpecificationError::TooLong { field: "novacron", found, limit: MAX_CONFIG }
}
