//! Moves without the memory: warm, and of a VM that is off.

use std::path::{Path, PathBuf};
use std::process::Command;

use guest::disk::{self, Format, Left};
use guest::timeline::DiskAtStart;
use guest::{Payload, Timeline};
use hypervisor::qmp::Qmp;

use super::scripted_agent::ScriptedAgent;
use super::{HANG, PROOF, VM, World, needs, outcome};
use crate::harness::vms::VmHost;
use crate::harness::{Capability, Harness, capable};

/// The guest writes its disk all the time, so that no round is the last by chance.
fn writes_much(settings: &mut guest::Settings) {
    if let Payload::Linux(_, options) = &mut settings.payload {
        (options.disk, options.rate) = (48, 1);
    }
}

/// The one disk at a host, and the file that the fence renamed at the other.
fn disk_in_pool(host: &VmHost<'_>) -> PathBuf {
    let mut disks = host.disk_paths();
    assert_eq!(disks.len(), 1, "{disks:?}");
    disks.remove(0)
}

pub(super) fn renamed(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap().to_str().unwrap();
    let found = path.parent().unwrap().read_dir().unwrap().flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        let other = path.file_name().unwrap().to_str().unwrap();
        other.starts_with(name) && other.contains(".migrated-")
    };
    found.into_iter().find(is_it).unwrap_or_else(|| panic!("{} was not renamed", path.display()))
}

fn warm(test: &str, options: &[&str], format: Format) {
    let Some(linux) = needs(test) else { return };
    let harness = Harness::of_guests();
    let mut world = World::start(&harness, &linux, |settings| {
        writes_much(settings);
        settings.disk.format = format;
    });
    let there = world.destination.serial(VM);
    let mut all = vec!["--mode", "warm"];
    all.extend_from_slice(options);
    let moved = world.source.migrate(VM, &world.destination, &all).finish().done();
    println!("{}", outcome(&moved)["migration"]["record"]["report"]);
    there.wait_for_heartbeats(PROOF, HANG).unwrap_or_else(|error| panic!("{error}: {}", there.text()));
    let booted = Timeline::join(&[&there]);
    booted.check(PROOF as u64).unwrap();
    // It boots from exactly what it had written before it was stopped.
    assert!(world.guest.wait_for_end(HANG).is_ok(), "the source's QEMU ends");
    let old = renamed(&world.guest.disk());
    let Left::Writes(written) = disk::check(&old, format).unwrap() else { panic!("it wrote nothing") };
    assert_eq!(booted.disk_at_start(), Some(DiskAtStart::Intact(written)));
    world.destination.await_state(&["finalised"]);
    assert_eq!(left_beside(&world), Vec::<String>::new());
}

/// Files of ours in the source's folder.
fn left_beside(world: &World<'_>) -> Vec<String> {
    let folder = world.source.layout(VM).folder().to_owned();
    let names = folder.read_dir().unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("novaferry-")).collect()
}

#[test]
fn a_guest_moves_warm_and_boots_from_what_it_wrote() {
    warm("a_guest_moves_warm_and_boots_from_what_it_wrote", &[], Format::Raw);
}

#[test]
fn a_warm_move_of_qcow2_is_read_back() {
    warm("a_warm_move_of_qcow2_is_read_back", &["--verify", "readback"], Format::Qcow2);
}

#[test]
fn a_warm_move_that_is_cancelled_leaves_nothing() {
    let test = "a_warm_move_that_is_cancelled_leaves_nothing";
    let Some(linux) = needs(test) else { return };
    let harness = Harness::of_guests();
    let mut world = World::start(&harness, &linux, writes_much);
    // So slow that the first round is still going on when it is cancelled.
    let options = ["--mode", "warm", "--limit", "1MB/s"];
    let command = world.source.migrate(VM, &world.destination, &options);
    world.source.await_state(&["mirroring"]);
    let migration = world.source.migration().unwrap();
    let id = migration["migration"].as_str().unwrap();
    let folder = world.source.layout(VM).folder().to_owned();
    crate::harness::until("an overlay", || {
        let mut entries = folder.read_dir().unwrap().flatten();
        entries.find(|entry| entry.file_name().to_string_lossy().contains("fleece"))
    });
    world.source.run(&["migration", "cancel", id]).done();
    drop(command.finish());
    world.source.await_state(&["rolled-back"]);
    world.goes_on_at_the_source();
    world.nothing_is_left_at_the_destination();
    assert_eq!(left_beside(&world), Vec::<String>::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = world.source.layout(VM).qmp();
        let qmp = Qmp::connect(&socket, HANG).await.unwrap();
        assert_eq!(qmp.query_block_exports().await.unwrap(), []);
        assert_eq!(qmp.query_block_jobs().await.unwrap(), []);
        for node in qmp.query_block_nodes().await.unwrap() {
            assert!(!node.node_name.unwrap_or_default().starts_with("novaferry-"));
            assert_eq!(node.dirty_bitmaps, []);
        }
    });
    // QEMU's monitor serves one client: this one goes with its runtime.
    drop(runtime);
    // And again, to its end.
    let there = world.destination.serial(VM);
    world.source.migrate(VM, &world.destination, &["--mode", "warm"]).finish().done();
    there.wait_for_heartbeats(3, HANG).unwrap();
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_vm_that_is_off_moves_with_what_lies_below_its_disk() {
    let test = "a_vm_that_is_off_moves_with_what_lies_below_its_disk";
    if !guest::available(test) || !capable(test, &[Capability::Root]) {
        return;
    }
    let harness = Harness::of_guests();
    let source = VmHost::new(&harness, "host-a", None);
    let destination = VmHost::new(&harness, "host-b", None);
    let folder = source.layout(VM).folder().to_owned();
    std::fs::create_dir_all(&folder).unwrap();
    let base = folder.join("base.raw");
    let content: Vec<u8> = (0..8_u32 << 20).map(|at| (at / 4096 * 7 % 251) as u8).collect();
    std::fs::write(&base, content).unwrap();
    let disk = folder.join("disk.qcow2");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &text(&base), &text(&disk), "16M"]);
    let io = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 9 1M 3M", "-c", "write -z 4M 64k", "-c", "write -P 5 15M 4k"])
        .arg(&disk)
        .status();
    assert!(io.unwrap().success());
    let config =
        r#"{"id":"web-1","name":"web","type":"kvm","memory_mb":512,"cpu_shares":1,"tags":{"a":"b"}}"#;
    std::fs::write(source.layout(VM).config(), config).unwrap();
    source.start();
    destination.start();
    source.migrate(VM, &destination, &["--mode", "cold", "--verify", "readback"]).finish().done();
    destination.await_state(&["finalised"]);
    let copy = disk_in_pool(&destination);
    qemu_img(&["compare", "-q", &text(&renamed(&disk)), &text(&copy)]);
    assert!(!source.layout(VM).config().exists(), "NovaCron could start the old copy");
    assert_eq!(destination.guest_process(VM), None);
    assert_eq!(std::fs::canonicalize(destination.layout(VM).folder().join("disk.qcow2")).unwrap(), copy);
    // And back: a cold move finds what a cold move made.
    destination.migrate(VM, &source, &["--mode", "cold"]).finish().done();
    source.await_state(&["finalised"]);
    let back = disk_in_pool(&source);
    qemu_img(&["compare", "-q", &text(&renamed(&copy)), &text(&back)]);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(source.layout(VM).config()).unwrap()).unwrap();
    assert_eq!((config["tags"]["a"].as_str(), config["memory_mb"].as_u64()), (Some("b"), Some(512)));
}

#[test]
fn the_guests_file_systems_are_frozen_at_each_point() {
    let test = "the_guests_file_systems_are_frozen_at_each_point";
    let Some(linux) = needs(test) else { return };
    let harness = Harness::of_guests();
    let agent = ScriptedAgent::start(&harness.path("agent.sock"));
    let mut world = World::start(&harness, &linux, |settings| {
        writes_much(settings);
        // QEMU's channel is a client here, so that the agent's part can be played without one in the guest.
        let channel = format!("socket,id=ga,path={},server=off", agent.socket.display());
        let port = "virtserialport,chardev=ga,name=org.qemu.guest_agent.0";
        for word in ["-device", "virtio-serial-pci", "-chardev", &channel, "-device", port] {
            settings.more.push(word.into());
        }
    });
    // Undone while it copies: thawed, whatever was under way.
    let command = world.source.migrate(VM, &world.destination, &["--mode", "warm", "--limit", "1MB/s"]);
    crate::harness::until("the first point", || (!agent.asked().is_empty()).then_some(()));
    let id = world.source.migration().unwrap()["migration"].as_str().unwrap().to_owned();
    world.source.run(&["migration", "cancel", &id]).done();
    drop(command.finish());
    world.source.await_state(&["rolled-back"]);
    world.goes_on_at_the_source();
    assert_eq!(agent.asked().last().map(String::as_str), Some("thaw"));
    let before = agent.asked().len();
    let there = world.destination.serial(VM);
    world.source.migrate(VM, &world.destination, &["--mode", "warm"]).finish().done();
    there.wait_for_heartbeats(3, HANG).unwrap();
    let asked = agent.asked().split_off(before);
    // Around each point of the rounds; and before the stop, after which it boots elsewhere.
    let (last, rounds) = asked.split_last().unwrap();
    assert_eq!(last, "freeze");
    assert!(!rounds.is_empty() && rounds.chunks(2).all(|pair| pair == ["freeze", "thaw"]), "{asked:?}");
}
