//! Coordinators that are killed at any moment while migrations run: nothing is lost, and nothing is doubled.
//!
//! The hosts are simulated and hold the truth; the coordinator is the real process. `NOVAFERRY_KILLS` and
//! `NOVAFERRY_MOVES` make it longer (`make soak`), `NOVAFERRY_SEED` repeats a run that failed.

#![allow(clippy::print_stdout, reason = "a run that failed is repeated by what is printed")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hosts::{Api, Coordinator, Fleet, Moved, Pace, Random};
use postgres::Server;
use serde_json::{Value, json};

const HOSTS: usize = 20;
/// Threads that ask for migrations.
const CLIENTS: usize = 5;
/// Far beyond what the migrations take once nobody is killed any more.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at something that takes a while.
const LOOK: Duration = Duration::from_millis(100);

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name)
        .map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

struct Trial {
    kills: usize,
    moves: usize,
    random: Random,
}

impl Trial {
    fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = number("NOVAFERRY_SEED", usize::try_from(now.as_nanos() % 1_000_000_007).unwrap());
        let (kills, moves) = (number("NOVAFERRY_KILLS", 5), number("NOVAFERRY_MOVES", 30));
        println!("NOVAFERRY_SEED={seed} NOVAFERRY_KILLS={kills} NOVAFERRY_MOVES={moves}");
        Self { kills, moves, random: Random::new(u64::try_from(seed).unwrap()) }
    }
}

/// What was asked for, and answered.
#[derive(Clone, Debug)]
struct Asked {
    key: String,
    body: Value,
    id: String,
}

fn host(number: usize) -> String {
    format!("host-{number:02}")
}

fn vm(number: usize) -> String {
    format!("vm-{number:03}")
}

/// Asks for each move once, whatever becomes of the coordinators; in between it changes its mind about some.
fn client(api: &Api, moves: &[usize], mut random: Random, span: Duration, asked: &Mutex<Vec<Asked>>) {
    for &number in moves {
        std::thread::sleep(random.within(span / u32::try_from(moves.len()).unwrap() * 2));
        let to = (number + 1 + random.below(HOSTS - 1)) % HOSTS;
        let hold = random.percent(20);
        let body = json!({ "vm": vm(number), "to": host(to), "options": { "hold": hold } });
        let key = format!("move-{number}");
        let answer = api.post("/v1/migrations", &key, &body);
        assert_eq!(answer.status, 202, "{answer:?}");
        let id = answer.body["id"].as_str().unwrap().to_owned();
        asked.lock().unwrap().push(Asked { key, body, id: id.clone() });
        if random.percent(15) {
            let wish = json!({ "wish": "cancel" });
            let answer = api.post(&format!("/v1/migrations/{id}/wish"), &format!("cancel-{number}"), &wish);
            assert!(matches!(answer.status, 200 | 409), "{answer:?}");
        }
    }
}

/// Gives up the sources' copies that are held, until all migrations have ended.
fn settle(api: &Api) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let all = api.list("/v1/migrations");
        let states = all.iter().fold(BTreeMap::<_, usize>::new(), |mut states, one| {
            *states.entry(one["state"].as_str().unwrap()).or_default() += 1;
            states
        });
        let open: usize = states
            .iter()
            .filter(|(state, _)| !["completed", "undone", "refused"].contains(state))
            .map(|(_, n)| n)
            .sum();
        if open == 0 {
            println!("{states:?}");
            return all;
        }
        for held in all.iter().filter(|one| one["state"] == "held" && one["wish"] == "arrive") {
            let path = format!("/v1/migrations/{}/wish", held["id"].as_str().unwrap());
            let key = format!("finalise-{}", held["vm"].as_str().unwrap());
            let answer = api.post(&path, &key, &json!({ "wish": "finalise" }));
            assert!(matches!(answer.status, 200 | 409), "{answer:?}");
        }
        assert!(began.elapsed() < PATIENCE, "migrations do not end: {states:?}");
        std::thread::sleep(LOOK);
    }
}

fn state(moved: &Moved) -> &'static str {
    let at = |part: &Option<(String, String)>| part.as_ref().map(|(_, state)| state.clone());
    match (at(&moved.source).as_deref(), at(&moved.destination).as_deref()) {
        (Some("finalised"), Some("finalised")) => "completed",
        (Some("rolled-back"), None | Some("discarded")) => "undone",
        other => panic!("the hosts hold {other:?}"),
    }
}

/// Compares what the coordinator says with what is so.
fn check(api: &Api, fleet: &Fleet, asked: &[Asked], all: &[Value]) {
    // A coordinator knows that all is decided before the source has cleared up.
    let began = Instant::now();
    while !fleet.truth().moves.values().all(|moved| moved.over) {
        assert!(began.elapsed() < PATIENCE, "the hosts do not end: {:?}", fleet.truth().moves);
        std::thread::sleep(LOOK);
    }
    let truth = fleet.truth();
    assert_eq!(truth.violations, Vec::<String>::new());
    // What was asked for is there once, under the id that was answered, and begun once.
    let ids: BTreeSet<_> = asked.iter().map(|one| one.id.clone()).collect();
    assert_eq!(ids.len(), asked.len(), "two requests have one migration");
    let listed: BTreeSet<_> = all.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(listed.len(), all.len(), "a migration is listed twice");
    assert_eq!(listed, ids);
    let begun: BTreeSet<_> = truth.moves.keys().cloned().collect();
    assert!(begun.is_subset(&ids), "hosts know of migrations that nobody asked for");
    for one in all {
        let id = one["id"].as_str().unwrap();
        let Some(moved) = truth.moves.get(id) else {
            // Cancelled before its host had heard of it.
            assert_eq!((&one["state"], &one["wish"]), (&json!("undone"), &json!("cancel")), "{one}");
            let stays = [(one["source"].as_str().unwrap().to_owned(), true)];
            assert_eq!(truth.vms[one["vm"].as_str().unwrap()], stays, "{one}");
            continue;
        };
        assert_eq!(one["state"], state(moved), "{one}");
        assert_eq!(one["vm"], moved.vm);
        let there = if one["state"] == "completed" { &one["destination"] } else { &one["source"] };
        assert_eq!(truth.vms[&moved.vm], [(there.as_str().unwrap().to_owned(), true)], "{one}");
    }
    // The inventory follows: each VM on one host.
    let began = Instant::now();
    loop {
        let mut seen = BTreeMap::<String, Vec<(String, bool)>>::new();
        for one in api.list("/v1/vms") {
            let [id, host] = ["id", "host"].map(|name| one[name].as_str().unwrap().to_owned());
            seen.entry(id).or_default().push((host, one["state"] == "running"));
        }
        if seen == truth.vms {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{seen:?} and not {:?}", truth.vms);
        std::thread::sleep(LOOK);
    }
    // The same keys again do nothing, and the audit log has each deed once.
    for one in asked {
        let again = api.post("/v1/migrations", &one.key, &one.body);
        assert_eq!((again.status, again.replayed, again.body["id"].as_str()), (202, true, Some(&*one.id)));
    }
    let checked = api.get("/v1/audit/check");
    let log = api.list("/v1/audit");
    assert_eq!(checked["entries"].as_u64(), Some(u64::try_from(log.len()).unwrap()));
    for one in asked {
        let begins = log.iter().filter(|entry| {
            entry["action"] == "migrate"
                && entry["detail"].as_str().is_some_and(|what| what.starts_with(&*one.id))
        });
        assert_eq!(begins.count(), 1, "{one:?}");
    }
    assert_eq!(api.list("/v1/migrations").len(), asked.len());
}

fn invite(api: &Api, moves: usize) -> Vec<(String, String, Vec<String>)> {
    let one = |number: usize| {
        let body = json!({ "site": format!("site-{}", number % 3), "host": host(number) });
        let answer = api.post("/v1/host-tokens", &format!("invite-{number}"), &body);
        let token = answer.body["token"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
        (host(number), token, (number..moves).step_by(HOSTS).map(vm).collect())
    };
    (0..HOSTS).map(one).collect()
}

/// Runs the migrations, for about as long as `span`, while `kill` takes coordinators away.
fn endure(trial: &mut Trial, api: Api, agents: &[String], mut kill: impl FnMut(&mut Random), span: Duration) {
    let pace = Pace {
        look: Duration::from_millis(100),
        pauses: [Duration::from_millis(50), Duration::from_millis(400)],
        // Nine steps, each half of it on the average: as long as the killing.
        step: span * 2 / 9,
        trouble: 25,
    };
    let fleet = Fleet::start(agents, &invite(&api, trial.moves), pace, trial.random.number());
    fleet.connected(HOSTS, PATIENCE);
    let deadline = Instant::now() + PATIENCE;
    while api.list("/v1/vms").len() < trial.moves {
        assert!(Instant::now() < deadline, "the inventory does not come");
        std::thread::sleep(LOOK);
    }
    let (api, asked) = (Arc::new(api), Arc::new(Mutex::new(Vec::new())));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client_number| {
            let (api, asked, random) =
                (Arc::clone(&api), Arc::clone(&asked), Random::new(trial.random.number()));
            let moves: Vec<usize> = (client_number..trial.moves).step_by(CLIENTS).collect();
            std::thread::spawn(move || client(&api, &moves, random, span / 5, &asked))
        })
        .collect();
    let began = Instant::now();
    let mut open = Vec::with_capacity(trial.kills);
    for _ in 0..trial.kills {
        kill(&mut trial.random);
        open.push(fleet.truth().moves.values().filter(|moved| !moved.over).count());
    }
    println!("{} kills in {:?}, migrations open at each: {open:?}", trial.kills, began.elapsed());
    for client in clients {
        client.join().unwrap();
    }
    let all = settle(&api);
    let asked = asked.lock().unwrap().clone();
    check(&api, &fleet, &asked, &all);
    println!("all ended after {:?}", began.elapsed());
}

const BINARY: &str = env!("CARGO_BIN_EXE_novaferry");

#[test]
fn nothing_is_lost_or_doubled_when_it_is_killed() {
    let mut trial = Trial::new();
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::new(Path::new(BINARY), folder.path(), None, &["--rate-limit", "0"]);
    coordinator.start();
    coordinator.ready();
    let api = Api::new(folder.path(), &[coordinator.api()]);
    let agents = [coordinator.agents()];
    let span = Duration::from_millis(700) * u32::try_from(trial.kills).unwrap();
    let kill = |random: &mut Random| {
        // Also before it is ready.
        let most = if random.percent(25) { 300 } else { 1500 };
        std::thread::sleep(random.within(Duration::from_millis(most)));
        assert!(!coordinator.has_ended(), "it ended by itself: {:#?}", coordinator.log());
        coordinator.start();
    };
    endure(&mut trial, api, &agents, kill, span);
}

#[test]
fn nothing_is_lost_or_doubled_when_the_leader_is_killed() {
    let Some(server) = Server::start("nothing_is_lost_or_doubled_when_the_leader_is_killed") else { return };
    server.make("novaferry");
    let mut trial = Trial::new();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let database = Some(server.url("novaferry"));
    let mut pair = folders.each_ref().map(|folder| {
        Coordinator::new(Path::new(BINARY), folder.path(), database.clone(), &["--rate-limit", "0"])
    });
    pair[0].start();
    pair[0].ready();
    for key in ["ca.key", "wrapping.key"] {
        std::fs::copy(folders[0].path().join(key), folders[1].path().join(key)).unwrap();
    }
    pair[1].start();
    pair[1].waits_or_leads();
    let api = Api::new(folders[0].path(), &pair.each_ref().map(Coordinator::api));
    let agents = pair.each_ref().map(Coordinator::agents);
    let span = Duration::from_millis(1400) * u32::try_from(trial.kills).unwrap();
    let kill = |random: &mut Random| {
        // Whoever leads; now and then the one that stands by, which changes nothing.
        let most = if random.percent(25) { 500 } else { 3000 };
        std::thread::sleep(random.within(Duration::from_millis(most)));
        let leader = usize::from(!pair[0].leads());
        let killed = if random.percent(15) { 1 - leader } else { leader };
        for one in &mut pair {
            assert!(!one.has_ended(), "it ended by itself: {:#?}", one.log());
        }
        pair[killed].start();
        pair[killed].waits_or_leads();
    };
    endure(&mut trial, api, &agents, kill, span);
}
