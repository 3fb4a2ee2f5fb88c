//! Real guests move between two hosts: agents and vmd as processes, QEMU at both ends, and a guest that proves its
//! memory and its disk.

mod carried;
mod contact;
mod copied;
mod doubt;
mod live;
mod postcopy;
mod rollback;
mod scripted_agent;
mod seeded;
mod trouble;

use std::time::Duration;

use guest::{Linux, Options, Report, Serial, Settings, Timeline, Vm};
use serde_json::Value;

use crate::harness::process::Finished;
use crate::harness::vms::VmHost;
use crate::harness::{Capability, Harness, capable};

/// How long a guest may take on a busy machine; only a test that fails ever waits so long.
const HANG: Duration = Duration::from_secs(120);
/// The VM's id.
const VM: &str = "web-1";
/// Heartbeats at the destination that count as a proof.
const PROOF: usize = 15;

/// Two hosts that are ready, and a Linux guest with a disk that runs on the first.
struct World<'a> {
    source: VmHost<'a>,
    destination: VmHost<'a>,
    guest: Vm,
}

/// What a test needs, or why it is passed over.
fn needs(test: &str) -> Option<Linux> {
    let linux = Linux::available(test)?;
    capable(test, &[Capability::Root]).then_some(linux)
}

/// A guest whose memory and disk are small enough for a test and busy enough to be seen.
fn busy() -> Options {
    Options { constant: 32, duplicate: 16, hot: 8, rate: 8, disk: 32, ..Options::default() }
}

impl<'a> World<'a> {
    fn start(harness: &'a Harness, linux: &Linux, settings: impl FnOnce(&mut Settings)) -> Self {
        let source = VmHost::new(harness, "host-a", Some(linux));
        let destination = VmHost::new(harness, "host-b", Some(linux));
        let mut chosen = Settings::linux(VM, linux, busy());
        settings(&mut chosen);
        let guest = Vm::start(&source.vms(), chosen).unwrap();
        source.start();
        destination.start();
        guest.serial().wait_for_heartbeats(5, HANG).unwrap();
        Self { source, destination, guest }
    }

    /// The guest still runs where it was: it goes on for a while, intact.
    #[track_caller]
    fn goes_on_at_the_source(&mut self) -> Report {
        let so_far = Timeline::join(&[self.guest.serial()]).beats().count();
        self.guest.serial().wait_for_heartbeats(so_far + PROOF, HANG).unwrap();
        assert!(self.guest.ended().unwrap().is_none(), "the source's QEMU ended");
        assert!(self.source.layout(VM).config().exists(), "NovaCron cannot find the VM any more");
        Timeline::join(&[self.guest.serial()]).check(PROOF as u64).unwrap()
    }

    /// Nothing of the guest is left at the destination.
    #[track_caller]
    fn nothing_is_left_at_the_destination(&self) {
        self.nothing_is_left_there(&["discarded"]);
    }

    /// As above, in one of these states.
    #[track_caller]
    fn nothing_is_left_there(&self, states: &[&str]) {
        self.destination.await_state(states);
        assert_eq!(self.destination.guest_process(VM), None, "a QEMU waits at the destination");
        assert!(!self.destination.layout(VM).config().exists(), "NovaCron there could start it");
        assert_eq!(self.destination.disk_paths(), Vec::<std::path::PathBuf>::new());
    }
}

/// The guest proves itself where it came to: heartbeats without a gap over all places, memory and disk intact.
#[track_caller]
fn proves_itself(places: &[&Serial]) -> Report {
    let last = places.last().unwrap();
    last.wait_for_heartbeats(PROOF, HANG).unwrap_or_else(|error| panic!("{error}: {}", last.text()));
    Timeline::join(places).check(2).unwrap()
}

/// What a `migrate` command said at its end.
fn outcome(finished: &Finished) -> Value {
    let lines = finished.stdout.iter().rev().map(|line| serde_json::from_str(line).unwrap());
    lines.into_iter().find(|line: &Value| line["migration"].is_object()).expect("it says how it ended")
}
