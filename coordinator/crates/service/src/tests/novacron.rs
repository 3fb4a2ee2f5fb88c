//! NovaCron's API: shapes as its source has them (`tests-data/novacron`), and real moves behind them.

use super::*;

/// Compares keys and types, all the way down. `*` stands for any key.
fn compare(at: &str, expected: &Value, got: &Value, optional: &[String]) {
    match (expected, got) {
        (Value::Object(expected), Value::Object(got)) => {
            if let Some(any) = expected.get("*") {
                got.iter().for_each(|(key, value)| compare(&format!("{at}.{key}"), any, value, optional));
                return;
            }
            for (key, value) in expected {
                match got.get(key) {
                    Some(found) => compare(&format!("{at}.{key}"), value, found, optional),
                    None => assert!(optional.contains(key), "{at}.{key} is missing: {got:?}"),
                }
            }
            let unknown: Vec<_> = got.keys().filter(|key| !expected.contains_key(*key)).collect();
            assert!(unknown.is_empty(), "{at} has {unknown:?}");
        }
        (Value::Array(expected), Value::Array(got)) => {
            got.iter().for_each(|value| compare(&format!("{at}[]"), &expected[0], value, optional));
        }
        (Value::String(time), Value::String(got)) if time == "0001-01-01T00:00:00Z" => {
            assert!(got.parse::<model::Timestamp>().is_ok(), "{at} is no time: {got}");
        }
        (expected, got) => assert_eq!(
            std::mem::discriminant(expected),
            std::mem::discriminant(got),
            "{at}: {got} is not of the type of {expected}"
        ),
    }
}

/// Asks, and compares with what was recorded.
#[track_caller]
fn shaped(name: &str, got: &Value) {
    let path = format!("{}/tests-data/novacron/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let optional: Vec<String> = serde_json::from_value(recorded["optional"].clone()).unwrap();
    compare(name, &recorded["shape"], got, &optional);
}

/// Two hosts with their lines; the first has VMs.
async fn two(world: &World, vms: &[&str]) -> (Line, Line) {
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(world, 0).await.unwrap(), b.line(world, 0).await.unwrap());
    line_a.intent().await;
    line_b.intent().await;
    line_a.has(vms).await;
    line_b.has(&[]).await;
    world.until("/v1/hosts", |hosts| hosts["items"][1]["observed"].is_object()).await;
    world.until("/v1/vms", |list| list["items"].as_array().unwrap().len() == vms.len()).await;
    (line_a, line_b)
}

async fn until_wanted(line: &mut Line) -> v1::Migration {
    loop {
        if let Some(migration) = line.intent().await.migrations.into_iter().next() {
            return migration;
        }
    }
}

async fn arrive(source: &mut Line, destination: &mut Line, id: &str) {
    destination.moved(id, "destination", "running", false).await;
    source.moved(id, "source", "finalised", true).await;
}

#[tokio::test]
async fn an_initiated_job_moves_a_vm() {
    let world = World::new().await;
    let (mut line_a, mut line_b) = two(&world, &["web-1"]).await;
    assert_eq!(world.get("/api/v1/migration/jobs").await, json!([]));
    let wanted = json!({
        "sourceCluster": "host-a", "targetCluster": "host-b", "vmIds": ["web-1"], "migrationStrategy": "LIVE",
        "unknown": true,
    });
    let (status, job) = world.post("/api/v1/migration/initiate", wanted).await;
    assert_eq!((status, &job["status"], &job["vmCount"]), (202, &json!("queued"), &json!(1)), "{job}");
    shaped("initiate", &job);
    let migration = until_wanted(&mut line_a).await;
    assert_eq!((migration.vm.as_str(), migration.peer.as_str()), ("web-1", "host-b"));
    line_a.moved(&migration.id, "source", "pre-copy", false).await;
    let moving = world.until("/api/migration/live/status", |live| live[0]["phase"] == "memory_copy").await;
    shaped("live-status", &moving);
    arrive(&mut line_a, &mut line_b, &migration.id).await;
    let jobs = world.until("/api/migration/jobs", |jobs| jobs[0]["status"] == "completed").await;
    shaped("jobs", &jobs);
    assert_eq!((&jobs[0]["jobId"], &jobs[0]["progress"]), (&job["jobId"], &json!(100)));
    assert_eq!(jobs[0]["sourceCluster"], "berlin");
    assert_eq!(world.get("/api/v1/migration/live/status").await, json!([]));
    let log = world.get("/v1/audit").await;
    let deeds = log["items"].as_array().unwrap().iter().filter(|entry| entry["action"] == "migrate").count();
    assert_eq!(deeds, 2, "the plan, and its step");
}

#[tokio::test]
async fn a_live_migration_has_its_limits() {
    let world = World::new().await;
    let (mut line_a, _line_b) = two(&world, &["web-1"]).await;
    let wanted = json!({ "targetNode": "host-b", "maxDowntime": 300, "bandwidth": 1000, "priority": "HIGH" });
    let (status, begun) = world.post("/api/v1/migration/live/web-1", wanted).await;
    assert_eq!((status, &begun["priority"]), (202, &json!("high")), "{begun}");
    shaped("live", &begun);
    let id = until_wanted(&mut line_a).await.id;
    assert_eq!(begun["migrationId"], json!(id));
    let own = world.get(&format!("/v1/migrations/{id}")).await;
    assert_eq!(own["options"]["max_downtime_ms"], 300);
    assert_eq!(own["options"]["limit"], 125_000_000);
    assert_eq!(own["options"]["mode"], "live");
    shaped("live-status", &world.get("/api/v1/migration/live/status").await);
    shaped("jobs", &world.get("/api/v1/migration/jobs").await);
    let again = world.post("/api/migration/live/web-1", json!({ "targetNode": "host-b" })).await;
    assert_eq!(again.0, 409);
    shaped("error", &again.1);
}

#[tokio::test]
async fn sites_are_providers() {
    let world = World::new().await;
    let (mut line_a, mut line_b) = two(&world, &["web-1"]).await;
    for prefix in ["/api/multicloud", "/api/v1/multicloud"] {
        for (path, shape) in [
            ("providers", "providers"),
            ("providers/berlin", "provider"),
            ("providers/berlin/health", "health"),
            ("vms?provider_id=berlin&state=Running", "vms"),
            ("vms/web-1", "vm"),
            ("migrations", "migrations"),
            ("policies", "policies"),
        ] {
            shaped(shape, &world.get(&format!("{prefix}/{path}")).await);
        }
    }
    assert_eq!(world.get("/api/multicloud/vms?region=paris").await["count"], 0);
    assert_eq!(world.get("/api/multicloud/vms").await["count"], 1);
    let wanted = json!({
        "vm_id": "web-1", "source_provider_id": "berlin", "destination_provider_id": "berlin",
        "destination_region": "host-b", "delete_source": true, "max_downtime": "5m", "rollback": true,
    });
    let (status, begun) = world.post("/api/multicloud/migrations", wanted).await;
    assert_eq!((status, &begun["status"]), (201, &json!("pending")), "{begun}");
    shaped("migration", &begun);
    let id = begun["migration_id"].as_str().unwrap();
    // At once, though its turn may not have come.
    let path = format!("/api/multicloud/migrations/{id}");
    shaped("migration", &world.get(&path).await);
    assert_eq!(until_wanted(&mut line_a).await.id, id);
    let own = world.get(&format!("/v1/migrations/{id}")).await;
    assert_eq!(
        (&own["options"]["max_downtime_ms"], &own["options"]["hold"]),
        (&json!(300_000), &json!(false))
    );
    line_a.moved(id, "source", "pre-copy", false).await;
    let moving = world.until(&path, |one| one["status"] == "in_progress").await;
    shaped("migration", &moving);
    arrive(&mut line_a, &mut line_b, id).await;
    let done = world.until(&format!("{path}/status"), |one| one["status"] == "completed").await;
    shaped("migration", &done);
    assert_eq!((&done["progress"], &done["destination_vm_id"]), (&json!(100), &json!("web-1")));
    let all = world.get("/api/multicloud/migrations?status=completed").await;
    shaped("migrations", &all);
    assert_eq!(all["count"], 1);
    drop((line_a, line_b));
    let health =
        world.until("/api/multicloud/providers/berlin/health", |one| one["overall"] == "unhealthy").await;
    shaped("health", &health);
}

#[tokio::test]
async fn errors_are_novacrons() {
    let world = World::new().await;
    let (_line_a, _line_b) = two(&world, &["web-1"]).await;
    let (_, made) = world.post("/v1/tokens", json!({ "name": "eyes", "role": "viewer" })).await;
    let viewer = made["token"].as_str().unwrap();
    let initiate = "/api/v1/migration/initiate";
    for (token, method, path, body, expected) in [
        ("", "GET", "/api/v1/migration/jobs", None, 401),
        (viewer, "POST", initiate, Some(json!({ "targetCluster": "host-b", "vmIds": ["web-1"] })), 403),
        (&world.admin, "POST", initiate, Some(json!({ "vmIds": ["web-1"] })), 400),
        (&world.admin, "POST", initiate, Some(json!("[")), 400),
        (&world.admin, "POST", initiate, Some(json!({ "targetCluster": "x", "vmIds": ["web-1"] })), 404),
        (&world.admin, "POST", initiate, Some(json!({ "targetCluster": "host-b", "vmIds": ["x"] })), 404),
        (&world.admin, "POST", initiate, Some(json!({ "targetCluster": "x".repeat(100_000) })), 413),
        (&world.admin, "GET", "/api/v1/migration/nothing", None, 404),
    ] {
        let (status, body) = world.ask_as(token, method, path, body).await;
        assert_eq!(status, expected, "{path}: {body}");
        shaped("error", &body);
    }
    for (token, method, path, body, expected) in [
        ("", "GET", "/api/multicloud/providers", None, 401),
        (&world.admin, "GET", "/api/multicloud/providers/mars", None, 404),
        (&world.admin, "GET", "/api/multicloud/migrations/0", None, 404),
        (&world.admin, "GET", "/api/multicloud/migrations?status=odd", None, 400),
        (&world.admin, "POST", "/api/multicloud/providers", Some(json!({ "type": "aws" })), 501),
        (&world.admin, "POST", "/api/multicloud/providers", Some(json!({ "type": "moon" })), 400),
        (&world.admin, "POST", "/api/multicloud/cost/analysis", Some(json!({})), 501),
        (&world.admin, "DELETE", "/api/multicloud/vms/web-1", None, 501),
        (&world.admin, "GET", "/api/v1/multicloud/nothing", None, 404),
        (viewer, "POST", "/api/multicloud/migrations", Some(json!({ "vm_id": "web-1" })), 403),
    ] {
        let (status, body) = world.ask_as(token, method, path, body).await;
        assert_eq!((status, &body["status"]), (expected, &json!(expected)), "{path}: {body}");
        shaped("multicloud-error", &body);
    }
    // Our own surface keeps its own.
    assert_eq!(world.ask_as("", "GET", "/v1/hosts", None).await.1["code"], "unauthorized");
}
