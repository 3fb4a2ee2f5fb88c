//! Hosts that have no line for long are lost, and come back: news for people, unlike each short break.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{Name, Timestamp};
use store::StoreError;

use crate::fleet::Fleet;

/// How long a host is away before it counts as lost. A coordinator that starts waits as long for all of them.
const AWAY: Duration = Duration::from_secs(60);
/// How often it is looked.
const LEAST: Duration = Duration::from_secs(2);

/// Looks for them.
#[derive(Debug)]
pub(super) struct Watch {
    begun: Timestamp,
    looked: Option<Timestamp>,
}

/// Who is lost now and was not, and who is back.
fn changes(
    hosts: impl Iterator<Item = (Name, bool, Option<Timestamp>)>,
    lost: &BTreeSet<Name>,
    begun: Timestamp,
    now: Timestamp,
) -> (Vec<Name>, Vec<Name>) {
    let long = |since: Timestamp| now.duration_since(since).unsigned_abs() >= AWAY && now > since;
    let (mut gone, mut back) = (Vec::new(), Vec::new());
    for (name, connected, seen) in hosts {
        if connected {
            if lost.contains(&name) {
                back.push(name);
            }
        } else if !lost.contains(&name) && long(begun) && seen.is_some_and(long) {
            gone.push(name);
        }
    }
    (gone, back)
}

impl Watch {
    pub(super) fn new(begun: Timestamp) -> Self {
        Self { begun, looked: None }
    }

    pub(super) async fn look(&mut self, fleet: &Fleet, now: Timestamp) -> Result<(), StoreError> {
        let soon = |looked: Timestamp| now.duration_since(looked).unsigned_abs() < LEAST;
        if self.looked.is_some_and(soon) {
            return Ok(());
        }
        self.looked = Some(now);
        let lost: BTreeSet<_> = fleet.store.lost_hosts().await?.into_iter().collect();
        let (roster, lines) = (fleet.store.roster().await?, fleet.connections());
        let hosts = roster.iter().filter(|host| host.revoked.is_none());
        let hosts = hosts.map(|host| (host.name.clone(), lines.contains_key(&host.name), host.seen));
        let (gone, back) = changes(hosts, &lost, self.begun, now);
        for (hosts, lost) in [(gone, true), (back, false)] {
            if !hosts.is_empty() {
                fleet.store.note_lost(&hosts, lost, now).await?;
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
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let host = |connected, seen: Option<i64>| ("a".parse::<Name>().unwrap(), connected, seen.map(at));
        let name: Name = "a".parse().unwrap();
        let (lost, none) = (BTreeSet::from([name.clone()]), BTreeSet::new());
        let (gone, back, same) =
            ((vec![name.clone()], vec![]), (vec![], vec![name.clone()]), (vec![], vec![]));
        for (host, lost, begun, now, expected) in [
            (host(false, Some(940)), &none, 0, 1000, &gone),
            (host(false, Some(941)), &none, 0, 1000, &same),
            (host(false, Some(100)), &none, 941, 1000, &same),
            (host(false, None), &none, 0, 1000, &same),
            (host(true, Some(100)), &none, 0, 1000, &same),
            (host(false, Some(100)), &lost, 0, 1000, &same),
            (host(true, Some(100)), &lost, 941, 1000, &back),
            // A clock that was set back.
            (host(false, Some(2000)), &none, 0, 1000, &same),
        ] {
            let found = changes(std::iter::once(host.clone()), lost, at(begun), at(now));
            assert_eq!(&found, expected, "{host:?} {begun}");
        }
    }
}
