//! A fleet: a coordinator, agents that join it by tokens, and a guest that moves because an operator asks for it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest::{Linux, Options, Settings, Timeline, Vm};
use serde_json::{Value, json};

use crate::harness::collector::Collector;
use crate::harness::vms::VmHost;
use crate::harness::{Capability, Harness, capable, until};

mod hidden;

/// Far beyond what anything takes here.
const HANG: Duration = Duration::from_secs(120);
const VM: &str = "web-1";

/// `novaferry`, which the workspace's build puts beside the agent.
fn program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_novaferry-agent")).with_file_name("novaferry");
    assert!(program.exists(), "build the workspace first: cargo build --workspace");
    program
}

/// A coordinator that ends with the test.
struct Coordinator {
    child: Child,
    state: PathBuf,
    agents: String,
    url: String,
}

impl Coordinator {
    fn start(state: &Path, agents: &str) -> Self {
        std::fs::create_dir_all(state).unwrap();
        let mut child = Command::new(program())
            .args(["serve", "--agents", agents, "--api", "127.0.0.1:0", "--state"])
            .arg(state)
            .env_remove("NOVAFERRY_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.find_map(|line| line.ok().filter(|line| line.contains(" ready ")));
        let ready = ready.expect("the coordinator gets ready");
        let field = |name: &str| {
            let rest = ready.split_once(&format!("{name}=\"")).unwrap().1;
            rest.split_once('"').unwrap().0.to_owned()
        };
        let (agents, url) = (field("agents"), format!("https://{}", field("api")));
        // Whoever does not read a pipe stops who writes into it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, state: state.to_owned(), agents, url }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(words)
            .env("NOVAFERRY_URL", &self.url)
            .env("NOVAFERRY_CA", self.state.join("ca.pem"))
            .env("NOVAFERRY_TOKEN_FILE", self.state.join("admin-token"));
        command
    }

    #[track_caller]
    fn ask(&self, words: &[&str]) -> Vec<Value> {
        let mut words = words.to_vec();
        words.extend(["--output", "json"]);
        let output = self.command(&words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[track_caller]
    fn until(&self, words: &[&str], so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let began = Instant::now();
        loop {
            let said = self.ask(words);
            if so(&said) {
                return said;
            }
            assert!(began.elapsed() < HANG, "{words:?} never became so: {said:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// As by a crash.
    fn kill(mut self) -> (PathBuf, String) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.state.clone(), self.agents.clone())
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Hosts of the fleet get their identities from it, in place of those that every test's hosts have.
fn join(harness: &Harness, coordinator: &Coordinator, sites: [(&str, &str); 2]) {
    for (host, site) in sites {
        let token = coordinator.ask(&["host", "token", "--site", site, "--host", host]);
        let token = token[0]["token"].as_str().unwrap();
        let identity = harness.text(&format!("hosts/{host}"));
        std::fs::remove_dir_all(&identity).unwrap();
        let join = ["join", &coordinator.agents, token, "--name", host, "--identity", &identity];
        harness.agent(&join).done();
    }
}

#[test]
fn a_move_goes_over_to_a_better_link_and_links_are_measured() {
    let test = "a_move_goes_over_to_a_better_link_and_links_are_measured";
    let Some(linux) = Linux::available(test) else { return };
    if !capable(test, &[Capability::Root]) {
        return;
    }
    let harness = Harness::of_guests();
    harness.allow_log("the connection to the destination is lost");
    let coordinator = Coordinator::start(&harness.path("coordinator"), "127.0.0.1:0");
    let source = VmHost::joining(&harness, "host-a", Some(&linux), &coordinator.agents);
    let (destination, relay) = VmHost::joining_behind(&harness, "host-b", Some(&linux), &coordinator.agents);
    join(&harness, &coordinator, [("host-a", "berlin"), ("host-b", "paris")]);
    let options = Options { constant: 64, duplicate: 16, hot: 8, rate: 8, disk: 64, ..Options::default() };
    let guest = Vm::start(&source.vms(), Settings::linux(VM, &linux, options)).unwrap();
    source.start();
    destination.start();
    guest.serial().wait_for_heartbeats(5, HANG).unwrap();
    coordinator.until(&["host", "list"], |hosts| hosts.iter().all(|host| host["connected"].is_string()));
    coordinator.until(&["vm", "list"], |vms| vms.iter().any(|vm| vm["id"] == VM && vm["access"] == "live"));
    // Only the relay's link may be used at first: the other, of the address without a mark, is closed.
    let night = ["--between", "paris,berlin", "--schedule"];
    coordinator.ask(&[&["link", "add", "direct"][..], &night, &[&closed()]].concat());
    coordinator.ask(&["link", "add", "relayed", "--between", "berlin,paris", "--network", "relay"]);
    let measured = |links: &[Value]| links.iter().all(|link| link["measured"]["rate"].is_u64());
    coordinator.until(&["link", "list"], measured);

    let begun = coordinator.ask(&["migrate", VM, "--to", "host-b", "--limit", "4000000", "--detach"]);
    let id = begun[0]["steps"][0]["migration"].as_str().unwrap().to_owned();
    source.await_state(&["mirroring", "pre-copy"]);
    let address = |record: &Value| record["record"]["role"]["source"]["address"].as_str().unwrap().to_owned();
    assert_eq!(format!("novaferry://{}", address(&source.shown().unwrap())), relay.url());
    coordinator.ask(&["link", "set", "direct", "--schedule", "always", "--cap", "40MB"]);
    coordinator.ask(&["link", "remove", "relayed"]);
    source.await_log("the migration moves over to a better way");
    // Nothing goes through the relay any more.
    relay.cut();
    let watched = coordinator.ask(&["migration", "watch", &id]);
    assert_eq!(watched.last().unwrap()["state"], "completed", "{watched:?}");
    assert_eq!(address(&source.shown().unwrap()), destination.address().to_string());
    let there = destination.serial(VM);
    there.wait_for_heartbeats(15, HANG).unwrap_or_else(|error| panic!("{error}: {}", there.text()));
    Timeline::join(&[guest.serial(), &there]).check(2).unwrap();
}

/// A minute of a day that is neither today nor tomorrow.
fn closed() -> String {
    let days = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 86_400;
    // 1970 began on a Thursday.
    let names = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    format!("{} 12:00-12:01", names[usize::try_from((days + 3) % 7).unwrap()])
}

#[test]
fn an_operator_moves_a_guest_and_the_coordinator_dies_meanwhile() {
    let test = "an_operator_moves_a_guest_and_the_coordinator_dies_meanwhile";
    let Some(linux) = Linux::available(test) else { return };
    if !capable(test, &[Capability::Root]) {
        return;
    }
    let harness = Harness::of_guests();
    harness.allow_log("no line to the coordinator");
    let coordinator = Coordinator::start(&harness.path("coordinator"), "127.0.0.1:0");
    let collector = Collector::start();
    let host = |name| VmHost::traced(&harness, name, Some(&linux), &coordinator.agents, &collector.endpoint);
    let (source, destination) = (host("host-a"), host("host-b"));
    for host in ["host-a", "host-b"] {
        let token = coordinator.ask(&["host", "token", "--site", "berlin", "--host", host]);
        let token = token[0]["token"].as_str().unwrap();
        // In place of the one that every test's host has.
        let identity = harness.text(&format!("hosts/{host}"));
        std::fs::remove_dir_all(&identity).unwrap();
        let join = ["join", &coordinator.agents, token, "--name", host, "--identity", &identity];
        harness.agent(&join).done();
        // A token is good once.
        let elsewhere = harness.text("elsewhere");
        let again = ["join", &coordinator.agents, token, "--name", host, "--identity", &elsewhere];
        assert!(harness.agent(&again).exits(1).text().contains("the coordinator refuses"));
    }
    let options = Options { constant: 64, duplicate: 16, hot: 8, rate: 8, disk: 64, ..Options::default() };
    let guest = Vm::start(&source.vms(), Settings::linux(VM, &linux, options)).unwrap();
    source.start();
    destination.start();
    guest.serial().wait_for_heartbeats(5, HANG).unwrap();
    coordinator.until(&["host", "list"], |hosts| hosts.iter().all(|host| host["connected"].is_string()));
    coordinator.until(&["vm", "list"], |vms| vms.iter().any(|vm| vm["id"] == VM && vm["access"] == "live"));

    // A rehearsal changes nothing. Both hosts' parts in it follow the trace of whoever asked.
    let mut rehearsal =
        coordinator.command(&["migrate", VM, "--to", "host-b", "--dry-run", "--output", "json"]);
    let context = format!("00-{}-{}-01", "5e".repeat(16), "a7".repeat(8));
    let rehearsal = rehearsal.env("TRACEPARENT", context).output().unwrap();
    let said = String::from_utf8(rehearsal.stdout).unwrap();
    assert!(rehearsal.status.success() && said.lines().last().unwrap().contains("\"rehearsed\""), "{said}");
    until("both hosts' spans of the rehearsal", || {
        let spans = collector.spans();
        let of = |host: &str, role: &str| {
            spans
                .iter()
                .find(|span| span.host == host && span.role == role && span.trace == [0x5e; 16])
                .cloned()
        };
        let (source, destination) = (of("host-a", "source")?, of("host-b", "destination")?);
        assert_eq!((source.name.as_str(), destination.name.as_str()), ("migration", "migration"));
        assert_eq!((&source.parent[..], &destination.parent), (&[0xa7; 8][..], &source.id));
        Some(())
    });

    let begun = coordinator.ask(&["migrate", VM, "--to", "host-b", "--limit", "8000000", "--detach"]);
    let id = begun[0]["steps"][0]["migration"].as_str().unwrap().to_owned();
    // A plan's step has its id before it is begun.
    coordinator.until(&["migration", "list"], |all| {
        all.iter().any(|one| one["id"] == *id && one["state"] == "moving")
    });
    let (state, agents) = coordinator.kill();
    // The move goes on without it, and is told to the next one.
    let coordinator = Coordinator::start(&state, &agents);
    let watched = coordinator.ask(&["migration", "watch", &id]);
    let last = watched.last().unwrap();
    assert_eq!(last["state"], "completed", "{last}");
    assert!(last["at_source"]["report"]["report"]["downtime_ms"].as_u64().is_some(), "{last}");
    // The destination signed for the disks that the source had.
    let proof = &last["proof"];
    assert_eq!((&proof["by"], &proof["both"]), (&json!("host-b"), &json!(true)), "{last}");
    let receipts = coordinator.ask(&["migration", "receipts", &id]);
    assert_eq!(receipts[0][0]["root"], proof["disks"][0]["root"], "{receipts:?}");
    assert!(proof["disks"][0]["root"].as_str().is_some_and(|root| root.len() == 64), "{last}");
    let there = destination.serial(VM);
    there.wait_for_heartbeats(15, HANG).unwrap_or_else(|error| panic!("{error}: {}", there.text()));
    Timeline::join(&[guest.serial(), &there]).check(2).unwrap();
    coordinator.until(&["vm", "list"], |vms| vms.iter().any(|vm| vm["id"] == VM && vm["host"] == "host-b"));
    let log = coordinator.ask(&["audit", "list"]);
    assert_eq!(log.iter().filter(|entry| entry["action"] == "migrate").count(), 4);
    assert_eq!(log.iter().filter(|entry| entry["action"] == "join").count(), 2);
    coordinator.ask(&["audit", "check"]);

    // A host that is revoked is let in nowhere.
    coordinator.ask(&["host", "revoke", "host-a"]);
    coordinator.until(&["host", "list"], |hosts| hosts[0]["connected"].is_null());
    destination.await_log("the coordinator revoked a host");
}

#[test]
fn a_guest_waits_in_step_for_an_operators_word_whatever_dies_meanwhile() {
    let test = "a_guest_waits_in_step_for_an_operators_word_whatever_dies_meanwhile";
    let Some(linux) = Linux::available(test) else { return };
    if !capable(test, &[Capability::Root]) {
        return;
    }
    let harness = Harness::of_guests();
    harness.allow_log("no line to the coordinator");
    let coordinator = Coordinator::start(&harness.path("coordinator"), "127.0.0.1:0");
    let host = |name| VmHost::joining(&harness, name, Some(&linux), &coordinator.agents);
    let (source, destination) = (host("host-a"), host("host-b"));
    join(&harness, &coordinator, [("host-a", "berlin"), ("host-b", "berlin")]);
    let options = Options { constant: 64, duplicate: 16, hot: 8, rate: 8, disk: 64, ..Options::default() };
    let guest = Vm::start(&source.vms(), Settings::linux(VM, &linux, options)).unwrap();
    source.start();
    destination.start();
    guest.serial().wait_for_heartbeats(5, HANG).unwrap();
    coordinator.until(&["host", "list"], |hosts| hosts.iter().all(|host| host["connected"].is_string()));
    coordinator.until(&["vm", "list"], |vms| vms.iter().any(|vm| vm["id"] == VM && vm["access"] == "live"));

    // The command comes back when the disks are in step.
    let seeded = coordinator.ask(&["migrate", VM, "--to", "host-b", "--seed-now"]);
    let last = seeded.last().unwrap();
    assert_eq!((&last["state"], &last["at_source"]["waits"]), (&json!("moving"), &json!(true)), "{last}");
    let id = last["id"].as_str().unwrap().to_owned();
    // It waits on without the coordinator, and the next one lets it go.
    let (state, agents) = coordinator.kill();
    let coordinator = Coordinator::start(&state, &agents);
    coordinator.until(&["host", "list"], |hosts| hosts.iter().all(|host| host["connected"].is_string()));
    assert_eq!(source.state(), "mirroring");
    let told = coordinator.ask(&["migration", "cutover", &id, "--at", "1000h"]);
    assert!(told[0]["options"]["cutover_at"].is_string(), "{told:?}");
    until("the time at the source", || source.live()["waits"]["at"].as_u64());
    coordinator.ask(&["migration", "cutover", &id]);
    let watched = coordinator.ask(&["migration", "watch", &id]);
    let last = watched.last().unwrap();
    assert_eq!((&last["state"], &last["proof"]["both"]), (&json!("completed"), &json!(true)), "{last}");
    let there = destination.serial(VM);
    there.wait_for_heartbeats(15, HANG).unwrap_or_else(|error| panic!("{error}: {}", there.text()));
    Timeline::join(&[guest.serial(), &there]).check(2).unwrap();
}
