//! Which destinations let a migration in: the source hears of it only then, so that it is not turned away.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use control_api::v1::Intent;
use model::Name;
use model::migration::Migration;

/// What hosts have said that they let in.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(Mutex<HashMap<Name, HashSet<String>>>);

/// What was told on one line, until the host says that it holds.
#[derive(Debug, Default)]
pub(crate) struct Told {
    last: u64,
    waiting: BTreeMap<u64, Vec<String>>,
}

/// Intents that a host may leave unanswered; older ones are forgotten, and what they expected waits for a later one.
const MOST: usize = 64;

impl Told {
    /// Numbers an intent that is told now.
    pub(crate) fn number(&mut self, intent: &mut Intent) {
        self.last += 1;
        intent.number = self.last;
        let ids = intent.expected.iter().map(|expected| expected.migration.clone());
        self.waiting.insert(self.last, ids.collect());
        if self.waiting.len() > MOST {
            self.waiting.pop_first();
        }
    }

    /// What holds by the host's word; nothing when it was not told that number.
    pub(crate) fn took(&mut self, number: u64) -> Option<Vec<String>> {
        let ids = self.waiting.remove(&number)?;
        self.waiting.retain(|earlier, _| *earlier > number);
        Some(ids)
    }
}

impl Arrivals {
    fn hosts(&self) -> MutexGuard<'_, HashMap<Name, HashSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the source may hear of a migration. `expects`: its destination is one that lets in by our word.
    pub(crate) fn may_begin(&self, migration: &Migration, expects: bool) -> bool {
        let lets_in =
            || self.hosts().get(&migration.destination).is_some_and(|ids| ids.contains(&migration.id));
        !expects || lets_in()
    }

    /// A host lets these in and no others; true when that is news for some source.
    pub(crate) fn hold(&self, host: &Name, ids: Vec<String>) -> bool {
        let ids: HashSet<_> = ids.into_iter().collect();
        let mut hosts = self.hosts();
        let known = hosts.entry(host.clone()).or_default();
        let news = ids.iter().any(|id| !known.contains(id));
        *known = ids;
        news
    }

    /// A host's line is closed: what it lets in is asked again.
    pub(crate) fn forget(&self, host: &Name) {
        self.hosts().remove(host);
    }
}

#[cfg(test)]
mod tests {
    use control_api::v1::Expected;

    use super::*;

    fn intent(ids: &[&str]) -> Intent {
        let expected = |id: &&str| Expected { migration: (*id).to_owned(), ..Expected::default() };
        Intent { expected: ids.iter().map(expected).collect(), ..Intent::default() }
    }

    #[test]
    fn an_answer_is_to_what_was_told_with_its_number() {
        let mut told = Told::default();
        let mut tell = |ids: &[&str]| {
            let mut intent = intent(ids);
            told.number(&mut intent);
            intent.number
        };
        assert_eq!([tell(&["a"]), tell(&["a", "b"]), tell(&["c"])], [1, 2, 3]);
        assert_eq!(told.took(2), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(told.took(1), None, "a later one holds");
        assert_eq!(told.took(9), None);
        assert_eq!(told.took(3), Some(vec!["c".to_owned()]));
        for _ in 0..200 {
            told.number(&mut intent(&["x"]));
        }
        assert!(told.waiting.len() <= MOST && told.took(203).is_some());
    }

    #[test]
    fn what_is_let_in_is_news_once() {
        let (arrivals, host) = (Arrivals::default(), "host-b".parse().unwrap());
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        assert!(arrivals.hold(&host, ids(&["a"])));
        assert!(!arrivals.hold(&host, ids(&["a"])));
        assert!(arrivals.hold(&host, ids(&["a", "b"])));
        assert!(!arrivals.hold(&host, ids(&["b"])));
        assert!(arrivals.hold(&host, ids(&["a"])), "it was not for a while");
        arrivals.forget(&host);
        assert!(arrivals.hold(&host, ids(&["a"])));
    }
}
