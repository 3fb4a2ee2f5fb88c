//! The cut-over machines: every state with every event, and every interleaving of two hosts with a few faults.

mod model;
mod table;
