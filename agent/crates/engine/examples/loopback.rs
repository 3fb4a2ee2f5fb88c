//! Pushes a file over loopback, both ends in this process, and prints speed and CPU seconds per GB:
//! `cargo run --release -p novaferry-engine --example loopback -- FILE [quic|tcp] [off|auto|LEVEL] [CONNECTIONS]`

#![expect(clippy::print_stdout, reason = "an example prints its result")]

#[path = "../tests/support/authority.rs"]
mod authority;
#[path = "../tests/support/hosts.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod hosts;

use authority::Authority;
use hosts::{Host, context, dialler, raw, remote};
use novaferry_engine::clock::process_cpu;
use novaferry_engine::transfer::push;
use tunnel::TransportChoice;
use wire::Mode;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let file = arguments.first().expect("the first argument is a file");
    let transport = match arguments.get(1).map(String::as_str) {
        Some("tcp") => TransportChoice::Tcp,
        _ => TransportChoice::Quic,
    };
    let level = match arguments.get(2).map(String::as_str) {
        None | Some("off") => reduce::Mode::Off,
        Some("auto") => reduce::Mode::Auto,
        Some(level) => reduce::Mode::Fixed(level.parse().expect("a level")),
    };
    let connections = arguments.get(3).map_or(1, |n| n.parse().expect("a number"));
    let folder = tempfile::tempdir_in(std::env::var("LOOPBACK_DIR").unwrap_or_else(|_| ".".to_owned()))
        .expect("a folder");
    let authority = Authority::new();
    let host = Host::start(&authority, folder.path(), "127.0.0.1:0".parse().expect("an address"), None);
    let mut dialler = dialler(&authority, host.address, transport);
    dialler.options.connections = connections;
    let mut context = context(folder.path(), Mode::Create);
    context.options.level = level;
    let cpu = process_cpu();
    let summary =
        push(&context, &raw(file.into()), &dialler, &remote("disk")).await.expect("the copy succeeds");
    let cpu = process_cpu().saturating_sub(cpu);
    let gigabytes = summary.receipt.body.size as f64 / 1e9;
    println!(
        "{gigabytes:.2} GB in {:.2} s: {:.3} GB/s, {:.2} CPU-s/GB both ends, wire {:.3} GB, {:?}",
        summary.elapsed.as_secs_f64(),
        gigabytes / summary.elapsed.as_secs_f64(),
        cpu.as_secs_f64() / gigabytes,
        summary.counters.wire_total() as f64 / 1e9,
        summary.counters,
    );
    host.stop().await;
}
