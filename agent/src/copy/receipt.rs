//! What the sender does with a receipt: believe it only if it verifies, and keep it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use engine::receipt::Receipt;
use engine::transfer::Summary;

use crate::failure::Failure;
use crate::state;
use pki::{Identity, TrustStore, VerifiedPeer};

/// Checks who signed the receipt and for whom. That it states what was sent, the engine has checked.
///
/// # Errors
/// When it is not what an honest receiver would have signed.
pub(super) fn check(done: &Summary, identity: Option<&Identity>) -> Result<(), Failure> {
    let body = &done.receipt.body;
    if body.size != done.counters.size || body.session != done.session.to_string() {
        return Err(dishonest("it is about another volume or session"));
    }
    // Without an identity the copy was local, and nobody could have signed.
    let Some(identity) = identity else { return Ok(()) };
    let signer = signer(&done.receipt, &identity.trust()?)?;
    let ours = identity.name().as_str();
    // Of a push the receiver is the peer that TLS met; of a pull or a local copy it is this process.
    let pushed = done.peer.as_ref().map(|peer| peer.as_str()).filter(|peer| *peer == body.receiver);
    if signer.name.as_str() != body.receiver || (pushed.is_none() && body.receiver != ours) {
        return Err(dishonest("it was signed by a host that had no part in this copy"));
    }
    if body.owner != ours {
        return Err(dishonest("it names another owner"));
    }
    Ok(())
}

fn dishonest(what: &str) -> Failure {
    Failure::new(
        "receipt",
        format!("the receipt is not valid: {what}"),
        "do not rely on that copy: the receiver is faulty or dishonest; check its version and its certificate",
    )
}

/// Who signed a receipt, if the signature is good and its certificate leads to a trusted CA.
///
/// # Errors
/// When it is unsigned, not trusted, or forged.
pub(crate) fn signer(receipt: &Receipt, trust: &TrustStore) -> Result<VerifiedPeer, Failure> {
    if !receipt.is_signed() {
        return Err(dishonest("it is not signed"));
    }
    let time = SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(receipt.body.time))
        .ok_or_else(|| dishonest("its time is not of this world"))?;
    let peer = trust.verify_signer(&receipt.certificates, Path::new("the receipt"), time)?;
    if !receipt.verify_signature(peer.key.as_bytes()) {
        return Err(dishonest("its signature does not fit its content"));
    }
    if peer.name.as_str() != receipt.body.receiver {
        return Err(dishonest("it was signed by a host that is not the receiver it names"));
    }
    Ok(peer)
}

/// Writes the receipt into the state folder, and to `also`. Answers where it is best looked for.
///
/// # Errors
/// When it cannot be written. The copy itself is done then, and its receipt can be had again by the same command.
pub(super) fn keep(receipt: &Receipt, state: &Path, also: Option<&Path>) -> Result<PathBuf, Failure> {
    let folder = state.join(state::RECEIPTS);
    state::make(&folder)?;
    let kept = folder.join(format!("{}-{}.json", receipt.body.time, receipt.body.session));
    let bytes = receipt.to_json();
    for path in [Some(kept.as_path()), also].into_iter().flatten() {
        replace(path, &bytes).map_err(|error| {
            Failure::new(
                "receipt",
                format!("the copy is done, but its receipt cannot be written to {}: {error}", path.display()),
                format!("make room or correct the permissions, then take it from {}", folder.display()),
            )
        })?;
    }
    Ok(also.map_or(kept, Path::to_owned))
}

/// Replaces a file so that readers see the old or the new content, also after a crash.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = parent.join(temporary);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| File::open(parent)?.sync_all());
    if written.is_err() {
        // It may not exist; what counts is the first error.
        drop(std::fs::remove_file(&temporary));
    }
    written
}
