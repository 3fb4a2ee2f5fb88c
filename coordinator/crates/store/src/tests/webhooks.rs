//! What webhooks are owed.

use model::webhook::{Standing, Webhook};

use super::*;

fn webhook(text: &str) -> Webhook {
    let url = "https://example.org".to_owned();
    Webhook { name: name(text), url, on: Vec::new(), ca: None, paused: false }
}

async fn topics(store: &Store, behind: u64) -> Vec<String> {
    let events = store.webhook_events(behind, 1000).await.unwrap();
    let (first, last) = (events.first().map(|one| one.number), events.last().map(|one| one.number));
    assert!(first.is_none_or(|first| first == behind + 1), "a gap: {events:?}");
    assert_eq!(last.unwrap_or(behind) - behind, events.len() as u64);
    events.into_iter().map(|event| event.topic).collect()
}

#[tokio::test]
pub(super) async fn webhooks_are_owed_what_happened_since_they_were_added() {
    let (_folder, store) = store().await;
    invite(&store, "d1", None).await;
    store.join("d1", &certificate("01", "host-a"), deed(1, "join", "host-a")).await.unwrap();
    store.add_webhook(&webhook("one"), "salt", deed(2, "manage-webhooks", "one")).await.unwrap();
    assert_eq!(topics(&store, 0).await, [""; 0], "what happened before");
    let again = store.add_webhook(&webhook("one"), "s", deed(2, "manage-webhooks", "one")).await.unwrap_err();
    assert_eq!(again.kind(), StoreErrorKind::Conflict);
    store.add_migration(&migration(1, "web-1"), deed(3, "migrate", "web-1")).await.unwrap();
    // What is refused did not happen.
    store.add_migration(&migration(2, "web-1"), deed(3, "migrate", "web-1")).await.unwrap_err();
    let id = migration(1, "web-1").id;
    // What changes no state is not told.
    store.update_migration(&id, |migration| migration.changed = at(5)).await.unwrap();
    store.update_migration(&id, |migration| migration.state = State::Completed).await.unwrap();
    store.note_lost(&[name("host-a"), name("host-x")], true, at(6)).await.unwrap();
    store.note_lost(&[name("host-a")], true, at(7)).await.unwrap();
    assert_eq!(store.lost_hosts().await.unwrap(), [name("host-a")]);
    store.note_lost(&[name("host-a")], false, at(8)).await.unwrap();
    store.revoke_host(&name("host-a"), deed(9, "revoke-host", "host-a")).await.unwrap();
    store.revoke_host(&name("host-a"), deed(9, "revoke-host", "host-a")).await.unwrap();
    store.note_lost(&[name("host-a")], true, at(10)).await.unwrap();
    let all = ["migration.queued", "migration.completed", "host.lost", "host.back", "host.revoked"];
    assert_eq!(topics(&store, 0).await, all);
    assert_eq!(store.newest_webhook_event().await.unwrap(), 5);

    // A second one is owed nothing of that, and what only the first needs stays for it.
    let two = store.add_webhook(&webhook("two"), "salt", deed(11, "manage-webhooks", "two")).await.unwrap();
    assert_eq!(two.passed, 5);
    let taken = |standing: &mut Standing| standing.delivered = Some(at(12));
    let one = store.webhook(&name("one")).await.unwrap();
    assert!(store.delivered(&one, 3, true, taken).await.unwrap());
    assert!(!store.delivered(&one, 2, true, taken).await.unwrap(), "it would be told twice");
    let gone = KeptWebhook { webhook: webhook("gone"), ..one.clone() };
    assert!(!store.delivered(&gone, 3, true, taken).await.unwrap());
    // One that was removed and added again has another salt.
    let before = KeptWebhook { salt: "of before".to_owned(), ..one.clone() };
    assert!(!store.delivered(&before, 4, true, taken).await.unwrap());
    // What an operator changes meanwhile stays; what the receiver has it has.
    let older = KeptWebhook { webhook: Webhook { paused: true, ..webhook("one") }, ..one.clone() };
    let failed = |standing: &mut Standing| standing.failures = 9;
    assert!(!store.delivered(&older, 3, false, failed).await.unwrap());
    assert!(!store.delivered(&older, 3, true, failed).await.unwrap());
    assert_eq!(store.webhook(&name("one")).await.unwrap().standing.failures, 0);
    store.forget_webhook_events(1000).await.unwrap();
    let one = store.webhook(&name("one")).await.unwrap();
    assert_eq!((one.passed, one.standing.delivered, one.standing.lost), (3, Some(at(12)), 0));
    assert_eq!(topics(&store, 3).await, all[3..]);
    assert_eq!(store.webhook_events_behind(0).await.unwrap(), 2);
    // Numbers go on when all is passed and forgotten.
    store.delivered(&one, 5, true, taken).await.unwrap();
    store.forget_webhook_events(1000).await.unwrap();
    assert_eq!(store.webhook_events_behind(0).await.unwrap(), 0);
    store.add_migration(&migration(3, "web-3"), deed(13, "migrate", "web-3")).await.unwrap();
    assert_eq!(topics(&store, 5).await, ["migration.queued"]);
}

#[tokio::test]
pub(super) async fn who_is_too_far_behind_hears_how_much_was_lost() {
    let (_folder, store) = store().await;
    store.add_webhook(&webhook("one"), "salt", deed(1, "manage-webhooks", "one")).await.unwrap();
    for number in 1..=20 {
        let vm = format!("vm-{number}");
        store.add_migration(&migration(number, &vm), deed(2, "migrate", &vm)).await.unwrap();
    }
    store.forget_webhook_events(15).await.unwrap();
    let one = store.webhook(&name("one")).await.unwrap();
    assert_eq!((one.passed, one.standing.lost), (5, 5));
    assert_eq!(topics(&store, 5).await.len(), 15);
    let change = |kept: &mut KeptWebhook| {
        kept.older = Some((std::mem::replace(&mut kept.salt, "new".to_owned()), at(9)));
        kept.webhook.paused = true;
    };
    let changed =
        store.change_webhook(&name("one"), deed(3, "manage-webhooks", "one"), change).await.unwrap();
    assert_eq!(store.webhooks().await.unwrap(), std::slice::from_ref(&changed));
    assert_eq!((changed.salt.as_str(), changed.older), ("new", Some(("salt".to_owned(), at(9)))));
    store.remove_webhook(&name("one"), deed(4, "manage-webhooks", "one")).await.unwrap();
    let gone = store.remove_webhook(&name("one"), deed(4, "manage-webhooks", "one")).await.unwrap_err();
    assert_eq!(gone.kind(), StoreErrorKind::NotFound);
    store.forget_webhook_events(15).await.unwrap();
    assert_eq!(store.webhook_events_behind(0).await.unwrap(), 0);
    store.verify_audit().await.unwrap();
}
