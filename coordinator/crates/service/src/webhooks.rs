//! Tells receivers what happened: each webhook in order, one event after the other, again until it is taken.
//!
//! What happened lies in the database with what it tells of (see `store::webhooks`), so that a coordinator that is
//! killed forgets none of it. A receiver may get an event twice, always with the same `webhook-id`.

mod lost;
mod send;
mod sign;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::webhook::{Event, Happening, Reach, Standing, Webhook};
use model::{Name, Timestamp};
use store::{KeptWebhook, MOST_EVENTS, StoreError, StoreErrorKind};
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::error::ServiceError;
use crate::fleet::{Fleet, now};
use send::Delivery;
pub(crate) use send::Refusal;
pub(crate) use sign::Secrets;

/// How often it is looked what is due, when nothing is known to have happened.
const REGULAR: Duration = Duration::from_secs(1);
/// Least time between two looks.
const LEAST: Duration = Duration::from_millis(100);
/// Pause after something that is not the receiver's fault.
const TROUBLE: Duration = Duration::from_secs(30);
/// How often what nobody needs is forgotten.
const FORGETTING: Duration = Duration::from_secs(60);
/// Events of one webhook in a row.
const IN_A_ROW: u32 = 100;
/// Longest pause between two attempts.
const MOST_PAUSE: Duration = Duration::from_secs(600);
/// Shortest and longest pause that a receiver may ask for.
const LEAST_ASKED: Duration = Duration::from_secs(1);
const MOST_ASKED: Duration = Duration::from_secs(3600);
/// How long a secret is good after it was replaced.
pub(crate) const OLDER_GOOD: Duration = Duration::from_secs(86_400);

/// Delivers until it is to stop.
pub(crate) async fn run(fleet: Arc<Fleet>, stop: CancellationToken) {
    let mut lost = lost::Watch::default();
    let mut news = fleet.events.news();
    let mut forgotten: Option<Instant> = None;
    let mut tasks: JoinSet<()> = JoinSet::new();
    let mut busy: BTreeMap<Name, task::Id> = BTreeMap::new();
    loop {
        let done = tokio::select! {
            () = stop.cancelled() => break,
            _ = news.changed() => None,
            Some(done) = tasks.join_next_with_id() => Some(done),
            () = tokio::time::sleep(REGULAR) => None,
        };
        let more = std::iter::from_fn(|| tasks.try_join_next_with_id());
        for done in done.into_iter().chain(more) {
            let id = match done {
                Ok((id, ())) => id,
                Err(error) => {
                    tracing::error!(%error, "a delivery of webhooks failed; this is a bug");
                    error.id()
                }
            };
            busy.retain(|_, working| *working != id);
        }
        if let Err(error) = lost.look(&fleet).await {
            tracing::warn!(%error, "cannot look which hosts are lost");
        }
        match due(&fleet, now()).await {
            Ok(due) => {
                for kept in due {
                    let name = kept.webhook.name.clone();
                    if let Entry::Vacant(idle) = busy.entry(name) {
                        idle.insert(tasks.spawn(deliver(Arc::clone(&fleet), kept, stop.clone())).id());
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "cannot look which webhooks are due"),
        }
        if forgotten.is_none_or(|at| at.elapsed() >= FORGETTING) {
            forgotten = Some(Instant::now());
            if let Err(error) = fleet.store.forget_webhook_events(MOST_EVENTS).await {
                tracing::warn!(%error, "cannot forget what no webhook needs any more");
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(LEAST) => {}
        }
    }
    // What is under way is sent again by whoever leads next.
    tasks.shutdown().await;
}

/// Webhooks that have something to be told, and are to be tried.
async fn due(fleet: &Fleet, at: Timestamp) -> Result<Vec<KeptWebhook>, StoreError> {
    if fleet.webhooks == Reach::Off {
        return Ok(Vec::new());
    }
    let mut due = fleet.store.webhooks().await?;
    if due.is_empty() {
        return Ok(due);
    }
    let newest = fleet.store.newest_webhook_event().await?;
    due.retain(|kept| {
        kept.passed < newest
            && !kept.webhook.paused
            && kept.standing.retry.is_none_or(|retry| is_due(retry, at))
    });
    Ok(due)
}

/// Whether the time of an attempt has come. One that is farther away than any pause was set by a clock that was wrong.
fn is_due(retry: Timestamp, at: Timestamp) -> bool {
    retry <= at || retry.duration_since(at).unsigned_abs() > MOST_ASKED
}

/// How long to wait after so many failures in a row.
fn pause(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.min(10)).min(MOST_PAUSE)
}

/// Takes in that a receiver did not take an event.
fn failed(standing: &mut Standing, at: Timestamp, refusal: &Refusal) {
    standing.failures = standing.failures.saturating_add(1);
    standing.failing.get_or_insert(at);
    standing.error = Some(refusal.why.clone());
    let pause =
        refusal.after.map_or_else(|| pause(standing.failures), |asked| asked.clamp(LEAST_ASKED, MOST_ASKED));
    standing.retry = at.checked_add(pause).ok();
}

/// Takes in that it did.
fn taken(standing: &mut Standing, at: Timestamp) {
    let lost = standing.lost;
    *standing = Standing { delivered: Some(at), lost, ..Standing::default() };
}

/// Tells one webhook what it is owed, until it does not take it.
async fn deliver(fleet: Arc<Fleet>, kept: KeptWebhook, stop: CancellationToken) {
    let told = tokio::select! {
        () = stop.cancelled() => return,
        told = tell(&fleet, &kept) => told,
    };
    if let Err(error) = told {
        tracing::warn!(webhook = %kept.webhook.name, %error, "a webhook cannot be served");
        // What could not be noted would be sent again at once.
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(TROUBLE) => {}
        }
    }
}

async fn tell(fleet: &Fleet, kept: &KeptWebhook) -> Result<(), ServiceError> {
    let (store, name) = (&fleet.store, &kept.webhook.name);
    let events = store.webhook_events(kept.passed, IN_A_ROW).await?;
    // Read after the events: what an operator said before them holds for them.
    let same = match store.webhook(name).await {
        Err(error) if error.kind() == StoreErrorKind::NotFound => return Ok(()),
        found => found? == *kept,
    };
    if !same {
        return Ok(());
    }
    // What it does not want is passed with what it is told, or at the end.
    let mut passed = kept.passed;
    let mut failing = kept.standing.failures > 0;
    for event in events {
        if !kept.webhook.wants(&event.topic) {
            passed = event.number;
            continue;
        }
        match attempt(fleet, kept, &event).await? {
            Ok(()) => {
                (passed, failing) = (event.number, false);
                crate::metrics::webhook("delivered");
                // Else it was paused, sent elsewhere, or is gone: it is looked at anew.
                if !store.delivered(kept, passed, true, |standing| taken(standing, now())).await? {
                    return Ok(());
                }
            }
            Err(refusal) => {
                crate::metrics::webhook("failed");
                if !failing {
                    tracing::warn!(webhook = %name, why = refusal.why, "a webhook's receiver takes nothing");
                }
                store.delivered(kept, passed, false, |standing| failed(standing, now(), &refusal)).await?;
                return Ok(());
            }
        }
    }
    if passed > kept.passed {
        // Nothing that failed is owed any more.
        let rest = |standing: &mut Standing| {
            let Standing { delivered, lost, .. } = *standing;
            *standing = Standing { delivered, lost, ..Standing::default() };
        };
        store.delivered(kept, passed, false, rest).await?;
    }
    Ok(())
}

/// Sends one event to a webhook.
async fn attempt(
    fleet: &Fleet,
    kept: &KeptWebhook,
    event: &Event,
) -> Result<Result<(), Refusal>, ServiceError> {
    let at = now();
    let signature = fleet.authority.webhooks().signature(kept, event, at)?;
    let Webhook { url, ca, .. } = &kept.webhook;
    let delivery = Delivery {
        reach: fleet.webhooks,
        url: url.clone(),
        ca: ca.clone(),
        id: event.id.clone(),
        timestamp: at.as_second(),
        signature,
        body: event.body.clone(),
    };
    send::send(delivery).await
}

/// Sends an event at once that says nothing, to see whether it is taken.
pub(crate) async fn test(fleet: &Fleet, kept: &KeptWebhook) -> Result<Result<(), Refusal>, ServiceError> {
    attempt(fleet, kept, &Happening::test(now(), &kept.webhook.name).numbered(0)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer_and_receivers_may_ask_for_time() {
        let mut standing = Standing::default();
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let refusal = |after| Refusal { why: "no".to_owned(), after };
        let mut pauses = Vec::new();
        for _ in 0..12 {
            failed(&mut standing, at(1000), &refusal(None));
            pauses.push(standing.retry.unwrap().as_second() - 1000);
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]);
        assert_eq!((standing.failures, standing.failing), (12, Some(at(1000))));
        failed(&mut standing, at(2000), &refusal(Some(Duration::from_secs(86_400))));
        assert_eq!((standing.retry, standing.failing), (Some(at(2000 + 3600)), Some(at(1000))));
        failed(&mut standing, at(2000), &refusal(Some(Duration::ZERO)));
        assert_eq!(standing.retry, Some(at(2001)));
        assert!(is_due(at(2001), at(2001)) && !is_due(at(2001), at(2000)));
        assert!(!is_due(at(2000 + 3600), at(2000)) && is_due(at(2001 + 3600), at(2000)), "a wrong clock");
        standing.lost = 3;
        taken(&mut standing, at(3000));
        assert_eq!(standing, Standing { delivered: Some(at(3000)), lost: 3, ..Standing::default() });
    }
}
