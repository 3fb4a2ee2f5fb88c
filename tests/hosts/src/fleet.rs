//! Many hosts that behave by themselves.

mod agent;
mod moves;
mod world;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_api::v1;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::{Random, line};
use world::World;

/// Hosts that join at once.
const JOINING: usize = 16;

/// How fast simulated hosts are. The default is what agents do.
#[derive(Clone, Debug)]
pub struct Pace {
    /// How often a host looks for news to tell.
    pub look: Duration,
    /// Pauses before dialling again, at first and at most; up to a third of one is left to chance.
    pub pauses: [Duration; 2],
    /// The longest that one step of a migration takes; how long each takes is left to chance.
    pub step: Duration,
    /// Of a hundred migrations so many meet with trouble of their own: they are undone, or in doubt for a while.
    pub trouble: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            look: Duration::from_secs(1),
            pauses: [Duration::from_millis(500), Duration::from_secs(30)],
            step: Duration::from_secs(1),
            trouble: 0,
        }
    }
}

/// A migration as the two hosts hold it in the end.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Moved {
    /// Its VM.
    pub vm: String,
    /// The host that it left, and the state there.
    pub source: Option<(String, String)>,
    /// The host that it went to, and the state there.
    pub destination: Option<(String, String)>,
    /// Nobody works on it any more, at either host.
    pub over: bool,
}

/// What is so, whatever a coordinator believes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Truth {
    /// Hosts that have a copy of each VM, and whether it runs there.
    pub vms: BTreeMap<String, Vec<(String, bool)>>,
    /// Migrations that were begun, by id.
    pub moves: BTreeMap<String, Moved>,
    /// What must never happen, and did.
    pub violations: Vec<String>,
}

/// What hosts and their migrations share.
#[derive(Debug)]
struct Shared {
    agents: Vec<String>,
    pace: Pace,
    world: Mutex<World>,
    connected: watch::Sender<usize>,
    beats: Mutex<Vec<Duration>>,
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Simulated hosts. All lines end when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    runtime: Runtime,
}

/// A host's hardware.
#[allow(clippy::needless_update, reason = "a newer message has more fields")]
pub(crate) fn machine() -> v1::Host {
    v1::Host {
        processors: 8,
        memory_bytes: 64_000_000_000,
        memory_available_bytes: 48_000_000_000,
        processor: "A processor".to_owned(),
        kvm: true,
        pools: vec![v1::Pool { name: "fast".to_owned(), free_bytes: 2_000_000_000_000 }],
        ..v1::Host::default()
    }
}

/// A VM that can be moved live.
#[allow(clippy::needless_update, reason = "a newer message has more fields")]
pub(crate) fn vm(id: &str, name: &str, state: &str) -> v1::Vm {
    v1::Vm {
        id: id.to_owned(),
        name: name.to_owned(),
        state: state.to_owned(),
        access: "live".to_owned(),
        ..v1::Vm::default()
    }
}

impl Fleet {
    /// Joins hosts, and connects them: each has a name, a join token, and the ids of its VMs. `agents` are the addresses
    /// (`HOST:PORT`) that are dialled in turn.
    ///
    /// # Panics
    /// When a host is not let in.
    #[must_use]
    pub fn start(agents: &[String], hosts: &[(String, String, Vec<String>)], pace: Pace, seed: u64) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().expect("a runtime starts");
        let mut random = Random::new(seed);
        let world = World::new(hosts.iter().map(|(name, _, vms)| (name.clone(), vms.clone())), &mut random);
        let shared = Arc::new(Shared {
            agents: agents.to_vec(),
            pace,
            world: Mutex::new(world),
            connected: watch::Sender::new(0),
            beats: Mutex::new(Vec::new()),
        });
        let joined = runtime.block_on(async {
            let (places, mut joining) = (Arc::new(Semaphore::new(JOINING)), JoinSet::new());
            for (index, (name, token, _)) in hosts.iter().enumerate() {
                let (name, token, agents) = (name.clone(), token.clone(), agents[0].clone());
                let places = Arc::clone(&places);
                joining.spawn(async move {
                    let _place = places.acquire().await.expect("the semaphore is never closed");
                    let identity = line::join(&agents, &token, &name).await;
                    (index, identity.unwrap_or_else(|why| panic!("{name} is not let in: {why}")))
                });
            }
            joining.join_all().await
        });
        for (index, identity) in joined {
            let signer = identity.signer(&hosts[index].0);
            shared.world().sign_with(index, signer);
            runtime.spawn(agent::run(Arc::clone(&shared), index, identity, Random::new(random.number())));
        }
        Self { shared, runtime }
    }

    /// Waits until so many hosts have a line.
    ///
    /// # Panics
    /// When that takes longer than `patience`.
    pub fn connected(&self, count: usize, patience: Duration) {
        let mut connected = self.shared.connected.subscribe();
        let waited = self.runtime.block_on(async {
            timeout(patience, connected.wait_for(|connected| *connected == count))
                .await
                .map(|seen| *seen.expect("the fleet is there"))
        });
        let now = *self.shared.connected.borrow();
        assert!(waited.is_ok(), "after {patience:?} {now} hosts have a line and not {count}");
    }

    /// Changes what some hosts have, chosen by chance: one VM of each is suspended, or goes on.
    pub fn stir(&self, hosts: usize) {
        self.shared.world().stir(hosts);
    }

    /// What is so now.
    #[must_use]
    pub fn truth(&self) -> Truth {
        self.shared.world().truth()
    }

    /// How long answers to beats took since this was asked last.
    #[must_use]
    pub fn beats(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.shared.beats.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
