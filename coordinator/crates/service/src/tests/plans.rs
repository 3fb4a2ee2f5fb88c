//! Plans: drafted, carried out within limits, cancelled, and gone on with after a restart.

use super::*;

/// Three hosts with their lines; the first has VMs.
async fn fleet_of_three(world: &World, vms: &[&str]) -> [(Host, Line); 3] {
    let mut hosts = Vec::new();
    for (name, vms) in [("host-a", vms), ("host-b", &[]), ("host-c", &[])] {
        let host = world.host(name).await;
        let mut line = host.line(world, 0).await.unwrap();
        line.intent().await;
        line.has(vms).await;
        hosts.push((host, line));
    }
    let all_said = |hosts: &Value| {
        hosts["items"].as_array().unwrap().iter().all(|host| host["observed"]["addresses"][0].is_string())
    };
    world.until("/v1/hosts", all_said).await;
    world.until("/v1/vms", |list| list["items"].as_array().unwrap().len() == vms.len()).await;
    hosts.try_into().ok().unwrap()
}

/// An intent with so many migrations.
async fn until_wanted(line: &mut Line, count: usize) -> Vec<v1::Migration> {
    loop {
        let intent = line.intent().await;
        if intent.migrations.len() == count {
            return intent.migrations;
        }
    }
}

async fn arrive(source: &mut Line, destination: &mut Line, id: &str) {
    destination.moved(id, "destination", "running", false).await;
    source.moved(id, "source", "finalised", true).await;
}

#[tokio::test]
async fn steps_follow_one_another_also_across_a_restart() {
    let world = World::new().await;
    let [(a, mut line_a), (b, line_b), _c] = fleet_of_three(&world, &["web-1", "web-2"]).await;
    let wanted = json!({ "vms": ["web-1", "web-2"], "to": "host-b", "at_once": 1, "start": true });
    let (status, plan) = world.post("/v1/plans", wanted).await;
    assert_eq!((status, &plan["state"]), (201, &json!("running")), "{plan}");
    let first = until_wanted(&mut line_a, 1).await.remove(0);
    let path = format!("/v1/plans/{}", plan["id"].as_str().unwrap());
    let ids: Vec<_> =
        (0..2).map(|nth| plan["steps"][nth]["migration"].as_str().unwrap().to_owned()).collect();
    assert_eq!(first.id, ids[0]);

    // Killed between the two: the first goes on, and the second waits for it.
    let world = world.again().await;
    drop((line_a, line_b));
    let mut line_a = a.line(&world, 0).await.unwrap();
    let mut line_b = b.line(&world, 0).await.unwrap();
    assert_eq!(line_a.intent().await.migrations[0].id, ids[0]);
    arrive(&mut line_a, &mut line_b, &ids[0]).await;
    let second = loop {
        let wanted = line_a.intent().await;
        if let Some(second) = wanted.migrations.into_iter().find(|one| one.id != ids[0]) {
            break second;
        }
    };
    assert_eq!(second.id, ids[1]);
    arrive(&mut line_a, &mut line_b, &ids[1]).await;
    let done = world.until(&path, |plan| plan["state"] == "completed").await;
    assert!(done["steps"].as_array().unwrap().iter().all(|step| step["state"] == "done"), "{done}");
    let moved = world.get("/v1/migrations").await;
    assert_eq!(moved["items"].as_array().unwrap().len(), 2, "none was begun twice");
    assert_eq!(moved["items"][0]["plan"], plan["id"]);
}

#[tokio::test]
async fn a_draft_changes_nothing_and_says_why_hosts_do_not_suit() {
    let world = World::new().await;
    let [_a, _b, (_c, line_c)] = fleet_of_three(&world, &["web-1"]).await;
    drop(line_c);
    world.until("/v1/hosts", |hosts| hosts["items"][2]["connected"].is_null()).await;
    let (status, plan) = world.post("/v1/plans", json!({ "vms": ["web-1"], "to": "berlin" })).await;
    assert_eq!((status, &plan["state"]), (201, &json!("draft")), "{plan}");
    assert_eq!(plan["steps"][0]["destination"], "host-b");
    let rejected = plan["steps"][0]["rejected"].as_array().unwrap();
    let why = |host: &str| rejected.iter().find(|one| one["host"] == host).unwrap()["why"].to_string();
    assert!(why("host-a").contains("there already") && why("host-c").contains("no line"), "{plan}");
    assert!(!plan["steps"][0]["estimate"]["basis"].as_array().unwrap().is_empty());
    assert_eq!(world.get("/v1/migrations").await["items"], json!([]));

    let (_, blocked) =
        world.post("/v1/plans", json!({ "vms": ["web-1"], "to": "host-c", "start": true })).await;
    assert_eq!(blocked["state"], "blocked", "{blocked}");
    let late = json!({ "vms": ["web-1"], "to": "host-b", "deadline": "2020-01-01T00:00:00Z", "start": true });
    let (_, late) = world.post("/v1/plans", late).await;
    assert!(late["blocked"][0].as_str().unwrap().contains("after the deadline"), "{late}");
    let path = format!("/v1/plans/{}/start", late["id"].as_str().unwrap());
    assert_eq!(world.post(&path, json!({})).await.0, 409);
    for (wanted, expected) in [
        (json!({}), 422),
        (json!({ "vms": ["web-1"] }), 422),
        (json!({ "vms": ["web-1"], "drain": "host-a" }), 422),
        (json!({ "vms": ["web-1", "web-1"], "to": "host-b" }), 422),
        (json!({ "vms": ["web-1"], "to": "host-b", "at_once": 0 }), 422),
        (json!({ "vms": ["web-1"], "to": "host-b", "at_onec": 1 }), 422),
        (json!({ "vms": ["web-1"], "to": "nowhere" }), 404),
        (json!({ "vms": ["nobody"], "to": "host-b" }), 404),
        (json!({ "drain": "nobody" }), 404),
    ] {
        assert_eq!(world.post("/v1/plans", wanted.clone()).await.0, expected, "{wanted}");
    }
    assert_eq!(world.get("/v1/plans?limit=2").await["items"].as_array().unwrap().len(), 2);
}

/// A host with this much room, and a pool.
fn machine(processors: u32, gibibytes: u64, qemu: &str) -> v1::Host {
    v1::Host {
        processors,
        memory_bytes: gibibytes << 30,
        memory_available_bytes: gibibytes << 30,
        processor: "A processor".to_owned(),
        kvm: true,
        pools: vec![v1::Pool { name: "fast".to_owned(), free_bytes: gibibytes << 32 }],
        qemu: qemu.to_owned(),
    }
}

#[tokio::test]
async fn hosts_are_rejected_for_what_agents_say_that_a_vm_needs() {
    let world = World::new().await;
    let [(_a, mut line_a), (_b, mut line_b), (_c, mut line_c)] = fleet_of_three(&world, &[]).await;
    let labels = [(planner::placement::APART, "db"), ("tier", "db")];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let vm = |id: &str| v1::Vm {
        id: id.to_owned(),
        name: id.to_owned(),
        state: "running".to_owned(),
        access: "live".to_owned(),
        labels: labels.clone().into(),
        ..v1::Vm::default()
    };
    let needs = v1::Vm {
        memory_bytes: 8 << 30,
        processors: 4,
        disk_bytes: 100 << 30,
        cpu: "host".to_owned(),
        machine: "pc-q35-10.0".to_owned(),
        kvm: true,
        tenant: "acme".to_owned(),
        ..vm("db-1")
    };
    line_a.observed(machine(8, 64, "10.0.2"), vec![needs]).await;
    let poor = v1::Host { kvm: false, processor: "Another".to_owned(), ..machine(2, 4, "8.2.1") };
    line_b.observed(poor, vec![vm("db-2")]).await;
    // Of an earlier release: it says nothing of its QEMU, nor of what its VM needs.
    line_c.observed(machine(8, 64, ""), vec![v1::Vm { labels: [].into(), ..vm("old-1") }]).await;
    let list = world.until("/v1/vms", |list| list["items"].as_array().unwrap().len() == 3).await;
    let one = list["items"].as_array().unwrap().iter().find(|vm| vm["id"] == "db-1").unwrap();
    assert_eq!((&one["memory_bytes"], &one["processors"]), (&json!(8_u64 << 30), &json!(4)));
    assert_eq!(
        (&one["disk_bytes"], &one["cpu"], &one["kvm"]),
        (&json!(100_u64 << 30), &json!("host"), &json!(true))
    );
    assert_eq!((&one["machine"], &one["tenant"]), (&json!("pc-q35-10.0"), &json!("acme")));
    assert_eq!(one["labels"], json!({ planner::placement::APART: "db", "tier": "db" }));

    let (_, plan) = world.post("/v1/plans", json!({ "vms": ["db-1"], "to": "berlin" })).await;
    assert_eq!(plan["steps"][0]["destination"], "host-c", "{plan}");
    let rejected = plan["steps"][0]["rejected"].as_array().unwrap();
    let why = &rejected.iter().find(|one| one["host"] == "host-b").unwrap()["why"];
    let expected = [
        "memory: 8192 MiB are needed and 4096 MiB are free",
        "disk: 102400 MiB are needed and its roomiest pool has 16384 MiB",
        "the VM has 4 processors and the host 2",
        "the VM runs on KVM and the host has none",
        "the VM sees the host's processor as it is (A processor); here it is Another",
        "its QEMU 8.2.1 is older than the 10.0.2 that the VM runs on",
        "the VM must not share a host with db-2 (novaferry.anti-affinity)",
    ];
    assert_eq!(*why, json!(expected));
    let basis = plan["steps"][0]["estimate"]["basis"].to_string();
    assert!(!basis.contains("size is not known"), "{basis}");
}

#[tokio::test]
async fn what_agents_say_of_a_vm_is_bounded() {
    let world = World::new().await;
    let host = world.host("host-a").await;
    let mut line = host.line(&world, 0).await.unwrap();
    let long = "é".repeat(300);
    let mut labels: std::collections::HashMap<_, _> =
        (0..100).map(|nth| (format!("l{nth:03}"), "x".to_owned())).collect();
    labels.extend([
        ("a".to_owned(), long.clone()),
        (long.clone(), "b".to_owned()),
        (String::new(), String::new()),
    ]);
    let vm = v1::Vm {
        id: "web-1".to_owned(),
        cpu: long.clone(),
        machine: long.clone(),
        tenant: long.clone(),
        labels,
        ..v1::Vm::default()
    };
    line.observed(v1::Host { qemu: long.clone(), ..v1::Host::default() }, vec![vm]).await;
    let list = world.until("/v1/vms", |list| list["items"][0].is_object()).await;
    let vm = &list["items"][0];
    for key in ["cpu", "machine", "tenant"] {
        assert_eq!(vm[key], "é".repeat(256), "{key}");
    }
    let labels = vm["labels"].as_object().unwrap();
    let expected: Vec<_> = (0..64).map(|nth| format!("l{nth:03}")).collect();
    assert_eq!(labels.keys().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
    assert_eq!(world.get("/v1/hosts").await["items"][0]["observed"]["qemu"], "é".repeat(256));
}

#[tokio::test]
async fn a_step_that_fails_holds_the_others_back() {
    let world = World::new().await;
    let [(_a, mut line_a), _b, _c] = fleet_of_three(&world, &["web-1", "web-2"]).await;
    let wanted = json!({ "vms": ["web-1", "web-2"], "to": "host-b", "at_once": 1, "start": true });
    let (_, plan) = world.post("/v1/plans", wanted).await;
    let first = until_wanted(&mut line_a, 1).await.remove(0);
    line_a.say(Said::Refused(v1::Refused { migration: first.id, why: "no room".to_owned() })).await;
    let path = format!("/v1/plans/{}", plan["id"].as_str().unwrap());
    let over = world.until(&path, |plan| plan["state"] == "failed").await;
    assert_eq!(
        (&over["steps"][0]["why"], &over["steps"][1]["state"]),
        (&json!("no room"), &json!("skipped"))
    );
    assert_eq!(world.get("/v1/migrations").await["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_cancelled_plan_takes_back_what_it_began() {
    let world = World::new().await;
    let [(_a, mut line_a), _b, _c] = fleet_of_three(&world, &["web-1", "web-2"]).await;
    let wanted = json!({ "vms": ["web-1", "web-2"], "to": "host-b", "at_once": 1, "start": true });
    let (_, plan) = world.post("/v1/plans", wanted).await;
    let first = until_wanted(&mut line_a, 1).await.remove(0);
    let path = format!("/v1/plans/{}", plan["id"].as_str().unwrap());
    let (status, stopping) = world.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!((status, &stopping["steps"][1]["state"]), (200, &json!("skipped")), "{stopping}");
    while until_wanted(&mut line_a, 1).await[0].wish() != v1::Wish::Cancel {}
    line_a.moved(&first.id, "source", "rolled-back", true).await;
    world.until(&path, |plan| plan["state"] == "failed").await;
    assert_eq!(world.post(&format!("{path}/start"), json!({})).await.0, 409);
}

#[tokio::test]
async fn a_host_is_drained_and_takes_no_vms_meanwhile() {
    let world = World::new().await;
    let [(_a, mut line_a), (_b, mut line_b), _c] = fleet_of_three(&world, &["web-1", "web-2", "web-3"]).await;
    let (status, plan) = world.post("/v1/plans", json!({ "drain": "host-a", "start": true })).await;
    assert_eq!((status, &plan["state"]), (201, &json!("running")), "{plan}");
    assert_eq!(plan["steps"].as_array().unwrap().len(), 3);
    assert!(plan["steps"].as_array().unwrap().iter().all(|step| step["destination"] != "host-a"), "{plan}");
    // Two of a host at once.
    let begun = until_wanted(&mut line_a, 2).await;
    assert_eq!(begun.len(), 2);
    line_b.has(&["db-1"]).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 4).await;
    let (_, back) = world.post("/v1/plans", json!({ "vms": ["db-1"], "to": "berlin" })).await;
    assert_eq!(back["steps"][0]["destination"], "host-c", "host-a is cordoned");
    let (_, named) = world.post("/v1/plans", json!({ "vms": ["db-1"], "to": "host-a" })).await;
    assert_eq!(named["steps"][0]["destination"], "host-a", "whoever names it means it");
    assert_eq!(world.post("/v1/hosts/host-a/cordon", json!({ "cordoned": false })).await.0, 204);
    assert_eq!(world.post("/v1/hosts/nobody/cordon", json!({ "cordoned": true })).await.0, 404);
}

#[tokio::test]
async fn a_rehearsal_of_a_plan_asks_every_source() {
    let world = World::new().await;
    let [(_a, mut line_a), _b, _c] = fleet_of_three(&world, &["web-1", "web-2"]).await;
    let wanted =
        json!({ "vms": ["web-1", "web-2"], "to": "host-b", "options": { "dry_run": true }, "start": true });
    let (_, plan) = world.post("/v1/plans", wanted).await;
    let asked = until_wanted(&mut line_a, 2).await;
    assert!(asked.iter().all(|one| one.dry_run));
    for one in &asked {
        line_a.moved(&one.id, "source", "preparing", true).await;
    }
    let path = format!("/v1/plans/{}", plan["id"].as_str().unwrap());
    world.until(&path, |plan| plan["state"] == "completed").await;
}
