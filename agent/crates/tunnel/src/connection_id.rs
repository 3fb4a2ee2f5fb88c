//! Connection ids that say which worker owns them, so that a packet can be steered to its socket by whoever sees
//! nothing but the packet (a `SO_REUSEPORT` program).

use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator};
use quinn_proto::{InvalidCid, RandomConnectionIdGenerator};

/// Length of our connection ids in bytes.
pub const CONNECTION_ID_LEN: usize = 8;
/// Where in the id the worker's number stands, in the clear. The other 7 bytes are random.
pub const WORKER_BYTE: usize = 1;

/// Makes and recognises the ids of one worker.
#[derive(Debug)]
pub(crate) struct WorkerConnectionIds {
    worker: u8,
    random: RandomConnectionIdGenerator,
}

impl WorkerConnectionIds {
    pub(crate) fn new(worker: u8) -> Self {
        Self { worker, random: RandomConnectionIdGenerator::new(CONNECTION_ID_LEN) }
    }
}

impl ConnectionIdGenerator for WorkerConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_LEN];
        id.copy_from_slice(&self.random.generate_cid());
        id[WORKER_BYTE] = self.worker;
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if id.len() == CONNECTION_ID_LEN && id[WORKER_BYTE] == self.worker { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_carry_the_worker_and_differ() {
        let mut ids = WorkerConnectionIds::new(7);
        let made: Vec<_> = (0..1000).map(|_| ids.generate_cid()).collect();
        assert!(made.iter().all(|id| id.len() == 8 && id[1] == 7 && ids.validate(id).is_ok()));
        assert_eq!(made.iter().map(|id| id.to_vec()).collect::<HashSet<_>>().len(), 1000);
        assert!(WorkerConnectionIds::new(8).validate(&made[0]).is_err());
    }
}
