//! What a fleet costs a coordinator: simulated hosts keep their lines to a real `novaferry serve` while its API is read.
//!
//! Measured are the times of reads and of answers to heartbeats, memory and processor time of the coordinator, and how long
//! all hosts take to come back when it was killed. Hosts, readers and coordinator share this machine.

#![allow(clippy::print_stdout, reason = "it prints what it measures")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use novaferry_hosts::{Api, Coordinator, Fleet, Pace, Random};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

/// Far beyond what anything takes.
const PATIENCE: Duration = Duration::from_secs(600);
/// Threads that invite hosts and fill the lists.
const CLIENTS: usize = 8;

/// Measures a coordinator with simulated hosts.
#[derive(Debug, Parser)]
#[command(name = "novaferry-fleet", max_term_width = 100)]
struct Cli {
    /// The coordinator's binary [default: novaferry beside this program].
    #[arg(long, value_name = "PATH")]
    novaferry: Option<PathBuf>,
    /// Hosts.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    hosts: usize,
    /// Virtual machines of each.
    #[arg(long, value_name = "N", default_value_t = 10)]
    vms: usize,
    /// Reads a second, of all kinds together.
    #[arg(long, value_name = "N", default_value_t = 100)]
    reads: u32,
    /// Inventories that change, a second.
    #[arg(long, value_name = "N", default_value_t = 20)]
    changes: usize,
    /// Migrations that are begun, a second.
    #[arg(long, value_name = "N", default_value_t = 2)]
    moves: u32,
    /// How long it is measured.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// A PostgreSQL database instead of the coordinator's own.
    #[arg(long, value_name = "URL", env = "NOVAFERRY_DATABASE", hide_env_values = true)]
    database: Option<String>,
    /// Fixes what is left to chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

fn host(number: usize) -> String {
    format!("host-{number:04}")
}

fn vm(number: usize) -> String {
    format!("vm-{number:05}")
}

/// Does something for each number below a bound, on several threads.
fn all(bound: usize, each: &(impl Fn(usize) + Sync)) {
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || (client..bound).step_by(CLIENTS).for_each(each));
        }
    });
}

/// Invites all hosts; gives what each joins with.
fn invite(api: &Api, cli: &Cli) -> Vec<(String, String, Vec<String>)> {
    let invited = std::sync::Mutex::new(Vec::new());
    all(cli.hosts, &|number| {
        let body = json!({ "site": format!("site-{:02}", number % 10), "host": host(number) });
        let answer = api.post("/v1/host-tokens", &format!("invite-{number}"), &body);
        let token = answer.body["token"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
        let vms = (0..cli.vms).map(|nth| vm(number * cli.vms + nth)).collect();
        invited.lock().expect("no thread failed").push((host(number), token, vms));
    });
    let mut invited = invited.into_inner().expect("no thread failed");
    invited.sort();
    invited
}

/// Begins to move a VM to the next host but so many. One that has moved already, or moves, is left alone.
fn begin(api: &Api, cli: &Cli, number: usize) -> Option<String> {
    let to = (number / cli.vms + 1 + number % 7) % cli.hosts;
    let body = json!({ "vm": vm(number), "to": host(to) });
    let answer = api.post("/v1/migrations", &format!("move-{number}"), &body);
    answer.body["id"].as_str().map(ToOwned::to_owned)
}

/// Pages, CPU and memory as the kernel counts them.
struct Process(u32);

impl Process {
    fn status(&self, field: &str) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0)).expect("the coordinator runs");
        let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field is there");
        let kibibytes: f64 =
            line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number");
        kibibytes / 1024.0
    }

    /// Seconds of processor time.
    fn cpu(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).expect("the coordinator runs");
        let after = text.rsplit_once(')').expect("a name in parentheses").1;
        let ticks =
            after.split_whitespace().skip(11).take(2).map(|word| word.parse::<f64>().expect("a number"));
        let hertz = rustix::param::clock_ticks_per_second();
        ticks.sum::<f64>() / f64::from(u32::try_from(hertz).expect("few"))
    }
}

/// Percentiles, milliseconds.
fn spread(mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let at = |percent: usize| {
        let nth = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(nth).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    json!({ "count": times.len(), "p50_ms": at(50), "p99_ms": at(99), "max_ms": at(100) })
}

/// Reads that are measured: what it is called, and how the nth is asked.
type Read = (&'static str, Box<dyn Fn(&mut Random) -> String + Send + Sync>);

fn reads(cli: &Cli, ids: Vec<String>) -> Vec<Read> {
    let (hosts, vms) = (cli.hosts, cli.hosts * cli.vms);
    vec![
        ("GET /v1/hosts", Box::new(|_| "/v1/hosts".to_owned())),
        ("GET /v1/hosts?limit=1000", Box::new(|_| "/v1/hosts?limit=1000".to_owned())),
        ("GET /v1/hosts/{name}", Box::new(move |random| format!("/v1/hosts/{}", host(random.below(hosts))))),
        ("GET /v1/vms", Box::new(|_| "/v1/vms".to_owned())),
        ("GET /v1/vms?host=", Box::new(move |random| format!("/v1/vms?host={}", host(random.below(hosts))))),
        ("GET /v1/vms?name=", Box::new(move |random| format!("/v1/vms?name={}", vm(random.below(vms))))),
        ("GET /v1/migrations", Box::new(|_| "/v1/migrations".to_owned())),
        (
            "GET /v1/migrations/{id}",
            Box::new(move |random| format!("/v1/migrations/{}", ids[random.below(ids.len())])),
        ),
        ("GET /v1/plans", Box::new(|_| "/v1/plans".to_owned())),
    ]
}

fn main() {
    let cli = Cli::parse();
    // Two sockets a host at most, while it dials again.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit })
        .expect("the limit of open files can be raised");
    let beside = std::env::current_exe().expect("this program has a path").with_file_name("novaferry");
    let binary = cli.novaferry.clone().unwrap_or(beside);
    let folder = tempfile::tempdir().expect("a folder");
    let mut coordinator =
        Coordinator::new(&binary, folder.path(), cli.database.clone(), &["--rate-limit", "0"]);
    coordinator.start();
    coordinator.ready();
    let api = Arc::new(Api::new(folder.path(), &[coordinator.api()]));
    let began = Instant::now();
    let invited = invite(&api, &cli);
    let pace = Pace { step: Duration::from_millis(1500), ..Pace::default() };
    let fleet = Fleet::start(&[coordinator.agents()], &invited, pace, cli.seed);
    fleet.connected(cli.hosts, PATIENCE);
    let joined = began.elapsed();
    while api.list("/v1/vms").len() < cli.hosts * cli.vms {
        assert!(began.elapsed() < PATIENCE, "the inventory does not come");
        std::thread::sleep(Duration::from_secs(1));
    }
    // Lists that are longer than a page.
    let first = 150.min(cli.hosts * cli.vms / 4);
    let ids: Vec<String> = (0..first).filter_map(|nth| begin(&api, &cli, nth)).collect();
    all(first, &|number| {
        let body = json!({ "vms": [vm(first + number)], "to": host(cli.hosts - 1) });
        let answer = api.post("/v1/plans", &format!("plan-{number}"), &body);
        assert_eq!(answer.status, 201, "{answer:?}");
    });
    drop(fleet.beats());
    let process = Process(coordinator.pid().expect("it runs"));
    let (measured, cpu) = (Instant::now(), process.cpu());
    let end = Arc::new(AtomicBool::new(false));
    let kinds = reads(&cli, ids);
    let times: Vec<(&str, Vec<Duration>)> = std::thread::scope(|scope| {
        let readers: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(nth, (name, path))| {
                let (api, end) = (Arc::clone(&api), Arc::clone(&end));
                let mut random = Random::new(cli.seed + u64::try_from(nth).expect("few"));
                // Every kind gets its part of the rate.
                let every = Duration::from_secs(1) * u32::try_from(kinds.len()).expect("few") / cli.reads;
                scope.spawn(move || {
                    let mut times = Vec::new();
                    let mut next = Instant::now() + random.within(every);
                    while !end.load(Ordering::Relaxed) {
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                        // From when it was due: one that waits for an earlier one has waited.
                        api.read(&path(&mut random));
                        times.push(next.elapsed());
                        next += every;
                    }
                    (*name, times)
                })
            })
            .collect();
        let mut begun = first;
        let tick = Duration::from_millis(500);
        for nth in 1.. {
            if measured.elapsed() >= Duration::from_secs(cli.seconds) {
                break;
            }
            fleet.stir(cli.changes / 2);
            for _ in 0..cli.moves.div_ceil(2) {
                begun += 1;
                // One that was stirred into another state may be refused.
                drop(begin(&api, &cli, begun));
            }
            std::thread::sleep((measured + tick * nth).saturating_duration_since(Instant::now()));
        }
        end.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().expect("all reads are answered")).collect()
    });
    let seconds = measured.elapsed().as_secs_f64();
    let cpu = (process.cpu() - cpu) / seconds;
    let (rss, peak) = (process.status("VmRSS:"), process.status("VmHWM:"));
    let beats = spread(fleet.beats());
    let (killed, _) = (Instant::now(), coordinator.start());
    coordinator.ready();
    let up = killed.elapsed();
    fleet.connected(cli.hosts, PATIENCE);
    let back = killed.elapsed();
    let violations = fleet.truth().violations;
    assert!(violations.is_empty(), "{violations:?}");
    let again = Process(coordinator.pid().expect("it runs"));
    let kinds: serde_json::Map<String, Value> =
        times.into_iter().map(|(name, times)| (name.to_owned(), spread(times))).collect();
    let found = json!({
        "kind": "fleet", "hosts": cli.hosts, "vms": cli.hosts * cli.vms, "seconds": seconds,
        "database": if cli.database.is_some() { "postgresql" } else { "sqlite" },
        "reads_a_second": cli.reads, "changes_a_second": cli.changes, "moves_a_second": cli.moves,
        "join_seconds": joined.as_secs_f64(), "reads": kinds, "beats": beats, "cpu": cpu, "rss_mib": rss, "peak_mib": peak,
        "start_seconds": up.as_secs_f64(), "reconnect_seconds": back.as_secs_f64(), "peak_after_mib": again.status("VmHWM:"),
    });
    if cli.json {
        println!("{found}");
    } else {
        table(&found);
    }
}

fn table(found: &Value) {
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    println!(
        "{} hosts, {} VMs, {}; joined in {:.1} s; measured for {:.0} s",
        found["hosts"],
        found["vms"],
        found["database"],
        number(&found["join_seconds"]),
        number(&found["seconds"])
    );
    println!("{:<28} {:>7} {:>9} {:>9} {:>9}", "", "count", "p50 ms", "p99 ms", "max ms");
    let row = |name: &str, one: &Value| {
        let [p50, p99, max] = ["p50_ms", "p99_ms", "max_ms"].map(|field| number(&one[field]));
        println!("{name:<28} {:>7} {p50:>9.1} {p99:>9.1} {max:>9.1}", one["count"]);
    };
    for (name, one) in found["reads"].as_object().into_iter().flatten() {
        row(name, one);
    }
    row("heartbeat answered", &found["beats"]);
    println!(
        "processors {:.2}; memory {:.0} MiB, at most {:.0} MiB; {:.0} MiB after the restart",
        number(&found["cpu"]),
        number(&found["rss_mib"]),
        number(&found["peak_mib"]),
        number(&found["peak_after_mib"])
    );
    println!(
        "killed: ready after {:.2} s, all hosts back after {:.1} s",
        number(&found["start_seconds"]),
        number(&found["reconnect_seconds"])
    );
}
