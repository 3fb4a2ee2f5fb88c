//! The metrics endpoint, and that what operators are given to watch is there to be watched.

use std::collections::BTreeSet;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

async fn ask(world: &World, request: &str) -> String {
    ask_at(world.metrics, request).await
}

async fn ask_at(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn scrape(world: &World) -> String {
    let answer = ask(world, "GET /metrics HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    answer
}

fn value(scrape: &str, series: &str) -> f64 {
    let line = scrape.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{scrape}")).parse().unwrap()
}

/// Names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("novaferry_"))
        .map(|word| {
            ["_bucket", "_sum", "_count"].iter().fold(word, |w, end| w.strip_suffix(end).unwrap_or(w))
        })
        .collect()
}

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../monitoring").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[tokio::test]
async fn the_endpoint_counts_what_there_is() {
    let world = World::new().await;
    let before = scrape(&world).await;
    assert_eq!(value(&before, "novaferry_coordinator_leader"), 1.0);
    assert_eq!(value(&before, "novaferry_coordinator_hosts{state=\"away\"}"), 0.0);
    assert_eq!(value(&before, "novaferry_coordinator_migrations{state=\"in-doubt\"}"), 0.0);
    assert_eq!(value(&before, "novaferry_coordinator_migrations_ended_total{state=\"lost\"}"), 0.0);
    let now = fleet::now().as_second() as f64;
    assert!(value(&before, "novaferry_coordinator_ca_expiry_timestamp_seconds") > now + 3600.0 * 86_400.0);
    let own = value(&before, "novaferry_coordinator_certificate_expiry_timestamp_seconds");
    assert!(own > now + 6.0 * 86_400.0 && own < now + 8.0 * 86_400.0);

    // A host that has joined, and has no line; then one with a line; then one that was revoked.
    let host = world.host("host-a").await;
    let away = scrape(&world).await;
    assert_eq!(value(&away, "novaferry_coordinator_hosts{state=\"away\"}"), 1.0);
    assert!(
        value(&away, "novaferry_coordinator_audit_entries")
            > value(&before, "novaferry_coordinator_audit_entries")
    );
    let line = host.line(&world, 0).await.unwrap();
    let connected = scrape(&world).await;
    assert_eq!(value(&connected, "novaferry_coordinator_hosts{state=\"connected\"}"), 1.0);
    assert_eq!(value(&connected, "novaferry_coordinator_lines"), 1.0);
    drop(line);
    let (status, body) = world.post("/v1/hosts/host-a/revoke", json!({})).await;
    assert!(status < 300, "{status} {body}");
    let revoked = scrape(&world).await;
    assert_eq!(value(&revoked, "novaferry_coordinator_hosts{state=\"revoked\"}"), 1.0);
    assert!(value(&revoked, "novaferry_coordinator_store_transaction_seconds_count") > 0.0);

    // Routes, not paths: what somebody writes into a path must not become a series.
    let series = |route: &str, method: &str, status: u16| {
        format!(
            "novaferry_coordinator_api_requests_total{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}}"
        )
    };
    assert_eq!(value(&revoked, &series("/v1/hosts/{name}/revoke", "POST", status)), 1.0);
    for path in ["/nothing/<script>", "/v1/migrations/00"] {
        world.ask_as(&world.admin, "GET", &path.replace(['<', '>'], ""), None).await;
    }
    world.ask_as("nfa1_bad", "GET", "/v1/hosts", None).await;
    let after = scrape(&world).await;
    assert_eq!(value(&after, &series("none", "GET", 404)), 1.0);
    assert_eq!(value(&after, &series("/v1/hosts", "GET", 401)), 1.0);
    assert!(!after.contains("script") && !after.contains("host-a") && !after.contains("migrations/00"));

    assert!(
        ask(&world, "GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 404")
    );
    assert!(
        ask(&world, "POST /metrics HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 405")
    );
}

#[tokio::test]
async fn one_that_stands_by_answers_and_does_not_lead() {
    let endpoint = crate::metrics::Endpoint::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = endpoint.address();
    let request = "GET /metrics HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
    let answer = ask_at(address, request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(value(&answer, "novaferry_coordinator_leader"), 0.0);
    assert!(!answer.contains("novaferry_coordinator_hosts{"), "whoever leads counts the fleet: {answer}");
    endpoint.end().await;
    assert!(TcpStream::connect(address).await.is_err(), "it has ended");
}

#[tokio::test]
async fn alerts_and_dashboard_name_what_is_there() {
    let world = World::new().await;
    world.get("/v1/hosts").await;
    let scrape = scrape(&world).await;
    let there: BTreeSet<&str> = scrape
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let (alerts, dashboard) = (file("alerts.yaml"), file("dashboard.json"));
    let watched: BTreeSet<&str> = names(&alerts).union(&names(&dashboard)).copied().collect();
    let ours: BTreeSet<&str> =
        watched.iter().copied().filter(|name| name.starts_with("novaferry_coordinator_")).collect();
    assert!(ours.len() > 8, "{ours:?}");
    let unknown: Vec<_> = ours.difference(&there).collect();
    assert!(unknown.is_empty(), "nobody exports {unknown:?}; there is\n{scrape}");
    let unseen: Vec<_> = there.difference(&ours).collect();
    assert!(unseen.is_empty(), "nobody looks at {unseen:?}");
    serde_json::from_str::<Value>(&dashboard).unwrap();
}

#[test]
fn every_alert_names_a_runbook_that_is_there() {
    let alerts = file("alerts.yaml");
    let number = |what: &str| alerts.lines().filter(|line| line.trim_start().starts_with(what)).count();
    assert_eq!(number("- alert:"), number("runbook_url:"));
    for line in alerts.lines().filter(|line| line.trim_start().starts_with("runbook_url:")) {
        let (_, name) = line.rsplit_once("/systemd/runbook/").expect(line);
        file(&format!("../systemd/runbook/{name}"));
    }
}
