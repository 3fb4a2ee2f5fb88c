//! Tells receivers what happened: each webhook in order, one event after the other, again until it is taken.
//!
//! What happened lies in the database with what it tells of (see `store::webhooks`), so that a coordinator that is
//! killed forgets none of it. A receiver may get an event twice, always with the same `webhook-id`.

mod lost;
mod send;
mod sign;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::webhook::{Event, Happening, Reach, Standing, Webhook};
use model::{Name, Timestamp};
use store::{KeptWebhook, MOST_EVENTS, StoreError};
use tokio::task::JoinSet;
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
/// How often what nobody needs is forgotten.
const FORGETTING: Duration = Duration::from_secs(60);
/// Events of one webhook in a row.
const IN_A_ROW: u32 = 100;
/// Longest pause between two attempts.
const MOST_PAUSE: Duration = Duration::from_secs(600);
/// Longest pause that a receiver may ask for.
const MOST_ASKED: Duration = Duration::from_secs(3600);
/// How long a secret is good after it was replaced.
pub(crate) const OLDER_GOOD: Duration = Duration::from_secs(86_400);

/// Delivers until it is to stop.
pub(crate) async fn run(fleet: Arc<Fleet>, stop: CancellationToken) {
    let mut lost = lost::Watch::new(now());
    let mut news = fleet.events.news();
    let mut forgotten = None;
    let mut busy: BTreeSet<Name> = BTreeSet::new();
    let mut tasks: JoinSet<Name> = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = news.changed() => {}
            Some(done) = tasks.join_next() => match done {
                Ok(name) => {
                    busy.remove(&name);
                }
                Err(error) => {
                    tracing::error!(%error, "a delivery of webhooks failed; this is a bug");
                    // Whose it was is not known any more, and whoever is busy is looked at again when it is done.
                    busy.clear();
                }
            },
            () = tokio::time::sleep(REGULAR) => {}
        }
        let looked = async {
            lost.look(&fleet, now()).await?;
            let due = due(&fleet, now()).await?;
            if forgotten.is_none_or(|at: std::time::Instant| at.elapsed() >= FORGETTING) {
                fleet.store.forget_webhook_events(MOST_EVENTS).await?;
                forgotten = Some(std::time::Instant::now());
            }
            Ok::<_, StoreError>(due)
        };
        match looked.await {
            Ok(due) => {
                for kept in due {
                    if busy.insert(kept.webhook.name.clone()) {
                        tasks.spawn(deliver(Arc::clone(&fleet), kept, stop.clone()));
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "cannot look which webhooks are due"),
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
        let tried = kept.standing.retry.is_none_or(|retry| retry <= at);
        kept.passed < newest && !kept.webhook.paused && tried
    });
    Ok(due)
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
    let pause = refusal.after.map_or_else(|| pause(standing.failures), |asked| asked.min(MOST_ASKED));
    standing.retry = at.checked_add(pause).ok();
}

/// Takes in that it did.
fn taken(standing: &mut Standing, at: Timestamp) {
    let lost = standing.lost;
    *standing = Standing { delivered: Some(at), lost, ..Standing::default() };
}

/// Tells one webhook what it is owed, until it does not take it.
async fn deliver(fleet: Arc<Fleet>, kept: KeptWebhook, stop: CancellationToken) -> Name {
    let name = kept.webhook.name.clone();
    let told = tokio::select! {
        () = stop.cancelled() => return name,
        told = tell(&fleet, &kept) => told,
    };
    if let Err(error) = told {
        tracing::warn!(webhook = %name, %error, "a webhook cannot be served");
    }
    name
}

async fn tell(fleet: &Fleet, kept: &KeptWebhook) -> Result<(), ServiceError> {
    let name = &kept.webhook.name;
    let events = fleet.store.webhook_events(kept.passed, IN_A_ROW).await?;
    // What it does not want is passed with what it is told, and not written for itself.
    let mut passed = kept.passed;
    for event in events {
        if !kept.webhook.wants(&event.topic) {
            passed = event.number;
            continue;
        }
        match attempt(fleet, kept, &event).await? {
            Ok(()) => {
                passed = event.number;
                crate::metrics::webhook("delivered");
                if !fleet.store.delivered(name, passed, |standing| taken(standing, now())).await? {
                    return Ok(());
                }
            }
            Err(refusal) => {
                crate::metrics::webhook("failed");
                let first = kept.standing.failures == 0;
                if first {
                    tracing::warn!(webhook = %name, why = refusal.why, "a webhook's receiver takes nothing");
                }
                fleet.store.delivered(name, passed, |standing| failed(standing, now(), &refusal)).await?;
                return Ok(());
            }
        }
    }
    if passed > kept.passed {
        fleet.store.delivered(name, passed, |_| {}).await?;
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
        standing.lost = 3;
        taken(&mut standing, at(3000));
        assert_eq!(standing, Standing { delivered: Some(at(3000)), lost: 3, ..Standing::default() });
    }
}
