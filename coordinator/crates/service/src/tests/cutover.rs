//! Guests that wait with their disks in step until they may leave.

use super::*;

/// Its intent for this migration, when it is so.
async fn told(line: &mut Line, id: &str, so: impl Fn(&v1::Migration) -> bool) -> v1::Migration {
    loop {
        let intent = line.intent().await;
        if let Some(found) = intent.migrations.into_iter().find(|one| one.id == id && so(one)) {
            return found;
        }
    }
}

#[tokio::test]
async fn a_guest_waits_for_its_time_or_for_a_word() {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.has(&["web-1", "web-2"]).await;
    line_b.has(&[]).await;
    let wanted = json!({ "vm": "web-1", "to": "host-b", "options": { "seed": true } });
    let (status, begun) = world.post("/v1/migrations", wanted).await;
    assert_eq!(status, 202, "{begun}");
    let id = begun["id"].as_str().unwrap();
    let seeded = told(&mut line_a, id, |one| one.seed).await;
    assert_eq!(seeded.cutover_at_ms, 0);
    let progress = v1::Progress {
        id: id.to_owned(),
        role: "source".to_owned(),
        state: "mirroring".to_owned(),
        waits: true,
        ..v1::Progress::default()
    };
    line_a.say(Said::Moves(v1::Moves { migrations: vec![progress] })).await;
    let path = format!("/v1/migrations/{id}");
    world.until(&path, |one| one["at_source"]["waits"] == true).await;
    let cutover = format!("{path}/cutover");
    let (status, later) = world.post(&cutover, json!({ "at": "2100-01-01T00:00:00Z" })).await;
    assert_eq!((status, &later["options"]["seed"]), (200, &json!(false)), "{later}");
    told(&mut line_a, id, |one| one.cutover_at_ms == 4_102_444_800_000).await;
    let (status, now) = world.post(&cutover, json!({})).await;
    assert_eq!((status, &now["options"]["cutover_at"]), (200, &Value::Null), "{now}");
    told(&mut line_a, id, |one| one.cutover_at_ms == 0 && !one.seed).await;
    let (status, twice) = world.post(&cutover, json!({})).await;
    assert_eq!(status, 409, "{twice}");
    line_a.moved(id, "source", "finalised", true).await;
    line_b.moved(id, "destination", "running", false).await;
    world.until(&path, |one| one["state"] == "completed").await;
    let (status, late) = world.post(&cutover, json!({})).await;
    assert_eq!(status, 409, "{late}");
    for options in [
        json!({ "seed": true, "mode": "cold" }),
        json!({ "seed": true, "cutover_at": "2100-01-01T00:00:00Z" }),
    ] {
        let wanted = json!({ "vm": "web-2", "to": "host-b", "options": options });
        let (status, problem) = world.post("/v1/migrations", wanted).await;
        assert_eq!(status, 422, "{problem}");
    }
}

#[tokio::test]
async fn an_agent_that_cannot_wait_is_not_asked_to() {
    let world = World::new().await;
    let (mut a, b) = (world.host("host-a").await, world.host("host-b").await);
    a.waits = false;
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.has(&["web-1"]).await;
    line_b.has(&[]).await;
    let options = json!({ "cutover_at": "2100-01-01T00:00:00Z" });
    let wanted = json!({ "vm": "web-1", "to": "host-b", "options": options });
    let (status, problem) = world.post("/v1/migrations", wanted).await;
    assert!(status == 409 && problem["detail"].as_str().unwrap().contains("upgrade it"), "{problem}");
    let plan = json!({ "vms": ["web-1"], "to": "host-b", "options": options });
    let (status, problem) = world.post("/v1/plans", plan).await;
    assert!(status == 409 && problem["detail"].as_str().unwrap().contains("upgrade it"), "{problem}");
}

#[tokio::test]
async fn what_waits_in_step_keeps_no_other_step_of_a_plan_back() {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.has(&["web-1", "web-2"]).await;
    line_b.has(&[]).await;
    let wanted = json!({
        "vms": ["web-1", "web-2"], "to": "host-b", "at_once": 1, "start": true, "options": { "seed": true },
    });
    let (status, plan) = world.post("/v1/plans", wanted).await;
    assert_eq!(status, 201, "{plan}");
    let of = |nth: usize| plan["steps"][nth]["migration"].as_str().unwrap().to_owned();
    let (first, second) = (of(0), of(1));
    told(&mut line_a, &first, |one| one.seed).await;
    let progress = v1::Progress {
        id: first.clone(),
        role: "source".to_owned(),
        state: "mirroring".to_owned(),
        waits: true,
        ..v1::Progress::default()
    };
    line_a.say(Said::Moves(v1::Moves { migrations: vec![progress] })).await;
    told(&mut line_a, &second, |one| one.seed).await;
}
