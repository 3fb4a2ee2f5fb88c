//! Hosts that have no line for long are lost, and come back: news for people, unlike each short break.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use model::Name;
use store::StoreError;

use crate::fleet::{Fleet, now};

/// How long a host is away before it counts as lost. A coordinator that starts waits as long for all of them.
const AWAY: Duration = Duration::from_secs(60);
/// How often it is looked.
const LEAST: Duration = Duration::from_secs(2);
/// Hosts in one transaction: others wait for it.
const AT_ONCE: usize = 200;

/// Looks for them.
#[derive(Debug, Default)]
pub(super) struct Watch {
    looked: Option<Instant>,
    /// Since when hosts are seen to be away, by a clock that nobody sets.
    away: BTreeMap<Name, Instant>,
}

impl Watch {
    /// Who is lost now and was not, and who is back. `hosts`: those that were ever heard of, and whether they are connected.
    fn changes(
        &mut self,
        hosts: impl Iterator<Item = (Name, bool)>,
        lost: &BTreeSet<Name>,
        now: Instant,
    ) -> (Vec<Name>, Vec<Name>) {
        let (mut gone, mut back, mut away) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (name, connected) in hosts {
            if connected {
                if lost.contains(&name) {
                    back.push(name);
                }
                continue;
            }
            let since = self.away.get(&name).copied().unwrap_or(now);
            if !lost.contains(&name) && now.duration_since(since) >= AWAY {
                gone.push(name.clone());
            }
            away.insert(name, since);
        }
        self.away = away;
        (gone, back)
    }

    pub(super) async fn look(&mut self, fleet: &Fleet) -> Result<(), StoreError> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LEAST) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let lost: BTreeSet<_> = fleet.store.lost_hosts().await?.into_iter().collect();
        let (roster, lines) = (fleet.store.roster().await?, fleet.connections());
        let hosts = roster.iter().filter(|host| host.revoked.is_none() && host.seen.is_some());
        let hosts = hosts.map(|host| (host.name.clone(), lines.contains_key(&host.name)));
        let (gone, back) = self.changes(hosts, &lost, Instant::now());
        for (hosts, lost) in [(gone, true), (back, false)] {
            for some in hosts.chunks(AT_ONCE) {
                fleet.store.note_lost(some, lost, now()).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_breaks_and_a_start_are_no_losses() {
        let name: Name = "a".parse().unwrap();
        let (lost, none) = (BTreeSet::from([name.clone()]), BTreeSet::new());
        let begun = Instant::now();
        let mut watch = Watch::default();
        let mut look = |connected, lost: &BTreeSet<Name>, seconds| {
            let now = begun + Duration::from_secs(seconds);
            let (gone, back) = watch.changes(std::iter::once((name.clone(), connected)), lost, now);
            (gone.len(), back.len())
        };
        // From the first look on, whenever it was heard of before.
        assert_eq!(look(false, &none, 0), (0, 0));
        assert_eq!(look(false, &none, 59), (0, 0));
        assert_eq!(look(true, &none, 60), (0, 0));
        // A break counts from its own beginning.
        assert_eq!(look(false, &none, 70), (0, 0));
        assert_eq!(look(false, &none, 129), (0, 0));
        assert_eq!(look(false, &none, 130), (1, 0));
        assert_eq!(look(false, &lost, 131), (0, 0));
        assert_eq!(look(true, &lost, 140), (0, 1));
        assert_eq!(look(true, &none, 141), (0, 0));
    }
}
