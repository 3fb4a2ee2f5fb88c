//! Which accepted tunnel a further connection belongs to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use volume::{Generation, SessionId};
use wire::{FailCode, LaneHello};

use crate::core::{Core, SessionKey, lock};
use crate::identity::PeerName;

struct Entry {
    generation: Generation,
    core: Weak<Core>,
}

/// The sessions of a listener. Its size is bounded by the tunnels that its owner keeps: dead ones are swept at each
/// registration.
#[derive(Default)]
pub(crate) struct Registry {
    sessions: Mutex<HashMap<SessionId, Entry>>,
}

impl Registry {
    pub(crate) fn register(&self, key: SessionKey, core: &Arc<Core>) {
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, entry| entry.core.upgrade().is_some_and(|core| core.is_closing().is_none()));
        let newer = sessions.get(&key.session).is_some_and(|entry| entry.generation > key.generation);
        if !newer {
            let entry = Entry { generation: key.generation, core: Arc::downgrade(core) };
            sessions.insert(key.session, entry);
        }
    }

    /// The tunnel that a hello names, or why not. A stranger learns no more than somebody who invents a session.
    pub(crate) fn find(&self, hello: &LaneHello, peer: &PeerName) -> Result<Arc<Core>, FailCode> {
        let sessions = lock(&self.sessions);
        let entry = sessions.get(&hello.session).ok_or(FailCode::NotFound)?;
        let core = entry.core.upgrade().ok_or(FailCode::NotFound)?;
        if core.is_closing().is_some() || core.peer != *peer {
            return Err(FailCode::NotFound);
        }
        if entry.generation != hello.generation {
            return Err(FailCode::StaleGeneration);
        }
        Ok(core)
    }
}
