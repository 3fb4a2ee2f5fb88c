//! The thread that writes the disk's slots, each read back before it is rewritten, past the page cache.

use std::fs::File;
use std::io::{self, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use novaferry_guest_init::Options;
use novaferry_guest_init::slots::{BLOCK, Block, Disk, MAX_SLOTS, Table, Verifier};
use rustix::fs::{Mode, OFlags};

use crate::state::State;

/// The first virtio disk.
const DEVICE: &str = "/dev/vda";

/// How long a disk may take to appear: the driver has bound it when its module is loaded; devtmpfs is a moment behind,
/// which is long on a host with too much to do.
const APPEARS: Duration = Duration::from_secs(60);

/// Blocks that are read at once when all of the disk is checked: 256 KiB, one request.
const BATCH: usize = 64;

/// The disk and what it should hold.
pub(crate) struct Opened {
    file: File,
    disk: Disk,
    table: Table,
}

/// Waits until a disk is there; whoever opens it says that it is not.
pub(crate) fn await_device(device: &str) {
    let begin = Instant::now();
    while !Path::new(device).exists() && begin.elapsed() < APPEARS {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Opens the disk. One that this program has written before is checked, all of it; any other is made its own.
pub(crate) fn open(options: Options, state: &State) -> io::Result<Opened> {
    await_device(DEVICE);
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(DEVICE, flags, Mode::empty())?);
    let size = file.seek(SeekFrom::End(0))? / BLOCK as u64;
    let mut header = Block::ZERO;
    file.read_exact_at(&mut header.0, 0)?;
    if let Some(disk) = Disk::from_header(&header).filter(|disk| disk.slots() < size) {
        return check(file, disk, state);
    }
    let wanted = if options.disk == 0 { size } else { size.min((options.disk << 20) / BLOCK as u64) };
    let slots = wanted.saturating_sub(1).min(MAX_SLOTS);
    let disk = Disk::new(identity()?, slots).ok_or_else(|| io::Error::other("the disk is too small"))?;
    file.write_all_at(&disk.header().0, 0)?;
    file.sync_data()?;
    state.say("DISK fresh");
    Ok(Opened { file, disk, table: Table::after(disk, 0) })
}

/// Reads every slot. None, after reports, when the disk is not what some number of writes makes.
pub(crate) fn read_all(file: &File, disk: Disk, state: &State) -> io::Result<Option<Table>> {
    let mut verifier = Verifier::new(disk);
    let mut blocks = vec![Block::ZERO; BATCH];
    let mut next = 1;
    while next <= disk.slots() {
        let count = usize::try_from(disk.slots() + 1 - next).map_or(BATCH, |left| left.min(BATCH));
        let mut slices: Vec<IoSliceMut<'_>> =
            blocks[..count].iter_mut().map(|block| IoSliceMut::new(&mut block.0)).collect();
        let read = rustix::io::preadv(file, &mut slices, next * BLOCK as u64)?;
        // A direct read ends where a block does.
        let read = read / BLOCK;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        blocks[..read].iter().for_each(|block| verifier.add(block));
        next += read as u64;
    }
    let read = verifier.finish();
    Ok(read.map_err(|wrong| wrong.iter().for_each(|wrong| state.corrupt(&wrong.to_string()))).ok())
}

fn check(file: File, disk: Disk, state: &State) -> io::Result<Opened> {
    let table = read_all(&file, disk, state)?.ok_or_else(|| io::Error::other("it is not as it was left"))?;
    state.say(&format!("DISK intact seq={}", table.last()));
    state.set_disk_writes(table.last());
    Ok(Opened { file, disk, table })
}

/// A number that no other disk has. Early in the boot there may be little entropy; two guests still differ.
fn identity() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::INSECURE)?;
    Ok(u64::from_le_bytes(bytes))
}

impl Opened {
    /// Writes at the rate of the options, for ever, or until the disk fails.
    pub(crate) fn run(mut self, options: Options, state: &State) {
        let interval = Duration::from_millis(options.heartbeat);
        loop {
            for _ in 0..options.disk_writes {
                let busy = state.disk_busy();
                if let Err(error) = self.write(state) {
                    state.corrupt(&format!("disk: write {}: {error}", self.table.last() + 1));
                    return;
                }
                drop(busy);
            }
            if let Err(error) = self.file.sync_data() {
                state.corrupt(&format!("disk: flush: {error}"));
                return;
            }
            thread::sleep(interval);
        }
    }

    /// Makes the next write.
    fn write(&mut self, state: &State) -> io::Result<()> {
        let sequence = self.table.last() + 1;
        let (slot, held) = self.table.next();
        let offset = slot * BLOCK as u64;
        let mut found = Block::ZERO;
        self.file.read_exact_at(&mut found.0, offset)?;
        if let Some(held) = held
            && found != self.disk.block(held)
        {
            let found = self.disk.read(slot, &found);
            state.corrupt(&format!("disk slot {slot}: holds {found:?} instead of write {held}"));
        }
        self.file.write_all_at(&self.disk.block(sequence).0, offset)?;
        self.table.write();
        state.set_disk_writes(sequence);
        Ok(())
    }
}
