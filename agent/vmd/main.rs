//! `novaferry-vmd`: the only part of novaferry that starts QEMU, and the keeper of fences on its host.
//!
//! Small and without an asynchronous runtime: a thread a request, a lock a VM. Its state is durable before it answers,
//! so it may be killed at any moment; VMs do not notice, and the next one finds them again by process id and start
//! time.
//!
//! * [`cli`], [`config`]: how it is called.
//! * [`server`]: the socket, who may speak, requests and answers.
//! * [`keeper`]: what each request does. [`record`] is what it knows of a VM, durably; [`fence`] the files of a fence.
//! * [`launch`]: a process of its own for QEMU, apart from vmd's. [`process`]: whether it lives, ending it.
//!   [`rescue`]: a connection to it for the hour of need.
//! * [`place`]: which paths vmd touches, owners and modes. [`network`]: tap devices. [`host`]: what QEMU can run.

mod cli;
mod config;
mod fence;
mod host;
mod keeper;
mod launch;
mod network;
mod place;
mod process;
mod record;
mod rescue;
mod server;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
