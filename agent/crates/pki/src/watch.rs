//! Notices that an identity's files were replaced. No thread and no clock of its own: the daemon polls it.

use std::sync::Arc;
use std::time::SystemTime;

use super::error::PkiError;
use super::identity::{Identity, IdentityPaths, Stamp};

/// Holds the current identity and loads the next one when device, inode, size or times of a file change.
#[derive(Debug)]
pub struct IdentityWatcher {
    paths: IdentityPaths,
    current: Arc<Identity>,
    /// Stamps of the last attempt, good or bad: a bad file is reported once, not at every poll.
    stamp: Option<Stamp>,
}

impl IdentityWatcher {
    /// Loads the first identity.
    ///
    /// # Errors
    /// As [`Identity::load_from`].
    pub fn new(paths: IdentityPaths, now: SystemTime) -> Result<Self, PkiError> {
        // Stamped before reading: a change in between is noticed at the next poll.
        let stamp = Stamp::of(&paths)?;
        let current = Arc::new(Identity::load_from(&paths, now)?);
        Ok(Self { paths, current, stamp: Some(stamp) })
    }

    /// The identity that was last loaded well.
    #[must_use]
    pub fn current(&self) -> &Arc<Identity> {
        &self.current
    }

    /// The new identity when files changed since the last call, `None` when they did not.
    ///
    /// # Errors
    /// As [`Identity::load_from`], once per change. [`Self::current`] is then still the old identity. Files that are
    /// replaced one after the other may fail once in between ([`super::PkiErrorKind::Mismatch`]) and load at the
    /// next poll.
    pub fn poll(&mut self, now: SystemTime) -> Result<Option<Arc<Identity>>, PkiError> {
        let stamp = match Stamp::of(&self.paths) {
            Ok(stamp) => stamp,
            Err(error) => {
                // Report a file that went away once, and look again when it is back.
                return if self.stamp.take().is_some() { Err(error) } else { Ok(None) };
            }
        };
        if self.stamp == Some(stamp) {
            return Ok(None);
        }
        self.stamp = Some(stamp);
        self.current = Arc::new(Identity::load_from(&self.paths, now)?);
        Ok(Some(Arc::clone(&self.current)))
    }
}
