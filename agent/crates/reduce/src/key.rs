//! The secret that chunk ids are computed with.
//!
//! A key belongs to one owner at one receiver. Without it nobody can tell from an id whether an owner holds some known
//! content, and nobody can prepare collisions offline.

use std::fmt;

use volume::KeyId;
use zeroize::ZeroizeOnDrop;

/// Separates the key's public name from every other use of BLAKE3. Frozen: changing it changes every key id.
const KEY_ID_CONTEXT: &str = "novaferry 2026-11-22 hash key id v1";
/// Separates keys from other values drawn from the same generator.
const GENERATE_CONTEXT: &str = "novaferry 2026-11-22 hash key v1";

/// Key of all BLAKE3 ids of one owner. Wiped from memory when dropped; neither printed nor compared.
///
/// `Clone` is not derived, so that copies of the secret are seen in the code.
#[derive(ZeroizeOnDrop)]
pub struct HashKey([u8; 32]);

impl HashKey {
    /// A fresh key from 32 bytes of the operating system's generator.
    #[must_use]
    pub fn generate(random: [u8; 32]) -> Self {
        Self(blake3::derive_key(GENERATE_CONTEXT, &random))
    }

    /// A key that was stored, or that came inside a session.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret itself, to store it or to give it to the authenticated peer.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key's public name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let mut name = [0; 16];
        name.copy_from_slice(&blake3::derive_key(KEY_ID_CONTEXT, &self.0)[..16]);
        KeyId(name)
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashKey({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_does_not_show_the_key() {
        let key = HashKey::from_bytes([0xab; 32]);
        assert!(!format!("{key:?}").contains("abab"));
        assert_ne!(key.id().0, [0xab; 16]);
        assert_ne!(key.id(), HashKey::from_bytes([0xac; 32]).id());
    }

    #[test]
    fn generating_is_deterministic_in_its_input() {
        assert_eq!(HashKey::generate([7; 32]).id(), HashKey::generate([7; 32]).id());
        assert_ne!(HashKey::generate([7; 32]).id(), HashKey::from_bytes([7; 32]).id());
    }
}
