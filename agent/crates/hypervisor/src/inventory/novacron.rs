//! NovaCron's `config.json`: its `vm.VMConfig` (`backend/core/vm/vm.go`), as its KVM driver writes it into a VM's
//! folder.
//!
//! Only what novaferry uses is typed. Everything else is kept in `other`, at each level, and written back as it was, so
//! that a moved VM's configuration loses nothing. The order of the keys is not kept; a typed field that is `null` is
//! left out, which means the same to NovaCron.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::process::read_capped;
use crate::error::Error;

/// Largest `config.json` read, in bytes. NovaCron's have some KiB.
pub const MAX_CONFIG: u64 = 1 << 20;

/// A virtual machine's configuration. Everything is optional: NovaCron's versions differ.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NovacronConfig {
    /// NovaCron's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The kind: `kvm` for QEMU.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Despite its name the number of virtual processors: NovaCron hands it to `-smp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<i64>,
    /// Memory in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<i64>,
    /// Size of the disk in GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size_gb: Option<i64>,
    /// The root file system or disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<String>,
    /// The base image that the disk is an overlay of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The ISO image with cloud-init's data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud_init_iso: Option<String>,
    /// The network, in older versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_id: Option<String>,
    /// Who owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<String>,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// Free labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_attachments: Option<Vec<VolumeAttachment>>,
    /// Networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_attachments: Option<Vec<NetworkAttachment>>,
    /// How it may be moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationPolicy>,
    /// Every other field.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A volume of a virtual machine.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeAttachment {
    /// NovaCron's id of the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<String>,
    /// The device in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Whether the guest may only read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Whether the guest boots from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<bool>,
    /// Every other field.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A network of a virtual machine.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkAttachment {
    /// NovaCron's id of the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_id: Option<String>,
    /// The host's interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface_name: Option<String>,
    /// The card's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// The guest's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    /// Whether it is the main one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary: Option<bool>,
    /// Every other field.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// How a virtual machine may be moved.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MigrationPolicy {
    /// `cold`, `warm`, `live` or `checkpoint`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Bytes a second at most; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit: Option<i64>,
    /// Every other field.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl NovacronConfig {
    /// Reads a `config.json`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::System`] if it cannot be read, or is longer than [`MAX_CONFIG`]; [`Error::Invalid`] if it is no
    /// configuration.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        match read_capped(path, MAX_CONFIG) {
            Ok(bytes) => Self::parse(&bytes).map(Some).map_err(|error| Error::Invalid {
                what: format!("{} is not a configuration of NovaCron: {error}", path.display()),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::System { what: format!("read {}", path.display()), source }),
        }
    }

    /// Parses a configuration.
    ///
    /// # Errors
    /// If it is no JSON object, or a typed field has another type.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The configuration as NovaCron reads it.
    ///
    /// # Errors
    /// None is known: every part of it is JSON already.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_is_lost() {
        let value = json!({
            "id": "vm-1", "name": "web", "type": "kvm", "command": "", "args": [], "cpu_shares": 2,
            "memory_mb": 512, "disk_size_gb": 8, "image": "/base.qcow2", "tags": {"vm_type": "kvm"},
            "volume_attachments": [{"volume_id": "v", "device": "vdb", "read_only": false, "new": 1.5}],
            "network_attachments": [{"mac_address": "52:54:00:00:00:01", "primary": true, "vlan": 7}],
            "migration": {"type": "live", "bandwidth_limit": 9_007_199_254_740_993_i64, "priority": 5},
            "mobility": {"live_migration_gate": {"enabled": true}}, "predictive_prefetching": null,
        });
        let config = NovacronConfig::parse(value.to_string().as_bytes()).unwrap();
        assert_eq!(config.cpu_shares, Some(2));
        assert_eq!(config.other["mobility"]["live_migration_gate"]["enabled"], true);
        let migration = config.migration.as_ref().unwrap();
        assert_eq!(migration.bandwidth_limit, Some(9_007_199_254_740_993));
        let written: Value = serde_json::from_slice(&config.to_json().unwrap()).unwrap();
        assert_eq!(written, value);
    }

    #[test]
    fn typed_nulls_are_absent() {
        let config =
            NovacronConfig::parse(br#"{"name": null, "tags": null, "volume_attachments": null}"#).unwrap();
        assert_eq!(config, NovacronConfig::default());
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in ["", "[]", "{", r#"{"memory_mb": "512"}"#, r#"{"name": 1}"#] {
            NovacronConfig::parse(text.as_bytes()).expect_err(text);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        assert!(NovacronConfig::read(&path).unwrap().is_none());
        let length = usize::try_from(MAX_CONFIG).unwrap() + 1;
        std::fs::write(&path, " ".repeat(length)).unwrap();
        NovacronConfig::read(&path).unwrap_err();
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(NovacronConfig::parse(&bytes));
        }

        #[test]
        fn unknown_fields_come_back(
            fields in proptest::collection::btree_map("x_[a-z]{1,8}", any::<i64>(), 0..8),
        ) {
            let value = serde_json::to_value(&fields).unwrap();
            let config = NovacronConfig::parse(value.to_string().as_bytes()).unwrap();
            let written: Value = serde_json::from_slice(&config.to_json().unwrap()).unwrap();
            prop_assert_eq!(written, value);
        }
    }
}
