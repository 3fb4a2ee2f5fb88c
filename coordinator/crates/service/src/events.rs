//! What changes, told as it changes: a look at the fleet whenever there is news and somebody listens, compared with the
//! look before. So nothing is told that is not in the database, whoever wrote it there, and nobody who forgets to tell
//! hides a change for longer than [`REGULAR`].

mod look;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::fleet::Fleet;
pub(crate) use look::Kind;
use look::Seen;

/// Least time between two looks: many changes at once are one look.
const LEAST: Duration = Duration::from_millis(250);
/// A look even without news: links open by the clock.
const REGULAR: Duration = Duration::from_secs(5);
/// Events that are kept for those who come back, and that a slow reader may be behind.
const KEPT: usize = 1024;
/// Streams at once: of one caller, and of all.
const MOST_OF_ONE: usize = 16;
const MOST: usize = 512;

/// Something changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Event {
    /// Rises by one with each.
    pub(crate) number: u64,
    pub(crate) kind: Kind,
    /// JSON: as the API shows it, or that it is gone.
    pub(crate) data: String,
}

/// Who listens, and what they heard.
#[derive(Debug)]
pub(crate) struct Hub {
    /// There is news.
    news: watch::Sender<u64>,
    /// Looks that were made while somebody listened.
    looks: watch::Sender<u64>,
    sender: broadcast::Sender<Arc<Event>>,
    kept: Mutex<Kept>,
    streams: Streams,
    /// No more events come.
    ended: CancellationToken,
}

/// Events that were told, the oldest first. Nothing is missing behind the first.
#[derive(Debug, Default)]
struct Kept {
    next: u64,
    events: VecDeque<Arc<Event>>,
}

/// A place among those who listen; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    streams: Streams,
    caller: String,
}

/// Streams of each caller.
type Streams = Arc<Mutex<BTreeMap<String, usize>>>;

/// Where somebody begins to listen.
#[derive(Debug)]
pub(crate) struct Heard {
    /// The event before all that is told: the one that was asked for, if what came behind it is known, or the newest.
    pub(crate) behind: u64,
    /// What was missed since the one that was asked for; none when that is not known any more.
    pub(crate) missed: Option<Vec<Arc<Event>>>,
    pub(crate) coming: broadcast::Receiver<Arc<Event>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            news: watch::Sender::new(0),
            looks: watch::Sender::new(0),
            sender: broadcast::Sender::new(KEPT),
            kept: Mutex::new(Kept { next: 1, events: VecDeque::new() }),
            streams: Streams::default(),
            ended: CancellationToken::new(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut streams = lock(&self.streams);
        if let Some(count) = streams.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.caller);
            }
        }
    }
}

impl Hub {
    /// Something may have changed.
    pub(crate) fn note(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// Wakes up whenever something may have changed.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// No more events come.
    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// A place for a caller, if there is one left.
    pub(crate) fn place(&self, caller: &str) -> Option<Place> {
        let mut streams = lock(&self.streams);
        let own = streams.get(caller).copied().unwrap_or(0);
        if own >= MOST_OF_ONE || streams.values().sum::<usize>() >= MOST {
            return None;
        }
        streams.insert(caller.to_owned(), own + 1);
        Some(Place { streams: Arc::clone(&self.streams), caller: caller.to_owned() })
    }

    /// Begins to listen, behind the event `after` if that is still known. What changes from the return on is heard.
    pub(crate) async fn listen(&self, after: Option<u64>) -> Heard {
        let mut looks = self.looks.subscribe();
        let (behind, missed, coming) = {
            let kept = lock(&self.kept);
            let missed = after.and_then(|after| Some((after, kept.after(after)?)));
            let (behind, missed) = match missed {
                Some((after, missed)) => (after, Some(missed)),
                None => (kept.next - 1, None),
            };
            (behind, missed, self.sender.subscribe())
        };
        // The first one is compared with a look that is made now.
        self.note();
        tokio::select! {
            _ = looks.changed() => {}
            () = self.ended.cancelled() => {}
        }
        Heard { behind, missed, coming }
    }

    fn tell(&self, changes: Vec<(Kind, String)>) {
        let mut kept = lock(&self.kept);
        for (kind, data) in changes {
            let event = Arc::new(Event { number: kept.next, kind, data });
            kept.next += 1;
            if kept.events.len() == KEPT {
                kept.events.pop_front();
            }
            kept.events.push_back(Arc::clone(&event));
            // Nobody may listen any more.
            drop(self.sender.send(event));
        }
    }

    /// Nobody listens: what changes from now on is not noted.
    fn forget(&self) {
        let mut kept = lock(&self.kept);
        kept.events.clear();
        // Whoever comes back with the newest number has missed something, too.
        kept.next += 1;
    }

    /// Whether nobody listens.
    fn is_idle(&self) -> bool {
        self.sender.receiver_count() == 0
    }
}

impl Kept {
    /// What came behind an event, if nothing of that is forgotten.
    fn after(&self, number: u64) -> Option<Vec<Arc<Event>>> {
        let first = self.events.front().map(|event| event.number)?;
        // The one before the first is known, too: nothing is missing behind it.
        let known = number + 1 >= first && number < self.next;
        known.then(|| self.events.iter().filter(|event| event.number > number).cloned().collect())
    }
}

/// Tells what changes until it is to stop.
pub(crate) async fn run(fleet: &Fleet, stop: CancellationToken) {
    let hub = &fleet.events;
    let _ended = hub.ended.clone().drop_guard();
    let mut news = hub.news.subscribe();
    let mut seen: Option<Seen> = None;
    loop {
        let regular = async {
            match hub.is_idle() {
                true => std::future::pending().await,
                false => tokio::time::sleep(REGULAR).await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            _ = news.changed() => {}
            () = regular => {}
        }
        if hub.is_idle() {
            if seen.take().is_some() {
                hub.forget();
            }
            continue;
        }
        news.mark_unchanged();
        match look::look(fleet).await {
            Ok(now) => {
                if let Some(before) = seen.replace(now) {
                    let changes = seen.as_ref().map(|now| now.since(&before)).unwrap_or_default();
                    hub.tell(changes);
                }
                hub.looks.send_modify(|count| *count += 1);
            }
            Err(error) => tracing::warn!(%error, "the fleet cannot be looked at to tell what changes"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LEAST) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(hub: &Hub, count: usize) {
        hub.tell(vec![(Kind::Host, "{}".to_owned()); count]);
    }

    #[test]
    fn what_was_missed_is_known_or_said_to_be_unknown() {
        let hub = Hub::default();
        let missed = |number| lock(&hub.kept).after(number).map(|events| events.len());
        assert_eq!(missed(0), None, "nothing was told yet");
        told(&hub, 3);
        assert_eq!([0, 1, 3].map(missed), [Some(3), Some(2), Some(0)]);
        assert_eq!(missed(4), None, "nobody was told that");
        assert_eq!(missed(u64::MAX - 1), None);
        told(&hub, KEPT);
        assert_eq!((missed(2), missed(3)), (None, Some(KEPT)));
        hub.forget();
        assert_eq!(missed(KEPT as u64 + 3), None, "something may have changed meanwhile");
        told(&hub, 1);
        assert_eq!(missed(KEPT as u64 + 3), None);
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let hub = Hub::default();
        let mut own: Vec<_> = (0..MOST_OF_ONE).map(|_| hub.place("token:1").unwrap()).collect();
        assert!(hub.place("token:1").is_none());
        assert!(hub.place("token:2").is_some(), "another caller");
        own.pop();
        assert!(hub.place("token:1").is_some());
        drop(own);
        assert!(lock(&hub.streams).is_empty());
    }
}
