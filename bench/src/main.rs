//! `novaferry-bench`: what this machine can do, and how much of that two agents on it reach.
//!
//! `calibrate` measures the constants of the model (CPU seconds per GB of each stage) and prints the model's ceiling for
//! each case. `run` copies corpora between two real agent processes, verifies every byte, and prints what it took
//! beside that ceiling and the goals. `live` moves running guests between two such hosts, and by QEMU alone, in turns.
//! `README.md` beside this crate describes cases, model and the JSON lines.
//!
//! ```text
//! cli ─► calibrate ─► model ─┐
//!    └─► cases ─► corpus ────┤
//!              └► agents     ├─► report
//!              └► compare    ┘
//!    └─► live: agents, QEMU ─► report
//! ```

mod agents;
mod calibrate;
mod cases;
mod cli;
mod compare;
mod corpus;
mod live;
mod machine;
mod model;
mod process;
mod report;
mod size;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
