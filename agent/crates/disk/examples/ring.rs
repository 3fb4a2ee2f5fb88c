//! Reads and writes a file through each backend and prints GB/s and CPU-seconds per GB.
//!
//! `cargo run --release --example ring -- [FILE [GIB [DEPTH]]]`: FILE is created (it must not exist) and removed.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use novaferry_disk::{BUFFER_SIZE, Backend, Disk, Options, SourceOptions};
use tokio::task::JoinSet;
use volume::{ByteLen, ByteOffset, Sink, Source, VolumeError};

/// CPU time of this process in seconds: utime and stime of /proc/self/stat, in ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc is mounted");
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

enum Side {
    Read(Arc<dyn Source>),
    Write(Arc<dyn Sink>),
}

/// Moves the whole volume, `depth` operations at a time.
async fn sweep(disk: &Disk, side: &Side, size: u64, depth: u64) -> Result<(), VolumeError> {
    let mut lanes = JoinSet::new();
    for first in 0..depth {
        let pool = disk.buffers();
        let step = BUFFER_SIZE as u64;
        let places = (first * step..size).step_by(BUFFER_SIZE * usize::try_from(depth).unwrap_or(1));
        match side {
            Side::Read(source) => {
                let source = Arc::clone(source);
                lanes.spawn(async move {
                    for at in places {
                        source.read_at(ByteOffset(at), pool.acquire().await).await.0?;
                    }
                    Ok(())
                });
            }
            Side::Write(sink) => {
                let sink = Arc::clone(sink);
                lanes.spawn(async move {
                    for at in places {
                        sink.write_at(ByteOffset(at), pool.acquire().await).await.0?;
                    }
                    Ok(())
                });
            }
        }
    }
    lanes.join_all().await.into_iter().collect::<Result<(), VolumeError>>()?;
    match side {
        Side::Read(_) => Ok(()),
        Side::Write(sink) => sink.flush().await,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().map_or_else(|| PathBuf::from("ring-bench.tmp"), PathBuf::from);
    let gib: u64 = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let depth: u64 = arguments.next().map_or(Ok(16), |text| text.parse())?;
    let size = gib << 30;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    println!("{gib} GiB, {depth} operations of {BUFFER_SIZE} bytes at a time");

    let run = |name: &str, disk: &Disk, side: &Side| -> Result<(), VolumeError> {
        let (start, before) = (Instant::now(), cpu_seconds());
        runtime.block_on(sweep(disk, side, size, depth))?;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - before);
        #[expect(clippy::cast_precision_loss, reason = "gigabytes to three digits")]
        let gigabytes = size as f64 / 1e9;
        println!(
            "{name:<28} {:6.2} GB/s  {:6.3} CPU-s/GB  ({} buffers registered)",
            gigabytes / seconds,
            cpu / gigabytes,
            disk.registered_buffers()
        );
        Ok(())
    };
    let outcome = || -> Result<(), VolumeError> {
        for round in 1..=2 {
            for (name, backend, registered) in [
                ("io_uring registered", Backend::Uring, true),
                ("io_uring unregistered", Backend::Uring, false),
                ("plain", Backend::Plain, true),
            ] {
                let disk = Disk::start(&Options { backend, registered, ..Options::default() })?;
                if round == 1 && backend == Backend::Uring && registered {
                    let sink = disk.create_sink(&path, ByteLen(size))?;
                    println!("direct I/O: {}", sink.is_direct());
                    run("first write (allocates)", &disk, &Side::Write(Arc::new(sink)))?;
                }
                let sink = disk.open_sink(&path, novaferry_disk::SinkOptions::default())?;
                run(&format!("write, {name}"), &disk, &Side::Write(Arc::new(sink)))?;
                let source = disk.open_source(&path, SourceOptions::default())?;
                run(&format!("read,  {name}"), &disk, &Side::Read(Arc::new(source)))?;
            }
        }
        Ok(())
    }();
    std::fs::remove_file(&path)?;
    Ok(outcome?)
}
