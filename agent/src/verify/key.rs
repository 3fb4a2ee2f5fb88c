//! Finds the hash key that a receipt names.

use std::path::{Path, PathBuf};

use engine::EngineError;
use engine::folder::Folder;
use engine::keys::Keys;
use engine::receipt::Receipt;
use reduce::HashKey;
use volume::KeyId;
use zeroize::Zeroizing;

use super::keys_of_copies;
use crate::config::Config;
use crate::failure::Failure;

/// Folder of keys in a pool's own folder.
const POOL_KEYS: [&str; 2] = [".novaferry", "keys"];
/// Bytes of a key.
const KEY: usize = 32;

/// The key: from what was named, else from the state folder of `copy`, else from the pools of a configuration.
pub(super) fn find(
    receipt: &Receipt,
    named: Option<&Path>,
    config: Option<&Config>,
    state: Option<PathBuf>,
) -> Result<HashKey, Failure> {
    let id: KeyId = receipt.body.key_id.parse().map_err(|_none| {
        Failure::new("receipt", "the receipt's key_id is none", "name a receipt that `copy` wrote")
    })?;
    let mut places = Vec::new();
    match named {
        Some(path) if path.is_dir() => places.push(path.to_owned()),
        Some(path) => return from_file(path, id),
        None => places.extend(keys_of_copies(state)),
    }
    for pool in config.map(|config| config.pools.as_slice()).unwrap_or_default() {
        let folder = POOL_KEYS.iter().fold(pool.path.clone(), |folder, part| folder.join(part));
        if folder.is_dir() {
            places.push(folder);
        }
    }
    for place in &places {
        let keys = Keys::new(Folder::open(place)?);
        if let Some(key) = keys.by_id(id)? {
            return Ok(key);
        }
    }
    let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    let looked = if places.is_empty() { "there is no folder of keys".to_owned() } else { places.join(", ") };
    Err(Failure::new(
        "no-key",
        format!("the hash key {id} of this receipt is not here ({looked})"),
        "verify on one of the two hosts that made the copy, or pass --key, --state or --config",
    ))
}

fn from_file(path: &Path, id: KeyId) -> Result<HashKey, Failure> {
    use std::io::Read as _;
    let cannot = |why: String| {
        let what = format!("the hash key {} cannot be used: {why}", path.display());
        Failure::new("key", what, "name the file of that key, or the folder that holds it")
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY + 1));
    std::fs::File::open(path)
        .and_then(|file| file.take(KEY as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| cannot(error.to_string()))?;
    let bytes =
        <[u8; KEY]>::try_from(&bytes[..]).map_err(|_length| cannot(format!("it is not {KEY} bytes")))?;
    let key = HashKey::from_bytes(bytes);
    if key.id() == id {
        Ok(key)
    } else {
        Err(cannot(EngineError::Corrupt(format!("it is {}, the receipt names {id}", key.id())).to_string()))
    }
}
