//! Tunnels over loopback, with good peers and bad ones.

mod authority;
mod hostile;
mod identities;
mod lanes;
mod pool;
mod raw;
mod support;
mod transfer;
