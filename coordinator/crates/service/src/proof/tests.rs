use ed25519_dalek::SigningKey;
use model::migration::{Migration, Progress, State};
use pki::{Ca, PublicKey, Serial, Subject};
use receipt::ReceiptSigner;
use serde_json::{Value, json};

use super::*;

const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

struct World {
    ca: Ca,
    trust: TrustStore,
}

impl World {
    fn new() -> Self {
        let ca = Ca::generate("test", 2 * DAY, SystemTime::now()).unwrap();
        let trust = TrustStore::new(vec![ca.certificate().clone()], &[]).unwrap();
        Self { ca, trust }
    }

    fn signer(&self, host: &str) -> ReceiptSigner {
        let key = SigningKey::from_bytes(&[host.len().to_le_bytes()[0]; 32]);
        let (subject, now) = (Subject::Host(host.parse().unwrap()), SystemTime::now());
        let public = PublicKey(key.verifying_key().to_bytes());
        let certificate =
            self.ca.certify(&subject, &public, Serial::random().unwrap(), now, now + DAY).unwrap();
        ReceiptSigner::new(key, pki::to_pem(&certificate), host.to_owned())
    }

    fn judge(&self, migration: &mut Migration) -> Option<String> {
        judge(migration, &self.trust);
        assert!(migration.proof.is_none() || migration.unproven.is_none());
        migration.unproven.clone()
    }
}

fn body(disk: &str) -> Body {
    Body {
        version: 1,
        volume: format!("gold/vms/web-1/{disk}"),
        size: 1 << 30,
        root: disk.repeat(8),
        key_id: "cd".repeat(16),
        generation: 4,
        session: "ab".repeat(16),
        mode: ReceiptMode::Live,
        verified: Verified::Sink,
        owner: "host-a".to_owned(),
        receiver: "host-b".to_owned(),
        // Older than the certificate: it was rotated since.
        time: 1_700_000_000,
    }
}

fn signed(body: Body, signer: &ReceiptSigner) -> Value {
    serde_json::to_value(Receipt::issue(body, Some(signer))).unwrap()
}

/// Both are through: with these roots at the source, and these receipts.
fn moved(roots: &[&str], receipts: Vec<Value>) -> Migration {
    let roots = roots.iter().map(|disk| ((*disk).to_owned(), disk.repeat(8))).collect();
    let end =
        |state: &str| Progress { state: state.to_owned(), generation: 4, signs: true, ..Progress::default() };
    let mut migration: Migration = serde_json::from_value(json!({
        "id": "ab".repeat(16), "vm": "web-1", "source": "host-a", "destination": "host-b", "options": {},
        "wish": "arrive", "by": "token:1", "created": "2026-01-01T00:00:00Z", "changed": "2026-01-01T00:00:00Z",
        "state": "proving", "at_source": null, "at_destination": null, "refusal": null,
    }))
    .unwrap();
    migration.at_source = Some(Progress { roots, ..end("finalised") });
    migration.at_destination = Some(Progress { receipts: Some(receipts), ..end("finalised") });
    migration
}

#[test]
fn what_the_destination_signed_and_the_source_had_is_proven() {
    let world = World::new();
    let signer = world.signer("host-b");
    let receipts = ["vda", "vdb"].map(|disk| signed(body(disk), &signer)).to_vec();
    let mut migration = moved(&["vda", "vdb"], receipts);
    assert_eq!(world.judge(&mut migration), None);
    let proof = migration.proof.clone().unwrap();
    assert_eq!((proof.by.as_str(), proof.both, proof.at.as_second()), ("host-b", true, 1_700_000_000));
    assert_eq!(proof.disks[1].disk, "vdb");
    assert_eq!((proof.disks[1].bytes, proof.disks[1].read_back), (1 << 30, false));
    assert_eq!(migration.read(), State::Completed);

    // A source of an older release does not say its disks; a VM may have none.
    let mut old = moved(&[], vec![signed(body("vda"), &signer)]);
    old.at_source.as_mut().unwrap().signs = false;
    assert_eq!(world.judge(&mut old), None);
    assert!(!old.proof.unwrap().both);
    let mut bare = moved(&[], Vec::new());
    assert_eq!((world.judge(&mut bare), bare.read()), (None, State::Completed));
}

#[test]
fn nothing_is_judged_before_both_are_through() {
    let world = World::new();
    let whole = moved(&["vda"], vec![signed(body("vda"), &world.signer("host-b"))]);
    let changes: [fn(&mut Migration); 4] = [
        |m| m.at_source = None,
        |m| m.at_destination = None,
        |m| m.at_destination.as_mut().unwrap().receipts = None,
        |m| m.at_source.as_mut().unwrap().state = "proven".to_owned(),
    ];
    for change in changes {
        let mut migration = whole.clone();
        change(&mut migration);
        assert_eq!((world.judge(&mut migration), &migration.proof), (None, &None));
        assert_ne!(migration.read(), State::Completed);
    }
}

#[test]
fn what_is_not_the_destinations_word_about_this_move_is_not_believed() {
    let (world, other) = (World::new(), World::new());
    let signer = world.signer("host-b");
    let good = || signed(body("vda"), &signer);
    let mut unsigned = good();
    unsigned["signature"] = json!("");
    let mut altered = good();
    altered["root"] = json!("0".repeat(64));
    let mut changed = body("vda");
    let cases = [
        ("no receipt", vec![Value::Null]),
        ("signature", vec![unsigned]),
        ("signature", vec![altered]),
        ("not what the disks were", Vec::new()),
        ("not what the disks were", vec![good(), signed(body("vdb"), &signer)]),
        ("not what the disks were", vec![good(), good()]),
        ("of host-cc", vec![signed(body("vda"), &world.signer("host-cc"))]),
        ("", vec![signed(body("vda"), &other.signer("host-b"))]),
        ("not what the disks were", vec![signed(Body { root: "1".repeat(24), ..body("vda") }, &signer)]),
        ("another migration", vec![signed(Body { session: "cd".repeat(16), ..body("vda") }, &signer)]),
        ("another migration", vec![signed(Body { owner: "host-x".to_owned(), ..body("vda") }, &signer)]),
        ("another migration", vec![signed(Body { generation: 3, ..body("vda") }, &signer)]),
        ("another migration", vec![signed(Body { mode: ReceiptMode::Cold, ..body("vda") }, &signer)]),
        ("another migration", {
            changed.volume = "gold/vms/db/vda".to_owned();
            vec![signed(changed, &signer)]
        }),
    ];
    for (why, receipts) in cases {
        let mut migration = moved(&["vda"], receipts);
        let found = world.judge(&mut migration).unwrap();
        assert!(found.contains(why), "{why}: {found}");
        assert_eq!(migration.read(), State::Proving);
        // Once the destination says better, it is.
        migration.at_destination.as_mut().unwrap().receipts = Some(vec![good()]);
        assert_eq!((world.judge(&mut migration), migration.read()), (None, State::Completed));
    }
}
