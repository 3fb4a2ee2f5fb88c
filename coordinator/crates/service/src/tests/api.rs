//! The API as programs meet it: its description, its manners, and those who have none.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use super::*;

/// A fleet of two hosts, the first with VMs.
async fn fleet(vms: &[&str]) -> (World, Line, Line) {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.has(vms).await;
    line_b.has(&[]).await;
    world.until("/v1/hosts", |hosts| hosts["items"][1]["observed"].is_object()).await;
    world.until("/v1/vms", |found| found["items"].as_array().unwrap().len() == vms.len()).await;
    (world, line_a, line_b)
}

impl World {
    async fn send_json(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let bearer = format!("Bearer {}", self.admin);
        let mut all = vec![("authorization", bearer.as_str()), ("content-type", "application/json")];
        all.extend(headers);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, path, &all, body.into_bytes()).await
    }
}

/// An answer must be as the document says of this route.
fn check(document: &Value, method: &str, route: &str, answer: &Answer) {
    let operation = &document["paths"][route][method];
    assert!(operation.is_object(), "{method} {route} is not described");
    let status = answer.status.to_string();
    let responses = &operation["responses"];
    let described =
        responses.get(&status).or_else(|| responses.get("default").filter(|_| answer.status >= 400));
    let described = described.unwrap_or_else(|| panic!("{method} {route} does not say {status}"));
    if answer.text.is_empty() {
        assert!(described.get("content").is_none_or(|content| content == &json!({})), "{method} {route}");
        return;
    }
    let kind = answer.header("content-type").split(';').next().unwrap();
    let mut schema = described["content"][kind]["schema"].clone();
    assert!(schema.is_object(), "{method} {route} {status} does not say {kind}");
    if ["text/html", "application/x-tar"].contains(&kind) {
        return;
    }
    // References are to the document.
    schema["components"] = document["components"].clone();
    let validator = jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap();
    let value = answer.json();
    let errors: Vec<_> =
        validator.iter_errors(&value).map(|error| format!("{error} at {}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{method} {route} {status}: {errors:?}: {value}");
}

#[tokio::test]
async fn every_route_is_described() {
    let world = World::new().await;
    let document = world.get("/v1/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let described: BTreeSet<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    // axum tells its routes to nobody but the debugger.
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Folder(folder.path().to_owned());
    let fleet = Fleet::open(folder.path(), &KeySource::Beside, &database, Vec::new(), Reach::default())
        .await
        .unwrap();
    let gate = Gate::new(Arc::clone(&fleet), Access::default()).unwrap();
    let router = crate::api::router(fleet, gate);
    let text = format!("{router:?}");
    let served: BTreeSet<_> =
        text.split('"').filter(|part| part.starts_with("/v1/")).map(ToOwned::to_owned).collect();
    assert_eq!(served, described);
    // Every method, too: what is not described is not allowed.
    for route in &described {
        let path = route.replace("{id}", "ab").replace("{name}", "ab");
        for method in ["get", "put", "post", "patch", "delete"] {
            // A stream has no end: its head says enough.
            let asked = if (method, path.as_str()) == ("get", "/v1/events") { "head" } else { method };
            let answer = world.send_json(&asked.to_uppercase(), &path, &[], &json!({})).await;
            let allowed = document["paths"][route][method].is_object();
            assert_eq!(answer.status != 405, allowed, "{method} {path}");
            if !allowed {
                assert_eq!(answer.header("content-type"), "application/problem+json");
                assert!(!answer.header("allow").is_empty());
                assert_eq!(answer.json()["code"], "method-not-allowed");
            }
        }
    }
    let ids: Vec<_> = described
        .iter()
        .flat_map(|route| document["paths"][route].as_object().unwrap().values())
        .map(|operation| operation["summary"].as_str().unwrap())
        .collect();
    assert!(ids.iter().all(|summary| !summary.is_empty()));
    let page = world.send("GET", "/v1/docs", &[], Vec::new()).await;
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    assert!(described.iter().all(|route| page.text.contains(route.as_str())), "{}", page.text);
    assert!(
        !page.text.contains("http://") && !page.text.contains("https://") && !page.text.contains("<script")
    );
}

#[tokio::test]
async fn answers_are_as_described() {
    let (world, mut line_a, _line_b) = fleet(&["web-1", "web-2"]).await;
    let document = world.get("/v1/openapi.json").await;
    let see = async |method: &str, route: &str, path: &str, body: Value, status: u16| {
        let answer = world.send_json(&method.to_uppercase(), path, &[], &body).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        check(&document, method, route, &answer);
        answer.json()
    };
    let wanted = json!({ "vm": "web-1", "to": "host-b" });
    let begun = see("post", "/v1/migrations", "/v1/migrations", wanted, 202).await;
    let one = format!("/v1/migrations/{}", begun["id"].as_str().unwrap());
    line_a.moved(begun["id"].as_str().unwrap(), "source", "pre-copy", false).await;
    world.until(&one, |migration| migration["state"] == "moving").await;
    let token = see("post", "/v1/tokens", "/v1/tokens", json!({ "name": "x", "role": "viewer" }), 201).await;
    let token = format!("/v1/tokens/{}", token["id"].as_str().unwrap());
    see("post", "/v1/host-tokens", "/v1/host-tokens", json!({ "site": "berlin", "host": "host-c" }), 201)
        .await;
    let link = json!({ "name": "l", "sites": ["berlin", "paris"], "kind": "vpn" });
    see("post", "/v1/links", "/v1/links", link.clone(), 201).await;
    see("put", "/v1/links/{name}", "/v1/links/l", link, 200).await;
    let webhook = json!({ "name": "chat", "url": "http://127.0.0.1:9/x", "on": ["plan"] });
    see("post", "/v1/webhooks", "/v1/webhooks", webhook.clone(), 201).await;
    see("post", "/v1/webhooks", "/v1/webhooks", webhook.clone(), 409).await;
    see("put", "/v1/webhooks/{name}", "/v1/webhooks/chat", webhook, 200).await;
    see("post", "/v1/webhooks/{name}/rotate", "/v1/webhooks/chat/rotate", Value::Null, 200).await;
    see("post", "/v1/webhooks/{name}/test", "/v1/webhooks/chat/test", Value::Null, 200).await;
    for (route, path, status) in [
        ("/v1/links", "/v1/links", 200),
        ("/v1/links/{name}", "/v1/links/l", 200),
        ("/v1/webhooks", "/v1/webhooks", 200),
        ("/v1/webhooks/{name}", "/v1/webhooks/chat", 200),
        ("/v1/webhooks/{name}", "/v1/webhooks/nobody", 404),
        ("/v1/health", "/v1/health", 200),
        ("/v1/openapi.json", "/v1/openapi.json", 200),
        ("/v1/docs", "/v1/docs", 200),
        ("/v1/hosts", "/v1/hosts?limit=1", 200),
        ("/v1/hosts", "/v1/hosts?limit=0", 422),
        ("/v1/hosts", "/v1/hosts?limit=x", 400),
        ("/v1/hosts/{name}", "/v1/hosts/host-a", 200),
        ("/v1/hosts/{name}", "/v1/hosts/nobody", 404),
        ("/v1/vms", "/v1/vms", 200),
        ("/v1/migrations", "/v1/migrations", 200),
        ("/v1/migrations/{id}", one.as_str(), 200),
        ("/v1/migrations/{id}", "/v1/migrations/x", 404),
        ("/v1/tokens", "/v1/tokens", 200),
        ("/v1/tokens/{id}", token.as_str(), 200),
        ("/v1/audit", "/v1/audit", 200),
        ("/v1/audit/check", "/v1/audit/check", 200),
    ] {
        see("get", route, path, Value::Null, status).await;
    }
    see("delete", "/v1/webhooks/{name}", "/v1/webhooks/chat", Value::Null, 204).await;
    let cutover = format!("{one}/cutover");
    see("get", "/v1/migrations/{id}/waits", &format!("{one}/waits"), Value::Null, 200).await;
    see("post", "/v1/migrations/{id}/cutover", &cutover, json!({}), 409).await;
    let wish = format!("{one}/wish");
    see("post", "/v1/migrations/{id}/wish", &wish, json!({ "wish": "finalise" }), 409).await;
    see("post", "/v1/migrations/{id}/wish", &wish, json!({ "wish": "cancel" }), 200).await;
    see("post", "/v1/backup", "/v1/backup", Value::Null, 200).await;
    see("post", "/v1/tokens/{id}/revoke", &format!("{token}/revoke"), Value::Null, 204).await;
    see("post", "/v1/hosts/{name}/revoke", "/v1/hosts/host-b/revoke", Value::Null, 204).await;
    see("post", "/v1/hosts/{name}/revoke", "/v1/hosts/%2e%2e%2fx/revoke", Value::Null, 422).await;
    let nobody = world.send("GET", "/v1/hosts", &[], Vec::new()).await;
    assert_eq!((nobody.status, nobody.header("www-authenticate")), (401, "Bearer"));
    check(&document, "get", "/v1/hosts", &nobody);
}

#[tokio::test]
async fn a_post_with_a_key_is_done_once() {
    let (world, mut line_a, _line_b) = fleet(&["web-1", "web-2"]).await;
    line_a.intent().await;
    let wanted = json!({ "vm": "web-1", "to": "host-b" });
    let key = [("idempotency-key", "\"night-1\"")];
    let first = world.send_json("POST", "/v1/migrations", &key, &wanted).await;
    assert_eq!((first.status, first.header("idempotency-replayed")), (202, ""));
    let again = world.send_json("POST", "/v1/migrations", &key, &wanted).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (202, "true"));
    assert_eq!((&again.text, again.header("content-type")), (&first.text, "application/json"));
    let other = json!({ "vm": "web-2", "to": "host-b" });
    let reused = world.send_json("POST", "/v1/migrations", &key, &other).await;
    assert_eq!((reused.status, &reused.json()["code"]), (422, &json!("key-reused")));
    assert_eq!(world.get("/v1/migrations").await["items"].as_array().unwrap().len(), 1);
    // It outlives the coordinator.
    let world = world.again().await;
    let later = world.send_json("POST", "/v1/migrations", &key, &wanted).await;
    assert_eq!((later.status, &later.text), (202, &first.text));
    // What was not done is looked at anew: nothing was wrong but the time.
    let early = [("idempotency-key", "early")];
    let wish = format!("/v1/migrations/{}/wish", first.json()["id"].as_str().unwrap());
    assert_eq!(world.send_json("POST", &wish, &early, &json!({ "wish": "finalise" })).await.status, 409);
    let cancel = json!({ "wish": "cancel" });
    let cancelled = world.send_json("POST", &wish, &early, &cancel).await;
    assert_eq!(cancelled.status, 200);
    assert_eq!(world.send_json("POST", &wish, &early, &cancel).await.text, cancelled.text);
    let canceled = world.get("/v1/audit").await;
    let moves = canceled["items"].as_array().unwrap().iter().filter(|entry| entry["action"] == "migrate");
    assert_eq!(moves.count(), 2);
    for key in ["", "a b", &"k".repeat(129)] {
        let answer = world.send_json("POST", "/v1/tokens", &[("idempotency-key", key)], &json!({})).await;
        assert_eq!(answer.status, 422, "{key}");
    }
}

#[tokio::test]
async fn secrets_are_not_kept_for_replays() {
    let world = World::new().await;
    let key = [("idempotency-key", "k")];
    let wanted = json!({ "name": "nightly", "role": "viewer" });
    let made = world.send_json("POST", "/v1/tokens", &key, &wanted).await;
    assert_eq!(made.status, 201);
    let again = world.send_json("POST", "/v1/tokens", &key, &wanted).await;
    assert_eq!((again.status, &again.json()["code"]), (409, &json!("answer-not-kept")));
    assert_eq!(world.get("/v1/tokens").await["items"].as_array().unwrap().len(), 2, "one, and the first");
    // Another caller's key is another.
    let secret = made.json()["token"].as_str().unwrap().to_owned();
    let viewer = format!("Bearer {secret}");
    let headers = [("authorization", viewer.as_str()), ("content-type", "application/json"), key[0]];
    let other = world.send("POST", "/v1/tokens", &headers, wanted.to_string().into_bytes()).await;
    assert_eq!(other.status, 403);
    let invited = world
        .send_json("POST", "/v1/host-tokens", &[("idempotency-key", "j")], &json!({ "site": "x" }))
        .await;
    let join = invited.json()["token"].as_str().unwrap().to_owned();
    world.stop.cancel();
    world.running.await.unwrap().unwrap();
    for entry in std::fs::read_dir(world.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for secret in [&secret, &join] {
            assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn lists_come_in_pages_and_can_be_filtered() {
    let vms: Vec<_> = (0..5).map(|number| format!("web-{number}")).collect();
    let (world, _line_a, mut line_b) = fleet(&vms.iter().map(String::as_str).collect::<Vec<_>>()).await;
    line_b.has(&["db-1"]).await;
    world.until("/v1/vms", |found| found["items"].as_array().unwrap().len() == 6).await;
    for name in ["a", "b", "c"] {
        world.post("/v1/tokens", json!({ "name": name, "role": "viewer" })).await;
    }
    // Page by page there is the same as at once, each once.
    for (path, field) in
        [("/v1/hosts", "name"), ("/v1/vms", "id"), ("/v1/tokens", "id"), ("/v1/audit", "number")]
    {
        let whole = world.get(path).await;
        assert_eq!(whole["next"], Value::Null);
        let whole: Vec<_> =
            whole["items"].as_array().unwrap().iter().map(|item| item[field].clone()).collect();
        assert!(whole.len() >= 2);
        let (mut parts, mut after) = (Vec::new(), String::new());
        loop {
            let page = world.get(&format!("{path}?limit=1{after}")).await;
            parts.extend(page["items"].as_array().unwrap().iter().map(|item| item[field].clone()));
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        assert_eq!(parts, whole, "{path}");
    }
    for (query, count) in [
        ("vms?host=host-a", 5),
        ("vms?host=host-b", 1),
        ("vms?host=host-c", 0),
        ("vms?site=berlin&limit=1000", 6),
        ("vms?site=paris", 0),
        ("vms?state=running", 6),
        ("vms?state=stopped", 0),
        ("vms?name=eb-3", 1),
        ("vms?name=%27%3B%20DROP", 6),
        ("vms?name=%25", 0),
        ("hosts?state=connected", 2),
        ("hosts?state=away", 0),
        ("hosts?name=-b", 1),
        ("hosts?site=berlin", 2),
        ("hosts?site=paris", 0),
    ] {
        let found = world.get(&format!("/v1/{query}")).await;
        assert_eq!(found["items"].as_array().unwrap().len(), count, "{query}: {found}");
    }
    for query in
        ["vms?after=x", "hosts?after=%2e%2e%2f", "tokens?after=x", "migrations?after=1", "hosts?limit=1001"]
    {
        let (status, problem) = world.ask_as(&world.admin, "GET", &format!("/v1/{query}"), None).await;
        assert_eq!(status, 422, "{query}: {problem}");
    }
}

#[tokio::test]
async fn tags_tell_whether_it_is_still_so() {
    let (world, mut line_a, _line_b) = fleet(&["web-1"]).await;
    let begun = world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await.1;
    let path = format!("/v1/migrations/{}", begun["id"].as_str().unwrap());
    for path in [path.as_str(), "/v1/migrations", "/v1/vms", "/v1/tokens"] {
        let seen = world.send_json("GET", path, &[], &Value::Null).await;
        let tag = seen.header("etag").to_owned();
        assert!(tag.starts_with('"') && tag.ends_with('"'), "{path}: {tag}");
        let again = world
            .send_json("GET", path, &[("if-none-match", &format!("\"x\", W/{tag}"))], &Value::Null)
            .await;
        assert_eq!((again.status, again.text.as_str(), again.header("etag")), (304, "", tag.as_str()));
        let head = world.send_json("HEAD", path, &[], &Value::Null).await;
        assert_eq!((head.status, head.header("etag"), head.text.as_str()), (200, tag.as_str(), ""));
        assert_eq!(head.header("content-length"), seen.text.len().to_string());
    }
    let tag = world.send_json("GET", &path, &[], &Value::Null).await.header("etag").to_owned();
    line_a.moved(begun["id"].as_str().unwrap(), "source", "pre-copy", false).await;
    world.until(&path, |migration| migration["state"] == "moving").await;
    let wish = format!("{path}/wish");
    let cancel = json!({ "wish": "cancel" });
    let stale = world.send_json("POST", &wish, &[("if-match", &tag)], &cancel).await;
    assert_eq!((stale.status, &stale.json()["code"]), (412, &json!("stale")));
    assert_eq!(world.get(&path).await["wish"], "arrive");
    let tag = world.send_json("GET", &path, &[], &Value::Null).await.header("etag").to_owned();
    assert_eq!(world.send_json("POST", &wish, &[("if-match", &tag)], &cancel).await.status, 200);
    let (_, token) = world.post("/v1/tokens", json!({ "name": "x", "role": "viewer" })).await;
    for (path, tag) in [
        (format!("/v1/tokens/{}", token["id"].as_str().unwrap()), "\"x\""),
        ("/v1/hosts/host-b".to_owned(), "\"x\""),
    ] {
        let revoke = format!("{path}/revoke");
        assert_eq!(world.send_json("POST", &revoke, &[("if-match", tag)], &Value::Null).await.status, 412);
        assert_eq!(world.get(&path).await["revoked"], Value::Null);
        assert_eq!(world.send_json("POST", &revoke, &[("if-match", "*")], &Value::Null).await.status, 204);
        assert!(world.get(&path).await["revoked"].is_string());
    }
}

#[tokio::test]
async fn a_flood_is_held_back_and_others_are_not() {
    // Far more at once than come back in the time that they take.
    let access = Access {
        limits: Limits { caller: NonZeroU32::new(1), address: NonZeroU32::new(1) },
        ..Access::default()
    };
    let world = World::open_to(tempfile::tempdir().unwrap(), access).await;
    let mut flood = Vec::new();
    for _ in 0..3 {
        flood.push(world.send("GET", "/v1/health", &[], Vec::new()));
    }
    let world = &world;
    let many: Vec<_> = (0..64)
        .map(|_| world.send("GET", "/v1/nothing", &[("authorization", "Bearer nfa1_x")], Vec::new()))
        .collect();
    let mut refused = 0;
    for answer in join_all(many).await.into_iter().chain(join_all(flood).await) {
        if answer.status == 429 {
            refused += 1;
            assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
            assert_eq!(answer.header("content-type"), "application/problem+json");
            assert!(answer.header("ratelimit-policy").starts_with("\"address\";q=2"));
            assert_eq!(answer.json()["code"], "too-many-requests");
        }
    }
    assert!(refused > 0);
    // Whoever has a good token is none of them.
    let good = world.send_json("GET", "/v1/hosts", &[], &Value::Null).await;
    assert_eq!((good.status, good.header("ratelimit-policy")), (200, "\"token\";q=2;w=2"));
    let many: Vec<_> = (0..64).map(|_| world.send_json("GET", "/v1/hosts", &[], &Value::Null)).collect();
    assert!(join_all(many).await.iter().any(|answer| answer.status == 429));
}

/// All at once.
async fn join_all<T>(all: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.into_iter().map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(move |context| {
        for (one, done) in all.iter_mut().filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(value) = one.as_mut().poll(context) {
                *done = Some(value);
            }
        }
        if all.iter().all(|(_, done)| done.is_some()) {
            return std::task::Poll::Ready(all.drain(..).filter_map(|(_, done)| done).collect());
        }
        std::task::Poll::Pending
    })
    .await
}

#[tokio::test]
async fn novacrons_bearers_are_let_in_by_their_roles() {
    let secret = "0123456789abcdef0123456789abcdef";
    let access = Access { secret: Some(Secret::new(secret).unwrap()), ..Access::default() };
    let world = World::open_to(tempfile::tempdir().unwrap(), access).await;
    let sign = |claims: Value| crate::api::jwt::signed(secret, &claims);
    let exp = fleet::now().as_second() + 600;
    let operator = sign(json!({ "sub": "ada", "roles": ["operator"], "exp": exp }));
    assert_eq!(world.ask_as(&operator, "GET", "/v1/hosts", None).await.0, 200);
    let invite = json!({ "site": "berlin" });
    assert_eq!(world.ask_as(&operator, "POST", "/v1/host-tokens", Some(invite.clone())).await.0, 403);
    let admin = sign(json!({ "sub": "root'; --", "role": "super-admin", "exp": exp }));
    assert_eq!(world.ask_as(&admin, "POST", "/v1/host-tokens", Some(invite)).await.0, 201);
    let log = world.get("/v1/audit").await;
    let actors: Vec<_> =
        log["items"].as_array().unwrap().iter().map(|entry| entry["actor"].as_str().unwrap()).collect();
    assert_eq!(actors, ["coordinator", "jwt:ada", "jwt:root'; --"]);
    let nobody = sign(json!({ "sub": "bob", "role": "poet", "exp": exp }));
    assert_eq!(world.ask_as(&nobody, "GET", "/v1/hosts", None).await.0, 403);
    let old = sign(json!({ "sub": "ada", "role": "admin", "exp": exp - 1200 }));
    let (status, said) = world.ask_as(&old, "GET", "/v1/hosts", None).await;
    assert!(status == 401 && said["detail"].as_str().unwrap().contains("clocks"), "{said}");
    // As NovaCron's clock makes it when it is ten minutes ahead.
    let early = sign(json!({ "sub": "ada", "role": "admin", "exp": exp + 600, "nbf": exp }));
    let (status, said) = world.ask_as(&early, "GET", "/v1/hosts", None).await;
    assert!(status == 401 && said["detail"].as_str().unwrap().contains("clocks"), "{said}");
    // Whoever has not the secret hears nothing of times.
    let forged =
        crate::api::jwt::signed("another secret of 32 bytes, or so", &json!({ "sub": "x", "exp": 1 }));
    let (status, said) = world.ask_as(&forged, "GET", "/v1/hosts", None).await;
    assert!(status == 401 && !said["detail"].as_str().unwrap().contains("clocks"), "{said}");
    // Without the secret none is good.
    let other = World::new().await;
    assert_eq!(other.ask_as(&operator, "GET", "/v1/hosts", None).await.0, 401);
}

#[tokio::test]
async fn hostile_requests_get_problems() {
    let (world, _line_a, _line_b) = fleet(&["web-1"]).await;
    let document = world.get("/v1/openapi.json").await;
    let bearer = format!("Bearer {}", world.admin);
    let json_kind = ("content-type", "application/json");
    let deep = "{\"options\":".repeat(5000).into_bytes();
    let huge = format!("{{\"vm\":\"{}\"}}", "x".repeat(1 << 20)).into_bytes();
    let sql = json!({ "vm": "'; DROP TABLE hosts; --<script>alert(1)</script>", "to": "host-b" })
        .to_string()
        .into_bytes();
    for (kind, body, status) in [
        (json_kind, huge.clone(), 413),
        (json_kind, deep, 422),
        (json_kind, b"{\"vm\":\"\xff\xfe\",\"to\":\"host-b\"}".to_vec(), 400),
        (json_kind, b"{\"vm\":\"\\ud800\",\"to\":\"host-b\"}".to_vec(), 400),
        (json_kind, b"".to_vec(), 400),
        (json_kind, b"null".to_vec(), 422),
        (json_kind, b"{\"vm\":1e999,\"to\":\"host-b\"}".to_vec(), 400),
        (json_kind, sql.clone(), 404),
        (("content-type", "text/plain"), sql.clone(), 415),
        (("content-type", "application/x-www-form-urlencoded"), b"vm=a".to_vec(), 415),
        (("x-none", "x"), sql.clone(), 415),
    ] {
        for key in [None, Some(("idempotency-key", "hostile"))] {
            let mut headers = vec![("authorization", bearer.as_str()), kind];
            headers.extend(key);
            let answer = world.send("POST", "/v1/migrations", &headers, body.clone()).await;
            let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
            assert_eq!(answer.status, status, "{shown} {key:?}: {}", answer.text);
            check(&document, "post", "/v1/migrations", &answer);
            assert!(!answer.text.contains("<script>") || answer.header("content-type").contains("json"));
        }
    }
    for path in [
        "/v1/hosts/..%2f..%2fetc%2fpasswd",
        "/v1/hosts/%00",
        "/v1/hosts/%ff",
        "/v1/migrations/%ff",
        "/v1/tokens/%ff",
    ] {
        let answer = world.send_json("GET", path, &[], &Value::Null).await;
        assert!([400, 404, 422].contains(&answer.status), "{path}: {}", answer.status);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{path}: {}", answer.text);
    }
    for path in ["/v1/../../etc/passwd", "//", "/v1//hosts", "/v1/hosts/", "/admin-token", "/v1/hosts/a/b/c"]
    {
        assert_eq!(world.send_json("GET", path, &[], &Value::Null).await.status, 404, "{path}");
    }
    // The VM of that name is there, as it is written.
    let vms = world.get("/v1/vms").await;
    assert_eq!(vms["items"][0]["name"], "web-1'; DROP TABLE hosts; --<b>");
    assert_eq!(world.get("/v1/hosts").await["items"].as_array().unwrap().len(), 2);
    let brew = world.send_json("BREW", "/v1/hosts", &[], &Value::Null).await;
    assert_eq!((brew.status, brew.header("content-type")), (405, "application/problem+json"));
}

#[tokio::test]
async fn the_page_is_served_with_what_keeps_it_to_itself() {
    let world = World::new().await;
    let page = world.send("GET", "/", &[], Vec::new()).await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    let again = world.send("GET", "/", &[("if-none-match", page.header("etag"))], Vec::new()).await;
    assert_eq!((again.status, again.text.as_str()), (304, ""));
    let script = world.send("GET", "/page/main.js", &[], Vec::new()).await;
    assert_eq!((script.status, script.header("content-type")), (200, "text/javascript; charset=utf-8"));
    assert_eq!(world.send("POST", "/", &[], Vec::new()).await.status, 405);
    assert_eq!(world.send("GET", "/page/none.js", &[], Vec::new()).await.status, 404);
}
