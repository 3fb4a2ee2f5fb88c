//! Which accepted tunnel a further connection belongs to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use volume::{Generation, SessionId};
use wire::FailCode;

use crate::channels::ChannelCore;
use crate::core::{Core, SessionKey, lock};
use crate::identity::PeerName;

/// What connections are routed to.
pub(crate) trait Routed {
    fn is_over(&self) -> bool;
    fn peer(&self) -> &PeerName;
}

impl Routed for Core {
    fn is_over(&self) -> bool {
        self.is_closing().is_some()
    }

    fn peer(&self) -> &PeerName {
        &self.peer
    }
}

impl Routed for ChannelCore {
    fn is_over(&self) -> bool {
        self.ending.is_set()
    }

    fn peer(&self) -> &PeerName {
        &self.peer
    }
}

struct Entry<T> {
    generation: Generation,
    core: Weak<T>,
}

/// The tunnels of one sort. Their number is bounded by what the listener's owner keeps: dead ones are swept at each
/// registration.
pub(crate) struct Routes<T>(Mutex<HashMap<SessionId, Entry<T>>>);

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Routed> Routes<T> {
    pub(crate) fn register(&self, key: SessionKey, core: &Arc<T>) {
        let mut sessions = lock(&self.0);
        sessions.retain(|_, entry| entry.core.upgrade().is_some_and(|core| !core.is_over()));
        let newer = sessions.get(&key.session).is_some_and(|entry| entry.generation > key.generation);
        if !newer {
            let entry = Entry { generation: key.generation, core: Arc::downgrade(core) };
            sessions.insert(key.session, entry);
        }
    }

    /// The tunnel that a hello names, or why not. A stranger learns no more than somebody who invents a session.
    pub(crate) fn find(&self, key: SessionKey, peer: &PeerName) -> Result<Arc<T>, FailCode> {
        let sessions = lock(&self.0);
        let entry = sessions.get(&key.session).ok_or(FailCode::NotFound)?;
        let core = entry.core.upgrade().ok_or(FailCode::NotFound)?;
        if core.is_over() || core.peer() != peer {
            return Err(FailCode::NotFound);
        }
        if entry.generation != key.generation {
            return Err(FailCode::StaleGeneration);
        }
        Ok(core)
    }
}

/// The tunnels of a listener.
#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) sessions: Routes<Core>,
    pub(crate) migrations: Routes<ChannelCore>,
}
