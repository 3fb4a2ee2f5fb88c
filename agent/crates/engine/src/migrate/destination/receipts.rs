//! The receipts of the cut-over: what both ends found the disks to be at that instant. What they state becomes durable
//! with the permit, so that they are the same after a restart.

use serde::{Deserialize, Serialize};
use session::cutover::DestinationState;

use super::Owner;
use crate::migrate::mode::Mode;
use crate::migrate::record::{Record, Role, now};
use receipt::{Body, Receipt, ReceiptMode, ReceiptSigner, Verified};

/// What the receipts state, beyond what the record says anyway.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sealed {
    /// Pool of the disks.
    pool: String,
    /// Key of the roots.
    key_id: String,
    /// The disks were read for it, at both ends.
    readback: bool,
    /// When the permit came, seconds since 1970.
    time: u64,
    disks: Vec<SealedDisk>,
}

/// One disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct SealedDisk {
    id: String,
    size: u64,
    root: String,
}

impl Owner {
    /// Notes what this host found the disks to be; not what the permit says of them. The record is saved with the permit.
    pub(super) fn seal(&mut self) {
        // Those of this VM: the source may have named others, and any number of them.
        let disks = self.specification.iter().flat_map(|specification| specification.carried());
        let disks = disks.filter_map(|disk| {
            let root = self.compared.iter().find(|root| root.disk == disk.id)?;
            Some(SealedDisk { id: root.disk.clone(), size: disk.size, root: root.root.clone() })
        });
        self.record.sealed = Some(Sealed {
            pool: self.pool.clone(),
            key_id: self.key_id.clone(),
            readback: self.readback,
            time: now(),
            disks: disks.collect(),
        });
    }

    /// The receipts, one a disk, as JSON.
    pub(super) fn receipts(&self) -> Vec<String> {
        of(&self.record, &self.context.signer).unwrap_or_default()
    }
}

/// The receipts of a VM that came to this host for good, one a disk, as JSON; none before that.
#[must_use]
pub fn of(record: &Record, signer: &ReceiptSigner) -> Option<Vec<String>> {
    let sealed = record.sealed.as_ref()?;
    if !matches!(record.role, Role::Destination { state: DestinationState::Finalised, .. }) {
        return None;
    }
    let receipts = sealed.disks.iter().map(|disk| {
        let body = Body {
            version: 1,
            volume: format!("{}/vms/{}/{}", sealed.pool, record.vm, disk.id),
            size: disk.size,
            root: disk.root.clone(),
            key_id: sealed.key_id.clone(),
            generation: record.generation,
            session: record.migration.clone(),
            mode: match record.mode {
                Mode::Live => ReceiptMode::Live,
                Mode::Warm => ReceiptMode::Warm,
                Mode::Cold => ReceiptMode::Cold,
            },
            verified: if sealed.readback { Verified::Readback } else { Verified::Sink },
            owner: record.peer.clone(),
            receiver: signer.name().to_owned(),
            time: sealed.time,
        };
        Receipt::issue(body, Some(signer))
    });
    let written = receipts.filter_map(|receipt| match serde_json::to_string(&receipt) {
        Ok(text) => Some(text),
        Err(error) => {
            tracing::error!(%error, "a receipt cannot be written");
            None
        }
    });
    Some(written.collect())
}
