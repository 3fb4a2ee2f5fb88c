//! The physical-limit model: what the measured cost of each stage allows a transfer to reach.
//!
//! Per logical GB, with `u` the part that is not zero, `m` the part of that which the receiver does not have, `r` the
//! compression ratio, and every cost in CPU seconds per GB of the bytes that it touches:
//!
//! ```text
//! C_tx = read + zero + u*(hash + index) + u*m*compress + (u*m/r)*tunnel_tx
//! C_rx = (u*m/r)*tunnel_rx + u*m*(decompress + hash) + u*(1-m)*(read + hash) + u*write
//! T    = min( N/(C_tx+C_rx), disk_read, disk_write/u )                 both ends on one machine with N processors
//! T    = min( N/C_tx, N/C_rx, disk_read, disk_write/u )                two such machines
//! ```
//!
//! A re-sync reads and hashes everything on the sending side; of the touched chunks the receiver reads each twice (for
//! page sums and to change it), verifies and writes it, and only changed pages travel.

use serde::Serialize;

/// Cost and speed of a stage.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub(crate) struct Rate {
    /// CPU seconds per GB (10^9 bytes).
    pub(crate) cpu: f64,
    /// GB a second, as the clock on the wall saw it.
    pub(crate) speed: f64,
}

/// Cost of a transport at each end.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub(crate) struct Tunnel {
    /// CPU seconds per GB where bytes are sent. On loopback that includes the kernel's receive path.
    pub(crate) tx: f64,
    /// CPU seconds per GB where they are received.
    pub(crate) rx: f64,
    /// GB a second through both.
    pub(crate) speed: f64,
    /// Payload of the packets in bytes; 0 where the kernel decides.
    pub(crate) mtu: u16,
}

/// What a compression level does to real files.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub(crate) struct Level {
    /// zstd level.
    pub(crate) level: i32,
    /// Compressing, per plain GB.
    pub(crate) compress: Rate,
    /// Decompressing, per plain GB.
    pub(crate) decompress: Rate,
    /// Plain bytes by compressed bytes.
    pub(crate) ratio: f64,
}

/// The constants of one machine.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub(crate) struct Constants {
    /// Processors.
    pub(crate) cores: usize,
    /// One copy from memory to memory.
    pub(crate) memcpy: Rate,
    /// Reading a file through registered io_uring buffers, O_DIRECT where the file system has it.
    pub(crate) read: Rate,
    /// Writing a new file in the same way, made durable at the end.
    pub(crate) write: Rate,
    /// Whether those two bypassed the page cache.
    pub(crate) direct: bool,
    /// Looking for zeros in memory.
    pub(crate) zero: Rate,
    /// Naming chunks by their keyed BLAKE3 id.
    pub(crate) hash: Rate,
    /// Looking a chunk up in the tables of both ends.
    pub(crate) index: Rate,
    /// zstd, by level.
    pub(crate) levels: Vec<Level>,
    /// QUIC over loopback.
    pub(crate) quic: Tunnel,
    /// TLS over TCP over loopback.
    pub(crate) tcp: Tunnel,
}

/// How a case compresses.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Compression {
    /// Not at all.
    Off,
    /// As real files do at whatever level is fastest.
    RealFiles,
}

/// What a case demands of both ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Work {
    /// `u`: part of the bytes that is not zero.
    pub(crate) not_zero: f64,
    /// `m`: part of those that the receiver does not have.
    pub(crate) unknown: f64,
    /// Whether what travels is compressed.
    pub(crate) compression: Compression,
    /// TLS over TCP instead of QUIC.
    pub(crate) tcp: bool,
    /// For a re-sync, what changed.
    pub(crate) resync: Option<Changed>,
}

/// What changed since the last copy.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Changed {
    /// Part of the chunks with a change in them.
    pub(crate) chunks: f64,
    /// Part of the pages that changed.
    pub(crate) pages: f64,
}

impl Work {
    /// Unique random bytes.
    pub(crate) const INCOMPRESSIBLE: Self =
        Self { not_zero: 1.0, unknown: 1.0, compression: Compression::Off, tcp: false, resync: None };
}

/// What the model allows.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Ceiling {
    /// GB a second with both ends on this machine.
    pub(crate) one_box: f64,
    /// GB a second between two machines like this one, on a link that is fast enough.
    pub(crate) two_hosts: f64,
    /// CPU seconds per logical GB at the sender.
    pub(crate) cpu_tx: f64,
    /// CPU seconds per logical GB at the receiver.
    pub(crate) cpu_rx: f64,
    /// What limits the first: `cpu`, `disk read` or `disk write`.
    pub(crate) bound: &'static str,
    /// The level that is fastest; none when nothing is compressed.
    pub(crate) level: Option<i32>,
}

/// The ceiling of a case on a machine.
pub(crate) fn ceiling(constants: &Constants, work: &Work) -> Ceiling {
    let plain = at_level(constants, work, None);
    match work.compression {
        Compression::Off => plain,
        Compression::RealFiles => {
            let levels = constants.levels.iter().map(|level| at_level(constants, work, Some(level)));
            levels.fold(plain, |best, other| if other.one_box > best.one_box { other } else { best })
        }
    }
}

fn at_level(constants: &Constants, work: &Work, level: Option<&Level>) -> Ceiling {
    let Constants { read, write, zero, hash, index, .. } = constants;
    let tunnel = if work.tcp { &constants.tcp } else { &constants.quic };
    let (cpu_tx, cpu_rx, written) = match work.resync {
        None => {
            let (u, fresh) = (work.not_zero, work.not_zero * work.unknown);
            let (compress, decompress, ratio) = level
                .map_or((0.0, 0.0, 1.0), |level| (level.compress.cpu, level.decompress.cpu, level.ratio));
            let wire = fresh / ratio;
            let tx = read.cpu + zero.cpu + u * (hash.cpu + index.cpu) + fresh * compress + wire * tunnel.tx;
            let rx = wire * tunnel.rx
                + fresh * (decompress + hash.cpu)
                + (u - fresh) * (read.cpu + hash.cpu)
                + u * write.cpu;
            (tx, rx, u)
        }
        Some(Changed { chunks, pages }) => {
            let tx = read.cpu + zero.cpu + hash.cpu + chunks * zero.cpu + pages * tunnel.tx;
            let rx = pages * tunnel.rx + chunks * (2.0 * read.cpu + zero.cpu + hash.cpu + write.cpu);
            (tx, rx, chunks)
        }
    };
    let cores = constants.cores as f64;
    let disks = [("disk read", read.speed), ("disk write", write.speed / written)];
    let least = |cpu: f64| {
        disks.iter().fold(("cpu", cpu), |least, disk| if disk.1 < least.1 { *disk } else { least })
    };
    let (bound, one_box) = least(cores / (cpu_tx + cpu_rx));
    let (_, two_hosts) = least((cores / cpu_tx).min(cores / cpu_rx));
    Ceiling { one_box, two_hosts, cpu_tx, cpu_rx, bound, level: level.map(|level| level.level) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Constants as published for this model, with disks that limit nothing.
    fn constants() -> Constants {
        let rate = |cpu: f64| Rate { cpu, speed: 1000.0 };
        Constants {
            cores: 2,
            memcpy: rate(0.083),
            read: rate(0.10),
            write: rate(0.05),
            direct: true,
            zero: rate(0.02),
            hash: rate(0.22),
            index: rate(0.02),
            levels: vec![Level { level: 1, compress: rate(2.15), decompress: rate(0.86), ratio: 2.7 }],
            quic: Tunnel { tx: 1.0, rx: 0.88, speed: 1.0, mtu: 1452 },
            tcp: Tunnel { tx: 0.37, rx: 0.31, speed: 2.0, mtu: 0 },
        }
    }

    fn close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 0.05 * expected, "{actual} is not {expected}");
    }

    #[test]
    fn published_ceilings_come_out() {
        let incompressible = ceiling(&constants(), &Work::INCOMPRESSIBLE);
        close(incompressible.one_box, 0.80);
        close(incompressible.two_hosts, 1.47);
        assert_eq!(incompressible.bound, "cpu");
        close(ceiling(&constants(), &Work { tcp: true, ..Work::INCOMPRESSIBLE }).one_box, 1.53);
        let zeros_and_duplicates = Work { not_zero: 0.5, unknown: 0.5, ..Work::INCOMPRESSIBLE };
        close(ceiling(&constants(), &zeros_and_duplicates).one_box, 2.2);
        let duplicate = Work { unknown: 0.0, ..Work::INCOMPRESSIBLE };
        close(ceiling(&constants(), &duplicate).one_box, 2.7);
    }

    #[test]
    fn compression_counts_only_where_it_is_faster() {
        let work = Work { compression: Compression::RealFiles, ..Work::INCOMPRESSIBLE };
        let slow = ceiling(&constants(), &work);
        assert_eq!(slow.level, None, "zstd 1 costs more than QUIC saves on loopback");
        let mut cheap = constants();
        cheap.levels[0].compress.cpu = 0.1;
        cheap.levels[0].decompress.cpu = 0.1;
        let fast = ceiling(&cheap, &work);
        assert_eq!(fast.level, Some(1));
        assert!(fast.one_box > slow.one_box);
    }

    #[test]
    fn disks_and_resyncs_have_their_own_limits() {
        let mut slow = constants();
        slow.write.speed = 0.3;
        let ceiling_of = |constants: &Constants, work| ceiling(constants, &work);
        let limited = ceiling_of(&slow, Work::INCOMPRESSIBLE);
        assert_eq!(limited.bound, "disk write");
        close(limited.one_box, 0.3);
        let unchanged = Work { resync: Some(Changed { chunks: 0.0, pages: 0.0 }), ..Work::INCOMPRESSIBLE };
        let resync = ceiling_of(&slow, unchanged);
        assert_eq!(resync.bound, "cpu", "nothing is written");
        close(resync.one_box, 5.9);
        assert!(resync.cpu_rx.abs() < 1e-9);
    }
}
