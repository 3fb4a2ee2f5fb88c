//! The thread that reads the second disk, which nobody may write: it is the same for ever, and refuses to be written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use novaferry_guest_init::Options;
use novaferry_guest_init::slots::{Block, Disk};
use rustix::fs::{Mode, OFlags};

use crate::disk::{await_device, read_all};
use crate::state::State;

/// The second virtio disk.
const DEVICE: &str = "/dev/vdb";

/// Reads for ever, or until something is wrong.
pub(crate) fn run(options: Options, state: &State) {
    if let Err(error) = watch(options, state) {
        state.corrupt(&format!("seed: {error}"));
    }
}

fn watch(options: Options, state: &State) -> io::Result<()> {
    await_device(DEVICE);
    let mut all = None;
    loop {
        let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(DEVICE, flags, Mode::empty())?);
        let mut header = Block::ZERO;
        file.read_exact_at(&mut header.0, 0)?;
        // Each time: where the guest is now, it may be another disk.
        if file.write_at(&header.0, 0).is_ok() {
            return Err(io::Error::other("it can be written"));
        }
        let disk = Disk::from_header(&header).ok_or_else(|| io::Error::other("it is none"))?;
        let Some(table) = read_all(&file, disk, state)? else { return Ok(()) };
        let found = (disk, table.last());
        if *all.get_or_insert(found) != found {
            return Err(io::Error::other("it changed"));
        }
        thread::sleep(Duration::from_millis(options.heartbeat));
    }
}
