//! Links: who probes them and when, and what each migration may use of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_api::v1;
use control_api::v1::probed::Result as Found;
use control_api::v1::to_agent::What as Told;
use model::host::Host;
use model::link::{Link, Measured, Standing};
use model::migration::{Migration, State};
use model::route::{self, Share, marked, routes};
use model::{Name, Timestamp};
use store::{LinkProbe, StoreError, StoreErrorKind};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use crate::fleet::{Fleet, now};

/// Between two probes of a link; up to a quarter of it more by chance.
const EVERY: Duration = Duration::from_secs(60);
/// How often it is looked for links whose turn it is.
const LOOK: Duration = Duration::from_secs(1);
/// Probes at once.
const MOST: usize = 8;
/// How long an agent's answer is waited for: longer than an agent tries.
const PATIENCE: Duration = Duration::from_secs(25);
/// How often the rate is tried, which fills the link for a moment.
const RATE_EVERY: Duration = Duration::from_secs(3600);
/// How long the other host lets itself be probed: as long as an answer is waited for.
const MEET_MS: u32 = 25_000;
/// Round trips of a probe.
const PINGS: u32 = 20;
/// Bytes and milliseconds to find out the rate with.
const BURST: (u64, u32) = (4 << 20, 1000);
/// Probes that wait for one agent.
const WAITING: usize = 4;

/// Probes that agents were asked for.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    last: AtomicU64,
    lines: Mutex<HashMap<Name, mpsc::Sender<Told>>>,
    waiting: Mutex<HashMap<u64, (Name, oneshot::Sender<Found>)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives a number back whose answer nobody waits for any more.
struct Wait<'a>(&'a Probes, u64);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        lock(&self.0.waiting).remove(&self.1);
    }
}

impl Probes {
    /// What a host that answers probes is asked, as long as its line lives.
    pub(crate) fn open(&self, host: &Name) -> mpsc::Receiver<Told> {
        let (ask, asked) = mpsc::channel(WAITING);
        lock(&self.lines).insert(host.clone(), ask);
        asked
    }

    /// A host answers. What it was not asked is passed over.
    pub(crate) fn answered(&self, host: &Name, probed: v1::Probed) {
        let mut waiting = lock(&self.waiting);
        if waiting.get(&probed.id).is_some_and(|(asked, _)| asked == host)
            && let Some((_, answer)) = waiting.remove(&probed.id)
        {
            let nothing = || Found::Unable("the agent gave no answer of ours".to_owned());
            // Who asked may be gone.
            drop(answer.send(probed.result.unwrap_or_else(nothing)));
        }
    }

    fn can(&self, host: &Name) -> bool {
        lock(&self.lines).get(host).is_some_and(|line| !line.is_closed())
    }

    /// False when it cannot be told now.
    fn send(&self, host: &Name, what: Told) -> bool {
        let line = lock(&self.lines).get(host).cloned();
        line.is_some_and(|line| line.try_send(what).is_ok())
    }

    async fn ask(&self, host: &Name, peer: &Name, mut probe: v1::Probe) -> Found {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).insert(id, (host.clone(), answer));
        let _wait = Wait(self, id);
        probe.id = id;
        // An older agent passes it over, and answers those alone whom its settings name.
        let meet = v1::Meet { peer: host.to_string(), for_ms: MEET_MS };
        self.send(peer, Told::Meet(meet));
        if !self.send(host, Told::Probe(probe)) {
            return Found::Unable(format!("host {host} cannot be asked now"));
        }
        match timeout(PATIENCE, answered).await {
            Ok(Ok(found)) => found,
            _ => Found::Unable(format!("host {host} does not answer")),
        }
    }
}

/// A host that asks, a host that is asked, and its address.
type Pair = (Name, Name, String);

/// Pairs of hosts that can find out about a link: the one is connected and answers probes, the other is connected and has
/// an address on the link's network.
fn pairs(fleet: &Fleet, hosts: &[Arc<Host>], link: &Link) -> Vec<Pair> {
    let connected = fleet.connections();
    let is_there = |host: &&Arc<Host>| host.revoked.is_none() && connected.contains_key(&host.name);
    let network = link.network.as_ref().map(Name::as_str);
    let mut pairs = Vec::new();
    for from in hosts.iter().filter(is_there).filter(|host| fleet.probes.can(&host.name)) {
        for to in hosts.iter().filter(is_there) {
            if from.name == to.name || !link.joins(&from.site, &to.site) {
                continue;
            }
            let addresses = to.observed.iter().flat_map(|observed| &observed.addresses).map(|a| marked(a));
            let on_it = addresses.filter(|(marked, _)| *marked == network);
            pairs.extend(on_it.map(|(_, address)| (from.name.clone(), to.name.clone(), address.to_owned())));
        }
    }
    pairs
}

/// Has a link probed by one pair of hosts, by chance, and keeps what is found.
///
/// # Errors
/// For people: why nothing was found out.
pub(crate) async fn probe(fleet: &Fleet, link: &Link, rate: bool) -> Result<Standing, String> {
    let hosts = fleet.store.roster().await.map_err(|error| error.to_string())?;
    let pairs = pairs(fleet, &hosts, link);
    let Some((from, peer, to)) = pairs.get(chance(pairs.len())) else {
        return Err(format!(
            "no two hosts can probe link {}: one at each of {} and {} must be connected, and the other have an address on \
             its network; `novaferry host list` shows who is",
            link.name, link.sites[0], link.sites[1]
        ));
    };
    let (most_bytes, most_ms) = if rate { BURST } else { (0, 0) };
    let asked = v1::Probe {
        id: 0,
        peer: peer.to_string(),
        to: format!("novaferry://{to}"),
        pings: PINGS,
        most_bytes,
        most_ms,
    };
    let at = now();
    let measured = match fleet.probes.ask(from, peer, asked).await {
        Found::Unable(why) => return Err(why.chars().take(1024).collect()),
        Found::Failed(why) => {
            let why: String = why.chars().take(1024).collect();
            tracing::warn!(link = %link.name, %from, %peer, to, why, "nothing comes through a link");
            None
        }
        Found::Quality(quality) => Some(Measured {
            at,
            rtt_us: quality.rtt_us,
            jitter_us: quality.jitter_us,
            loss_ppm: quality.loss_ppm.min(1_000_000),
            rate: (quality.rate > 0).then_some(quality.rate),
        }),
    };
    keep(fleet, &link.name, LinkProbe { at, measured }).await.map_err(|error| error.to_string())
}

async fn keep(fleet: &Fleet, name: &Name, probe: LinkProbe) -> Result<Standing, StoreError> {
    let (standing, changed) = fleet.store.measured(name, probe).await?;
    if changed {
        tracing::info!(link = %name, state = standing.state.as_str(), "the state of a link is another one");
        fleet.tell();
    }
    Ok(standing)
}

/// A number below another, by chance.
fn chance(below: usize) -> usize {
    let mut bytes = [0; 4];
    // Without chance always the first.
    let number = getrandom::fill(&mut bytes).map_or(0, |()| u32::from_le_bytes(bytes));
    usize::try_from(number).unwrap_or(0).checked_rem(below).unwrap_or(0)
}

fn pause() -> Duration {
    EVERY + EVERY / 4 * u32::try_from(chance(256)).unwrap_or(0) / 256
}

/// What a host's migrations may use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    pub(crate) share: Share,
    /// No way leads there now, and one will.
    pub(crate) waits: bool,
    /// The destination lets it in by our word.
    pub(crate) expects: bool,
}

/// What is given to each of these migrations, by id: all that have not ended, which share what there is.
pub(crate) async fn given(fleet: &Fleet, open: &[Migration]) -> Result<BTreeMap<String, Given>, StoreError> {
    if open.is_empty() {
        return Ok(BTreeMap::new());
    }
    let links = fleet.store.links().await?;
    let mut open: Vec<&Migration> = open.iter().collect();
    let hosts = fleet.store.roster().await?;
    let hosts: HashMap<&Name, &Host> = hosts.iter().map(|host| (&host.name, host.as_ref())).collect();
    // Rehearsals move nothing, and take nothing from others.
    open.sort_by_key(|migration| migration.options.dry_run);
    let real = open.iter().filter(|migration| !migration.options.dry_run).count();
    let at = now();
    let both =
        |migration: &Migration| Some((*hosts.get(&migration.source)?, *hosts.get(&migration.destination)?));
    let ways: Vec<_> = open
        .iter()
        .map(|&migration| {
            let mut ways = both(migration).map_or_else(Vec::new, |(from, to)| routes(from, to, &links, at));
            // What its plan chose comes first; the others are there for when it fails.
            ways.sort_by_key(|route| migration.link.is_some() && route.link != migration.link);
            ways
        })
        .collect();
    let known: Vec<_> = open
        .iter()
        .map(|&migration| {
            let to = hosts.get(&migration.destination);
            let reached = both(migration).is_some_and(|(from, to)| route::is_reached(from, to));
            (reached, to.is_some_and(|to| expects(to)))
        })
        .collect();
    let mut shared = route::shares(ways[..real].to_vec(), &links);
    shared.extend(ways[real..].iter().map(|routes| Share { routes: routes.clone(), limit: None }));
    let given = open.into_iter().zip(shared).zip(known).map(|((migration, share), (known, expects))| {
        let waits = known && share.routes.is_empty();
        (migration.id.clone(), Given { share, waits, expects })
    });
    Ok(given.collect())
}

fn expects(host: &Host) -> bool {
    host.observed.as_ref().is_some_and(|observed| observed.expects)
}

/// What migrations move over each link now, bytes a second, by what their sources say.
async fn carried(fleet: &Fleet) -> Result<BTreeMap<Name, u64>, StoreError> {
    let open = fleet.store.open_migrations().await?;
    let given = given(fleet, &open).await?;
    let mut carried = BTreeMap::new();
    for migration in open {
        let moving = migration.state == State::Moving && !migration.options.dry_run;
        let rate = migration.at_source.as_ref().filter(|_| moving).map_or(0, |progress| progress.rate);
        let link = given.get(&migration.id).and_then(|given| given.share.routes.first()?.link.clone());
        if let Some(link) = link.filter(|_| rate > 0) {
            *carried.entry(link).or_default() += rate;
        }
    }
    Ok(carried)
}

/// Which links are probed next, and when.
#[derive(Debug, Default)]
struct Schedule {
    due: BTreeMap<Name, Instant>,
    rates: BTreeMap<Name, Instant>,
    open: HashSet<Name>,
    running: HashSet<Name>,
}

/// Probes all links, until it is to stop.
pub(crate) async fn run(fleet: &Arc<Fleet>, stop: CancellationToken) {
    let mut schedule = Schedule::default();
    let mut tasks: JoinSet<(Name, bool, Result<Standing, String>)> = JoinSet::new();
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(ended) = tasks.join_next() => match ended {
                Ok((name, rate, result)) => schedule.ended(name, rate, result),
                Err(error) => {
                    tracing::error!(%error, "a probe failed; this is a bug");
                    schedule.running.clear();
                }
            },
            _ = ticks.tick() => match schedule.next(fleet).await {
                Ok(next) => for (link, rate) in next {
                    let fleet = Arc::clone(fleet);
                    tasks.spawn(async move {
                        let result = probe(&fleet, &link, rate).await;
                        (link.name, rate, result)
                    });
                },
                Err(error) => tracing::warn!(%error, "links cannot be looked at"),
            },
        }
    }
}

impl Schedule {
    fn ended(&mut self, name: Name, rate: bool, result: Result<Standing, String>) {
        self.running.remove(&name);
        self.due.insert(name.clone(), Instant::now() + pause());
        match result {
            Ok(standing) if rate && standing.measured.is_some_and(|measured| measured.rate.is_some()) => {
                self.rates.insert(name, Instant::now());
            }
            Ok(_) => {}
            Err(why) => tracing::debug!(link = %name, why, "a link is not probed"),
        }
    }

    /// The links whose turn it is, and whether their rate is to be tried.
    async fn next(&mut self, fleet: &Fleet) -> Result<Vec<(Link, bool)>, StoreError> {
        let links = fleet.store.links().await?;
        self.forget_others(&links);
        self.tell_of_hours(fleet, &links, now());
        let (time, room) = (Instant::now(), MOST.saturating_sub(self.running.len()));
        let is_due = |link: &&Standing| {
            let name = &link.link.name;
            !self.running.contains(name) && self.due.get(name).is_none_or(|due| *due <= time)
        };
        let due: Vec<Standing> = links.iter().filter(is_due).take(room).cloned().collect();
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let carried = carried(fleet).await?;
        let hosts = fleet.store.roster().await?;
        let mut next = Vec::new();
        for standing in due {
            let name = &standing.link.name;
            if let Some(rate) = carried.get(name) {
                self.due.insert(name.clone(), time + pause());
                note_carried(fleet, &standing, *rate).await?;
            } else if !pairs(fleet, &hosts, &standing.link).is_empty() {
                let rate = self.rates.get(name).is_none_or(|tried| tried.elapsed() >= RATE_EVERY);
                self.running.insert(name.clone());
                next.push((standing.link, rate));
            }
            // Without a pair it is looked at again in a moment: hosts come and go.
        }
        Ok(next)
    }

    fn forget_others(&mut self, links: &[Standing]) {
        let names: HashSet<&Name> = links.iter().map(|standing| &standing.link.name).collect();
        self.due.retain(|name, _| names.contains(name));
        self.rates.retain(|name, _| names.contains(name));
    }

    /// A link that opens or closes by the clock changes what hosts are told.
    fn tell_of_hours(&mut self, fleet: &Fleet, links: &[Standing], at: Timestamp) {
        let open = links.iter().filter(|standing| standing.link.is_open(at));
        let open: HashSet<Name> = open.map(|standing| standing.link.name.clone()).collect();
        if open != self.open {
            self.open = open;
            fleet.tell();
        }
    }
}

/// A link that migrations use is not filled by a probe; that it carries more than was known is noted.
async fn note_carried(fleet: &Fleet, standing: &Standing, rate: u64) -> Result<(), StoreError> {
    let Some(last) = standing.measured.filter(|last| last.rate.is_some_and(|known| known < rate)) else {
        return Ok(());
    };
    let at = now();
    let measured = Some(Measured { at, rate: Some(rate), ..last });
    match keep(fleet, &standing.link.name, LinkProbe { at, measured }).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
