//! The receiver's side of the handshake: open the target, say under which terms it may be filled.

use session::WINDOW_FRAMES;
use volume::{KeyId, Sequence};
use wire::{Control, Grant, HashKeyBytes, Known, Mode, Offer};

use crate::error::EngineError;
use crate::pool::PoolContent;
use crate::process::SessionLimits;
use crate::target::{Before, Target};

/// Tags that are declared for each chunk of the new volume, of however many the pool has: 16 of 8 bytes are 0.2 % of
/// the volume, which one chunk in 500 that is found pays for.
const TAGS_PER_CHUNK: u64 = 16;

/// The grant for a target, and whether what the sender remembers may be used.
pub(super) fn grant(
    target: &Target,
    offer: &Offer,
    mode: Mode,
    content: &PoolContent,
    limits: SessionLimits,
) -> Result<Grant, EngineError> {
    let key_id = target.key().id();
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| {
        EngineError::sidecar("draw random bytes for", "the page sums".as_ref(), error.into())
    })?;
    let remembers =
        target.is_own_journal() && offer.remembered_key != KeyId([0; 16]) && offer.remembered_key == key_id;
    let before = target.before();
    let resumed = remembers && target.durable().count() > 0;
    // Leaves where there is something that may be the same: an old copy, or durable extents that the sender has
    // forgotten.
    let leaves = match before {
        Before::Sealed | Before::Unread => true,
        Before::Journalled | Before::Done => !remembers && target.durable().count() > 0,
        Before::Nothing => false,
    };
    Ok(Grant {
        generation: target.generation(),
        key_id,
        key: HashKeyBytes(*target.key().as_bytes()),
        page_seed: u64::from_le_bytes(seed),
        first_sequence: Sequence(1),
        window_bytes: limits.window_bytes,
        window_frames: WINDOW_FRAMES,
        resumed,
        leaves,
        known: mode == Mode::Create && !content.index.is_empty(),
        zeroed: target.is_zeroed(),
    })
}

/// The frames that declare what the receiver can serve to itself.
pub(super) fn known(content: &PoolContent, chunks: u64) -> Vec<Control> {
    let most = usize::try_from(chunks.saturating_mul(TAGS_PER_CHUNK)).unwrap_or(usize::MAX);
    let tags: Vec<u64> = content.index.tags().take(most).collect();
    let mut parts = tags.chunks(wire::control::MAX_KNOWN).peekable();
    let mut frames = Vec::new();
    while let Some(part) = parts.next() {
        frames.push(Control::Known(Known { tags: part.to_vec(), last: parts.peek().is_none() }));
    }
    frames
}
