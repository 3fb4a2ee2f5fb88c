//! A coordinator that is restored from yesterday's backup.

use model::Name;

use super::*;
use crate::backup::{Options, Wanted, check, restore};

impl World {
    /// Takes a backup into a new file.
    async fn backup(&self, to: &std::path::Path) {
        let bearer = format!("Bearer {}", self.admin);
        let answer = self.send("POST", "/v1/backup", &[("authorization", &bearer)], Vec::new()).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/x-tar"));
        std::fs::write(to, &answer.bytes).unwrap();
    }

    /// Ends it, and gives another one that was restored from a backup, with what its CA's key is sealed under.
    async fn restored(self, from: &std::path::Path, wanted: Wanted) -> Self {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let key = "wrapping.key";
        std::fs::copy(self.folder.path().join(key), folder.path().join(key)).unwrap();
        let options = Options { wanted, ..Options::default() };
        restore(from, folder.path(), &options).await.unwrap();
        Self::within(folder).await
    }
}

impl Host {
    /// Asks for its next certificate over its line.
    async fn renewed(&mut self, line: &mut Line) {
        self.key = NewKey::generate().unwrap();
        line.say(Said::Renew(v1::Renew { request: self.key.request().unwrap() })).await;
        loop {
            match line.next().await.unwrap() {
                Told::Certificate(certificate) if !certificate.chain.is_empty() => {
                    self.certificate = certificate;
                    return;
                }
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn a_coordinator_of_yesterday_counts_on_and_moves_nothing_twice() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("backup");
    let world = World::new().await;
    let (mut a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.has(&["web-1", "web-2"]).await;
    line_b.has(&[]).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 2).await;
    let (_, before) = world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await;
    let before = before["id"].as_str().unwrap().to_owned();
    world.backup(&file).await;
    // After the backup: one migration ends, one begins, the host gets its next certificate.
    let path = format!("/v1/migrations/{before}");
    let arrived = async |world: &World, line_a: &mut Line, line_b: &mut Line| {
        line_a.moved(&before, "source", "finalised", true).await;
        line_b.moved(&before, "destination", "running", false).await;
        world.until(&path, |migration| migration["state"] == "completed").await;
    };
    arrived(&world, &mut line_a, &mut line_b).await;
    let (_, after) = world.post("/v1/migrations", json!({ "vm": "web-2", "to": "host-b" })).await;
    let after = after["id"].as_str().unwrap().to_owned();
    let seen = loop {
        let intent = line_a.intent().await;
        if intent.migrations.iter().any(|migration| migration.id == after) {
            break intent.generation;
        }
    };
    line_a.moved(&after, "source", "pre-copy", false).await;
    a.renewed(&mut line_a).await;

    let world = world.restored(&file, Wanted::default()).await;
    let mut line_a = a.line(&world, seen).await.unwrap();
    let intent = line_a.intent().await;
    assert!(intent.generation > seen, "{} after {seen}", intent.generation);
    // The one that it knows is told again under its id, which the host knows as done: nothing begins anew.
    assert_eq!(
        intent.migrations.iter().map(|migration| migration.id.as_str()).collect::<Vec<_>>(),
        [&before]
    );
    let mut line_b = b.line(&world, seen).await.unwrap();
    line_a.has(&["web-2"]).await;
    line_b.has(&["web-1"]).await;
    arrived(&world, &mut line_a, &mut line_b).await;
    // The one that it lost goes on at its hosts, and is none of this coordinator's.
    line_a.moved(&after, "source", "pre-copy", false).await;
    line_a.moved(&after, "source", "finalised", true).await;
    // So that the last word was heard: a later one of the same line is.
    line_a.has(&[]).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 1).await;
    let all = world.get("/v1/migrations").await;
    assert_eq!(all["items"].as_array().unwrap().len(), 1, "{all}");
    // What it begins from here on has a generation that no host has seen, and its own id.
    let (status, begun) = world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-a" })).await;
    assert_eq!(status, 202, "{begun}");
    assert!(begun["id"] != before.as_str() && begun["id"] != after.as_str(), "{begun}");
    let audit = world.get("/v1/audit").await;
    let actions: Vec<_> =
        audit["items"].as_array().unwrap().iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    for action in ["backup", "restore", "adopt"] {
        assert!(actions.contains(&action), "{action}: {actions:?}");
    }
    world.get("/v1/audit/check").await;
}

#[tokio::test]
async fn what_was_forbidden_after_the_backup_can_be_forbidden_before_anybody_is_let_in() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("backup");
    let world = World::new().await;
    let (mut a, good) = (world.host("host-a").await, world.host("host-b").await);
    let unused = world.token().await;
    world.backup(&file).await;
    let late = world.host("host-c").await;
    let mut line_a = a.line(&world, 0).await.unwrap();
    a.renewed(&mut line_a).await;
    let (status, _) = world.post("/v1/hosts/host-a/revoke", Value::Null).await;
    assert_eq!(status, 204);
    let (folder, admin) = (world.folder.path().to_owned(), world.admin.clone());
    let key = std::fs::read(folder.join("wrapping.key")).unwrap();

    let wanted = Wanted { revoke_hosts: vec!["host-a".parse::<Name>().unwrap()], revoke_tokens: true };
    let world = world.restored(&file, wanted).await;
    assert_eq!(std::fs::read(world.folder.path().join("wrapping.key")).unwrap(), key);
    // Neither its certificate of then nor the one that the database does not know.
    let refused = async |host: &Host| {
        let status = host.line(&world, 0).await.err().expect("a line");
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    };
    refused(&a).await;
    // Whoever joined since is not known.
    refused(&late).await;
    good.line(&world, 0).await.unwrap();
    // A join token may have been used since.
    let status = world.join_with(&unused, "host-d").await.err().expect("it joined");
    assert_eq!(status.code(), Code::PermissionDenied);
    // Old tokens are no good, and the new one is.
    assert_ne!(world.admin, admin);
    assert_eq!(world.ask_as(&admin, "GET", "/v1/hosts", None).await.0, 401);
    world.get("/v1/hosts").await;
}

#[tokio::test]
async fn a_restore_is_whole_or_does_nothing() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("backup");
    let world = World::new().await;
    let _a = world.host("host-a").await;
    world.backup(&file).await;
    let manifest = check(&file).unwrap();
    let names: Vec<_> = manifest.files().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names, ["ca.key", "ca.pem", "coordinator.db"]);
    let bytes = std::fs::read(&file).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("SEALED KEY") && !text.contains("PRIVATE KEY"), "the CA's key lies open in it");
    let wrapping = std::fs::read_to_string(world.folder.path().join("wrapping.key")).unwrap();
    assert!(!text.contains(wrapping.trim()) && !text.contains(&world.admin));
    // A coordinator that runs is not disturbed.
    let force = Options { force: true, ..Options::default() };
    let said = restore(&file, world.folder.path(), &force).await.unwrap_err().to_string();
    assert!(said.contains("stop it first"), "{said}");
    world.get("/v1/hosts").await;
    world.stop.cancel();
    world.running.await.unwrap().unwrap();
    let list = |folder: &std::path::Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    // Any byte, and any length.
    let empty = tempfile::tempdir().unwrap();
    let hurt = files.path().join("hurt");
    // Every byte of a part, not of the padding behind it.
    let step = (bytes.len() / 150).max(1);
    for nth in (0..bytes.len()).step_by(step) {
        let mut changed = bytes.clone();
        changed[nth] ^= 0x10;
        std::fs::write(&hurt, &changed).unwrap();
        if let Ok(found) = check(&hurt) {
            // Padding, or a time or mode that nobody reads.
            assert_eq!(found, manifest, "byte {nth}");
        }
    }
    for length in [0, 1, 511, 512, 1024, bytes.len() / 2, bytes.len() - 2048] {
        std::fs::write(&hurt, &bytes[..length]).unwrap();
        let said = restore(&hurt, empty.path(), &Options::default()).await.unwrap_err().to_string();
        assert!(said.contains("no whole backup"), "{length}: {said}");
        assert!(list(empty.path()).is_empty(), "{length}");
    }
    // What is there is put aside, and only if that is wanted.
    let folder = world.folder.path();
    let before = list(folder);
    let said = restore(&file, folder, &Options::default()).await.unwrap_err().to_string();
    assert!(said.contains("--force") && said.contains("coordinator.db"), "{said}");
    let dry = Options { dry_run: true, force: true, ..Options::default() };
    let would = restore(&file, folder, &dry).await.unwrap();
    assert_eq!(list(folder), before, "a dry run changed something");
    assert_eq!((would.opens, would.let_in.hosts.len()), (Some(true), 1));
    let nobody = Wanted { revoke_hosts: vec!["nobody".parse().unwrap()], ..Wanted::default() };
    let wrong = Options { force: true, wanted: nobody, ..Options::default() };
    let said = restore(&file, folder, &wrong).await.unwrap_err().to_string();
    assert!(said.contains("no host nobody"), "{said}");
    assert_eq!(list(folder), before, "a restore that failed changed something");
    let done = restore(&file, folder, &force).await.unwrap();
    let aside = done.aside.unwrap();
    assert!(aside.join("coordinator.db").exists() && aside.join("ca.key").exists());
    // A restore that was broken off keeps the coordinator from beginning anew.
    std::fs::create_dir(folder.join(".restore")).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let settings = Settings {
        state: folder.to_owned(),
        database: None,
        ca_key: KeySource::default(),
        agents: any,
        api: any,
        metrics: None,
        names: Vec::new(),
        access: Access::default(),
        webhooks: Reach::default(),
    };
    let said = Service::open(settings).await.unwrap_err().to_string();
    assert!(said.contains("broken off"), "{said}");
    restore(&file, folder, &force).await.unwrap();
    let world = World::within(world.folder).await;
    assert_eq!(world.get("/v1/hosts").await["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn only_an_administrator_gets_a_backup() {
    let world = World::new().await;
    let (_, token) = world.post("/v1/tokens", json!({ "name": "x", "role": "operator" })).await;
    let token = token["token"].as_str().unwrap();
    assert_eq!(world.ask_as(token, "POST", "/v1/backup", None).await.0, 403);
    let audit = world.get("/v1/audit").await;
    let refused = audit["items"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&refused["action"], &refused["outcome"]), (&"backup".into(), &"refused".into()));
}
