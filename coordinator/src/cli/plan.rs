//! `migrate`, `host drain` and `plan`: what would be done, and doing it.

use clap::{Args, Subcommand, ValueEnum};
use model::Timestamp;
use model::migration::{Mode, Options};
use model::plan::{OnFailure, Plan, State, Step, Wanted};
use model::route::Order;
use serde_json::json;

use super::near::{Among, suggest};
use super::pick::pick;
use super::show::{Column, ListArgs, text};
use super::units::{bytes, micros, milliseconds, money, seconds, span, when};
use crate::client::Client;
use crate::failure::Failure;
use crate::follow::{follow, follow_plan, short};
use crate::output::{self, Format, plain, table};

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum ModeArg {
    /// It runs on while its disks and its memory travel.
    #[default]
    Live,
    /// Its disks travel while it runs; then it is shut down and boots there.
    Warm,
    /// It is off, and stays off.
    Cold,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum PreferArg {
    /// The least time.
    #[default]
    Fastest,
    /// The least money; with --deadline, as long as it is met.
    Cheapest,
}

/// How VMs move, whichever they are.
#[derive(Debug, Args)]
pub(super) struct HowArgs {
    /// How.
    #[arg(long, value_enum, default_value_t)]
    mode: ModeArg,
    /// Longest pause of a guest, such as 300ms or 2s; a longer one that is expected blocks the plan.
    #[arg(long, value_parser = milliseconds, value_name = "DURATION")]
    max_downtime: Option<u64>,
    /// Highest rate of each, bytes a second.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// The only link to use.
    #[arg(long, value_name = "LINK")]
    link: Option<model::Name>,
    /// By what a link is chosen.
    #[arg(long, value_enum, default_value_t)]
    prefer: PreferArg,
    /// When all must have arrived: a time such as 2026-05-01T06:00:00Z, or from now, such as 4h.
    #[arg(long, value_parser = deadline, value_name = "TIME")]
    deadline: Option<Timestamp>,
    /// Most that it may cost, in the links' currency, such as 1.50; more blocks the plan.
    #[arg(long, value_parser = micros, value_name = "MONEY")]
    max_cost: Option<u64>,
    /// VMs that move at once.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=256))]
    wave: Option<u32>,
    /// Go on with the others when one fails.
    #[arg(long)]
    keep_going: bool,
    /// Keep the source's copy until `migration finalise`.
    #[arg(long)]
    hold: bool,
    /// Copy the disks now and keep them in step: the guests leave at --cutover-at, or when `migration cutover` says so.
    #[arg(long)]
    seed_now: bool,
    /// When the guests may leave, by their hosts' clocks: a time such as 2026-05-01T22:00:00Z, or from now, such as 6h.
    /// Their disks are copied now and kept in step.
    #[arg(long, value_parser = deadline, value_name = "TIME")]
    cutover_at: Option<Timestamp>,
    /// Print the plan, find out what stands against it, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Come back as soon as it is asked for.
    #[arg(long)]
    detach: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The hosts carry the moves out: whoever follows may go away at any time, and so may the coordinator.

Examples:
  novaferry migrate web-1 --to host-b --dry-run
  novaferry migrate web-1 --to host-b --max-downtime 200ms
  novaferry migrate web-1 web-2 db-1 --to munich --prefer cheapest --deadline 4h --max-cost 2.50
  novaferry migrate db-1 --to munich --seed-now --cutover-at 2026-05-01T22:00:00Z --detach
  novaferry migrate web-1 --to host-b --mode warm --limit 50000000 --detach")]
pub(super) struct MigrateArgs {
    /// VMs by id or name.
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
    /// The destination: a host, or a site, of which the host that suits best is chosen.
    #[arg(long, value_name = "HOST|SITE")]
    to: model::Name,
    /// Where the VMs are, if their names do not say.
    #[arg(long, value_name = "HOST")]
    from: Option<model::Name>,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Which.
    host: model::Name,
    /// Where its VMs go: a host or a site; any other host if not given.
    #[arg(long, value_name = "HOST|SITE")]
    to: Option<model::Name>,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum PlanCommand {
    /// Lists plans, newest first.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        #[command(flatten)]
        shape: ListArgs,
    },
    /// Shows one.
    Show {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Starts a draft.
    Start {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Follows one to its end.
    Watch {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Begins no other step, and undoes those that are under way, while that is possible.
    Cancel {
        /// Its id, or the first digits of it.
        id: String,
    },
}

pub(super) fn deadline(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let advice = "write a time such as 2026-05-01T06:00:00Z, or from now, such as 4h";
    let from_now = seconds(text).map_err(|_invalid| advice.to_owned())?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let then = now.as_secs().saturating_add(from_now);
    Timestamp::from_second(i64::try_from(then).unwrap_or(i64::MAX)).map_err(|_invalid| advice.to_owned())
}

impl HowArgs {
    fn wanted(&self) -> Wanted {
        let mode = match self.mode {
            ModeArg::Live => Mode::Live,
            ModeArg::Warm => Mode::Warm,
            ModeArg::Cold => Mode::Cold,
        };
        Wanted {
            options: Options {
                mode,
                max_downtime_ms: self.max_downtime,
                limit: self.limit,
                hold: self.hold,
                seed: self.seed_now && self.cutover_at.is_none(),
                cutover_at: self.cutover_at,
                dry_run: self.dry_run,
                traceparent: None,
            },
            link: self.link.clone(),
            prefer: match self.prefer {
                PreferArg::Fastest => Order::Fastest,
                PreferArg::Cheapest => Order::Cheapest,
            },
            deadline: self.deadline,
            max_cost_micros: self.max_cost,
            at_once: self.wave,
            on_failure: if self.keep_going { OnFailure::Continue } else { OnFailure::Stop },
            start: true,
            ..Wanted::default()
        }
    }
}

pub(super) fn migrate(client: &Client, args: MigrateArgs, format: Format) -> Result<(), Failure> {
    let MigrateArgs { vms, to, from, how } = args;
    let wanted = Wanted { vms, to: Some(to), from, ..how.wanted() };
    carry_out(client, &wanted, how.detach, format)
}

pub(super) fn drain(client: &Client, args: DrainArgs, format: Format) -> Result<(), Failure> {
    let DrainArgs { host, to, how } = args;
    let wanted = Wanted { drain: Some(host), to, ..how.wanted() };
    carry_out(client, &wanted, how.detach, format)
}

fn carry_out(client: &Client, wanted: &Wanted, detach: bool, format: Format) -> Result<(), Failure> {
    let plan: Plan = client.post("/v1/plans", wanted).map_err(|failure| {
        let vms = wanted.vms.iter().map(|vm| (Among::Vms, vm.as_str()));
        let host = [&wanted.from, &wanted.drain].into_iter().flatten();
        let host = host.map(|host| (Among::Hosts, host.as_str()));
        let place = wanted.to.iter().map(|to| (Among::Places, to.as_str()));
        let link = wanted.link.iter().map(|link| (Among::Links, link.as_str()));
        suggest(client, failure, &vms.chain(host).chain(place).chain(link).collect::<Vec<_>>())
    })?;
    let one = match &plan.steps[..] {
        [step] if plan.state != State::Blocked => Some(step),
        _ => None,
    };
    // Of one VM the migration's own words say all.
    if one.is_none() || wanted.options.dry_run {
        show(&plan, format);
    }
    if plan.state == State::Blocked {
        let why = plan.blocked.join("; ");
        let failure =
            Failure::new("plan-blocked", plain(&why), "change what is asked for; nothing was changed");
        return Err(failure);
    }
    if detach {
        let id = short(&plan.id);
        if format == Format::Text {
            output::line(&format!("{id} is asked for; `novaferry plan watch {id}` follows it"));
        } else if one.is_some() && !wanted.options.dry_run {
            show(&plan, format);
        }
        return Ok(());
    }
    watch(client, &plan, format)
}

fn watch(client: &Client, plan: &Plan, format: Format) -> Result<(), Failure> {
    match &plan.steps[..] {
        [step] => {
            // Its turn may come later.
            let begun = follow_plan(client, &plan.id, format, true)?;
            if begun { follow(client, &step.migration, format) } else { Ok(()) }
        }
        _ => follow_plan(client, &plan.id, format, false).map(drop),
    }
}

/// The plan for people, with why hosts were not chosen where that matters.
fn show(plan: &Plan, format: Format) {
    if format != Format::Text {
        return output::value(format, plan);
    }
    let name = |name: Option<&model::Name>| name.map_or("-", model::Name::as_str).to_owned();
    output::line(&format!("plan {}: {}", short(&plan.id), plan.state.as_str()));
    let head = ["WAVE", "VM", "FROM", "TO", "LINK", "TIME", "PAUSE", "DATA", "COST", "STATE"];
    let row = |step: &Step| {
        let estimate = &step.estimate;
        vec![
            step.wave.to_string(),
            step.name.clone(),
            step.source.to_string(),
            name(step.destination.as_ref()),
            name(step.link.as_ref()),
            span(estimate.duration_ms),
            span(estimate.downtime_ms),
            bytes(estimate.bytes),
            money(estimate.cost_micros, &estimate.currency),
            json!(step.state).as_str().unwrap_or_default().to_owned(),
        ]
    };
    table(&head, plan.steps.iter().map(row));
    let total = &plan.total;
    output::line(&format!(
        "expected: {} in all, pauses of at most {}, {}, {}",
        span(total.duration_ms),
        span(total.downtime_ms),
        bytes(total.bytes),
        money(total.cost_micros, &total.currency)
    ));
    for step in &plan.steps {
        if let Some(why) = &step.why {
            output::line(&plain(&format!("{}: {why}", step.name)));
        }
        for basis in &step.estimate.basis {
            output::line(&plain(&format!("{}: by {basis}", step.name)));
        }
        for rejected in &step.rejected {
            output::line(&plain(&format!(
                "{}: not {}: {}",
                step.name,
                rejected.host,
                rejected.why.join("; ")
            )));
        }
    }
    for why in &plan.blocked {
        output::line(&plain(&format!("blocked: {why}")));
    }
}

/// The one plan whose id begins so.
fn find(client: &Client, id: &str) -> Result<String, Failure> {
    pick(client, id, "plan", "/v1/plans")
}

const COLUMNS: &[Column] = &[
    Column::new("ID", |one| one["id"].clone()).shown(|id| short(&text(id)).to_owned()),
    Column::new("VMS", |one| one["steps"].as_array().map_or(0, Vec::len).into()),
    Column::new("STATE", |one| one["state"].clone()),
    Column::new("BY", |one| one["by"].clone()),
    Column::new("MADE", |one| one["created"].clone()).shown(when),
];

pub(super) fn plan(client: &Client, command: PlanCommand, format: Format) -> Result<(), Failure> {
    let get = |id: &str| -> Result<Plan, Failure> { client.get(&format!("/v1/plans/{}", find(client, id)?)) };
    let wish = |id: &str, wish: &str| -> Result<Plan, Failure> {
        client.post(&format!("/v1/plans/{}/{wish}", find(client, id)?), &json!({}))
    };
    match command {
        PlanCommand::List { limit, shape } => {
            let all = client.list("/v1/plans", usize::try_from(limit).ok())?;
            shape.print(format, all, COLUMNS)?;
        }
        PlanCommand::Show { id } => show(&get(&id)?, format),
        PlanCommand::Start { id } => show(&wish(&id, "start")?, format),
        PlanCommand::Watch { id } => return watch(client, &get(&id)?, format),
        PlanCommand::Cancel { id } => show(&wish(&id, "cancel")?, format),
    }
    Ok(())
}
