//! A caller's trace context, on its way to the source of a migration.

use super::*;

const CONTEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn a_callers_context_reaches_the_source() {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.intent().await;
    line_a.has(&["web-1", "web-2"]).await;
    line_b.has(&[]).await;
    world.until("/v1/hosts", |hosts| hosts["items"][1]["observed"].is_object()).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 2).await;

    let wanted = json!({ "vm": "web-1", "to": "host-b" });
    let (status, begun) = world.post_in(CONTEXT, "/v1/migrations", wanted).await;
    assert_eq!((status, &begun["options"]["traceparent"]), (202, &json!(CONTEXT)), "{begun}");
    assert_eq!(line_a.intent().await.migrations[0].traceparent, CONTEXT);

    // What is no context is passed over, in the header and in the body.
    let odd = json!({ "vm": "web-2", "to": "host-b", "options": { "traceparent": "<script>" } });
    let (status, begun) = world.post_in("00-nonsense", "/v1/migrations", odd).await;
    assert_eq!((status, &begun["options"]["traceparent"]), (202, &Value::Null), "{begun}");
    let intent = line_a.intent().await;
    let second = intent.migrations.iter().find(|migration| migration.vm == "web-2").unwrap();
    assert_eq!(second.traceparent, "");
}
