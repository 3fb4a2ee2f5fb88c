//! Files and block devices as volumes.
//!
//! [`Disk`] is what a process has one of: a [`Pool`] of 256 KiB buffers and a backend that moves them. From it come
//! [`FileSource`]s and [`FileSink`]s over regular files and block devices. Three backends pass one suite:
//!
//! | backend | where | when |
//! |---|---|---|
//! | io_uring | one thread that runs tokio-uring, buffers registered with the kernel | default |
//! | plain | a few threads in `pread` and `pwrite` | io_uring is blocked or absent, or on request |
//! | simulated (`sim`, a feature) | memory, with faults and crashes from a seed | tests |
//!
//! ```text
//!  FileSource/FileSink ──► bounded queue ──► ring thread (or workers) ──► kernel
//!     │  ▲                                        │
//!     │  └──────────── buffer and result ◄────────┘        the buffer belongs to the operation until it is answered
//!     └─► blocking helpers: fallocate, SEEK_DATA, fstat
//! ```
//!
//! Aligned ranges go through an `O_DIRECT` descriptor, everything else through a second, buffered one; see `file`
//! for how the two are kept coherent. Only this crate names tokio-uring and only this crate holds `unsafe`.
//!
//! It does not know about sessions, journals or networks, and it opens no path that it was not given.

#![expect(
    unsafe_code,
    reason = "registered buffers, the slab they live in, and system calls without a safe wrapper"
)]

mod context;
mod failure;
mod file;
mod lock;
mod open;
mod pool;
mod probe;
mod request;
mod ring;
#[cfg(feature = "sim")]
pub mod sim;
mod workers;

pub use context::{Backend, Disk, Options};
pub use file::{FileSink, FileSource};
pub use open::{SinkOptions, SourceOptions};
pub use pool::{BUFFER_SIZE, MAX_BUFFERS, Pool};
