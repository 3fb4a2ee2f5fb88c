//! Whether a VM arrived whole: what the destination signed, against what the source says its disks were.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use model::migration::{Migration, Mode, Proof, Proven};
use model::{Name, Timestamp};
use pki::TrustStore;
use receipt::{Body, Receipt, ReceiptMode, Verified};

/// Most disks of a VM.
pub(crate) const MOST_DISKS: usize = 64;

/// Judges what both hosts said, as far as both have; nothing changes before that, and once it is proven.
pub(crate) fn judge(migration: &mut Migration, trust: &TrustStore) {
    if migration.proof.is_some() {
        return;
    }
    let (Some(source), Some(destination)) = (&migration.at_source, &migration.at_destination) else { return };
    let Some(receipts) = &destination.receipts else { return };
    // The roots are said from the cut-over on, so by whoever says that it is through.
    let roots = match source.state.as_str() {
        // A VM that left before its host was upgraded has none on record.
        "finalised" => {
            Some(&source.roots).filter(|roots| source.signs && (!roots.is_empty() || receipts.is_empty()))
        }
        _ => return,
    };
    match check(migration, receipts, destination.generation, roots, trust) {
        Ok(proof) => {
            migration.proof = Some(proof);
            migration.unproven = None;
        }
        Err(why) => {
            if migration.unproven.as_ref() != Some(&why) {
                let (id, vm) = (&migration.id, &migration.vm);
                tracing::error!(id, vm, destination = %migration.destination, why, "it is not proven that a VM arrived");
            }
            migration.unproven = Some(why);
        }
    }
}

fn check(
    migration: &Migration,
    receipts: &[serde_json::Value],
    generation: u64,
    roots: Option<&BTreeMap<String, String>>,
    trust: &TrustStore,
) -> Result<Proof, String> {
    let mut disks = Vec::with_capacity(receipts.len());
    let mut at = None;
    for said in receipts {
        let receipt = Receipt::parse(said.to_string().as_bytes()).map_err(|error| error.to_string())?;
        signed_by(&receipt, &migration.destination, trust)?;
        let Body { size, root, verified, time, .. } = &receipt.body;
        let disk = about(&receipt.body, migration, generation)?;
        at = at.max(Some(*time));
        let read_back = matches!(verified, Verified::Readback);
        disks.push(Proven { disk, bytes: *size, root: root.clone(), read_back });
    }
    if let Some(roots) = roots {
        let there: BTreeMap<_, _> = disks.iter().map(|disk| (&disk.disk, &disk.root)).collect();
        if there != roots.iter().collect() || there.len() != disks.len() {
            return Err(format!(
                "what {} signed for is not what the disks were at {}",
                migration.destination, migration.source
            ));
        }
    }
    let at = i64::try_from(at.unwrap_or(0)).ok().and_then(|at| Timestamp::from_second(at).ok());
    let at = at.ok_or("the time of a receipt is not of this world")?;
    Ok(Proof { by: migration.destination.clone(), at, both: roots.is_some(), disks })
}

fn signed_by(receipt: &Receipt, host: &Name, trust: &TrustStore) -> Result<(), String> {
    // A host signs with the certificate that it has when it says so, which may be younger than what it states.
    let signer = trust.verify_signer(&receipt.certificates, Path::new("a receipt"), SystemTime::now());
    let signer = signer.map_err(|error| error.to_string())?;
    if signer.name.as_str() != host.as_str() || receipt.body.receiver != host.as_str() {
        return Err(format!("a receipt is of {}, and not of {host}", signer.name));
    }
    if !receipt.verify_signature(signer.key.as_bytes()) {
        return Err("the signature of a receipt does not fit what it states".to_owned());
    }
    Ok(())
}

/// The disk, if the statement is about this migration.
fn about(body: &Body, migration: &Migration, generation: u64) -> Result<String, String> {
    let mode = match migration.options.mode {
        Mode::Live => ReceiptMode::Live,
        Mode::Warm => ReceiptMode::Warm,
        Mode::Cold => ReceiptMode::Cold,
    };
    let place = format!("/vms/{}/", migration.vm);
    let disk = body.volume.split_once(&place).map(|(_, disk)| disk).filter(|disk| !disk.is_empty());
    let is_ours = body.session == migration.id
        && body.owner == migration.source.as_str()
        && body.generation == generation
        && body.mode == mode;
    match disk.filter(|_| is_ours) {
        Some(disk) => Ok(disk.to_owned()),
        None => Err("a receipt is about another migration".to_owned()),
    }
}

#[cfg(test)]
mod tests;
