//! Process 1 of the test guest: changes memory and disks, checks them, and says so on the first serial port.
//!
//! What it prints, a line each: [`READY`], `DISK fresh` or `DISK intact seq=N`, a [`Heartbeat`] each interval,
//! [`CORRUPT`] and details whenever something is not as it was left, [`POWER_OFF`]. Threads keep apart what must not
//! wait for each other: a disk that stalls, or a check that takes long, delays no heartbeat. There is one processor in
//! most guests, so the threads that only compute give way to the others.

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use novaferry_guest_init::{CORRUPT, Heartbeat, Options, READY};

use crate::state::State;

mod disk;
mod machine;
mod regions;
mod seed;
mod state;

fn main() -> ExitCode {
    let state = Arc::new(State::default());
    if let Err(error) = run(&state) {
        state.say(&format!("{CORRUPT} init: {error}"));
    }
    // The kernel would panic if process 1 ended; the machine stays, so that the line can be read.
    loop {
        thread::park();
    }
}

fn run(state: &Arc<State>) -> Result<(), String> {
    let command_line = machine::mount().map_err(|error| format!("mount: {error}"))?;
    let options = Options::parse(&command_line).map_err(|word| format!("option {word} makes no sense"))?;
    for (module, error) in machine::load_modules().map_err(|error| format!("modules: {error}"))? {
        state.say(&format!("MODULE {module}: {error}"));
    }
    let boot = machine::boot_time();
    spawn("power", state, |state| machine::watch_power_button(&state));

    let regions = regions::fill(options);
    if !options.no_disk {
        let opened = disk::open(options, state).map_err(|error| format!("disk: {error}"))?;
        spawn("disk", state, move |state| opened.run(options, &state));
    }
    if options.seed {
        spawn("seed", state, move |state| seed::run(options, &state));
    }
    state.say(&format!("{READY} {options}"));
    if let Some(hot) = regions.hot {
        spawn("hot", state, move |state| hot.run(options, &state));
    }
    spawn("check", state, move |state| regions.fixed.run(options, &state));
    beat(options, boot, state);
    Ok(())
}

/// Starts a thread that lives as long as the guest.
fn spawn(name: &str, state: &Arc<State>, run: impl FnOnce(Arc<State>) + Send + 'static) {
    let own = Arc::clone(state);
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(move || run(own)) {
        state.corrupt(&format!("thread {name}: {error}"));
    }
}

/// Prints heartbeats, for ever. After a pause the schedule starts anew: beats that were missed are not made up for.
fn beat(options: Options, boot: Instant, state: &State) {
    let interval = Duration::from_millis(options.heartbeat);
    let mut previous = Instant::now();
    let mut due = previous;
    for number in 1.. {
        due += interval;
        let now = Instant::now();
        if now < due {
            thread::sleep(due - now);
        } else {
            due = now;
        }
        let now = Instant::now();
        let heartbeat = Heartbeat {
            number,
            up: milliseconds(now - boot),
            pass: state.passes(),
            disk: state.disk_writes(),
            gap: milliseconds(now - previous),
            intact: state.is_intact(),
        };
        state.say(&heartbeat.to_string());
        previous = now;
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
