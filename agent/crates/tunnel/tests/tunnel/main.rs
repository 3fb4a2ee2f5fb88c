//! Tunnels over loopback, with good peers and bad ones.

mod pki;
mod support;
mod transfer;
