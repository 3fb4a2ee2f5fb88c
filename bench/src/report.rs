//! What is printed: a table for people, or JSON objects, one a line. `README.md` beside this crate is the schema.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::live;
use crate::machine::Machine;
use crate::model::{Ceiling, Constants};
use crate::size::mebibytes;

/// For whom to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A goal and what was reached.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Goal {
    /// What is compared.
    pub(crate) name: &'static str,
    /// `%`, `MiB` or `x`.
    pub(crate) unit: &'static str,
    /// What was reached.
    pub(crate) actual: f64,
    /// The bound.
    pub(crate) bound: f64,
    /// Whether the bound is the most that is good, instead of the least.
    pub(crate) at_most: bool,
    /// Whether the goal is met.
    pub(crate) met: bool,
}

impl Goal {
    pub(crate) fn at_least(name: &'static str, unit: &'static str, actual: f64, bound: f64) -> Self {
        Self { name, unit, actual, bound, at_most: false, met: actual >= bound }
    }

    pub(crate) fn at_most(name: &'static str, unit: &'static str, actual: f64, bound: f64) -> Self {
        Self { name, unit, actual, bound, at_most: true, met: actual <= bound }
    }

    pub(crate) fn text(&self) -> String {
        let Self { name, unit, actual, bound, at_most, met } = self;
        let sign = if *at_most { "<=" } else { ">=" };
        let verdict = if *met { "pass" } else { "FAIL" };
        format!("goal {verdict}: {name} {actual:.3} {unit} (wanted {sign} {bound} {unit})")
    }
}

/// One measured copy.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Record {
    /// Always `case`.
    pub(crate) kind: &'static str,
    /// The case.
    pub(crate) case: &'static str,
    /// Which part of it, such as `loss 1 %`.
    pub(crate) variant: Option<String>,
    /// Which repetition, from 1.
    pub(crate) repeat: u32,
    /// Bytes that count for the rates: the volume's, or its data where most of it is a hole.
    pub(crate) bytes: u64,
    /// From the sender's beginning to its end.
    pub(crate) seconds: f64,
    /// `bytes` a second.
    pub(crate) gb_per_s: f64,
    /// CPU seconds per GB of the sending process.
    pub(crate) cpu_s_per_gb_tx: Option<f64>,
    /// CPU seconds per GB of the daemon.
    pub(crate) cpu_s_per_gb_rx: f64,
    /// Everything on the wire, both directions.
    pub(crate) wire_bytes: u64,
    /// Payload among it.
    pub(crate) payload_bytes: u64,
    /// Bytes that were only named as zero.
    pub(crate) zero_bytes: u64,
    /// Bytes that were only named by their ids.
    pub(crate) dedup_bytes: u64,
    /// Payload that was sent more than once.
    pub(crate) resent_bytes: u64,
    /// Peak resident memory of the sending process in bytes.
    pub(crate) peak_memory_tx: u64,
    /// Peak resident memory of the daemon in bytes.
    pub(crate) peak_memory_rx: u64,
    /// What the model allows, where it says anything.
    pub(crate) ceiling: Option<Ceiling>,
    /// Rate by that ceiling, both ends on this machine.
    pub(crate) of_model: Option<f64>,
    /// CPU seconds that the model wants by those that were used: the same, but hardly disturbed by other load.
    pub(crate) of_model_cpu: Option<f64>,
    /// Load averages when it was done.
    pub(crate) load: [f64; 3],
    /// Processors that other processes kept busy meanwhile, on average.
    pub(crate) other_cpus: f64,
    /// Every byte was compared and equal; a copy that differs is an error instead.
    pub(crate) verified: bool,
    /// The goals and whether they are met.
    pub(crate) goals: Vec<Goal>,
}

/// The machine and its constants.
#[derive(Serialize)]
struct Calibration<'a> {
    kind: &'static str,
    machine: &'a Machine,
    constants: &'a Constants,
    ceilings: &'a [(&'static str, Ceiling)],
}

/// Prints lines to stdout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report(pub(crate) Output);

impl Report {
    fn line(self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).context("print to standard output")
    }

    fn json(self, value: &impl Serialize) -> Result<()> {
        self.line(&serde_json::to_string(value).context("write a result as JSON")?)
    }

    /// A case that this machine cannot run.
    pub(crate) fn skipped(self, case: &str, why: &str) -> Result<()> {
        match self.0 {
            Output::Text => self.line(&format!("SKIP {case}: {why}")),
            Output::Json => self.json(&serde_json::json!({ "kind": "skip", "case": case, "why": why })),
        }
    }

    /// The constants and what follows from them.
    pub(crate) fn calibration(
        self,
        machine: &Machine,
        constants: &Constants,
        ceilings: &[(&'static str, Ceiling)],
    ) -> Result<()> {
        match self.0 {
            Output::Json => self.json(&Calibration { kind: "calibration", machine, constants, ceilings }),
            Output::Text => self.line(&calibration_text(machine, constants, ceilings)),
        }
    }

    /// A measured move of a guest.
    pub(crate) fn moved(self, record: &live::Record) -> Result<()> {
        match self.0 {
            Output::Json => self.json(record),
            Output::Text => self.line(&record.text()),
        }
    }

    /// All moves of a case.
    pub(crate) fn summary(self, summary: &live::Summary) -> Result<()> {
        match self.0 {
            Output::Json => self.json(summary),
            Output::Text => self.line(&summary.text()),
        }
    }

    /// What was expected of a move, and what it took.
    pub(crate) fn fulfilled(self, fulfilled: &live::Fulfilled) -> Result<()> {
        match self.0 {
            Output::Json => self.json(fulfilled),
            Output::Text => self.line(&fulfilled.text()),
        }
    }

    /// All forecasts together.
    pub(crate) fn forecasts(self, forecasts: &live::Forecasts) -> Result<()> {
        match self.0 {
            Output::Json => self.json(forecasts),
            Output::Text => self.line(&forecasts.text()),
        }
    }

    /// A measured copy.
    pub(crate) fn record(self, record: &Record) -> Result<()> {
        match self.0 {
            Output::Json => self.json(record),
            Output::Text => self.line(&record.text()),
        }
    }
}

fn calibration_text(
    machine: &Machine,
    constants: &Constants,
    ceilings: &[(&'static str, Ceiling)],
) -> String {
    let [one, five, fifteen] = machine.load;
    let mut text = format!(
        "machine     {}, {} processors, Linux {}, loopback MTU {}, load {one} {five} {fifteen}\n",
        machine.cpu, machine.cores, machine.kernel, machine.loopback_mtu
    );
    text.push_str("constant            CPU-s/GB      GB/s\n");
    let mut row = |name: &str, cpu: f64, speed: Option<f64>| {
        let speed = speed.map_or_else(String::new, |speed| format!("{speed:10.2}"));
        text.push_str(format!("{name:18} {cpu:9.3}{speed}").trim_end());
        text.push('\n');
    };
    let Constants { cores: _, memcpy, read, write, direct, zero, hash, index, levels, quic, tcp } = constants;
    for (name, rate) in [
        ("memcpy", memcpy),
        ("read", read),
        ("write", write),
        ("zero", zero),
        ("hash", hash),
        ("index", index),
    ] {
        row(name, rate.cpu, Some(rate.speed));
    }
    for level in levels {
        row(&format!("compress {:2}", level.level), level.compress.cpu, Some(level.compress.speed));
        row(&format!("decompress {:2}", level.level), level.decompress.cpu, Some(level.decompress.speed));
    }
    for (name, tunnel) in [("quic", quic), ("tls over tcp", tcp)] {
        row(&format!("{name} tx"), tunnel.tx, Some(tunnel.speed));
        row(&format!("{name} rx"), tunnel.rx, None);
    }
    let ratios: Vec<String> =
        levels.iter().map(|level| format!("{:.2} at {}", level.ratio, level.level)).collect();
    text.push_str(&format!(
        "files       {}; real files compress by {}; QUIC payload {} bytes\n",
        if *direct { "O_DIRECT" } else { "through the page cache: the file system has no O_DIRECT" },
        ratios.join(", "),
        quic.mtu,
    ));
    text.push_str("ceiling (GB/s)       one box  two hosts  CPU-s/GB tx + rx   bound by\n");
    for (name, ceiling) in ceilings {
        let Ceiling { one_box, two_hosts, cpu_tx, cpu_rx, bound, level } = ceiling;
        let level = level.map_or_else(String::new, |level| format!(", zstd {level}"));
        text.push_str(&format!(
            "{name:20} {one_box:7.2}  {two_hosts:9.2}  {cpu_tx:7.2} + {cpu_rx:6.2}   {bound}{level}\n"
        ));
    }
    text
}

impl Record {
    fn text(&self) -> String {
        let variant = self.variant.as_ref().map_or_else(String::new, |variant| format!(" ({variant})"));
        let cpu_tx = self.cpu_s_per_gb_tx.map_or_else(|| "?".to_owned(), |cpu| format!("{cpu:.2}"));
        let mut text = format!(
            "{}{variant} #{}: {:.0} MiB in {:.2} s, {:.3} GB/s, CPU-s/GB {cpu_tx} tx + {:.2} rx, wire {:.2} MiB, \
             peak {:.0} MiB tx, {:.0} MiB rx",
            self.case,
            self.repeat,
            mebibytes(self.bytes),
            self.seconds,
            self.gb_per_s,
            self.cpu_s_per_gb_rx,
            mebibytes(self.wire_bytes),
            mebibytes(self.peak_memory_tx),
            mebibytes(self.peak_memory_rx),
        );
        text.push_str(&format!(
            "\n  verified; load {}, others kept {:.1} processors busy",
            self.load[0], self.other_cpus
        ));
        if let (Some(ceiling), Some(of_model), Some(of_cpu)) =
            (self.ceiling, self.of_model, self.of_model_cpu)
        {
            text.push_str(&format!(
                "; model {:.2} GB/s ({}): {:.0} % of it, {:.0} % by CPU",
                ceiling.one_box,
                ceiling.bound,
                of_model * 100.0,
                of_cpu * 100.0
            ));
        }
        for goal in &self.goals {
            text.push_str("\n  ");
            text.push_str(&goal.text());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_say_what_was_wanted() {
        assert_eq!(
            Goal::at_least("of the model", "%", 61.0, 60.0).text(),
            "goal pass: of the model 61.000 % (wanted >= 60 %)"
        );
        let missed = Goal::at_most("memory", "MiB", 300.0, 256.0);
        assert!(!missed.met && missed.text().starts_with("goal FAIL"));
    }
}
