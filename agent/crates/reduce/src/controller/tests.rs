use super::*;
use volume::conformance::Dice;

/// CPU seconds a byte outside the codec: read, zero scan, hash, index.
const BASE_COST: f64 = 0.36e-9;
/// CPU seconds a byte on the wire: QUIC at an MTU of 1452.
const PACKET_COST: f64 = 1.0e-9;
const QUEUE: f64 = 16e6;
const TICK: f64 = 0.001;

fn gigabytes_per_second(choice: Choice) -> f64 {
    match choice {
        Choice::Raw => f64::INFINITY,
        Choice::Level(-5) => 0.63,
        Choice::Level(-1) => 0.51,
        Choice::Level(1) => 0.47,
        Choice::Level(3) => 0.34,
        Choice::Level(6) => 0.11,
        Choice::Level(_) => 0.07,
    }
}

fn ratio(choice: Choice) -> f64 {
    match choice {
        Choice::Raw => 1.0,
        Choice::Level(-5) => 1.93,
        Choice::Level(-1) => 2.40,
        Choice::Level(1) => 2.70,
        Choice::Level(3) => 2.83,
        Choice::Level(6) => 3.00,
        Choice::Level(_) => 3.03,
    }
}

/// A sender on a link: the model of the measured facts as a fluid, with noise.
struct Plant {
    dice: Dice,
    cores: f64,
    /// Bytes a second.
    link: f64,
    /// Bytes a second that the source gives at most.
    source: f64,
    compressible: bool,
    queue: f64,
}

impl Plant {
    fn new(gigabits: f64, cores: f64, seed: u64) -> Self {
        Self {
            dice: Dice::new(seed),
            cores,
            link: gigabits * 0.125e9,
            source: f64::INFINITY,
            compressible: true,
            queue: 0.0,
        }
    }

    /// Around 1, at most `spread` away.
    fn noise(&mut self, spread: f64) -> f64 {
        1.0 + spread * (self.dice.below(2001) as f64 / 1000.0 - 1.0)
    }

    /// Runs 100 ms. The transport gets the CPU first; the codec what is left, as long as the queue has room.
    fn run(&mut self, choice: Choice) -> Sample {
        let (speed_noise, ratio_noise, link_noise) = (self.noise(0.1), self.noise(0.1), self.noise(0.05));
        let ratio = if self.compressible { 1.0 + (ratio(choice) - 1.0) * ratio_noise } else { 1.0 };
        // Early give-up: incompressible data costs next to nothing.
        let codec =
            if self.compressible { 1e-9 / gigabytes_per_second(choice) * speed_noise } else { 0.02e-9 };
        let (mut sent, mut plain, mut cpu) = (0.0, 0.0, 0.0);
        let mut cpu_bound = false;
        for _ in 0..100 {
            let budget = self.cores * TICK;
            let out = self.queue.min(self.link * link_noise * TICK).min(budget / PACKET_COST);
            let left = budget - out * PACKET_COST;
            let can = left / (BASE_COST + codec);
            let room = (QUEUE - self.queue + out) * ratio;
            let take = can.min(room).min(self.source * TICK);
            cpu_bound = take < self.source * TICK;
            self.queue += take / ratio - out;
            sent += out;
            plain += take;
            cpu += out * PACKET_COST + take * (BASE_COST + codec);
        }
        let whole = |value: f64| format!("{value:.0}").parse::<u64>().expect("a whole number");
        let tried = if choice == Choice::Raw { 0.0 } else { plain };
        Sample {
            elapsed: Duration::from_millis(100),
            send_queue: Fill { used: whole(self.queue), capacity: whole(QUEUE) },
            cpu_queue: Fill { used: if cpu_bound { 16 } else { 0 }, capacity: 16 },
            sent_bytes: whole(sent),
            plain_bytes: whole(plain),
            compress_in: whole(tried),
            compress_out: whole(tried / ratio),
            compress_time: Duration::from_secs_f64(tried * codec),
            cpu_time: Duration::from_secs_f64(cpu),
        }
    }
}

/// Runs for `seconds` and returns every choice and the mean speed in bytes a second over the second half.
fn drive(controller: &mut Controller, plant: &mut Plant, seconds: u32) -> (Vec<Choice>, f64) {
    let mut choices = Vec::new();
    let mut bytes = 0;
    for step in 0..seconds * 10 {
        let sample = plant.run(controller.choice());
        choices.push(controller.observe(&sample));
        if step >= seconds * 5 {
            bytes += sample.plain_bytes;
        }
    }
    (choices, bytes as f64 / f64::from(seconds) * 2.0)
}

/// How much of the second half fulfils the condition.
fn share(choices: &[Choice], wanted: impl Fn(Choice) -> bool) -> f64 {
    let half = &choices[choices.len() / 2..];
    half.iter().filter(|choice| wanted(**choice)).count() as f64 / half.len() as f64
}

#[test]
fn a_fast_link_with_two_cores_ends_raw() {
    for seed in 0..20 {
        let mut controller = Controller::new(Mode::Auto, 2);
        let (choices, _) = drive(&mut controller, &mut Plant::new(10.0, 2.0, seed), 120);
        let raw = share(&choices, |choice| choice == Choice::Raw);
        assert!(raw > 0.9, "seed {seed}: raw in {raw:.2} of the second half");
    }
}

#[test]
fn a_slow_link_ends_at_level_one_or_three() {
    for seed in 0..20 {
        let mut controller = Controller::new(Mode::Auto, 2);
        let (choices, _) = drive(&mut controller, &mut Plant::new(0.2, 2.0, seed), 120);
        let good = share(&choices, |choice| matches!(choice, Choice::Level(1 | 3)));
        assert!(good > 0.9, "seed {seed}: {good:.2} of the second half, {:?}", choices.last());
    }
}

#[test]
fn very_slow_links_with_an_idle_cpu_use_the_highest_levels() {
    for seed in 0..20 {
        let mut controller = Controller::new(Mode::Auto, 2);
        let (choices, _) = drive(&mut controller, &mut Plant::new(0.02, 2.0, seed), 240);
        assert!(choices.contains(&Choice::Level(6)), "seed {seed}");
        let mut controller = Controller::new(Mode::Auto, 2);
        let (choices, _) = drive(&mut controller, &mut Plant::new(0.4, 2.0, seed), 240);
        assert!(!choices.contains(&Choice::Level(6)), "seed {seed}");
    }
}

#[test]
fn speed_is_near_the_best_fixed_level_and_changes_are_bounded() {
    const SECONDS: u32 = 240;
    let mut worst = (f64::INFINITY, String::new());
    let mut most = (0, String::new());
    for gigabits in [0.02, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 25.0, 40.0] {
        for cores in [1_u8, 2, 4, 8, 16] {
            let cores_of_plant = f64::from(cores);
            let best = [Mode::Off, Mode::Fixed(-5), Mode::Fixed(-1), Mode::Fixed(1), Mode::Fixed(3)]
                .map(|mode| {
                    let mut plant = Plant::new(gigabits, cores_of_plant, 1);
                    drive(&mut Controller::new(mode, 1), &mut plant, 20).1
                })
                .into_iter()
                .fold(0.0, f64::max);
            for seed in 0..5 {
                let name = format!("{gigabits} Gbit/s, {cores} cores, seed {seed}");
                let mut controller = Controller::new(Mode::Auto, u32::from(cores));
                let mut plant = Plant::new(gigabits, cores_of_plant, seed);
                let (choices, speed) = drive(&mut controller, &mut plant, SECONDS);
                let part = speed / best;
                if part < worst.0 {
                    worst = (part, format!("{name}, ended at {:?}", choices.last()));
                }
                if controller.changes() > most.0 {
                    most = (controller.changes(), name.clone());
                }
                assert!(part > 0.85, "{name}: {part:.2} of the best, ended at {:?}", choices.last());
                let bound = 18 + u64::from(SECONDS) / 32;
                assert!(controller.changes() <= bound, "{name}: {} changes", controller.changes());
            }
        }
    }
    println!("worst {worst:?}, most changes in {SECONDS} s {most:?}");
}

#[test]
fn a_link_that_changes_is_followed_within_fifteen_seconds() {
    for seed in 0..20 {
        let mut controller = Controller::new(Mode::Auto, 2);
        let mut plant = Plant::new(10.0, 2.0, seed);
        drive(&mut controller, &mut plant, 60);
        assert_eq!(controller.choice(), Choice::Raw, "seed {seed}");
        plant.link = 25e6;
        drive(&mut controller, &mut plant, 15);
        assert!(matches!(controller.choice(), Choice::Level(1..)), "seed {seed}: {:?}", controller.choice());
        plant.link = 1.25e9;
        drive(&mut controller, &mut plant, 15);
        assert_eq!(controller.choice(), Choice::Raw, "seed {seed}");
    }
}

#[test]
fn incompressible_data_and_slow_sources_cost_nothing() {
    for seed in 0..10 {
        for gigabits in [0.2, 2.0, 10.0] {
            let mut plant = Plant::new(gigabits, 2.0, seed);
            plant.compressible = false;
            let (_, speed) = drive(&mut Controller::new(Mode::Auto, 2), &mut plant, 120);
            let mut plant = Plant::new(gigabits, 2.0, seed);
            plant.compressible = false;
            let (_, raw) = drive(&mut Controller::new(Mode::Off, 2), &mut plant, 120);
            assert!(speed > raw * 0.97, "seed {seed}, {gigabits} Gbit/s: {:.2}", speed / raw);
        }
        // The source is the bottleneck: nothing to gain, nothing changes.
        let mut plant = Plant::new(10.0, 2.0, seed);
        plant.source = 50e6;
        let mut controller = Controller::new(Mode::Auto, 2);
        drive(&mut controller, &mut plant, 60);
        assert_eq!(controller.changes(), 0, "seed {seed}");
    }
}

#[test]
fn a_source_that_stalls_during_a_trial_does_not_decide_it() {
    for seed in 0..20 {
        let mut plant = Plant::new(0.2, 2.0, seed);
        let mut controller = Controller::new(Mode::Auto, 2);
        for _ in 0..20 {
            drive(&mut controller, &mut plant, 2);
            plant.source = 0.0;
            drive(&mut controller, &mut plant, 10);
            plant.source = f64::INFINITY;
        }
        drive(&mut controller, &mut plant, 4);
        assert!(matches!(controller.choice(), Choice::Level(1..)), "seed {seed}: {:?}", controller.choice());
    }
}

#[test]
fn fixed_modes_ignore_measurements() {
    let mut plant = Plant::new(0.1, 2.0, 1);
    for (mode, choice) in [(Mode::Off, Choice::Raw), (Mode::Fixed(7), Choice::Level(7))] {
        let (choices, _) = drive(&mut Controller::new(mode, 2), &mut plant, 5);
        assert!(choices.iter().all(|made| *made == choice));
    }
}

#[test]
fn odd_samples_do_no_harm() {
    let mut dice = Dice::new(0x0dd);
    let mut controller = Controller::new(Mode::Auto, 0);
    let mut value = || if dice.below(3) == 0 { 0 } else { dice.roll() >> dice.below(64) };
    for _ in 0..100_000 {
        let sample = Sample {
            elapsed: Duration::from_nanos(value() % 1_000_000_000),
            send_queue: Fill { used: value(), capacity: value() },
            cpu_queue: Fill { used: value(), capacity: value() },
            sent_bytes: value(),
            plain_bytes: value(),
            compress_in: value(),
            compress_out: value(),
            compress_time: Duration::from_nanos(value() % 1_000_000_000_000),
            cpu_time: Duration::from_nanos(value() % 1_000_000_000_000),
        };
        controller.observe(&sample);
    }
}
