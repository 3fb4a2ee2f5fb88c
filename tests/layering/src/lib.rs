//! The project's shape, checked: which crate may use which, which crate alone names a heavy dependency, which crates
//! stay pure, and the conventions of the sources that no lint knows.
//!
//! [`table`] is data and the place to change when the design changes. [`edges`] compares `cargo metadata` with it,
//! [`sources`] reads the files. A check returns what it found wrong, one sentence a finding, each saying what to do;
//! an empty list is a pass. Whether code is *good* is not checked here.

pub mod code;
pub mod edges;
pub mod sources;
pub mod table;
