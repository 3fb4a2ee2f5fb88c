//! Databases of every earlier schema are brought up to date, and say what they said.
//!
//! `tests-data/schema/N.sql` is what a coordinator of schema version N left, in the shapes that its release wrote. It is
//! frozen with the migration: a schema that was released is on disks that nobody here can change any more.

use std::collections::BTreeMap;

use ::postgres::Server;
use model::host::Host;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::any::AnyPoolOptions;
use sqlx::migrate::Migrator;
use sqlx::{Column, Executor};

use super::*;

static ALL: Migrator = sqlx::migrate!("./migrations");

/// A version of the schema, frozen.
struct Frozen {
    version: i64,
    /// First digits of the SHA-384 of `migrations/N_….sql`.
    migration: &'static str,
    /// What a database of that version held, and the SHA-256 of it; if none, that of the version before is taken.
    rows: Option<(&'static str, &'static str)>,
}

macro_rules! rows {
    ($file:literal, $sum:literal) => {
        Some((include_str!(concat!("../../tests-data/schema/", $file)), $sum))
    };
}

/// Lines are added here, and never changed.
const FROZEN: &[Frozen] = &[
    Frozen {
        version: 1,
        migration: "c8c3c669a6104660860f610e3a32270c5a5724f9292ddb75",
        rows: rows!("0001.sql", "a50c9d5c18df6468801a61a261a68a26caaeea467bb5cf2a7dba78015b1f0891"),
    },
    Frozen {
        version: 2,
        migration: "942055b4fffe7ff253f78cc03c6b413272c48c981fd63cb8",
        rows: rows!("0002.sql", "ebaba40243747a34d88294c0aa577757b0fc7022c47ba9514b7e21ad7e7df88d"),
    },
    Frozen {
        version: 3,
        migration: "cc4b4ed4c9e6d9adfdfce94b18c973f5155387657c3b3a56",
        rows: rows!("0003.sql", "67ceeb7c62e9c8f544e982cbf3806d67fb5f7c74e3ba5a38a9be18b2831fe840"),
    },
    Frozen {
        version: 5,
        migration: "a8254707e7d4b69dd8c5c4b40eb6739586aab3082b1e8738",
        rows: rows!("0005.sql", "429d2a82e6883637d128a9906229af1c85c3ff37ba46795423e8fb136bf60796"),
    },
    Frozen { version: 6, migration: "2b6db3acf86aa0935070a4199325aafe3b6b2eb6bdc067f5", rows: None },
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_was_released_is_never_changed() {
    for migration in ALL.iter() {
        let (version, sum) = (migration.version, &hex(&migration.checksum)[..48]);
        let frozen = FROZEN.iter().find(|frozen| frozen.version == version).unwrap_or_else(|| {
            panic!("freeze the new schema: Frozen {{ version: {version}, migration: {sum:?}, rows: None }}")
        });
        assert_eq!(
            frozen.migration, sum,
            "migration {version} was changed: databases that have it would not open"
        );
    }
    let known: Vec<_> = ALL.iter().map(|migration| migration.version).collect();
    assert_eq!(FROZEN.iter().map(|frozen| frozen.version).collect::<Vec<_>>(), known, "a migration is gone");
    for Frozen { version, rows, .. } in FROZEN {
        if let Some((rows, sum)) = rows {
            assert_eq!(
                hex(&Sha256::digest(rows)),
                *sum,
                "what databases of version {version} held was changed"
            );
        }
    }
}

/// All of a table, whatever it holds.
type Rows = Vec<Vec<Option<String>>>;

/// A database as an older release left it.
async fn make(url: &str, version: i64) -> AnyPool {
    sqlx::any::install_default_drivers();
    let pool = AnyPoolOptions::new().max_connections(1).connect(url).await.unwrap();
    let older = FROZEN.iter().rev().filter(|frozen| frozen.version <= version);
    let (from, rows) = older.filter_map(|frozen| Some((frozen.version, frozen.rows?.0))).next().unwrap();
    let up_to = |most: i64| {
        Migrator::with_migrations(ALL.iter().filter(|one| one.version <= most).cloned().collect())
    };
    up_to(from).run(&pool).await.unwrap();
    pool.execute(sqlx::raw_sql(rows)).await.unwrap();
    up_to(version).run(&pool).await.unwrap();
    pool
}

/// Columns of each table that has rows.
async fn columns(pool: &AnyPool, rows: &str) -> BTreeMap<String, Vec<String>> {
    let mut columns = BTreeMap::new();
    for line in rows.lines() {
        let Some(table) = line.strip_prefix("INSERT INTO ").and_then(|rest| rest.split(' ').next()) else {
            continue;
        };
        if !columns.contains_key(table) {
            let row = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT * FROM {table} LIMIT 1")));
            let row = row.fetch_one(pool).await.unwrap();
            let names = row.columns().iter().map(|column| column.name().to_owned()).collect();
            columns.insert(table.to_owned(), names);
        }
    }
    columns
}

async fn content(pool: &AnyPool, columns: &BTreeMap<String, Vec<String>>) -> BTreeMap<String, Rows> {
    let mut content = BTreeMap::new();
    for (table, columns) in columns {
        let casts: Vec<_> = columns.iter().map(|name| format!("CAST({name} AS TEXT) AS {name}")).collect();
        let text = format!("SELECT {} FROM {table} ORDER BY 1, 2", casts.join(", "));
        let rows = sqlx::query(sqlx::AssertSqlSafe(text)).fetch_all(pool).await.unwrap();
        let read = |row: &sqlx::any::AnyRow| {
            (0..columns.len()).map(|nth| row.try_get::<Option<String>, _>(nth).unwrap()).collect()
        };
        content.insert(table.clone(), rows.iter().map(read).collect());
    }
    content
}

fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

/// Whether nothing of what was written is missing in what is read now.
#[track_caller]
fn keeps(now: &Value, then: &Value, what: &str) {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            for (name, then) in then {
                keeps(&now[name], then, &format!("{what}.{name}"));
            }
        }
        (Value::Array(now), Value::Array(then)) if now.len() == then.len() => {
            for (nth, (now, then)) in now.iter().zip(then).enumerate() {
                keeps(now, then, &format!("{what}[{nth}]"));
            }
        }
        _ => assert_eq!(now, then, "{what}"),
    }
}

/// The column of a table as JSON, by the first column.
fn bodies(
    content: &BTreeMap<String, Rows>,
    columns: &BTreeMap<String, Vec<String>>,
    table: &str,
    column: &str,
) -> BTreeMap<String, Value> {
    let Some(rows) = content.get(table) else { return BTreeMap::new() };
    let nth = columns[table].iter().position(|name| name == column).unwrap();
    let body = |row: &Vec<Option<String>>| {
        Some((row[0].clone()?, serde_json::from_str(row[nth].as_deref()?).unwrap()))
    };
    rows.iter().filter_map(body).collect()
}

/// Upgrades a database of a version, and looks at all of it through the store.
async fn upgraded(url: &str, database: Database, version: i64) {
    let pool = make(url, version).await;
    let older = FROZEN.iter().rev().filter(|frozen| frozen.version <= version);
    let rows = older.filter_map(|frozen| frozen.rows).next().unwrap().0;
    let columns = columns(&pool, rows).await;
    let before = content(&pool, &columns).await;
    pool.close().await;
    let store = Store::open(&database).await.unwrap();
    let mut after = content(&store.readers, &columns).await;
    // Which coordinator leads is told here.
    after.get_mut("facts").unwrap().retain(|row| row[0].as_deref() != Some(TERM));
    assert_eq!(after, before, "version {version}: rows were changed");

    let hosts = store.hosts().await.unwrap();
    assert_eq!(hosts.len(), 3);
    for (name, then) in bodies(&before, &columns, "hosts", "observed") {
        let host: &Host = hosts.iter().find(|host| host.name.as_str() == name).unwrap();
        keeps(&json(&host.observed), &then, &name);
    }
    assert_eq!((hosts[2].revoked, hosts[2].observed.as_ref()), (Some(at(600)), None));
    let good = async |serial: &str| store.is_good_certificate(&serial.repeat(16)).await.unwrap();
    assert!(good("01").await && good("02").await && !good("03").await);
    assert_eq!(store.revoked_certificates(at(700)).await.unwrap().len(), 1);

    let migrations = store.migrations(&Page { before: None, most: 100 }).await.unwrap();
    let then = bodies(&before, &columns, "migrations", "body");
    assert_eq!(migrations.len(), then.len());
    for migration in &migrations {
        keeps(&json(migration), &then[&migration.id], &migration.id);
    }
    let open: Vec<_> = store.open_migrations().await.unwrap().into_iter().map(|one| one.vm).collect();
    assert_eq!(open, ["web-1", "web-2", "web-5"]);
    let (generation, wanted) = store.intent().await.unwrap();
    assert_eq!((generation, wanted.len()), (41, 3));

    let tokens = store.api_tokens().await.unwrap();
    assert_eq!(
        tokens.iter().map(|token| token.role).collect::<Vec<_>>(),
        [Role::Admin, Role::Operator, Role::Viewer]
    );
    assert_eq!((tokens[1].expires, tokens[2].revoked), (Some(at(90 * 86_400)), Some(at(30))));
    assert_eq!(store.api_token(&"b2".repeat(32), at(50)).await.unwrap().id, "00000002");
    store.api_token(&"b3".repeat(32), at(50)).await.unwrap_err();
    let (entries, _) = store.verify_audit().await.unwrap();
    assert_eq!(entries, 5);

    let links = store.links().await.unwrap();
    let then = bodies(&before, &columns, "links", "body");
    assert_eq!(links.len(), then.len());
    for standing in &links {
        keeps(&json(&standing.link), &then[standing.link.name.as_str()], "a link");
    }
    let probes = store.link_probes(&name("ber-par"), 10).await;
    assert_eq!(probes.map_or(0, |probes| probes.len()), before.get("link_probes").map_or(0, Vec::len));
    let plans = store.plans(&Page { before: None, most: 100 }).await.unwrap();
    let then = bodies(&before, &columns, "plans", "body");
    assert_eq!(plans.len(), then.len());
    for plan in &plans {
        keeps(&json(plan), &then[&plan.id], &plan.id);
    }
    if before.contains_key("plans") {
        assert_eq!(store.plans_that_run().await.unwrap().len(), 1);
        assert_eq!(store.cordoned().await.unwrap(), [(name("host-b"), at(500))]);
    }
    if before.contains_key("claims") {
        let again = |key: &str, digest: &str| Claim {
            caller: "token:00000002".to_owned(),
            key: key.to_owned(),
            digest: digest.repeat(32),
            run: "run-2".to_owned(),
            at: at(400),
        };
        let done = Claimed::Done(Some(Answer { status: 202, body: r#"{"id":"1"}"#.to_owned() }));
        assert_eq!(store.claim(&again("k-1", "c1"), at(0)).await.unwrap(), done);
        assert_eq!(store.claim(&again("k-2", "c2"), at(0)).await.unwrap(), Claimed::New);
    }

    // And it works: what changes it goes on from there.
    let (token, late) = ("a2".repeat(32), certificate(&"04".repeat(16), "host-d"));
    let late = store.join(&token, &late, deed(700, "join", "host-d"));
    assert_eq!(late.await.unwrap().site, name("berlin"));
    let held = migration(900, "web-1");
    let refused = store.add_migration(&held, deed(701, "migrate", "web-1")).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Conflict);
    store.add_migration(&migration(901, "web-3"), deed(702, "migrate", "web-3")).await.unwrap();
    store.cordon(&name("host-a"), true, deed(703, "migrate", "host-a")).await.unwrap();
    assert_eq!(store.intent_generation().await.unwrap(), 42);
    assert_eq!(store.verify_audit().await.unwrap().0, 8);
    store.close().await;
}

fn sqlite(folder: &tempfile::TempDir) -> String {
    format!("sqlite://{}?mode=rwc", folder.path().join(DATABASE).display())
}

#[tokio::test]
async fn databases_of_every_earlier_version_are_upgraded() {
    for Frozen { version, .. } in FROZEN {
        let folder = tempfile::tempdir().unwrap();
        upgraded(&sqlite(&folder), of(&folder), *version).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_of_every_earlier_version_are_upgraded_on_postgresql() {
    let test = "databases_of_every_earlier_version_are_upgraded_on_postgresql";
    let Some(server) = Server::start(test) else { return };
    for Frozen { version, .. } in FROZEN {
        let name = format!("version{version}");
        server.make(&name);
        upgraded(&server.url(&name), Database::Postgres(server.url(&name)), *version).await;
    }
}

/// A database that a newer release has used is left as it is.
async fn newer(url: &str, database: Database) {
    let pool = make(url, FROZEN[0].version).await;
    ALL.run(&pool).await.unwrap();
    let text = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                SELECT 9999, 'of tomorrow', success, checksum, execution_time FROM _sqlx_migrations WHERE version = 1";
    pool.execute(text).await.unwrap();
    let refused = Store::open(&database).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Newer);
    assert!(refused.to_string().contains("start that release, or restore a backup"), "{refused}");
    // A schema that somebody has changed is no newer one, and is not touched either.
    pool.execute("DELETE FROM _sqlx_migrations WHERE version = 9999").await.unwrap();
    let column = "UPDATE _sqlx_migrations SET checksum = (SELECT checksum FROM _sqlx_migrations WHERE version = 2) \
                  WHERE version = 1";
    pool.execute(column).await.unwrap();
    let refused = Store::open(&database).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Unusable);
    pool.close().await;
}

#[tokio::test]
async fn a_database_of_a_newer_release_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    newer(&sqlite(&folder), of(&folder)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_a_newer_release_is_refused_on_postgresql() {
    let Some(server) = Server::start("a_database_of_a_newer_release_is_refused_on_postgresql") else {
        return;
    };
    server.make("newer");
    newer(&server.url("newer"), Database::Postgres(server.url("newer"))).await;
}
