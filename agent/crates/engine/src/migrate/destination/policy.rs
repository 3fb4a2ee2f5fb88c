//! Who may move which VM here, and what this host has for it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};
use volume::SessionId;

/// What this host has for VMs that come.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Hosts that may move any VM here.
    pub allow: Vec<String>,
    /// What the coordinator says comes, beyond those.
    pub arrivals: Arrivals,
    /// Pool for the disks when the source asks for none, and for what is expected.
    pub pool: Option<String>,
    /// This host's bridges by the source's.
    pub bridges: BTreeMap<String, String>,
    /// The bridge for networks that `bridges` does not name.
    pub default_bridge: Option<String>,
    /// Kernels and initial file systems of VMs that boot directly.
    pub boot: Option<PathBuf>,
    /// BIOS and UEFI files.
    pub firmware: Option<PathBuf>,
    /// Most pages that a source may have kept here for the reduction of RAM.
    pub max_slots: u32,
}

/// One VM that is to come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Arrival {
    /// The migration, 32 hexadecimal digits.
    pub migration: String,
    /// The VM's id.
    pub vm: String,
    /// The host that it comes from.
    pub from: String,
    /// That host cannot dial this one: where this one dials it, `novaferry://HOST:PORT`, the best first.
    #[serde(default)]
    pub dial: Vec<String>,
}

/// What a coordinator says comes to this host. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct Arrivals(Arc<RwLock<Known>>);

#[derive(Debug, Default)]
struct Known {
    expected: Vec<Arrival>,
    /// Hosts that may look how this one is reached, and until when.
    met: HashMap<String, Instant>,
}

impl Arrivals {
    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// These come from now on, and no others.
    pub fn expect(&self, expected: Vec<Arrival>) {
        self.write().expected = expected;
    }

    /// This host may look how this one is reached, for so long.
    pub fn meet(&self, peer: String, time: Duration) {
        let (now, mut known) = (Instant::now(), self.write());
        known.met.retain(|_, until| *until > now);
        known.met.insert(peer, now + time);
    }
}

impl Policy {
    /// Whether a host may dial about a migration that is new here: some VM of its own may come, or it was told to look how
    /// this host is reached.
    #[must_use]
    pub fn hears(&self, peer: &str) -> bool {
        let known = self.arrivals.read();
        self.is_allowed(peer)
            || known.expected.iter().any(|arrival| arrival.from == peer)
            || known.met.get(peer).is_some_and(|until| *until > Instant::now())
    }

    /// Whether it may move this VM here.
    ///
    /// # Errors
    /// For people: why not, and what to do.
    pub fn admits(&self, migration: SessionId, peer: &str, vm: &str) -> Result<(), String> {
        if self.is_allowed(peer) {
            return Ok(());
        }
        let id = migration.to_string();
        let known = self.arrivals.read();
        match known.expected.iter().find(|arrival| arrival.migration == id && arrival.from == peer) {
            Some(arrival) if arrival.vm == vm => Ok(()),
            Some(arrival) => {
                Err(format!("VM {} may come from {peer} by this migration, and not {vm}", arrival.vm))
            }
            None => Err(stranger(peer)),
        }
    }

    /// Whether a coordinator says that this migration comes from there. Its disks may be put into [`Self::pool`] without
    /// that pool naming the host.
    #[must_use]
    pub fn expects(&self, migration: SessionId, peer: &str) -> bool {
        let id = migration.to_string();
        self.arrivals.read().expected.iter().any(|arrival| arrival.migration == id && arrival.from == peer)
    }

    fn is_allowed(&self, peer: &str) -> bool {
        self.allow.iter().any(|allowed| allowed == peer)
    }
}

/// What a host is told that may not move VMs here.
#[must_use]
pub fn stranger(peer: &str) -> String {
    format!(
        "{peer} may not move VMs here: add it to `allow` of [migrate_in] in agent.toml there, or have both hosts join one \
         coordinator and let that move the VM"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SessionId = SessionId([7; 16]);

    fn arrival() -> Arrival {
        Arrival {
            migration: ID.to_string(),
            vm: "web".to_owned(),
            from: "host-a".to_owned(),
            dial: Vec::new(),
        }
    }

    #[test]
    fn what_is_expected_may_come_and_nothing_else() {
        let policy = Policy { allow: vec!["host-z".to_owned()], ..Policy::default() };
        assert!(policy.hears("host-z") && !policy.hears("host-a"));
        assert!(policy.admits(ID, "host-z", "any").is_ok() && !policy.expects(ID, "host-z"));
        policy.arrivals.clone().expect(vec![arrival()]);
        assert!(policy.hears("host-a") && policy.expects(ID, "host-a"));
        assert_eq!(policy.admits(ID, "host-a", "web"), Ok(()));
        let why = policy.admits(ID, "host-a", "db").unwrap_err();
        assert!(why.contains("VM web may come") && why.contains("not db"), "{why}");
        let other = SessionId([8; 16]);
        assert!(policy.admits(other, "host-a", "web").unwrap_err().contains("let that move the VM"));
        assert!(policy.admits(ID, "host-b", "web").is_err() && !policy.hears("host-b"));
        policy.arrivals.expect(Vec::new());
        assert!(!policy.hears("host-a") && policy.admits(ID, "host-a", "web").is_err());
    }

    #[test]
    fn who_was_told_to_look_may_look_for_a_while() {
        let policy = Policy::default();
        policy.arrivals.meet("host-a".to_owned(), Duration::from_secs(3600));
        assert!(policy.hears("host-a") && policy.admits(ID, "host-a", "web").is_err());
        policy.arrivals.meet("host-a".to_owned(), Duration::ZERO);
        assert!(!policy.hears("host-a"), "its time is over");
    }
}
