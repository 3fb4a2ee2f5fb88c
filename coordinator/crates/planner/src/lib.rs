//! Decides where virtual machines go, over which link, in which order, and what that takes.
//!
//! Pure: what is known goes in as values, and what would be done comes out as a [`model::plan::Plan`]'s parts. The same
//! fleet gives the same plan.

pub mod estimate;
pub mod fleet;
pub mod order;
pub mod placement;
pub mod report;

#[cfg(test)]
mod tests;
