//! The agent's side of `novaferry-vmd`, the only program that starts QEMU.
//!
//! One request a connection over a Unix socket: a line of JSON each way, both capped. The daemon looks at the peer's
//! credentials; nothing secret passes.
//!
//! ```text
//! {"command":"status","vm":"web-1"}              {"vm":{"vm":"web-1","state":{"state":"running","pid":71},...}}
//! {"command":"fence","vm":"web-1",               {"fence":{"vm":"web-1","generation":7,...}}
//!  "generation":7,"files":[]}
//! {"command":"start",...}                        {"error":{"kind":"fenced","message":"what; what to do"}}
//! ```

mod client;
mod protocol;

pub use client::{VmdClient, VmdError};
pub use protocol::{
    Answer, FenceStatus, HostStatus, MAX_ANSWER, MAX_FENCED_FILES, MAX_REQUEST, Processor, Refusal,
    RefusalKind, Request, VmState, VmStatus,
};
