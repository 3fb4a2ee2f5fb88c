//! Plans: drafted by the planner from what is known now, and carried out step by step.

pub(crate) mod run;

use std::collections::BTreeMap;

use model::host::{Host, Vm};
use model::link::Price;
use model::migration::Migration;
use model::plan::{Estimate, Plan, Rejected, State, Step, StepState, Wanted};
use model::route::Order;
use model::{Name, Timestamp};
use planner::estimate::{Experience, estimate};
use planner::fleet::{Place, Way};
use planner::order::{AT_ONCE, Move, order};
use planner::placement::{Along, Target, place};

use crate::api::problem::Problem;
use crate::api::tokens::random;
use crate::find;
use crate::fleet::{Fleet, now};
use crate::moves::may_wait;

/// VMs of one plan.
const MOST_VMS: usize = 1000;
/// Ended migrations that are learnt from.
const LEARNT_FROM: u32 = 400;
/// Least steps at once that may be asked for, and most.
const MOST_AT_ONCE: u32 = 256;

/// A step before it has its turn.
#[derive(Clone, Debug)]
struct Candidate {
    vm: Vm,
    source: Name,
    destination: Option<Name>,
    /// The ways there; which of them is taken.
    ways: Vec<Way>,
    way: usize,
    rejected: Vec<Rejected>,
}

/// What is known now, as the planner sees it.
pub(crate) async fn snapshot(fleet: &Fleet) -> Result<planner::fleet::Fleet, Problem> {
    let connections = fleet.connections();
    let cordoned: BTreeMap<_, _> = fleet.store.cordoned().await?.into_iter().collect();
    let open = fleet.store.open_migrations().await?;
    let places = fleet.store.hosts().await?.into_iter().map(|host| {
        let coming = open.iter().filter(|one| one.destination == host.name && !one.options.dry_run);
        // What has begun there uses the host's memory already.
        let coming = coming.filter(|one| one.at_destination.is_none());
        Place {
            connected: connections.contains_key(&host.name),
            cordoned: cordoned.contains_key(&host.name),
            arriving: coming.map(|one| (one.vm.clone(), one.needs.clone())).collect(),
            host,
        }
    });
    Ok(planner::fleet::Fleet { now: now(), places: places.collect(), links: fleet.store.links().await? })
}

/// What would be done. Nothing is kept, and nothing is changed.
pub(crate) async fn draft(fleet: &Fleet, wanted: Wanted, by: &str) -> Result<Plan, Problem> {
    check(&wanted)?;
    let mut seen = snapshot(fleet).await?;
    let experience = Experience::of(&fleet.store.ended_migrations(LEARNT_FROM).await?);
    let meant = vms(&seen, &wanted)?;
    let target = target(&seen, &wanted)?;
    let mut candidates = Vec::new();
    for (source, vm) in meant {
        may_wait(&wanted.options, seen.places.iter().map(|place| &place.host), &source)?;
        let from =
            seen.place(&source).ok_or_else(|| Problem::not_found(format!("there is no host {source}")))?;
        let along = Along { link: wanted.link.clone(), prefer: wanted.prefer };
        let placed = place(&seen, from, &vm, &target, &along);
        let (destination, ways) = placed.chosen.map_or((None, Vec::new()), |(name, ways)| (Some(name), ways));
        // The next one finds less room there.
        if let Some(there) =
            seen.places.iter_mut().find(|place| Some(&place.host.name) == destination.as_ref())
        {
            there.arriving.push((vm.id.clone(), vm.needs.clone()));
        }
        candidates.push(Candidate { vm, source, destination, ways, way: 0, rejected: placed.rejected });
    }
    let at_once = wanted.at_once.map_or(AT_ONCE, |most| usize::try_from(most).unwrap_or(AT_ONCE));
    hasten(&mut candidates, &experience, &wanted, at_once, seen.now);
    compose(candidates, &experience, wanted, by, at_once, seen.now)
}

fn check(wanted: &Wanted) -> Result<(), Problem> {
    let Wanted { vms, drain, to, at_once, .. } = wanted;
    match (vms.is_empty(), drain, to) {
        (true, None, _) => return Err(Problem::invalid("name VMs in `vms`, or a host to `drain`")),
        (false, Some(_), _) => return Err(Problem::invalid("either `vms` or `drain`, not both")),
        (false, None, None) => return Err(Problem::invalid("name a host or a site in `to`")),
        _ => {}
    }
    if vms.len() > MOST_VMS {
        return Err(Problem::invalid(format!("a plan moves at most {MOST_VMS} VMs; make several")));
    }
    if at_once.is_some_and(|most| !(1..=MOST_AT_ONCE).contains(&most)) {
        return Err(Problem::invalid(format!("at_once must be 1 to {MOST_AT_ONCE}")));
    }
    Ok(())
}

fn target(seen: &planner::fleet::Fleet, wanted: &Wanted) -> Result<Target, Problem> {
    let Some(to) = &wanted.to else { return Ok(Target::Anywhere) };
    if seen.places.iter().any(|place| place.host.name == *to && place.host.revoked.is_none()) {
        return Ok(Target::Host(to.clone()));
    }
    if seen.places.iter().any(|place| place.host.site == *to) {
        return Ok(Target::Site(to.clone()));
    }
    Err(Problem::not_found(format!("there is no host and no site {to}; `novaferry host list` shows both")))
}

/// The VMs that are meant, each with its host.
fn vms(seen: &planner::fleet::Fleet, wanted: &Wanted) -> Result<Vec<(Name, Vm)>, Problem> {
    let hosts: Vec<&Host> = seen.places.iter().map(|place| &place.host).collect();
    let mut found: Vec<(Name, Vm)> = Vec::new();
    if let Some(host) = &wanted.drain {
        let place = seen.place(host).ok_or_else(|| Problem::not_found(format!("there is no host {host}")))?;
        let vms = place.host.observed.iter().flat_map(|observed| &observed.vms);
        let running = vms.filter(|vm| vm.state != "stopped");
        found.extend(running.take(MOST_VMS).map(|vm| (host.clone(), vm.clone())));
    }
    for vm in &wanted.vms {
        let (host, vm) = find::vm(&hosts, vm, wanted.from.as_ref())?;
        if found.iter().any(|(known, other)| *known == *host && other.id == vm.id) {
            return Err(Problem::invalid(format!("VM {} is named twice", vm.id)));
        }
        found.push((host.clone(), vm.clone()));
    }
    Ok(found)
}

impl Candidate {
    fn way(&self) -> Option<&Way> {
        self.ways.get(self.way)
    }

    fn estimate(&self, experience: &Experience, wanted: &Wanted) -> Estimate {
        let way = self.way();
        way.map_or_else(Estimate::default, |way| {
            estimate(experience, &self.vm.id, &self.vm.needs, way, wanted.options.mode)
        })
    }

    fn turn(&self, estimate: &Estimate) -> Option<Move> {
        let way = self.way()?;
        Some(Move {
            source: self.source.clone(),
            destination: self.destination.clone()?,
            link: way.link.clone(),
            link_most: way.most,
            duration_ms: estimate.duration_ms,
        })
    }
}

fn makespan(candidates: &[Candidate], experience: &Experience, wanted: &Wanted, at_once: usize) -> u64 {
    let moves = candidates.iter().filter_map(|one| one.turn(&one.estimate(experience, wanted)));
    order(&moves.collect::<Vec<_>>(), at_once).1
}

/// Cheapest, as far as the deadline allows: the longest move takes a faster way until all arrive in time.
fn hasten(
    candidates: &mut [Candidate],
    experience: &Experience,
    wanted: &Wanted,
    at_once: usize,
    now: Timestamp,
) {
    let (Some(deadline), Order::Cheapest) = (wanted.deadline, wanted.prefer) else { return };
    let time = u64::try_from(deadline.as_millisecond().saturating_sub(now.as_millisecond())).unwrap_or(0);
    while makespan(candidates, experience, wanted, at_once) > time {
        let faster = |one: &Candidate| -> Option<(u64, usize)> {
            let duration =
                |way: usize| Candidate { way, ..one.clone() }.estimate(experience, wanted).duration_ms;
            let held = duration(one.way);
            // The next faster one, which is the cheapest of them.
            let next = (one.way + 1..one.ways.len()).find(|way| duration(*way) < held)?;
            Some((held, next))
        };
        let slowest = candidates.iter().enumerate();
        let slowest =
            slowest.filter_map(|(nth, one)| faster(one).map(|(held, next)| (held, nth, next))).max();
        let Some((_, nth, next)) = slowest else { return };
        candidates[nth].way = next;
    }
}

fn compose(
    candidates: Vec<Candidate>,
    experience: &Experience,
    wanted: Wanted,
    by: &str,
    at_once: usize,
    now: Timestamp,
) -> Result<Plan, Problem> {
    let estimates: Vec<Estimate> = candidates.iter().map(|one| one.estimate(experience, &wanted)).collect();
    let turns = candidates.iter().zip(&estimates).enumerate();
    let moves: Vec<(usize, Move)> =
        turns.filter_map(|(nth, (one, estimate))| Some((nth, one.turn(estimate)?))).collect();
    let (turns, duration_ms) = order(&moves.iter().map(|(_, one)| one.clone()).collect::<Vec<_>>(), at_once);
    let waves: BTreeMap<usize, (usize, u32)> =
        turns.iter().enumerate().map(|(place, turn)| (moves[turn.nth].0, (place, turn.wave))).collect();
    let mut steps = Vec::with_capacity(candidates.len());
    for (nth, (one, estimate)) in candidates.into_iter().zip(estimates).enumerate() {
        let (place, wave) = waves.get(&nth).copied().unwrap_or((usize::MAX, 0));
        let link = one.way().and_then(|way| way.link.clone());
        let blocked = one.destination.is_none().then(|| "no host can take it".to_owned());
        let step = Step {
            vm: one.vm.id,
            name: one.vm.name,
            source: one.source,
            destination: one.destination,
            link,
            migration: data_encoding::HEXLOWER.encode(&random::<16>()?),
            wave,
            estimate,
            rejected: one.rejected,
            state: if blocked.is_some() { StepState::Blocked } else { StepState::Waiting },
            why: blocked,
        };
        steps.push((place, step));
    }
    // In the order of their turns; those without a destination last.
    steps.sort_by_key(|(place, _)| *place);
    let steps: Vec<Step> = steps.into_iter().map(|(_, step)| step).collect();
    let total = total(&steps, duration_ms);
    let blocked = blocked(&steps, &total, &wanted, now);
    let state = if blocked.is_empty() { State::Draft } else { State::Blocked };
    let id = data_encoding::HEXLOWER.encode(&random::<16>()?);
    Ok(Plan { id, wanted, by: by.to_owned(), created: now, changed: now, state, steps, total, blocked })
}

fn total(steps: &[Step], duration_ms: u64) -> Estimate {
    let sum = |of: fn(&Estimate) -> u64| {
        steps.iter().fold(0_u64, |sum, step| sum.saturating_add(of(&step.estimate)))
    };
    let mut currencies: Vec<&str> = steps.iter().map(|step| step.estimate.currency.as_str()).collect();
    currencies.retain(|currency| !currency.is_empty());
    currencies.sort_unstable();
    currencies.dedup();
    Estimate {
        duration_ms,
        downtime_ms: steps.iter().map(|step| step.estimate.downtime_ms).max().unwrap_or(0),
        bytes: sum(|estimate| estimate.bytes),
        // Sums of different currencies are none.
        cost_micros: if currencies.len() > 1 { 0 } else { sum(|estimate| estimate.cost_micros) },
        currency: currencies.join("+"),
        basis: Vec::new(),
    }
}

/// What stands against a plan.
fn blocked(steps: &[Step], total: &Estimate, wanted: &Wanted, now: Timestamp) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for step in steps.iter().filter(|step| step.state == StepState::Blocked) {
        found.push(format!("VM {}: no host can take it", step.vm));
    }
    if let Some(most) = wanted.max_cost_micros {
        if total.currency.contains('+') {
            found.push(format!("the cost is in several currencies ({}); move fewer VMs", total.currency));
        } else if total.cost_micros > most {
            let money = |micros: u64| format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
            found.push(format!(
                "it would cost {} {}, more than the {} that are allowed",
                money(total.cost_micros),
                total.currency,
                money(most)
            ));
        }
    }
    if let Some(most) = wanted.options.max_downtime_ms.filter(|most| total.downtime_ms > *most) {
        found.push(format!(
            "a pause of {} ms is expected, more than the {most} ms that are allowed",
            total.downtime_ms
        ));
    }
    if let Some(deadline) = wanted.deadline {
        let ends =
            now.checked_add(std::time::Duration::from_millis(total.duration_ms)).unwrap_or(Timestamp::MAX);
        let ends = wanted.options.cutover_at.map_or(ends, |leaves| leaves.max(ends));
        if ends > deadline {
            found.push(format!("the last VM is expected at {ends}, after the deadline {deadline}"));
        }
    }
    found
}

/// The migration of a step that begins.
fn migration(plan: &Plan, step: &Step, vm: Option<&Vm>, price: Price, now: Timestamp) -> Option<Migration> {
    use model::migration::{State as Stands, Wish};
    Some(Migration {
        id: step.migration.clone(),
        vm: step.vm.clone(),
        source: step.source.clone(),
        destination: step.destination.clone()?,
        options: plan.wanted.options.clone(),
        wish: Wish::Arrive,
        by: plan.by.clone(),
        created: now,
        changed: now,
        state: Stands::Queued,
        at_source: None,
        at_destination: None,
        refusal: None,
        proof: None,
        unproven: None,
        plan: Some(plan.id.clone()),
        link: step.link.clone(),
        needs: vm.map(|vm| vm.needs.clone()).unwrap_or_default(),
        estimate: Some(step.estimate.clone()),
        price,
    })
}
