//! kill -9 of either side or both at random moments, then the same command again, until the volume is sealed: nothing
//! may be lost, differ, be visible too early, or be sent again beyond the window.

use std::time::{Duration, Instant};

use crate::harness::copy::{Copy, Outcome};
use crate::harness::disks::{Dice, MIB, differing_bytes, mixed_file};
use crate::harness::host::{Daemon, Host};
use crate::harness::process::Process;
use crate::harness::{Harness, number, until};

/// More than the window, so that what is sent again could exceed its bound; the tail fits no page.
const SIZE: u64 = 100 * MIB + 777;
/// Bytes that may be on their way when a crash comes.
const WINDOW: u64 = 64 * MIB;
/// Rounds of all three tests together, unless `NOVAFERRY_ROUNDS` says otherwise.
const ROUNDS: u64 = 30;

#[derive(Clone, Copy, Debug)]
enum Victim {
    Sender,
    Receiver,
    Both,
}

/// When to kill.
#[derive(Debug)]
enum Moment {
    /// So much is settled.
    Settled(u64),
    /// So long after the start of the attempt.
    After(Duration),
}

#[derive(Debug, Default)]
struct Figures {
    rounds: u64,
    volumes: u64,
    by_itself: u64,
    sealed_at_once: u64,
    differing_bytes: u64,
    most_resent: u64,
    resumes: Vec<Duration>,
}

impl Figures {
    fn print(&self, victim: Victim) {
        let millis = |time: Option<&Duration>| time.map_or(0, Duration::as_millis);
        let mut resumes = self.resumes.clone();
        resumes.sort_unstable();
        println!(
            "{victim:?}: {} rounds on {} volumes, {} of them resumed by a sender that kept running, {} attempts were \
             sealed before the kill; {} bytes differ; at most {} bytes sent again; from reconnecting to the first new \
             byte: {} times, median {} ms, worst {} ms",
            self.rounds,
            self.volumes,
            self.by_itself,
            self.sealed_at_once,
            self.differing_bytes,
            self.most_resent,
            resumes.len(),
            millis(resumes.get(resumes.len() / 2)),
            millis(resumes.last()),
        );
    }
}

#[test]
fn a_killed_sender_resumes() {
    kill(Victim::Sender);
}

#[test]
fn a_killed_receiver_resumes() {
    kill(Victim::Receiver);
}

#[test]
fn both_killed_resume() {
    kill(Victim::Both);
}

fn kill(victim: Victim) {
    let rounds = number("NOVAFERRY_ROUNDS").unwrap_or(ROUNDS).div_ceil(3);
    let seed = number("NOVAFERRY_SEED").unwrap_or(victim as u64 + 1);
    println!("NOVAFERRY_SEED={seed} for the same moments");
    let harness = Harness::new();
    // Whoever survives says what it lost.
    for part in ["session ended", "the tunnel was lost; dialling again"] {
        harness.allow_log(part);
    }
    let host = harness.host("host-b");
    let mut run = Run {
        harness: &harness,
        host: &host,
        daemon: Some(host.start()),
        dice: Dice::new(seed),
        figures: Figures::default(),
        rounds,
    };
    while run.figures.rounds < rounds {
        run.volume(victim);
    }
    run.figures.print(victim);
    assert_eq!(run.figures.differing_bytes, 0);
}

struct Run<'a> {
    harness: &'a Harness,
    host: &'a Host<'a>,
    daemon: Option<Daemon>,
    dice: Dice,
    figures: Figures,
    rounds: u64,
}

impl Run<'_> {
    /// Copies one volume, however often it is killed.
    fn volume(&mut self, victim: Victim) {
        self.figures.volumes += 1;
        let name = format!("volume-{}", self.figures.volumes);
        let (source, receipt) = (self.harness.path("source"), self.harness.path("receipt"));
        mixed_file(&source, SIZE, self.dice.roll());
        let copy = self.harness.copy(&source, self.host.url(&name)).with(["--receipt"]).with([&receipt]);
        let mut crashes = 0;
        let summary = loop {
            // A sender that keeps dialling, or one that gives up and is run again.
            let patient = !matches!(victim, Victim::Receiver) || self.dice.below(2) == 0;
            let copy = if patient { copy.clone() } else { copy.clone().with(["--patience", "0"]) };
            match self.attempt(&copy, victim, patient, &name, &mut crashes) {
                Some(outcome) => break Some(outcome.done()),
                // Killed between writing the receipt and saying so.
                None if receipt.exists() => break None,
                None => self.check_visible(&name),
            }
        };
        let sealed = self.host.volume(&name);
        self.figures.differing_bytes += differing_bytes(&source, &sealed, SIZE + 1);
        let resent = summary.map_or(0, |summary| summary.count("resent_bytes"));
        assert!(resent <= WINDOW * crashes, "{name}: {resent} bytes sent again after {crashes} crashes");
        self.figures.most_resent =
            self.figures.most_resent.max(resent.checked_div(crashes).unwrap_or_default());
        let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let trust = text(&self.harness.identity("host-a"));
        let state = self.harness.text("state");
        self.harness
            .agent(&["verify", &text(&receipt), &text(&sealed), "--trust", &trust, "--state", &state])
            .done();
        std::fs::remove_file(receipt).unwrap();
        std::fs::remove_file(sealed).unwrap();
        std::fs::remove_dir_all(self.host.sidecar(&name)).unwrap();
    }

    /// Runs the command until it is done, or dies with its victim. `crashes` counts those that its process makes up
    /// for: its own, and the one that ended the process before it.
    fn attempt(
        &mut self,
        copy: &Copy<'_>,
        victim: Victim,
        patient: bool,
        name: &str,
        crashes: &mut u64,
    ) -> Option<Outcome> {
        *crashes = u64::from(*crashes > 0);
        let mut running = copy.start();
        loop {
            if self.figures.rounds >= self.rounds {
                return Some(Outcome::of(running.finish()));
            }
            if self.dice.below(2) == 0 {
                self.time_resume(&mut running);
            }
            let moment = if self.dice.below(2) == 0 {
                Moment::Settled(self.dice.below(SIZE))
            } else {
                Moment::After(Duration::from_millis(self.dice.below(800)))
            };
            if self.wait(&moment, &mut running) {
                self.figures.sealed_at_once += 1;
                return Some(Outcome::of(running.finish()));
            }
            self.figures.rounds += 1;
            *crashes += 1;
            if !matches!(victim, Victim::Sender) {
                self.daemon.take().unwrap().kill();
            }
            if !matches!(victim, Victim::Receiver) {
                running.kill();
                self.daemon.get_or_insert_with(|| self.host.start());
                return None;
            }
            self.check_visible(name);
            self.daemon = Some(self.host.start());
            if !patient {
                let outcome = Outcome::of(running.finish());
                if outcome.finished.code() == Some(0) {
                    // It had its receipt when the receiver died.
                    return Some(outcome);
                }
                outcome.finished.exits(2);
                return None;
            }
            self.figures.by_itself += 1;
        }
    }

    /// Waits for the moment; true when the command ended before.
    fn wait(&self, moment: &Moment, running: &mut Process) -> bool {
        let daemon = self.daemon.as_ref().unwrap();
        let begun = Instant::now();
        until("the moment", || {
            if running.has_ended() {
                return Some(true);
            }
            let now = match moment {
                Moment::Settled(bytes) => daemon.sessions().iter().any(|session| session.settled >= *bytes),
                Moment::After(time) => begun.elapsed() >= *time,
            };
            now.then_some(false)
        })
    }

    /// Measures how long it takes from the session's start to what the receiver did not have before.
    fn time_resume(&mut self, running: &mut Process) {
        let daemon = self.daemon.as_ref().unwrap();
        let first = until("the session", || {
            let listed = daemon.sessions().into_iter().find(|session| session.logical > 0);
            listed.map(Some).or_else(|| running.has_ended().then_some(None))
        });
        let begun = Instant::now();
        let Some(first) = first else { return };
        let more = until("a new byte", || {
            let more = daemon.sessions().iter().any(|session| session.settled > first.settled);
            if more { Some(true) } else { running.has_ended().then_some(false) }
        });
        if more {
            self.figures.resumes.push(begun.elapsed());
        }
    }

    /// What can be seen in the pool is whole.
    fn check_visible(&mut self, name: &str) {
        let sealed = self.host.volume(name);
        if sealed.exists() {
            self.figures.differing_bytes += differing_bytes(&self.harness.path("source"), &sealed, SIZE + 1);
        }
    }
}
