//! The same on PostgreSQL, and what only several coordinators have: a lead that is lost and taken over.

use std::cell::RefCell;
use std::time::Duration;

use ::postgres::Server;
use tokio::time::timeout;

use super::*;

/// Far beyond what anything takes here.
const PATIENCE: Duration = Duration::from_secs(60);

thread_local! {
    /// Addresses of empty databases, for the tests that run on this thread.
    static DATABASES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// An empty database of PostgreSQL, if one is to be taken.
pub(super) fn another() -> Option<Database> {
    DATABASES.with_borrow_mut(Vec::pop).map(Database::Postgres)
}

#[test]
fn postgresql_keeps_all_that_sqlite_keeps() {
    let Some(server) = Server::start("postgresql_keeps_all_that_sqlite_keeps") else { return };
    let tests: [fn(); 13] = [
        a_join_token_lets_one_host_in_once,
        tokens_used_at_the_same_time_let_one_in,
        a_revoked_host_stays_out,
        hosts_are_known_by_what_they_say,
        api_tokens_are_good_until_they_are_not,
        one_vm_is_moved_once_at_a_time,
        the_roster_is_what_is_in_the_database,
        what_is_wanted_of_hosts_has_a_generation,
        pages_cover_everything_once,
        a_restored_database_takes_in_certificates_of_the_time_between,
        an_audit_log_that_was_changed_is_found_out,
        webhooks::webhooks_are_owed_what_happened_since_they_were_added,
        webhooks::who_is_too_far_behind_hears_how_much_was_lost,
    ];
    for (nth, test) in tests.into_iter().enumerate() {
        let name = format!("test{nth}");
        server.make(&name);
        DATABASES.with_borrow_mut(|databases| databases.push(server.url(&name)));
        test();
        assert!(another().is_none(), "test {nth} did not take it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_takes_over_when_the_leader_is_gone() {
    let Some(server) = Server::start("another_takes_over_when_the_leader_is_gone") else { return };
    server.make("shared");
    let database = Database::Postgres(server.url("shared"));
    let first = Store::open(&database).await.unwrap();
    first.set_facts(&[("word", "one")]).await.unwrap();
    let waiting = database.clone();
    let second = tokio::spawn(async move { Store::open(&waiting).await.unwrap() });
    first.set_facts(&[("word", "two")]).await.unwrap();
    assert!(!second.is_finished(), "two lead at once");
    first.close().await;
    drop(first);
    let second = timeout(PATIENCE, second).await.unwrap().unwrap();
    assert_eq!(second.fact("word").await.unwrap().as_deref(), Some("two"));
    second.set_facts(&[("word", "three")]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_does_not_know_that_it_was_replaced_changes_nothing() {
    let test = "a_leader_that_does_not_know_that_it_was_replaced_changes_nothing";
    let Some(server) = Server::start(test) else { return };
    server.make("shared");
    let database = Database::Postgres(server.url("shared"));
    let stale = Store::open(&database).await.unwrap();
    stale.set_facts(&[("word", "stale")]).await.unwrap();
    // The lock's session ends, as by a broken connection; its others live on, and nobody has told it yet.
    let ended = "SELECT pg_terminate_backend(pid) AS ended FROM pg_locks WHERE locktype = 'advisory'";
    sqlx::query(ended).execute(&stale.readers).await.unwrap();
    let next = timeout(PATIENCE, Store::open(&database)).await.unwrap().unwrap();
    next.set_facts(&[("word", "next")]).await.unwrap();
    let refused = stale.set_facts(&[("word", "stale again")]).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Busy);
    timeout(PATIENCE, stale.lost().cancelled()).await.unwrap();
    assert_eq!(next.fact("word").await.unwrap().as_deref(), Some("next"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_crashes_loses_nothing_that_was_confirmed() {
    let test = "a_database_that_crashes_loses_nothing_that_was_confirmed";
    let Some(mut server) = Server::start(test) else { return };
    server.make("shared");
    let database = Database::Postgres(server.url("shared"));
    let store = Store::open(&database).await.unwrap();
    let subjects: Vec<String> = (0..40).map(|number| format!("vm-{number}")).collect();
    for subject in &subjects {
        store.note(deed(0, "look", subject)).await.unwrap();
    }
    server.crash();
    store.note(deed(0, "look", "lost")).await.unwrap_err();
    timeout(PATIENCE, store.lost().cancelled()).await.unwrap();
    drop(store);
    server.resume();
    let store = timeout(PATIENCE, Store::open(&database)).await.unwrap().unwrap();
    let entries = store.audit_after(0, 1000).await.unwrap();
    assert_eq!(entries.into_iter().map(|entry| entry.deed.subject).collect::<Vec<_>>(), subjects);
    store.verify_audit().await.unwrap();
}
