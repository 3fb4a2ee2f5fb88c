//! The constants of this machine, each measured for a second or so by the code that agents run.

mod cpu;
mod storage;
mod transport;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tunnel::TransportChoice;

use crate::corpus;
use crate::machine::Machine;
use crate::model::{Constants, Rate};
use crate::size::gigabytes;

/// Bytes that each constant is measured with unless asked otherwise: enough for a second of the dearest.
pub(crate) const DEFAULT_SAMPLE: u64 = 512 << 20;
/// Rounds of each measurement; the median counts, so that another process disturbs little.
const ROUNDS: usize = 3;
/// Compression is the dearest: of real files this much, at most.
const REAL_SAMPLE: u64 = 96 << 20;
/// Most memory that measurements in memory take for themselves.
const MEMORY_SAMPLE: u64 = 256 << 20;

/// Measures everything; `folder` is where files are written, and decides which disk is measured.
pub(crate) fn measure(machine: &Machine, folder: &Path, sample: u64) -> Result<Constants> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let storage = runtime.block_on(storage::measure(folder, sample)).context("measure the disk")?;
    let in_memory = usize::try_from(sample.min(MEMORY_SAMPLE))?;
    let real = corpus::real_bytes(usize::try_from(sample.min(REAL_SAMPLE))?)?;
    Ok(Constants {
        cores: machine.cores,
        memcpy: cpu::memcpy(in_memory)?,
        read: storage.read,
        write: storage.write,
        direct: storage.direct,
        zero: cpu::zero(in_memory)?,
        hash: cpu::hash(in_memory)?,
        index: cpu::index()?,
        levels: cpu::levels(&real)?,
        quic: transport::measure(TransportChoice::Quic, sample).context("measure QUIC over loopback")?,
        tcp: transport::measure(TransportChoice::Tcp, sample)
            .context("measure TLS over TCP over loopback")?,
    })
}

/// Wall-clock time and CPU time of one run.
#[derive(Clone, Copy, Debug)]
struct Took {
    wall: Duration,
    cpu: Duration,
}

impl Took {
    fn rate(self, bytes: u64) -> Rate {
        let gigabytes = gigabytes(bytes);
        Rate { cpu: self.cpu.as_secs_f64() / gigabytes, speed: gigabytes / self.wall.as_secs_f64() }
    }
}

/// Runs work and measures it by a clock of CPU time.
fn timed<T>(clock: impl Fn() -> Duration, work: impl FnOnce() -> T) -> (Took, T) {
    let (begun, before) = (Instant::now(), clock());
    let result = work();
    (Took { cpu: clock().saturating_sub(before), wall: begun.elapsed() }, result)
}

/// The run in the middle by CPU time.
fn median(mut rates: Vec<Rate>) -> Result<Rate> {
    rates.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
    rates.get(rates.len() / 2).copied().context("measure at least once")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        let rate = |cpu| Rate { cpu, speed: 1.0 };
        assert_eq!(median(vec![rate(9.0), rate(1.0), rate(2.0)]).unwrap(), rate(2.0));
        assert!(median(vec![]).is_err());
    }

    #[test]
    fn rates_are_per_decimal_gigabyte() {
        let took = Took { wall: Duration::from_secs(2), cpu: Duration::from_secs(1) };
        assert_eq!(took.rate(500_000_000), Rate { cpu: 2.0, speed: 0.25 });
    }
}
