//! What the coordinator wants, carried out: each migration is begun once, and each wish is passed on once a line. What
//! it expects to come is let in.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control_api::v1::{Expected, Intent, Migration, Mode as WantedMode, Refused, Wish};
use engine::migrate::cutover::Cutover;
use engine::migrate::destination::Arrival;
use engine::migrate::record::Role;
use engine::migrate::status::{Choice, Command};

use super::calls::Callers;
use crate::control::migration::{Migrate, Mode, Shown};
use crate::daemon::Desk;

/// The newest generation that was seen, in the state folder.
const SEEN: &str = "coordinator-generation";
/// What is expected, in the state folder: a restart without the coordinator goes on with it. JSON.
const EXPECTED: &str = "coordinator-expects";
/// Most that is expected at once.
const MOST_EXPECTED: usize = 1024;
/// Addresses of a source.
const MOST_DIALLED: usize = 8;
/// Longest name that is believed, bytes.
const LONGEST: usize = 256;

/// The wishes of one coordinator.
#[derive(Debug)]
pub(super) struct Wishes {
    desk: Desk,
    file: PathBuf,
    expects: PathBuf,
    expected: Vec<Arrival>,
    callers: Callers,
    seen: u64,
    passed_on: HashMap<String, Wish>,
}

impl Wishes {
    pub(super) fn open(desk: Desk, state: &Path) -> Self {
        let file = state.join(SEEN);
        let seen = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let expects = state.join(EXPECTED);
        let expected = read_expected(&expects);
        desk.arrivals().expect(expected.clone());
        let mut callers = Callers::new(desk.clone());
        callers.expect(&expected);
        Self { desk, file, expects, expected, callers, seen, passed_on: HashMap::new() }
    }

    /// The newest generation that was seen.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// A new line: what was passed on before may not have arrived.
    pub(super) fn forget(&mut self) {
        self.passed_on.clear();
    }

    /// Lets in what is expected, unless the intent is an older one: then false.
    pub(super) fn welcome(&mut self, intent: &Intent) -> bool {
        let holds = intent.generation >= self.seen;
        if holds {
            self.expect(&intent.expected);
        }
        holds
    }

    /// Does what is wanted, as far as it is not done; gives what cannot be begun.
    pub(super) async fn take(&mut self, intent: Intent) -> Vec<Refused> {
        if intent.generation < self.seen {
            tracing::warn!(
                generation = intent.generation,
                seen = self.seen,
                "what the coordinator wants is older than what it wanted before; it is passed over"
            );
            return Vec::new();
        }
        if intent.generation > self.seen {
            self.seen = intent.generation;
            // Not durable at once: an older one costs the coordinator a step of its count.
            if let Err(error) = std::fs::write(&self.file, format!("{}\n", self.seen)) {
                tracing::warn!(%error, file = %self.file.display(), "cannot keep the coordinator's generation");
            }
        }
        self.passed_on.retain(|id, _| intent.migrations.iter().any(|migration| migration.id == *id));
        let mut refused = Vec::new();
        for migration in intent.migrations {
            if let Err(why) = self.one(&migration).await {
                tracing::warn!(
                    id = migration.id,
                    vm = migration.vm,
                    why,
                    "what the coordinator wants is not begun"
                );
                refused.push(Refused { migration: migration.id, why });
            }
        }
        refused
    }

    /// A host may look how this one is reached.
    pub(super) fn meet(&self, peer: String, time: Duration) {
        if peer.len() <= LONGEST {
            self.desk.arrivals().meet(peer, time);
        }
    }

    /// Lets these in, and nobody else on the coordinator's word.
    fn expect(&mut self, expected: &[Expected]) {
        let short = |text: &str| text.len() <= LONGEST;
        let expected = expected.iter().take(MOST_EXPECTED);
        let expected = expected.filter(|one| short(&one.migration) && short(&one.vm) && short(&one.from));
        let expected: Vec<_> = expected
            .map(|Expected { migration, vm, from, dial }| Arrival {
                migration: migration.clone(),
                vm: vm.clone(),
                from: from.clone(),
                dial: dial.iter().filter(|address| short(address)).take(MOST_DIALLED).cloned().collect(),
            })
            .collect();
        if expected == self.expected {
            return;
        }
        let text = serde_json::to_vec_pretty(&expected).unwrap_or_default();
        // It holds all the same until a restart, after which the coordinator says it again.
        if let Err(error) = pki::write_public(&self.expects, &text) {
            tracing::warn!(%error, file = %self.expects.display(), "cannot keep what the coordinator expects");
        }
        self.desk.arrivals().expect(expected.clone());
        self.callers.expect(&expected);
        self.expected = expected;
    }

    async fn one(&mut self, wanted: &Migration) -> Result<(), String> {
        let wish = wanted.wish();
        let Ok(id) = wanted.id.parse() else {
            return Err("the migration's id is none; use releases that follow one another".to_owned());
        };
        let known = match self.desk.known(&wanted.id).await {
            Ok(known) => known,
            // Nobody knows whether it was begun: it is not begun twice, and looked at again with the next intent.
            Err(why) => {
                tracing::error!(id = wanted.id, why, "what the coordinator wants cannot be looked up");
                return Ok(());
            }
        };
        if known.as_ref().is_some_and(|shown| !shown.over && is_source(shown)) {
            let mut to = vec![wanted.to.clone()];
            to.extend(wanted.alternates.iter().cloned());
            // Nothing leads there now: it goes on with what it knows.
            to.retain(|address| !address.is_empty());
            let limit = (wanted.limit > 0).then_some(wanted.limit);
            if let Err(why) = self.desk.steer(id, &to, wanted.called, limit).await {
                tracing::info!(id = wanted.id, why, "the ways of a migration are not changed");
            }
            if let Err(why) = self.desk.cutover(&wanted.id, cutover(wanted)).await {
                tracing::info!(id = wanted.id, why, "the time of a cut-over is not changed");
            }
        }
        match (known, command(wish)) {
            // Whoever asks for what a newer release knows is told where it stands, and no more.
            (Some(_), None) => Ok(()),
            (Some(shown), Some(command)) => {
                let passed_on = self.passed_on.insert(wanted.id.clone(), wish) == Some(wish);
                if !passed_on
                    && !shown.over
                    && let Err(why) = self.desk.command(&wanted.id, command).await
                {
                    tracing::info!(id = wanted.id, ?wish, why, "a wish has no place now");
                }
                Ok(())
            }
            (None, None) if wish == Wish::Arrive => self.desk.migrate_as(id, &asked(wanted)?).await,
            (None, _) => Err("it had not begun here".to_owned()),
        }
    }
}

/// What was expected when the daemon stopped.
fn read_expected(file: &Path) -> Vec<Arrival> {
    match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, file = %file.display(), "what the coordinator expected is not known");
            Vec::new()
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "what the coordinator expected is not known");
            Vec::new()
        }
    }
}

fn is_source(shown: &Shown) -> bool {
    matches!(shown.status.record.role, Role::Source { .. })
}

fn command(wish: Wish) -> Option<Command> {
    match wish {
        Wish::Unspecified | Wish::Arrive => None,
        Wish::Cancel => Some(Command::Cancel),
        Wish::Finalise => Some(Command::Finalise),
        Wish::TakeBack => Some(Command::TakeBack),
        Wish::KeepSource => Some(Command::Resolve(Choice::Source)),
        Wish::KeepDestination => Some(Command::Resolve(Choice::Destination)),
    }
}

/// When it may switch over.
fn cutover(wanted: &Migration) -> Cutover {
    match (wanted.seed, wanted.cutover_at_ms) {
        (_, at_ms @ 1..) => Cutover::At(at_ms),
        (true, 0) => Cutover::Asked,
        (false, 0) => Cutover::Now,
    }
}

fn asked(wanted: &Migration) -> Result<Migrate, String> {
    if wanted.to.is_empty() && !wanted.called {
        return Err(format!(
            "host {} has not said where it is reached; check that its agent runs, and that one of the two hosts can be dialled \
             (`reachable` of [coordinator] in agent.toml)",
            wanted.peer
        ));
    }
    let mut migrate = Migrate::new(wanted.vm.clone(), wanted.to.clone());
    migrate.mode = match wanted.mode() {
        WantedMode::Unspecified | WantedMode::Live => Mode::Live,
        WantedMode::Warm => Mode::Warm,
        WantedMode::Cold => Mode::Cold,
    };
    migrate.alternates.clone_from(&wanted.alternates);
    migrate.called = wanted.called;
    migrate.peer = Some(wanted.peer.clone());
    if wanted.max_downtime_ms > 0 {
        migrate.max_downtime_ms = wanted.max_downtime_ms;
    }
    migrate.limit = (wanted.limit > 0).then_some(wanted.limit);
    migrate.hold = wanted.hold;
    migrate.cutover = cutover(wanted);
    if !migrate.cutover.is_now() {
        // It may wait for days, in which links are down for longer than in a move.
        migrate.reconnect_ms = Migrate::MAX_RECONNECT_MS;
    }
    migrate.dry_run = wanted.dry_run;
    migrate.traceparent = Some(&wanted.traceparent).filter(|context| trace::is_context(context)).cloned();
    Ok(migrate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[tokio::test]
    async fn what_is_older_than_what_was_seen_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut wishes = Wishes::open(Desk::closed(folder.path()), folder.path());
        assert_eq!(wishes.seen(), 0);
        let wanted = Migration { id: "x".to_owned(), wish: Wish::Arrive.into(), ..Migration::default() };
        let intent =
            |generation| Intent { generation, migrations: vec![wanted.clone()], ..Intent::default() };
        assert_eq!(wishes.take(intent(7)).await.len(), 1, "the id is none");
        assert_eq!(wishes.take(intent(6)).await, []);
        assert_eq!(wishes.take(intent(7)).await.len(), 1);
        let again = Wishes::open(Desk::closed(folder.path()), folder.path());
        assert_eq!(again.seen(), 7);
    }

    #[tokio::test]
    async fn what_is_expected_is_let_in_until_it_is_not_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let desk = || Desk::closed(folder.path());
        let mut wishes = Wishes::open(desk(), folder.path());
        let one = |vm: &str| Expected {
            migration: "ab".repeat(16),
            vm: vm.to_owned(),
            from: "host-a".to_owned(),
            dial: Vec::new(),
        };
        let intent = |generation, expected| Intent { generation, expected, ..Intent::default() };
        assert!(wishes.welcome(&intent(7, vec![one("web"), one(&"x".repeat(300))])));
        wishes.take(intent(7, Vec::new())).await;
        let expected = vec![Arrival {
            migration: "ab".repeat(16),
            vm: "web".to_owned(),
            from: "host-a".to_owned(),
            dial: Vec::new(),
        }];
        assert_eq!(wishes.expected, expected);
        assert_eq!(Wishes::open(desk(), folder.path()).expected, expected);
        assert!(!wishes.welcome(&intent(6, Vec::new())), "it is older");
        assert_eq!(wishes.expected, expected);
        assert!(wishes.welcome(&intent(8, Vec::new())));
        assert_eq!(Wishes::open(desk(), folder.path()).expected, []);
        std::fs::write(folder.path().join(EXPECTED), "{").unwrap();
        assert_eq!(Wishes::open(desk(), folder.path()).expected, []);
    }

    #[test]
    fn what_is_wanted_becomes_a_request() {
        let wanted = Migration {
            id: "ab".repeat(16),
            vm: "web-1".to_owned(),
            peer: "host-b".to_owned(),
            to: "novaferry://host-b:7440".to_owned(),
            mode: WantedMode::Warm.into(),
            max_downtime_ms: 250,
            limit: 1000,
            hold: true,
            dry_run: true,
            wish: Wish::Arrive.into(),
            traceparent: CONTEXT.to_owned(),
            alternates: vec!["novaferry://10.0.0.2:7440".to_owned()],
            cutover_at_ms: 7_000,
            seed: false,
            called: false,
        };
        let migrate = asked(&wanted).unwrap();
        assert_eq!((migrate.vm.as_str(), migrate.to.as_str()), ("web-1", "novaferry://host-b:7440"));
        assert_eq!((migrate.mode, migrate.peer.as_deref()), (Mode::Warm, Some("host-b")));
        assert_eq!((migrate.max_downtime_ms, migrate.limit), (250, Some(1000)));
        assert_eq!(migrate.traceparent.as_deref(), Some(CONTEXT));
        let odd = Migration { traceparent: "x\ny".to_owned(), ..wanted.clone() };
        assert_eq!(asked(&odd).unwrap().traceparent, None);
        assert_eq!(migrate.alternates, ["novaferry://10.0.0.2:7440"]);
        assert!(migrate.hold && migrate.dry_run);
        assert_eq!((migrate.cutover, migrate.reconnect_ms), (Cutover::At(7_000), Migrate::MAX_RECONNECT_MS));
        let seeded = asked(&Migration { cutover_at_ms: 0, seed: true, ..wanted.clone() }).unwrap();
        assert_eq!(seeded.cutover, Cutover::Asked);
        let soon = asked(&Migration { cutover_at_ms: 0, ..wanted.clone() }).unwrap();
        assert_eq!((soon.cutover, soon.reconnect_ms), (Cutover::Now, Migrate::RECONNECT_MS));
        let plain = asked(&Migration { max_downtime_ms: 0, limit: 0, mode: 0, ..wanted.clone() }).unwrap();
        assert_eq!((plain.mode, plain.limit), (Mode::Live, None));
        assert_eq!(plain.max_downtime_ms, Migrate::DOWNTIME_MS);
        assert!(asked(&Migration { to: String::new(), ..wanted }).unwrap_err().contains("host-b"));
    }
}
