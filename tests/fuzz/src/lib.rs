//! The bodies of the fuzz targets: one plain function a decoder, each taking arbitrary bytes.
//!
//! A body panics when the decoder breaks a promise: it panics itself, allocates past a cap, or reads a value that is
//! not written back as the same bytes. `tests/replay.rs` runs the committed corpus and deterministic variations of it
//! through every body on any toolchain; the libFuzzer binaries around them are in `targets`, a workspace of its own.
//!
//! To add a target: write its body in the module of its crate, add a line to [`TARGETS`], put seeds under
//! `corpus/NAME`, and add `targets/fuzz_targets/NAME.rs` with its `[[bin]]` in `targets/Cargo.toml`. The replay test
//! names whatever is missing.

mod agents;
mod at_rest;
mod content;
mod machines;
mod migration;
mod outside;
pub mod seeds;
mod wire_format;

pub use agents::{migration_frames, migration_messages};
pub use at_rest::{journal_fields, journal_replay, leaf_table, receipt, volume_meta};
pub use content::{decompress, page_delta, ram_packet};
pub use machines::{ordering, session};
pub use migration::{migration_stream, multifd};
pub use outside::{certificate, config, nbd_replies, nbd_requests, nbd_uri};
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
    Target { name: "journal_replay", run: journal_replay },
    Target { name: "journal_fields", run: journal_fields },
    Target { name: "leaf_table", run: leaf_table },
    Target { name: "receipt", run: receipt },
    Target { name: "volume_meta", run: volume_meta },
    Target { name: "decompress", run: decompress },
    Target { name: "page_delta", run: page_delta },
    Target { name: "ram_packet", run: ram_packet },
    Target { name: "session", run: session },
    Target { name: "ordering", run: ordering },
    Target { name: "config", run: config },
    Target { name: "certificate", run: certificate },
    Target { name: "nbd_replies", run: nbd_replies },
    Target { name: "nbd_requests", run: nbd_requests },
    Target { name: "nbd_uri", run: nbd_uri },
    Target { name: "multifd", run: multifd },
    Target { name: "migration_stream", run: migration_stream },
    Target { name: "migration_frames", run: migration_frames },
    Target { name: "migration_messages", run: migration_messages },
];
