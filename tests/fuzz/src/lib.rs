//! The bodies of the fuzz targets: one plain function a decoder, each taking arbitrary bytes.
//!
//! A body panics when the decoder breaks a promise: it panics itself, allocates past a cap, or reads a value that is
//! not written back as the same bytes. `tests/replay.rs` runs the committed corpus and deterministic variations of it
//! through every body on any toolchain; the libFuzzer binaries around them are in `targets`, a workspace of its own.
//!
//! To add a target: write its body in the module of its crate, add a line to [`TARGETS`], put seeds under
//! `corpus/NAME`, and add `targets/fuzz_targets/NAME.rs` with its `[[bin]]` in `targets/Cargo.toml`. The replay test
//! names whatever is missing.

pub mod seeds;
mod wire_format;

pub use wire_format::{control, extent_head, frame_header, prelude};

/// A fuzz target: the name of its corpus folder and binary, and its body.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name.
    pub name: &'static str,
    /// Body.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "prelude", run: prelude },
    Target { name: "frame_header", run: frame_header },
    Target { name: "control", run: control },
    Target { name: "extent_head", run: extent_head },
];
