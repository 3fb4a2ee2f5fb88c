//! A destination lets a migration in before its source hears of it.

use super::*;

async fn two(world: &World) -> (Line, Host, Line) {
    let (a, mut b) = (world.host("host-a").await, world.host("host-b").await);
    b.expects = true;
    let (mut line_a, mut line_b) = (a.line(world, 0).await.unwrap(), b.line(world, 0).await.unwrap());
    line_a.intent().await;
    assert_eq!(line_b.intent().await.number, 1);
    line_a.has(&["web-1"]).await;
    line_b.has(&[]).await;
    world.until("/v1/hosts", |hosts| hosts["items"][1]["observed"]["expects"] == true).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 1).await;
    (line_a, b, line_b)
}

impl Line {
    /// No intent is among what it is told: all that was to be told is told before an answer to a beat.
    async fn hears_nothing(&mut self) {
        self.heard().await;
        let intents = self.held.drain(..).find(|told| matches!(told, Told::Intent(_)));
        assert_eq!(intents, None);
    }
}

#[tokio::test]
async fn a_source_hears_of_it_when_the_destination_lets_it_in() {
    let world = World::new().await;
    let (mut line_a, b, mut line_b) = two(&world).await;
    let id = world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await.1["id"].clone();
    let id = id.as_str().unwrap().to_owned();
    let intent = line_b.intent().await;
    let expected = v1::Expected {
        migration: id.clone(),
        vm: "web-1".to_owned(),
        from: "host-a".to_owned(),
        dial: Vec::new(),
    };
    assert_eq!((intent.expected, intent.number), (vec![expected.clone()], 2));
    let waits = async || world.get(&format!("/v1/migrations/{id}/waits")).await["for"].clone();
    assert_eq!(waits().await, "host host-b to let it in");
    // What it was told earlier, and what it was never told, is no answer to this.
    line_b.say(Said::Took(v1::Took { number: 1 })).await;
    line_b.say(Said::Took(v1::Took { number: 7 })).await;
    line_b.hears_nothing().await;
    line_a.hears_nothing().await;
    // A new line has numbers of its own.
    drop(line_b);
    world.until("/v1/hosts", |hosts| hosts["items"][1]["connected"].is_null()).await;
    assert!(waits().await.as_str().unwrap().starts_with("host host-b, where it goes, to connect; "));
    let mut line_b = b.line(&world, 0).await.unwrap();
    let intent = line_b.intent().await;
    assert_eq!((intent.expected, intent.number), (vec![expected], 1));
    line_a.hears_nothing().await;
    line_b.say(Said::Took(v1::Took { number: 1 })).await;
    assert_eq!(line_a.intent().await.migrations[0].id, id);
    assert_eq!(waits().await, "host host-a to begin");
    line_a.moved(&id, "source", "preparing", false).await;
    assert_eq!(waits().await, Value::Null);

    // It is let in as long as it goes on, and not after.
    line_a.moved(&id, "source", "rolled-back", true).await;
    assert_eq!(line_b.intent().await.expected, []);
}

/// A destination that nobody can dial is told whom to dial, and the source that it will.
#[tokio::test]
async fn a_destination_without_an_address_dials_the_source() {
    let world = World::new().await;
    let (a, mut b) = (world.host("host-a").await, world.host("host-b").await);
    (b.expects, b.hidden) = (true, true);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.intent().await;
    line_b.intent().await;
    line_a.has(&["web-1"]).await;
    line_b.has(&[]).await;
    world.until("/v1/hosts", |hosts| hosts["items"][1]["observed"]["calls"] == true).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 1).await;
    let (status, begun) = world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await;
    assert_eq!(status, 202, "{begun}");
    let intent = line_b.intent().await;
    assert_eq!(intent.expected[0].dial, ["novaferry://host-a:7440"]);
    line_b.say(Said::Took(v1::Took { number: intent.number })).await;
    let wanted = line_a.intent().await.migrations.remove(0);
    assert_eq!((wanted.to.as_str(), wanted.alternates.len(), wanted.called), ("", 0, true));
}

#[tokio::test]
async fn what_waits_for_its_destination_can_be_taken_back() {
    let world = World::new().await;
    let (mut line_a, _b, mut line_b) = two(&world).await;
    let id = world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await.1["id"].clone();
    let id = id.as_str().unwrap().to_owned();
    let path = format!("/v1/migrations/{id}");
    line_b.intent().await;
    assert_eq!(world.post(&format!("{path}/wish"), json!({ "wish": "cancel" })).await.0, 200);
    // Nobody knows for sure that the source has not heard of it: it says so.
    assert_eq!(line_a.intent().await.migrations[0].wish(), v1::Wish::Cancel);
    let why = "it had not begun here".to_owned();
    line_a.say(Said::Refused(v1::Refused { migration: id, why })).await;
    world.until(&path, |migration| migration["state"] == "undone").await;
    assert_eq!(line_b.intent().await.expected, []);
}
