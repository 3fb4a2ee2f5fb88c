//! The novaferry agent: copies volumes between hosts.
//!
//! This library holds what the binary wires together: certificates ([`pki`]), the configuration file ([`config`]),
//! logs, traces and metrics ([`observe`]), and the names of all environment variables ([`env`]).

pub mod config;
pub mod env;
pub mod observe;
pub mod pki;
