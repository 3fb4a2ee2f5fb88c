//! Links: probed, shared by moves, and told to their sources.

use super::*;

#[tokio::test]
async fn links_are_probed_shared_and_told() {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.intent().await;
    line_b.intent().await;
    line_a.has(&["web-1", "web-2"]).await;
    line_b.has(&[]).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 2).await;
    world.until("/v1/hosts", |hosts| hosts["items"][1]["observed"].is_object()).await;
    for vm in ["web-1", "web-2"] {
        let options = json!({ "limit": 900 });
        let wanted = json!({ "vm": vm, "to": "host-b", "options": options });
        assert_eq!(world.post("/v1/migrations", wanted).await.0, 202);
        assert_eq!(line_a.intent().await.migrations.last().unwrap().to, "novaferry://host-b:7440");
    }
    let mut link = json!({ "name": "ring", "sites": ["berlin", "berlin"], "network": "mpls", "cap": 1000 });
    let bad = json!({ "name": "ring", "sites": ["berlin", "berlin"], "cap": 0 });
    assert_eq!(world.post("/v1/links", bad).await.0, 422);
    assert_eq!(world.post("/v1/links", link.clone()).await.0, 201);
    assert_eq!(world.post("/v1/links", link.clone()).await.0, 409);

    // It is used by both, so each gets half; the unmarked address stays behind it.
    let mut probes = Vec::new();
    let wanted = loop {
        match line_a.next().await.unwrap() {
            Told::Intent(intent) => break intent,
            Told::Probe(probe) => probes.push(probe),
            _ => {}
        }
    };
    for migration in &wanted.migrations {
        let told = (migration.to.as_str(), migration.alternates.join(","), migration.limit);
        assert_eq!(told, ("novaferry://host-b.mpls:7440", "novaferry://host-b:7440".to_owned(), 500));
    }
    assert_eq!(wanted.migrations.len(), 2);

    // One of the two hosts is asked to probe it at once, and both may be in doubt who: each answers for itself.
    let probe = async |line: &mut Line, mut probes: Vec<v1::Probe>| loop {
        if let Some(probe) = probes.pop() {
            break probe;
        }
        if let Told::Probe(probe) = line.next().await.unwrap() {
            break probe;
        }
    };
    let (line, asked) = tokio::select! {
        asked = probe(&mut line_a, probes) => (&line_a, asked),
        asked = probe(&mut line_b, Vec::new()) => (&line_b, asked),
    };
    let peers = ["novaferry://host-a.mpls:7440", "novaferry://host-b.mpls:7440"];
    assert!(peers.contains(&asked.to.as_str()) && asked.most_bytes == 4 << 20, "{asked:?}");
    assert!(asked.to.contains(&asked.peer));
    // Another's words count for nothing.
    let quality = v1::Quality { rtt_us: 1500, jitter_us: 30, loss_ppm: 7, rate: 2_000_000 };
    let found = v1::probed::Result::Quality(quality);
    line.say(Said::Probed(v1::Probed { id: asked.id + 1, result: Some(found.clone()) })).await;
    line.say(Said::Probed(v1::Probed { id: asked.id, result: Some(found) })).await;
    let up = world.until("/v1/links/ring", |link| link["state"] == "up").await;
    assert_eq!((&up["measured"]["rtt_us"], &up["measured"]["rate"]), (&json!(1500), &json!(2_000_000)));
    let measured = world.get("/v1/links/ring/measurements").await;
    assert_eq!(measured["items"].as_array().unwrap().len(), 1);
    let site = json!([{ "name": "berlin", "hosts": 2, "links": ["ring"] }]);
    assert_eq!(world.get("/v1/sites").await["items"], site);

    // With room for one alone, the other goes over the unmarked address.
    link["most_migrations"] = json!(1);
    let put = world.ask_as(&world.admin, "PUT", "/v1/links/ring", Some(link.clone())).await;
    assert_eq!(put.0, 200, "{}", put.1);
    let wanted = line_a.intent().await;
    let told = |nth: usize| (wanted.migrations[nth].to.as_str(), wanted.migrations[nth].limit);
    assert_eq!(told(0), ("novaferry://host-b.mpls:7440", 900));
    assert_eq!(told(1), ("novaferry://host-b:7440", 900));
    assert_eq!(world.ask_as(&world.admin, "DELETE", "/v1/links/ring", None).await.0, 204);
    assert_eq!(line_a.intent().await.migrations[0].to, "novaferry://host-b:7440");
    let log = world.get("/v1/audit").await;
    let links =
        log["items"].as_array().unwrap().iter().filter(|entry| entry["action"] == "manage-links").count();
    assert_eq!(links, 3);
}

#[tokio::test]
async fn what_has_no_way_now_waits_for_its_link() {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.intent().await;
    line_a.has(&["web-1"]).await;
    line_b.has(&[]).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 1).await;
    // A window that is over, and is not again for six days.
    let minute = (fleet::now().as_second() / 60 + 3 * 1440) % 10_080;
    let from = (minute + 8640) % 10_080;
    let closed = json!([{ "from": from, "to": from + 1 }]);
    let mut link = json!({ "name": "night", "sites": ["berlin", "berlin"], "schedule": closed });
    assert_eq!(world.post("/v1/links", link.clone()).await.0, 201);
    let shown = world.get("/v1/links/night").await;
    assert_eq!((&shown["open"], shown["until"].is_string()), (&json!(false), true));
    assert_eq!(world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await.0, 202);
    link["schedule"] = json!([]);
    assert_eq!(world.ask_as(&world.admin, "PUT", "/v1/links/night", Some(link)).await.0, 200);
    // It was not told of before: the first that the source hears of it is when the link is open.
    let wanted = line_a.intent().await;
    assert_eq!(wanted.migrations[0].to, "novaferry://host-b:7440");
}
