//! What is measured on: processor, kernel, load. Everything comes from `/proc` (proc(5)) and `/sys`.

use std::fs;
use std::path::Path;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Processor model as the kernel names it.
    pub(crate) cpu: String,
    /// Processors that this process may use.
    pub(crate) cores: usize,
    /// Kernel release.
    pub(crate) kernel: String,
    /// MTU of the loopback device in bytes.
    pub(crate) loopback_mtu: u32,
    /// Processes that ran or waited for a processor: means of 1, 5 and 15 minutes.
    pub(crate) load: [f64; 3],
}

impl Machine {
    pub(crate) fn look() -> Result<Self> {
        let text = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let cpu = text("/proc/cpuinfo")?
            .lines()
            .find_map(|line| {
                line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned())
            })
            .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        Ok(Self {
            cpu,
            cores: available_parallelism().map_or(1, std::num::NonZero::get),
            kernel: text("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            loopback_mtu: text("/sys/class/net/lo/mtu")?
                .trim()
                .parse()
                .context("understand the MTU of lo")?,
            load: load()?,
        })
    }
}

/// The load averages of 1, 5 and 15 minutes.
pub(crate) fn load() -> Result<[f64; 3]> {
    let text = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    let mut numbers = text.split_whitespace().map(str::parse);
    let mut next =
        || numbers.next().context("read three load averages")?.context("understand a load average");
    Ok([next()?, next()?, next()?])
}

/// Ticks a second in `/proc`: fixed at 100 in the kernel's interface (`USER_HZ`).
const TICKS: f64 = 100.0;

/// CPU time that all processes of the machine have used so far, in seconds.
pub(crate) fn busy_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let first = text.lines().next().context("read the first line of /proc/stat")?;
    let ticks: Vec<f64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal: the fourth and fifth are not work.
    Ok(ticks
        .iter()
        .take(8)
        .enumerate()
        .filter(|(nth, _)| !(3..=4).contains(nth))
        .map(|(_, ticks)| ticks)
        .sum::<f64>()
        / TICKS)
}

/// CPU time of the process or thread whose `stat` file this is, in seconds: utime and stime, the 14th and 15th field,
/// counted behind the name in brackets.
pub(crate) fn cpu_of(stat: &Path) -> Result<f64> {
    let text = fs::read_to_string(stat).with_context(|| format!("read {}", stat.display()))?;
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    anyhow::ensure!(ticks.len() == 2, "understand {}", stat.display());
    Ok(ticks.iter().sum::<f64>() / TICKS)
}

/// Largest resident set of a process so far, in bytes; none when it has ended.
pub(crate) fn peak_memory(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn clock(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// CPU time of this process.
pub(crate) fn process_cpu() -> Duration {
    clock(ClockId::ProcessCPUTime)
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu() -> Duration {
    clock(ClockId::ThreadCPUTime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let machine = Machine::look().unwrap();
        assert!(machine.cores > 0 && machine.loopback_mtu >= 1280 && !machine.cpu.is_empty());
    }

    #[test]
    fn clocks_and_counters_are_read() {
        assert!(process_cpu() >= thread_cpu());
        assert!(cpu_of(Path::new("/proc/self/stat")).is_ok());
        assert!(busy_seconds().unwrap() > 0.0);
        assert!(peak_memory(std::process::id()).unwrap() > 0);
        assert_eq!(peak_memory(u32::MAX), None);
    }
}
