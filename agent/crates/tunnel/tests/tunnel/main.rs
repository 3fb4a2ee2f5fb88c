//! Tunnels over loopback, with good peers and bad ones.

mod authority;
mod calls;
mod channel_strangers;
mod channels;
mod hostile;
mod identities;
mod lanes;
mod pool;
mod raw;
mod relay;
mod support;
mod transfer;
