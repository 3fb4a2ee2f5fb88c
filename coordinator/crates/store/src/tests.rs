use std::sync::Arc;

use model::access::Role;
use model::audit::Deed;
use model::host::{Needs, Observed, Vm};
use model::link::Price;
use model::migration::{Migration, Options, Progress, State, Wish};
use model::{Name, Timestamp};

use super::*;

mod postgres;
mod upgrades;
mod webhooks;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn deed(seconds: i64, action: &str, subject: &str) -> Deed {
    Deed {
        at: at(seconds),
        actor: "token:1".to_owned(),
        action: action.to_owned(),
        subject: subject.to_owned(),
        outcome: "done".to_owned(),
        detail: String::new(),
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn certificate(serial: &str, host: &str) -> Certificate {
    Certificate { serial: serial.to_owned(), host: name(host), not_after: at(86_400) }
}

fn migration(number: u32, vm: &str) -> Migration {
    Migration {
        id: format!("{number:032x}"),
        vm: vm.to_owned(),
        source: name("host-a"),
        destination: name("host-b"),
        options: Options::default(),
        wish: Wish::Arrive,
        by: "token:1".to_owned(),
        created: at(i64::from(number)),
        changed: at(i64::from(number)),
        state: State::Queued,
        at_source: None,
        at_destination: None,
        refusal: None,
        proof: None,
        unproven: None,
        plan: None,
        link: None,
        needs: Needs::default(),
        estimate: None,
        price: Price::default(),
    }
}

/// An empty database: of SQLite, unless `postgres` is at work.
async fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let database = postgres::another().unwrap_or_else(|| of(&folder));
    let store = Store::open(&database).await.unwrap();
    (folder, store)
}

fn of(folder: &tempfile::TempDir) -> Database {
    Database::Folder(folder.path().to_owned())
}

async fn invite(store: &Store, digest: &str, host: Option<&str>) {
    let grant = JoinGrant { site: name("berlin"), host: host.map(name), expires: at(3600) };
    store.invite(digest, &grant, deed(0, "invite-host", "berlin")).await.unwrap();
}

#[tokio::test]
async fn what_is_kept_is_there_after_a_restart_and_one_process_has_it() {
    let (folder, store) = store().await;
    store.set_facts(&[("ca", "one"), ("list", "7")]).await.unwrap();
    store.set_facts(&[("ca", "two")]).await.unwrap();
    assert_eq!(Store::open(&of(&folder)).await.unwrap_err().kind(), StoreErrorKind::Busy);
    store.close().await;
    drop(store);
    let store = Store::open(&of(&folder)).await.unwrap();
    assert_eq!(store.fact("ca").await.unwrap().as_deref(), Some("two"));
    assert_eq!(store.fact("list").await.unwrap().as_deref(), Some("7"));
    assert_eq!(store.fact("other").await.unwrap(), None);
}

#[tokio::test]
async fn a_database_of_a_newer_release_is_refused() {
    let (folder, store) = store().await;
    let text = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                VALUES (9999, 'newer', TRUE, x'00', 0)";
    sqlx::query(text).execute(&store.writer).await.unwrap();
    store.close().await;
    drop(store);
    assert_eq!(Store::open(&of(&folder)).await.unwrap_err().kind(), StoreErrorKind::Newer);
}

#[tokio::test]
async fn a_join_token_lets_one_host_in_once() {
    let (_folder, store) = store().await;
    invite(&store, "aa", None).await;
    let join = |digest: &'static str, serial: &'static str, host: &'static str, seconds| {
        let store = &store;
        async move { store.join(digest, &certificate(serial, host), deed(seconds, "join", host)).await }
    };
    assert_eq!(join("ab", "01", "host-a", 1).await.unwrap_err().kind(), StoreErrorKind::Denied);
    assert_eq!(join("aa", "01", "host-a", 1).await.unwrap().site, name("berlin"));
    assert_eq!(join("aa", "02", "host-b", 2).await.unwrap_err().kind(), StoreErrorKind::Denied, "used");
    invite(&store, "ac", None).await;
    assert_eq!(join("ac", "03", "host-b", 3600).await.unwrap_err().kind(), StoreErrorKind::Denied, "too old");
    invite(&store, "ad", Some("host-c")).await;
    assert_eq!(join("ad", "04", "host-b", 1).await.unwrap_err().kind(), StoreErrorKind::Denied, "another's");
    join("ad", "04", "host-c", 1).await.unwrap();
    assert_eq!(
        join("ac", "05", "host-c", 1).await.unwrap_err().kind(),
        StoreErrorKind::Conflict,
        "its name is taken"
    );
    invite(&store, "ae", Some("host-c")).await;
    join("ae", "05", "host-c", 1).await.unwrap();
    let hosts = store.hosts().await.unwrap();
    assert_eq!(hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>(), ["host-a", "host-c"]);
    // What was refused left no certificate and no entry.
    assert!(!store.is_good_certificate("02").await.unwrap());
    assert_eq!(store.verify_audit().await.unwrap().0, 7);
}

#[tokio::test]
async fn tokens_used_at_the_same_time_let_one_in() {
    let (_folder, store) = store().await;
    invite(&store, "aa", None).await;
    let store = Arc::new(store);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let host = format!("host-{number}");
            store
                .join("aa", &certificate(&format!("{number:02}"), &host), deed(1, "join", &host))
                .await
                .is_ok()
        });
    }
    assert_eq!(tasks.join_all().await.into_iter().filter(|joined| *joined).count(), 1);
    assert_eq!(store.hosts().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_revoked_host_stays_out() {
    let (_folder, store) = store().await;
    invite(&store, "aa", None).await;
    store.join("aa", &certificate("01", "host-a"), deed(1, "join", "host-a")).await.unwrap();
    store.renew(&certificate("02", "host-a"), deed(2, "renew", "host-a")).await.unwrap();
    assert!(store.is_good_certificate("02").await.unwrap());
    let unknown = store.renew(&certificate("03", "host-b"), deed(2, "renew", "host-b")).await;
    assert_eq!(unknown.unwrap_err().kind(), StoreErrorKind::Denied);
    store.revoke_host(&name("host-a"), deed(3, "revoke-host", "host-a")).await.unwrap();
    store.revoke_host(&name("host-a"), deed(4, "revoke-host", "host-a")).await.unwrap();
    let unknown = store.revoke_host(&name("host-b"), deed(4, "revoke-host", "host-b")).await;
    assert_eq!(unknown.unwrap_err().kind(), StoreErrorKind::NotFound);
    let since = at(3);
    let list = store.revoked_certificates(at(5)).await.unwrap();
    let expected = ["01", "02"].map(|serial| RevokedCertificate { serial: serial.to_owned(), since });
    assert_eq!(list, expected);
    assert_eq!(store.revoked_certificates(at(86_400)).await.unwrap(), [], "over by themselves");
    assert!(!store.is_good_certificate("01").await.unwrap());
    let again = store.renew(&certificate("03", "host-a"), deed(5, "renew", "host-a")).await;
    assert_eq!(again.unwrap_err().kind(), StoreErrorKind::Denied);
    invite(&store, "ab", None).await;
    let again = store.join("ab", &certificate("03", "host-a"), deed(5, "join", "host-a")).await;
    assert_eq!(again.unwrap_err().kind(), StoreErrorKind::Conflict);
}

#[tokio::test]
async fn hosts_are_known_by_what_they_say() {
    let (_folder, store) = store().await;
    invite(&store, "aa", None).await;
    store.join("aa", &certificate("01", "host-a"), deed(1, "join", "host-a")).await.unwrap();
    let vm = Vm {
        id: "web-1".to_owned(),
        name: "<b>'; DROP TABLE hosts; --".to_owned(),
        state: "running".to_owned(),
        access: "live".to_owned(),
        reason: String::new(),
        needs: Needs::default(),
    };
    let observed = Observed { version: "0.1.0".to_owned(), vms: vec![vm], ..Observed::default() };
    store.observe(&name("host-a"), &observed, at(5)).await.unwrap();
    store.saw(&[(name("host-a"), at(9)), (name("nobody"), at(9))]).await.unwrap();
    let host = store.host(&name("host-a")).await.unwrap();
    assert_eq!((host.seen, host.observed), (Some(at(9)), Some(observed)));
    assert_eq!(store.host(&name("nobody")).await.unwrap_err().kind(), StoreErrorKind::NotFound);
}

#[tokio::test]
async fn api_tokens_are_good_until_they_are_not() {
    let (_folder, store) = store().await;
    let token = |id: &str, expires| ApiToken {
        id: id.to_owned(),
        name: format!("token {id}"),
        role: Role::Operator,
        made: at(0),
        expires,
        revoked: None,
    };
    let made = deed(0, "manage-tokens", "1");
    store.add_api_token("aa", &token("1", None), made.clone()).await.unwrap();
    store.add_api_token("ab", &token("2", Some(at(10))), made.clone()).await.unwrap();
    let twice = store.add_api_token("aa", &token("3", None), made.clone()).await;
    assert_eq!(twice.unwrap_err().kind(), StoreErrorKind::Conflict);
    assert_eq!(store.api_token("aa", at(1)).await.unwrap(), token("1", None));
    store.api_token("ab", at(9)).await.unwrap();
    for (digest, when) in [("ab", 10), ("ac", 1), ("", 1)] {
        assert_eq!(store.api_token(digest, at(when)).await.unwrap_err().kind(), StoreErrorKind::Denied);
    }
    store.revoke_api_token("1", deed(2, "manage-tokens", "1")).await.unwrap();
    assert_eq!(store.api_token("aa", at(3)).await.unwrap_err().kind(), StoreErrorKind::Denied);
    let unknown = store.revoke_api_token("9", made).await;
    assert_eq!(unknown.unwrap_err().kind(), StoreErrorKind::NotFound);
    let all = store.api_tokens().await.unwrap();
    assert_eq!(all.iter().map(|token| token.revoked.is_some()).collect::<Vec<_>>(), [true, false]);
}

#[tokio::test]
async fn one_vm_is_moved_once_at_a_time() {
    let (_folder, store) = store().await;
    let add = |migration: Migration| {
        let store = &store;
        async move { store.add_migration(&migration, deed(1, "migrate", &migration.vm)).await }
    };
    add(migration(1, "web-1")).await.unwrap();
    let error = add(migration(2, "web-1")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Conflict);
    assert!(error.to_string().contains("web-1"), "{error}");
    add(migration(3, "web-2")).await.unwrap();
    let mut rehearsal = migration(4, "web-1");
    rehearsal.options.dry_run = true;
    add(rehearsal).await.unwrap();
    let id = migration(1, "").id;
    store.update_migration(&id, |migration| migration.state = State::Undone).await.unwrap().unwrap();
    add(migration(5, "web-1")).await.unwrap();
    assert_eq!(store.verify_audit().await.unwrap().0, 4, "a refused one leaves no entry");
}

#[tokio::test]
async fn the_roster_is_what_is_in_the_database() {
    let (_folder, store) = store().await;
    let is_same = async |count| {
        let roster = store.roster().await.unwrap();
        assert_eq!(roster.len(), count);
        assert!(roster.iter().map(AsRef::as_ref).eq(&store.hosts().await.unwrap()), "{roster:?}");
    };
    is_same(0).await;
    for (count, host) in ["host-b", "host-a", "host-c"].into_iter().enumerate() {
        invite(&store, host, None).await;
        store.join(host, &certificate(host, host), deed(1, "join", host)).await.unwrap();
        is_same(count + 1).await;
    }
    let (host, mut observed) = (name("host-b"), Observed { processors: 8, ..Observed::default() });
    store.observe(&host, &observed, at(2)).await.unwrap();
    is_same(3).await;
    store.observe(&host, &observed, at(3)).await.unwrap();
    assert_eq!(store.host(&host).await.unwrap().seen, Some(at(2)), "what is known is not written again");
    observed.processors = 16;
    store.observe(&host, &observed, at(4)).await.unwrap();
    is_same(3).await;
    store.saw(&[(host.clone(), at(5)), (name("host-a"), at(6))]).await.unwrap();
    is_same(3).await;
    store.revoke_host(&host, deed(7, "revoke-host", "host-b")).await.unwrap();
    is_same(3).await;
    assert!(store.roster().await.unwrap()[1].revoked.is_some());
}

#[tokio::test]
async fn what_is_wanted_of_hosts_has_a_generation() {
    let (_folder, store) = store().await;
    assert_eq!(store.intent().await.unwrap(), (0, Vec::new()));
    store.add_migration(&migration(1, "web-1"), deed(1, "migrate", "web-1")).await.unwrap();
    let (generation, wanted) = store.intent().await.unwrap();
    assert_eq!((generation, wanted.len()), (1, 1));
    let id = migration(1, "").id;
    let moved = |progress: Progress| {
        let store = &store;
        let id = &id;
        async move {
            store
                .update_migration(id, |migration| {
                    migration.at_source = Some(progress);
                    migration.state = migration.read();
                })
                .await
                .unwrap()
        }
    };
    let preparing = Progress { state: "preparing".to_owned(), ..Progress::default() };
    assert_eq!(moved(preparing.clone()).await.unwrap().state, State::Moving);
    assert_eq!(moved(preparing).await, None, "nothing new");
    assert_eq!(store.intent_generation().await.unwrap(), 1, "figures are nothing that is wanted");
    let cancelled = store
        .change_migration(&id, deed(2, "migrate", &id), |migration| {
            migration.wish(Wish::Cancel).map_err(|error| error.to_string())
        })
        .await
        .unwrap();
    assert_eq!(cancelled.wish, Wish::Cancel);
    assert_eq!(store.intent().await.unwrap(), (2, vec![cancelled]));
    let undone = Progress { state: "rolled-back".to_owned(), over: true, ..Progress::default() };
    assert_eq!(moved(undone).await.unwrap().state, State::Undone);
    assert_eq!(store.intent().await.unwrap(), (3, Vec::new()));
    let refused = store
        .change_migration(&id, deed(3, "migrate", &id), |migration| {
            migration.wish(Wish::Cancel).map_err(|error| error.to_string())
        })
        .await;
    assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Conflict);
    assert_eq!(store.verify_audit().await.unwrap().0, 2);
    // A database that was restored from a backup goes beyond what hosts have seen since.
    assert_eq!(store.pass_generation(40).await.unwrap(), 41);
    assert_eq!(store.pass_generation(7).await.unwrap(), 42);
}

#[tokio::test]
async fn pages_cover_everything_once() {
    let (_folder, store) = store().await;
    for number in 0..7 {
        // Three at one instant.
        let mut migration = migration(number, &format!("web-{number}"));
        migration.created = at(i64::from(number / 3));
        store.add_migration(&migration, deed(1, "migrate", &migration.vm)).await.unwrap();
    }
    let mut page = Page { before: None, most: 2 };
    let mut seen = Vec::new();
    loop {
        let some = store.migrations(&page).await.unwrap();
        let Some(last) = some.last() else { break };
        page.before = Some((last.created.as_millisecond(), last.id.clone()));
        seen.extend(some.into_iter().map(|migration| migration.vm));
    }
    assert_eq!(seen, ["web-6", "web-5", "web-4", "web-3", "web-2", "web-1", "web-0"]);
    assert_eq!(store.migration(&migration(3, "").id).await.unwrap().vm, "web-3");
    assert_eq!(store.migration("x").await.unwrap_err().kind(), StoreErrorKind::NotFound);
}

#[tokio::test]
async fn a_restored_database_takes_in_certificates_of_the_time_between() {
    let (_folder, store) = store().await;
    invite(&store, "00", None).await;
    store.join("00", &certificate("01", "host-a"), deed(1, "join", "host-a")).await.unwrap();
    invite(&store, "02", None).await;
    let adopt = async |serial: &str, host: &str, issued: i64| {
        store.adopt(&certificate(serial, host), at(issued), deed(300, "adopt", host)).await.unwrap()
    };
    assert!(!adopt("05", "host-a", 150).await, "it was never restored");
    store.restored(at(100), deed(200, "restore", "")).await.unwrap();
    assert_eq!(store.restoration().await.unwrap(), Some((at(100), at(200))));
    assert!(!adopt("05", "host-a", 99).await, "the book of that time should have it");
    assert!(!adopt("05", "host-a", 201).await, "the book of today should have it");
    assert!(!adopt("05", "host-b", 150).await, "a stranger");
    assert!(!adopt("01", "host-a", 150).await, "known already");
    assert!(adopt("05", "host-a", 100).await && store.is_good_certificate("05").await.unwrap());
    // A token of then may have been used since.
    let late = store.join("02", &certificate("06", "host-c"), deed(201, "join", "host-c")).await.unwrap_err();
    assert_eq!(late.kind(), StoreErrorKind::Denied);
    store.revoke_host(&name("host-a"), deed(400, "revoke-host", "host-a")).await.unwrap();
    assert!(!adopt("05", "host-a", 150).await && !adopt("07", "host-a", 150).await, "revoked");
    assert!(!store.is_good_certificate("05").await.unwrap());
    store.verify_audit().await.unwrap();
}

#[tokio::test]
async fn a_copy_is_of_one_instant() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&of(&folder)).await.unwrap());
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for number in 0..200 {
                store.note(deed(number, "look", "x")).await.unwrap();
            }
        }
    });
    let mut lengths = Vec::new();
    while !writer.is_finished() {
        let to = tempfile::tempdir().unwrap();
        store.copy_into(&to.path().join(DATABASE)).await.unwrap();
        let copy = Store::open(&of(&to)).await.unwrap();
        // Every entry has the hash of the one before.
        lengths.push(copy.verify_audit().await.unwrap().0);
        copy.close().await;
    }
    writer.await.unwrap();
    assert!(lengths.is_sorted() && !lengths.is_empty(), "{lengths:?}");
    let there = folder.path().join(DATABASE);
    store.copy_into(&there).await.unwrap_err();
    assert_eq!(store.verify_audit().await.unwrap().0, 200);
}

#[tokio::test]
async fn an_audit_log_that_was_changed_is_found_out() {
    let (_folder, store) = store().await;
    for number in 0..5 {
        store.note(deed(number, "look", "x")).await.unwrap();
    }
    let (count, hash) = store.verify_audit().await.unwrap();
    let entries = store.audit_after(3, 10).await.unwrap();
    assert_eq!((count, entries.len(), &entries[1].hash), (5, 2, &hash));
    sqlx::query("UPDATE audit SET actor = 'somebody' WHERE number = 3").execute(&store.writer).await.unwrap();
    let error = store.verify_audit().await.unwrap_err();
    assert!(error.kind() == StoreErrorKind::Corrupt && error.to_string().contains("entry 3"), "{error}");
}

fn claim(run: &str, digest: &str, seconds: i64) -> Claim {
    let (caller, key) = ("token:1".to_owned(), "k".to_owned());
    Claim { caller, key, digest: digest.to_owned(), run: run.to_owned(), at: at(seconds) }
}

#[tokio::test]
async fn a_claim_is_done_with_its_deed_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&of(&folder)).await.unwrap();
    let first = claim("run-1", "d", 0);
    assert_eq!(store.claim(&first, at(-100)).await.unwrap(), Claimed::New);
    assert_eq!(store.claim(&first, at(-100)).await.unwrap(), Claimed::Running);
    assert_eq!(store.claim(&claim("run-1", "other", 0), at(-100)).await.unwrap(), Claimed::Other);
    // That run is killed before the deed: the next takes it over, and what is left of the first does nothing any more.
    let second = claim("run-2", "d", 1);
    assert_eq!(store.claim(&second, at(-100)).await.unwrap(), Claimed::New);
    let answer = Answer { status: 202, body: "{}".to_owned() };
    let add = |claim: &Claim, number: u32| {
        let (store, claim, answer) = (&store, claim.clone(), answer.clone());
        async move {
            within(claim, async {
                answers(answer);
                store.add_migration(&migration(number, "web-1"), deed(2, "migrate", "web-1")).await
            })
            .await
        }
    };
    assert_eq!(add(&first, 1).await.unwrap_err().kind(), StoreErrorKind::Conflict);
    assert!(store.migrations(&Page { before: None, most: 9 }).await.unwrap().is_empty());
    // A refusal is no deed.
    let mut refused = deed(2, "migrate", "web-1");
    "refused".clone_into(&mut refused.outcome);
    within(second.clone(), store.note(refused)).await.unwrap();
    assert_eq!(store.claim(&second, at(-100)).await.unwrap(), Claimed::Running);
    add(&second, 2).await.unwrap();
    // Killed before it could be given back, or not: it is done.
    store.release(&second).await.unwrap();
    drop(store);
    let store = Store::open(&of(&folder)).await.unwrap();
    assert_eq!(store.claim(&claim("run-3", "d", 3), at(-100)).await.unwrap(), Claimed::Done(Some(answer)));
    assert_eq!(store.claim(&claim("run-3", "x", 3), at(-100)).await.unwrap(), Claimed::Other);
    // After its time it is forgotten.
    assert_eq!(store.claim(&claim("run-3", "x", 90), at(50)).await.unwrap(), Claimed::New);
    store.release(&claim("run-3", "x", 90)).await.unwrap();
    assert_eq!(store.claim(&claim("run-3", "y", 91), at(50)).await.unwrap(), Claimed::New);
}

#[tokio::test]
async fn a_claim_without_an_answer_is_done_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&of(&folder)).await.unwrap();
    let one = claim("run-1", "d", 0);
    assert_eq!(store.claim(&one, at(-100)).await.unwrap(), Claimed::New);
    let grant = JoinGrant { site: name("berlin"), host: None, expires: at(100) };
    within(one.clone(), store.invite("00", &grant, deed(0, "invite-host", "berlin"))).await.unwrap();
    assert_eq!(store.claim(&one, at(-100)).await.unwrap(), Claimed::Done(None));
}
