//! A hash key that several threads compute ids with.

use reduce::HashKey;
use volume::KeyId;

/// A shared key; wiped when the last session that uses it ends.
#[derive(Debug)]
pub struct Keyed {
    key: HashKey,
    id: KeyId,
}

impl Keyed {
    /// Wraps a key and remembers its name.
    #[must_use]
    pub fn new(key: HashKey) -> Self {
        let id = key.id();
        Self { key, id }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &HashKey {
        &self.key
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }
}
