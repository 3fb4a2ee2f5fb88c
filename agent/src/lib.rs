//! The novaferry agent: copies volumes between hosts, and moves running VMs.
//!
//! This library is the binary `novaferry-agent`, whose `main` only calls [`cli::run`]: the command line ([`cli`]), what
//! each command does ([`copy`], [`verify`], [`mod@migrate`], [`daemon`]), the daemon's local socket ([`control`]), what is printed
//! ([`output`], [`failure`]), names of volumes ([`address`]), the configuration file
//! ([`config`]), logs, traces and metrics ([`observe`]), and the names of all environment variables ([`mod@env`]).

pub mod address;
pub mod cli;
pub mod config;
pub mod control;
pub mod coordinator;
pub mod copy;
pub mod credentials;
pub mod daemon;
pub mod env;
pub mod failure;
pub mod migrate;
pub mod observe;
pub mod output;
pub mod signals;
pub mod state;
pub mod verify;
