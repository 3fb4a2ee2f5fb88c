use std::collections::BTreeMap;

use model::host::{Host, Needs, Observed, Pool, Vm};
use model::link::{Kind, Link, Measured, Price, Standing, State};
use model::route::Order;
use model::{Name, Timestamp};
use proptest::prelude::*;

use crate::estimate::{Experience, estimate};
use crate::fleet::{Fleet, Place};
use crate::order::{A_HOST, Move, Running, order};
use crate::placement::{APART, Along, Placed, TOGETHER, Target, place};

const GIB: u64 = 1 << 30;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn host(host: &str, site: &str) -> Place {
    let observed = Observed {
        version: "0.1.0".to_owned(),
        addresses: vec![format!("{host}.example:7440")],
        processors: 8,
        memory_bytes: 32 * GIB,
        memory_available_bytes: 16 * GIB,
        processor: "Example 9000".to_owned(),
        kvm: true,
        expects: true,
        waits: true,
        calls: true,
        qemu: "10.0.2".to_owned(),
        pools: vec![Pool { name: "fast".to_owned(), free_bytes: 100 * GIB }],
        vms: Vec::new(),
    };
    let host = Host {
        name: name(host),
        site: name(site),
        joined: Timestamp::UNIX_EPOCH,
        revoked: None,
        seen: None,
        observed: Some(observed),
    };
    Place { host, connected: true, cordoned: false, arriving: Vec::new() }
}

fn vm(id: &str) -> Vm {
    let needs = Needs {
        memory_bytes: 4 * GIB,
        processors: 2,
        disk_bytes: 20 * GIB,
        cpu: "host".to_owned(),
        kvm: true,
        ..Needs::default()
    };
    Vm {
        id: id.to_owned(),
        name: id.to_owned(),
        state: "running".to_owned(),
        access: "live".to_owned(),
        reason: String::new(),
        needs,
    }
}

fn link(link: &str, between: [&str; 2], rate: u64, per_gb: u64) -> Standing {
    let link = Link {
        name: name(link),
        kind: Kind::Vpn,
        sites: between.map(name),
        network: None,
        capacity: None,
        cap: None,
        price: Price { currency: "USD".to_owned(), per_gb_micros: per_gb, per_hour_micros: 0 },
        schedule: Vec::new(),
        most_migrations: None,
    };
    let at = Timestamp::UNIX_EPOCH;
    let measured = Measured { at, rtt_us: 20_000, jitter_us: 100, loss_ppm: 0, rate: Some(rate) };
    Standing { link, state: State::Up, since: Some(at), measured: Some(measured) }
}

fn fleet(places: Vec<Place>, links: Vec<Standing>) -> Fleet {
    Fleet { now: Timestamp::UNIX_EPOCH, places, links }
}

fn observed(place: &mut Place) -> &mut Observed {
    place.host.observed.as_mut().unwrap()
}

fn placed(fleet: &Fleet, vm: &Vm, target: &Target) -> Placed {
    place(fleet, &fleet.places[0], vm, target, &Along::default())
}

fn chosen(placed: &Placed) -> Option<&str> {
    placed.chosen.as_ref().map(|(name, _)| name.as_str())
}

#[test]
fn every_host_that_is_not_chosen_has_a_reason() {
    let change = |change: &dyn Fn(&mut Place)| {
        let mut place = host("other", "munich");
        change(&mut place);
        place
    };
    for (place, reason) in [
        (change(&|place| place.connected = false), "has no line"),
        (change(&|place| place.cordoned = true), "cordoned"),
        (change(&|place| place.host.revoked = Some(Timestamp::UNIX_EPOCH)), "was revoked"),
        (change(&|place| place.host.observed = None), "has not said"),
        (
            change(&|place| observed(place).memory_available_bytes = 4 * GIB - 1),
            "memory: 4096 MiB are needed",
        ),
        (change(&|place| observed(place).pools.clear()), "roomiest pool has 0 MiB"),
        (change(&|place| observed(place).processors = 1), "2 processors and the host 1"),
        (change(&|place| observed(place).kvm = false), "has none"),
        (change(&|place| observed(place).processor = "Example 8000".to_owned()), "here it is Example 8000"),
        (change(&|place| observed(place).qemu = "9.2.0".to_owned()), "older than the 10.0.2"),
        (
            change(&|place| {
                place.arriving = vec![("a".to_owned(), Needs { memory_bytes: 13 * GIB, ..Needs::default() })]
            }),
            "3072 MiB are free",
        ),
    ] {
        let fleet = fleet(vec![host("here", "munich"), place], Vec::new());
        let placed = placed(&fleet, &vm("web-1"), &Target::Site(name("munich")));
        assert_eq!(chosen(&placed), None, "{reason}");
        let why = &placed.rejected.iter().find(|one| one.host == name("other")).unwrap().why;
        assert!(why.iter().any(|why| why.contains(reason)), "{why:?} has no {reason:?}");
        let here = &placed.rejected.iter().find(|one| one.host == name("here")).unwrap().why;
        assert!(here[0].contains("there already"), "{here:?}");
    }
}

#[test]
fn hosts_that_nobody_asked_for_are_not_told_of() {
    let places = vec![host("here", "munich"), host("other", "munich"), host("far", "paris")];
    let fleet = fleet(places, Vec::new());
    let told = |target: Target| -> Vec<String> {
        let placed = placed(&fleet, &vm("web-1"), &target);
        placed.rejected.iter().map(|one| one.host.to_string()).collect()
    };
    assert_eq!(told(Target::Site(name("munich"))), ["here"]);
    assert_eq!(told(Target::Host(name("other"))), [""; 0]);
    assert_eq!(told(Target::Host(name("here"))), ["here"]);
}

#[test]
fn all_that_speaks_against_a_host_is_told_at_once() {
    let mut other = host("other", "munich");
    observed(&mut other).kvm = false;
    observed(&mut other).processors = 1;
    other.connected = false;
    let fleet = fleet(vec![host("here", "munich"), other], Vec::new());
    let placed = placed(&fleet, &vm("web-1"), &Target::Anywhere);
    assert_eq!(placed.rejected.iter().find(|one| one.host == name("other")).unwrap().why.len(), 3);
}

#[test]
fn what_is_not_known_does_not_stand_against_a_host() {
    let mut other = host("other", "munich");
    observed(&mut other).qemu.clear();
    observed(&mut other).processor.clear();
    let fleet = fleet(vec![host("here", "munich"), other], Vec::new());
    let unknown = Vm { needs: Needs::default(), ..vm("web-1") };
    assert_eq!(chosen(&placed(&fleet, &unknown, &Target::Anywhere)), Some("other"));
}

#[test]
fn a_host_that_is_named_may_be_cordoned() {
    let mut other = host("other", "munich");
    other.cordoned = true;
    let fleet = fleet(vec![host("here", "munich"), other], Vec::new());
    assert_eq!(chosen(&placed(&fleet, &vm("web-1"), &Target::Host(name("other")))), Some("other"));
    assert_eq!(chosen(&placed(&fleet, &vm("web-1"), &Target::Anywhere)), None);
}

#[test]
fn labels_keep_vms_apart_and_together() {
    let labelled = |id: &str, label: &str| {
        let mut vm = vm(id);
        vm.needs.labels = BTreeMap::from([(label.to_owned(), "db".to_owned())]);
        vm
    };
    let mut roomy = host("roomy", "munich");
    observed(&mut roomy).memory_available_bytes = 30 * GIB;
    let mut friend = host("friend", "munich");
    observed(&mut friend).vms.push(labelled("db-1", TOGETHER));
    let together = fleet(vec![host("here", "munich"), roomy.clone(), friend], Vec::new());
    assert_eq!(chosen(&placed(&together, &vm("web-1"), &Target::Anywhere)), Some("roomy"));
    assert_eq!(chosen(&placed(&together, &labelled("db-2", TOGETHER), &Target::Anywhere)), Some("friend"));

    observed(&mut roomy).vms.push(labelled("db-1", APART));
    let mut coming = host("coming", "munich");
    coming.arriving.push(("db-3".to_owned(), labelled("db-3", APART).needs));
    let apart = fleet(vec![host("here", "munich"), roomy, coming], Vec::new());
    let placed = placed(&apart, &labelled("db-2", APART), &Target::Anywhere);
    assert_eq!(chosen(&placed), None);
    assert!(placed.rejected.iter().filter(|one| one.why[0].contains(APART)).count() == 2, "{placed:?}");
}

#[test]
fn a_link_is_chosen_by_time_or_by_money() {
    let places = vec![host("here", "munich"), host("there", "paris")];
    let links = vec![
        link("dear", ["munich", "paris"], 100_000_000, 90_000),
        link("cheap", ["paris", "munich"], 10_000_000, 1_000),
    ];
    let fleet = fleet(places, links);
    let best = |prefer, link: Option<&str>| {
        let along = Along { link: link.map(name), prefer };
        let placed = place(&fleet, &fleet.places[0], &vm("web-1"), &Target::Site(name("paris")), &along);
        placed.chosen.map(|(_, ways)| ways[0].link.clone().unwrap().to_string())
    };
    assert_eq!(best(Order::Fastest, None).as_deref(), Some("dear"));
    assert_eq!(best(Order::Cheapest, None).as_deref(), Some("cheap"));
    assert_eq!(best(Order::Fastest, Some("cheap")).as_deref(), Some("cheap"));
    assert_eq!(best(Order::Fastest, Some("none")), None);
}

#[test]
fn an_estimate_says_what_it_rests_on() {
    let fleet = fleet(
        vec![host("here", "munich"), host("there", "paris")],
        vec![link("vpn", ["munich", "paris"], 10_000_000, 90_000)],
    );
    let ways = fleet.ways(&fleet.places[0].host, &fleet.places[1].host, Order::Fastest);
    let vm = vm("web-1");
    let guess = estimate(&Experience::default(), &vm.id, &vm.needs, &ways[0], model::migration::Mode::Live);
    assert!(guess.bytes > 0 && guess.cost_micros > 0 && guess.currency == "USD", "{guess:?}");
    assert!(guess.duration_ms > guess.bytes / 10_000, "no faster than the link: {guess:?}");
    assert!(guess.basis.iter().any(|basis| basis.contains("nothing is known")), "{guess:?}");

    let report = serde_json::json!({ "report": { "total_ms": 5000, "downtime_ms": 42, "ram_wire": 700, "disk_wire": 300 } });
    let learnt = Experience::of(&[completed("web-1", report)]);
    let known = estimate(&learnt, &vm.id, &vm.needs, &ways[0], model::migration::Mode::Live);
    assert_eq!((known.bytes, known.downtime_ms), (1000, 42));
    assert!(known.basis.iter().any(|basis| basis.contains("of this VM")), "{known:?}");
    let cold = estimate(&learnt, &vm.id, &vm.needs, &ways[0], model::migration::Mode::Cold);
    assert_eq!(cold.downtime_ms, 0, "what is off has no pause");
}

fn completed(vm: &str, report: serde_json::Value) -> model::migration::Migration {
    use model::migration::{Migration, Options, Progress, State, Wish};
    Migration {
        id: "ab".repeat(16),
        vm: vm.to_owned(),
        source: name("here"),
        destination: name("there"),
        options: Options::default(),
        wish: Wish::Arrive,
        by: String::new(),
        created: Timestamp::UNIX_EPOCH,
        changed: Timestamp::UNIX_EPOCH,
        state: State::Completed,
        at_source: Some(Progress { report, ..Progress::default() }),
        at_destination: None,
        refusal: None,
        proof: None,
        unproven: None,
        plan: None,
        link: None,
        needs: Needs::default(),
        estimate: None,
        price: Price::default(),
    }
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let host = || (0..6_u8).prop_map(|n| name(&format!("host-{n}")));
    let link = prop_oneof![Just(None), Just(Some(name("vpn")))];
    let ends = (host(), host()).prop_filter("a VM leaves its host", |(from, to)| from != to);
    let one = (ends, link, 1..5_u32, 1..10_000_u64);
    let one = one.prop_map(|((source, destination), link, most, duration_ms)| Move {
        source,
        destination,
        link_most: link.is_some().then_some(most),
        link,
        duration_ms,
    });
    prop::collection::vec(one, 0..40)
}

proptest! {
    #[test]
    fn every_move_has_its_turn_within_the_limits(moves in moves(), at_once in 0..6_usize) {
        let (turns, last) = order(&moves, at_once);
        let mut which: Vec<usize> = turns.iter().map(|turn| turn.nth).collect();
        which.sort_unstable();
        prop_assert_eq!(which, (0..moves.len()).collect::<Vec<_>>());
        let ends = |nth: usize, begins: u64| begins + moves[nth].duration_ms;
        prop_assert_eq!(last, turns.iter().map(|turn| ends(turn.nth, turn.begins_ms)).max().unwrap_or(0));
        for at in turns.iter().map(|turn| turn.begins_ms) {
            let then: Vec<_> = turns
                .iter()
                .filter(|turn| turn.begins_ms <= at && ends(turn.nth, turn.begins_ms) > at)
                .map(|turn| &moves[turn.nth])
                .collect();
            prop_assert!(then.len() <= at_once.max(1));
            for host in then.iter().flat_map(|one| [&one.source, &one.destination]) {
                let part = then.iter().filter(|one| one.source == *host).count()
                    + then.iter().filter(|one| one.destination == *host).count();
                prop_assert!(part <= A_HOST);
            }
            let least = then.iter().filter_map(|one| one.link_most).max().unwrap_or(u32::MAX);
            let on_link = then.iter().filter(|one| one.link.is_some()).count();
            prop_assert!(on_link <= usize::try_from(least).unwrap());
        }
    }

    #[test]
    fn what_ends_makes_room_again(moves in moves()) {
        let mut running = Running::default();
        for one in &moves {
            running.begin(one);
        }
        for one in &moves {
            running.end(one);
        }
        prop_assert!(moves.iter().all(|one| running.admits(one, 1)));
    }
}

fn arrived(id: &str, link: Option<&str>, tenant: &str, bytes: u64) -> model::migration::Migration {
    let report = serde_json::json!({ "report": {
        "total_ms": 10_000, "downtime_ms": 100, "ram_wire": bytes, "disk_wire": 0,
        "predicted": { "total_ms": 11_000, "downtime_ms": 125, "wire_bytes": bytes * 2 },
    } });
    let mut migration = completed("web-1", report);
    migration.id = id.to_owned();
    migration.link = link.map(name);
    migration.needs.tenant = tenant.to_owned();
    if link.is_some() {
        migration.price = Price { currency: "USD".to_owned(), per_gb_micros: 90_000, per_hour_micros: 0 };
    }
    migration
}

#[test]
fn expectations_are_graded_beside_what_happened() {
    let mut undone = arrived("c", None, "", 1);
    undone.state = model::migration::State::Undone;
    let accuracy =
        crate::report::accuracy(&[arrived("a", None, "", 1_000_000), arrived("b", None, "", 5), undone]);
    assert_eq!(accuracy.migrations.len(), 2);
    let held = accuracy.measured;
    assert_eq!((held.of, held.duration, held.bytes, held.downtime), (2, 2, 0, 2));
    assert_eq!(accuracy.planned.of, 0);
}

#[test]
fn costs_are_summed_by_whom_they_concern() {
    use crate::report::{By, charges};
    let all = [
        arrived("a", Some("vpn"), "acme", 2_000_000_000),
        arrived("b", Some("vpn"), "other", 1_000_000_000),
        arrived("c", None, "acme", 1_000_000_000),
    ];
    let by = |by| -> Vec<_> {
        let charges = charges(&all, by);
        charges
            .into_iter()
            .map(|one| (one.tenant, one.link.map(|link| link.to_string()), one.cost_micros))
            .collect()
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(by(By::Link), [(None, None, 0), (None, some("vpn"), 270_000)]);
    assert_eq!(
        by(By::Tenant),
        [(some("acme"), None, 0), (some("acme"), None, 180_000), (some("other"), None, 90_000)]
    );
    assert_eq!(by(By::Migration).len(), 3);
}
