//! Moves are begun here, whichever API asks for them.

mod waits;

use model::Name;
use model::access::Action;
use model::host::Host;
use model::link::Price;
use model::migration::{Migration, Mode, Options, State as Stands, Wish};
use model::plan::{Plan, State};
use model::route;

use crate::api::caller::Caller;
use crate::api::problem::Problem;
use crate::api::tokens::random;
use crate::find;
use crate::fleet::{Fleet, now};
pub(crate) use waits::waits_for;

/// One VM that is to move.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Its id or name.
    pub(crate) vm: String,
    /// The destination.
    pub(crate) to: Name,
    /// Where it is, if its name alone does not say.
    pub(crate) from: Option<Name>,
    pub(crate) options: Options,
}

/// Begins a migration, if the caller may. What `answer` makes of it is made before it is kept: an answer that is to be
/// repeated is kept with it.
///
/// # Errors
/// When the VM or the host is not there, or something stands against it.
pub(crate) async fn begin<T: Send>(
    fleet: &Fleet,
    caller: &Caller,
    wanted: Wanted,
    answer: impl FnOnce(&Migration) -> Result<T, Problem> + Send,
) -> Result<(Migration, T), Problem> {
    caller.may(fleet, Action::Migrate, &wanted.vm).await?;
    let hosts = fleet.store.roster().await?;
    let all: Vec<_> = hosts.iter().map(AsRef::as_ref).collect();
    let (source, found) = find::vm(&all, &wanted.vm, wanted.from.as_ref())?;
    let vm = found.id.as_str();
    let destination = hosts.iter().find(|host| host.name == wanted.to);
    let Some(destination) = destination.filter(|host| host.revoked.is_none()) else {
        return Err(Problem::not_found(format!("there is no host {}", wanted.to)));
    };
    if *source == destination.name {
        return Err(Problem::conflict(format!("VM {vm} is on {source} already")));
    }
    may_wait(&wanted.options, hosts.iter().map(AsRef::as_ref), source)?;
    let from = hosts.iter().find(|host| host.name == *source);
    if !from.is_some_and(|from| route::is_reached(from, destination)) {
        return Err(Problem::conflict(format!(
            "neither {source} nor {to} has said where it is reached; check that the agent of {to} runs, and that one of \
             the two can be dialled (`reachable` and `advertise` of [coordinator] in agent.toml)",
            to = wanted.to
        )));
    }
    let created = now();
    let migration = Migration {
        id: data_encoding::HEXLOWER.encode(&random::<16>()?),
        vm: vm.to_owned(),
        source: source.clone(),
        destination: wanted.to,
        options: wanted.options,
        wish: Wish::Arrive,
        by: caller.actor().to_owned(),
        created,
        changed: created,
        state: Stands::Queued,
        at_source: None,
        at_destination: None,
        refusal: None,
        proof: None,
        unproven: None,
        plan: None,
        link: None,
        needs: found.needs.clone(),
        estimate: None,
        price: Price::default(),
    };
    let what = format!("{} from {} to {}", migration.id, migration.source, migration.destination);
    let deed = caller.does(Action::Migrate, vm, what);
    let answer = answer(&migration)?;
    fleet.store.add_migration(&migration, deed).await?;
    fleet.tell();
    Ok((migration, answer))
}

/// Whether a VM of this host can wait for its cut-over, if it is to.
///
/// # Errors
/// Why not.
pub(crate) fn may_wait<'a>(
    options: &Options,
    mut hosts: impl Iterator<Item = &'a Host>,
    source: &Name,
) -> Result<(), Problem> {
    if !options.waits() {
        return Ok(());
    }
    if options.seed && options.cutover_at.is_some() {
        return Err(Problem::invalid(
            "either `seed` or `cutover_at`: the disks are copied at once with both",
        ));
    }
    if options.mode == Mode::Cold {
        return Err(Problem::invalid("a VM that is off has no cut-over to wait for; begin later"));
    }
    let waits = |host: &Host| host.observed.as_ref().is_some_and(|observed| observed.waits);
    if hosts.any(|host| host.name == *source && waits(host)) {
        return Ok(());
    }
    let why = format!("the agent of host {source} cannot wait for a cut-over; upgrade it, or begin later");
    Err(Problem::conflict(why))
}

/// Keeps a drafted plan; starts it, if that is wanted and nothing stands against it. For `answer` see [`begin`].
///
/// # Errors
/// When the database cannot be used.
pub(crate) async fn keep<T: Send>(
    fleet: &Fleet,
    caller: &Caller,
    mut plan: Plan,
    start: bool,
    subject: &str,
    answer: impl FnOnce(&Plan) -> Result<T, Problem> + Send,
) -> Result<(Plan, T), Problem> {
    if start && plan.state == State::Draft {
        plan.state = State::Running;
        // Nothing to do is done.
        plan.settle();
    }
    let what = format!("plan {} of {} VMs, {}", plan.id, plan.steps.len(), plan.state.as_str());
    let answer = answer(&plan)?;
    fleet.store.add_plan(&plan, caller.does(Action::Migrate, subject, what)).await?;
    fleet.tell();
    Ok((plan, answer))
}
