//! One simulated agent: it dials for as long as the fleet lives, says what is news, and takes what is wanted of it, in the
//! way of `novaferry-agent`'s line.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use control_api::v1::from_agent::What as Said;
use control_api::v1::to_agent::What as Told;
use control_api::v1::{self, Beat, FromAgent, Hello, Moves, Observed, Progress, Refused, Took, Wish};
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::world::Command;
use super::{Shared, moves};
use crate::line::{self, Identity, Line};
use crate::{PATIENCE, Random};

/// Looks between two at the host itself.
const LOOKS_A_HOST: u32 = 5;
/// A line that was open for so long was a good one: the next attempt is made soon.
const GOOD: Duration = Duration::from_secs(60);

/// What the coordinator was told over this line.
#[derive(Default)]
struct Known {
    observed: Option<Observed>,
    moves: HashMap<String, Progress>,
    passed_on: HashMap<String, i32>,
}

/// Counts a line while it is open.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.connected.send_modify(|count| *count += 1);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connected.send_modify(|count| *count -= 1);
    }
}

/// Dials, and dials again.
pub(super) async fn run(shared: Arc<Shared>, host: usize, identity: Identity, mut random: Random) {
    let [least, most] = shared.pace.pauses;
    let (mut pause, mut next) = (least, 0_usize);
    loop {
        let began = Instant::now();
        let agents = &shared.agents[next % shared.agents.len()];
        let hello = {
            let world = shared.world();
            line::hello(world.name(host), world.seen(host))
        };
        let hello = Hello { expects: true, ..hello };
        let opened = timeout(PATIENCE, line::open(agents, &identity, hello)).await;
        if let Ok(Ok(line)) = opened {
            let _open = Open::new(&shared);
            talk(&shared, host, line, &mut random).await;
        } else {
            next += 1;
        }
        if began.elapsed() > GOOD {
            pause = least;
        }
        // With several addresses all are tried before it waits.
        if next.is_multiple_of(shared.agents.len()) || began.elapsed() > least {
            tokio::time::sleep(pause * 2 / 3 + random.within(pause / 3)).await;
            pause = (pause * 2).min(most);
        }
    }
}

/// One line, until it ends.
async fn talk(shared: &Arc<Shared>, host: usize, line: Line, random: &mut Random) {
    let Line { said, mut told, welcome } = line;
    let beat = Duration::from_millis(u64::from(welcome.beat_ms));
    let mut known = Known::default();
    // A fleet that connects at once does not look at once.
    let first = Instant::now() + random.within(shared.pace.look);
    let mut ticks = tokio::time::interval_at(first, shared.pace.look);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut looks, mut spoke, mut heard) = (0_u32, Instant::now(), Instant::now());
    let mut beaten: Option<Instant> = None;
    let mut beat_at = Instant::now();
    loop {
        tokio::select! {
            message = told.message() => {
                heard = Instant::now();
                let Ok(Some(message)) = message else { return };
                match message.what {
                    Some(Told::Intent(intent)) => {
                        if shared.world().expect(host, &intent) {
                            let took = Took { number: intent.number };
                            if said.send(FromAgent { what: Some(Said::Took(took)) }).await.is_err() {
                                return;
                            }
                        }
                        for refused in take(shared, host, intent, &mut known.passed_on) {
                            if said.send(FromAgent { what: Some(Said::Refused(refused)) }).await.is_err() {
                                return;
                            }
                        }
                    }
                    Some(Told::Beat(_)) => {
                        let mut beats = shared.beats.lock().unwrap_or_else(PoisonError::into_inner);
                        beats.extend(beaten.take().map(|sent| sent.elapsed()));
                    }
                    _ => {}
                }
            }
            _ = ticks.tick() => {
                let mut news = look(shared, host, looks, &mut known);
                looks = looks.wrapping_add(1);
                let silent = heard.elapsed() >= beat && beat_at.elapsed() >= beat;
                if silent || (news.is_empty() && spoke.elapsed() >= beat) {
                    beat_at = Instant::now();
                    beaten = Some(beat_at);
                    news.push(Said::Beat(Beat { now_ms: line::now_ms() }));
                }
                for what in news {
                    let sent = timeout(PATIENCE, said.send(FromAgent { what: Some(what) })).await;
                    if !matches!(sent, Ok(Ok(()))) {
                        return;
                    }
                    spoke = Instant::now();
                }
                if heard.elapsed() > beat + PATIENCE {
                    return;
                }
            }
        }
    }
}

fn look(shared: &Shared, host: usize, looks: u32, known: &mut Known) -> Vec<Said> {
    let world = shared.world();
    let mut news = Vec::new();
    let moves = world.moves(host, &known.moves);
    if !moves.is_empty() {
        known.moves.extend(moves.iter().map(|progress| (progress.id.clone(), progress.clone())));
        news.push(Said::Moves(Moves { migrations: moves }));
    }
    if looks.is_multiple_of(LOOKS_A_HOST) {
        let observed = world.observed(host);
        if known.observed.as_ref() != Some(&observed) {
            known.observed = Some(observed.clone());
            news.push(Said::Observed(observed));
        }
    }
    news
}

fn command(wish: Wish) -> Option<Command> {
    match wish {
        Wish::Unspecified | Wish::Arrive => None,
        Wish::Cancel => Some(Command::Cancel),
        Wish::Finalise => Some(Command::Finalise),
        Wish::TakeBack => Some(Command::TakeBack),
        Wish::KeepSource => Some(Command::KeepSource),
        Wish::KeepDestination => Some(Command::KeepDestination),
    }
}

/// Does what is wanted, as far as it is not done; gives what cannot be begun.
fn take(
    shared: &Arc<Shared>,
    host: usize,
    intent: v1::Intent,
    passed_on: &mut HashMap<String, i32>,
) -> Vec<Refused> {
    let mut world = shared.world();
    if !world.sees(host, intent.generation) {
        return Vec::new();
    }
    let mut refused = Vec::new();
    for wanted in intent.migrations {
        let wish = command(wanted.wish());
        let news = passed_on.insert(wanted.id.clone(), wanted.wish) != Some(wanted.wish);
        if world.knows(host, &wanted.id, wish.filter(|_| news)) {
            continue;
        }
        let begun = match wanted.wish() {
            Wish::Arrive => world.begin(host, &wanted),
            _ => Err("it had not begun here".to_owned()),
        };
        match begun {
            Ok(begun) => moves::begin(shared, &mut world, host, wanted, begun),
            Err(why) => refused.push(Refused { migration: wanted.id, why }),
        }
    }
    refused
}
