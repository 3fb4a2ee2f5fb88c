//! Hash keys: one per owner and pool, made at first use, held by the receiver (design.md, "Identity of content").

use reduce::HashKey;
use volume::KeyId;
use zeroize::Zeroizing;

use crate::error::EngineError;
use crate::folder::Folder;

/// Folder of hash keys, each in a file of its own (mode 0600).
#[derive(Clone, Debug)]
pub struct Keys {
    folder: Folder,
}

fn file_name(owner: &str) -> String {
    // Owners are host names (`[a-z0-9.-]`), checked where they come in; `@` keeps them apart from ids.
    format!("@{owner}")
}

impl Keys {
    /// Keys in this folder.
    #[must_use]
    pub fn new(folder: Folder) -> Self {
        Self { folder }
    }

    /// The owner's key, made now when there is none.
    pub fn of_owner(&self, owner: &str) -> Result<HashKey, EngineError> {
        let name = file_name(owner);
        if let Some(key) = self.read(&name)? {
            return Ok(key);
        }
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut()).map_err(|error| {
            EngineError::sidecar("draw random bytes for", &self.folder.path().join(&name), error.into())
        })?;
        // Of two sessions that race for an owner's first key, one makes it and both read that one.
        self.folder.create_once(&name, &*bytes)?;
        self.read(&name)?.ok_or_else(|| self.damaged(&name))
    }

    /// Keeps a key that was given inside a session, so that receipts can be verified later.
    pub fn remember(&self, key: &HashKey) -> Result<(), EngineError> {
        let name = key.id().to_string();
        if self.folder.has(&name)? {
            return Ok(());
        }
        self.folder.replace(&name, key.as_bytes())
    }

    /// A key by its id: a remembered one, or an owner's.
    pub fn by_id(&self, id: KeyId) -> Result<Option<HashKey>, EngineError> {
        if let Some(key) = self.read(&id.to_string())? {
            return Ok(Some(key));
        }
        for owner in self.folder.files()? {
            if owner.starts_with('@')
                && let Some(key) = self.read(&owner)?
                && key.id() == id
            {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    fn damaged(&self, name: &str) -> EngineError {
        EngineError::Corrupt(format!("the hash key {} is damaged", self.folder.path().join(name).display()))
    }

    fn read(&self, name: &str) -> Result<Option<HashKey>, EngineError> {
        let Some(bytes) = self.folder.read(name)?.map(Zeroizing::new) else { return Ok(None) };
        match <[u8; 32]>::try_from(&bytes[..]) {
            Ok(key) => Ok(Some(HashKey::from_bytes(key))),
            Err(_) => Err(self.damaged(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_keeps_its_key_and_has_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::new(Folder::open(folder.path()).unwrap());
        let a = keys.of_owner("a").unwrap();
        assert_eq!(keys.of_owner("a").unwrap().id(), a.id());
        assert_ne!(keys.of_owner("b").unwrap().id(), a.id());
        assert_eq!(keys.by_id(a.id()).unwrap().unwrap().id(), a.id());
        let foreign = HashKey::from_bytes([1; 32]);
        assert!(keys.by_id(foreign.id()).unwrap().is_none());
        keys.remember(&foreign).unwrap();
        assert_eq!(keys.by_id(foreign.id()).unwrap().unwrap().as_bytes(), foreign.as_bytes());
    }
}
