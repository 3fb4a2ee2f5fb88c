//! What a guest's disks may be besides raw ones of its own: one that it only reads, one that QEMU named, and the
//! variables of its firmware.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use guest::disk::Format;
use guest::{BootSector, DiskImage, Machine, Report, Settings, Vm};

use super::copied::renamed;
use super::{HANG, PROOF, VM, World, needs, outcome, proves_itself};
use crate::harness::vms::VmHost;
use crate::harness::{Capability, Harness, OVMF_CODE, capable};

const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// What OVMF says when it finds nothing to boot.
const SHELL: &str = "UEFI Interactive Shell";

/// Read-only: as long as a cloud-init image is, and not a whole number of extents.
fn seed(format: Format) -> Option<DiskImage> {
    Some(DiskImage { format, size: (3 << 20) + 512, path: None })
}

/// The one file in the pool here whose name begins so.
#[track_caller]
fn in_pool(host: &VmHost<'_>, begin: &str) -> PathBuf {
    let mut all = host.disk_paths();
    all.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(begin));
    assert_eq!(all.len(), 1, "{begin}: {:?}", host.disk_paths());
    all.remove(0)
}

#[track_caller]
fn same_content(one: &Path, format: Format, other: &Path, other_format: Format) {
    let status = std::process::Command::new("qemu-img")
        .args(["compare", "-U", "-q", "-f", format.name(), "-F", other_format.name()])
        .args([one, other])
        .status();
    assert!(status.unwrap().success(), "{} and {} differ", one.display(), other.display());
}

fn a_seed_moves(test: &str, options: &[&str], format: Format) {
    let Some(linux) = needs(test) else { return };
    let harness = Harness::of_guests();
    let world = World::start(&harness, &linux, |settings| settings.seed = seed(format));
    // The guest reads it all the time, and tries to write it.
    let back = there_and_back(&world, options);
    // Others may read it, too: the fence leaves it alone.
    let old = world.source.layout(VM).seed(format);
    for host in [&world.source, &world.destination] {
        same_content(&old, format, &in_pool(host, "vd1-"), Format::Raw);
    }
    println!("{test}: downtimes {:?}", back.downtimes);
}

/// Moves the guest, and then back from what vmd started.
#[track_caller]
fn there_and_back(world: &World<'_>, options: &[&str]) -> Report {
    let there = world.destination.serial(VM);
    let moved = world.source.migrate(VM, &world.destination, options).finish().done();
    println!("{}", outcome(&moved)["migration"]["record"]["report"]);
    there.wait_for_heartbeats(PROOF, HANG).unwrap_or_else(|error| panic!("{error}: {}", there.text()));
    world.destination.await_state(&["finalised"]);
    let back = world.source.serial(VM);
    world.destination.migrate(VM, &world.source, &[]).finish().done();
    let booted_there = options.contains(&"warm");
    let before = if booted_there { None } else { Some(world.guest.serial()) };
    let visits: Vec<_> = before.into_iter().chain([&there, &back]).collect();
    proves_itself(&visits)
}

#[test]
fn a_read_only_disk_moves_with_a_running_guest() {
    let options = ["--verify", "readback", "--max-downtime", "2s"];
    a_seed_moves("a_read_only_disk_moves_with_a_running_guest", &options, Format::Qcow2);
}

#[test]
fn a_read_only_disk_moves_warm() {
    let options = ["--mode", "warm", "--verify", "readback"];
    a_seed_moves("a_read_only_disk_moves_warm", &options, Format::Raw);
}

#[test]
fn a_disk_that_was_given_as_novacron_does_moves() {
    let Some(linux) = needs("a_disk_that_was_given_as_novacron_does_moves") else { return };
    let harness = Harness::of_guests();
    let world = World::start(&harness, &linux, |settings| settings.by_drive = true);
    there_and_back(&world, &[]);
}

/// The length of OVMF's variables: not a whole number of chunks.
const VARIABLES: usize = 528 << 10;

/// Flash memory as UEFI has it. The code is the BIOS, which starts the guest's kernel from there as well, so that the
/// guest can prove itself; the variables are bytes that nobody else has.
fn in_flash(settings: &mut Settings, harness: &Harness) -> Vec<u8> {
    let bios = "/usr/share/seabios/bios-256k.bin";
    let code = harness.path("host-a").join("firmware/code.fd");
    for host in ["host-a", "host-b"] {
        std::fs::copy(bios, harness.path(host).join("firmware/code.fd")).unwrap();
    }
    let bytes: Vec<u8> = (1..=251).cycle().take(VARIABLES).collect();
    let variables = harness.path("host-a").join("vms").join(VM).join("variables.fd");
    std::fs::create_dir_all(variables.parent().unwrap()).unwrap();
    std::fs::write(&variables, &bytes).unwrap();
    flash(settings, &code, &variables);
    bytes
}

fn flash(settings: &mut Settings, code: &Path, variables: &Path) {
    let drive = |file: &Path, more: &str| format!("if=pflash,format=raw,file={}{more}", file.display());
    for drive in [drive(code, ",readonly=on"), drive(variables, "")] {
        settings.more.extend(["-drive".into(), drive.into()]);
    }
}

fn variables_move(test: &str, options: &[&str]) {
    let Some(linux) = needs(test) else { return };
    let harness = Harness::of_guests();
    let mut bytes = Vec::new();
    let world = World::start(&harness, &linux, |settings| bytes = in_flash(settings, &harness));
    there_and_back(&world, options);
    for host in [&world.source, &world.destination] {
        assert!(std::fs::read(in_pool(host, "nvram-")).unwrap() == bytes, "other variables");
    }
    let old = world.source.layout(VM).folder().join("variables.fd");
    assert!(!old.exists(), "the old copy could be started with its variables");
}

#[test]
fn uefi_variables_move_with_a_running_guest() {
    variables_move(
        "uefi_variables_move_with_a_running_guest",
        &["--verify", "readback", "--max-downtime", "2s"],
    );
}

#[test]
fn uefi_variables_move_warm() {
    variables_move("uefi_variables_move_warm", &["--mode", "warm"]);
}

#[test]
fn a_host_without_the_firmware_refuses() {
    let test = "a_host_without_the_firmware_refuses";
    let Some(linux) = needs(test) else { return };
    let harness = Harness::of_guests();
    for expected in ["a migration is refused", "a step failed"] {
        harness.allow_log(expected);
    }
    let mut world = World::start(&harness, &linux, |settings| drop(in_flash(settings, &harness)));
    std::fs::remove_file(harness.path("host-b").join("firmware/code.fd")).unwrap();
    let ended = world.source.migrate(VM, &world.destination, &[]).finish();
    assert_eq!(ended.status.code(), Some(1));
    let why = outcome(&ended)["migration"]["record"]["role"]["source"]["state"]["with"].to_string();
    assert!(why.contains("the firmware folder has no code.fd"), "{why}");
    world.goes_on_at_the_source();
}

#[test]
fn ovmf_moves_with_what_it_noted() {
    let test = "ovmf_moves_with_what_it_noted";
    if !guest::available(test) || !capable(test, &[Capability::Root, Capability::Ovmf]) {
        return;
    }
    let harness = Harness::of_guests();
    let source = VmHost::new(&harness, "host-a", None);
    let destination = VmHost::new(&harness, "host-b", None);
    for host in ["host-a", "host-b"] {
        std::fs::copy(OVMF_CODE, harness.path(host).join("firmware/OVMF_CODE_4M.fd")).unwrap();
    }
    let folder = source.layout(VM).folder().to_owned();
    std::fs::create_dir_all(&folder).unwrap();
    let variables = folder.join("variables.fd");
    std::fs::copy(OVMF_VARIABLES, &variables).unwrap();
    // No boot loader for UEFI is on the disk: it comes to its own shell.
    let mut settings = Settings::boot_sector(VM, &BootSector::new(16 << 20, 24 << 20).unwrap());
    (settings.machine, settings.memory) = (Machine::Q35, 128);
    flash(&mut settings, &harness.path("host-a").join("firmware/OVMF_CODE_4M.fd"), &variables);
    let mut guest = Vm::start(&source.vms(), settings).unwrap();
    source.start();
    destination.start();
    guest.serial().wait_for_text(SHELL, HANG).unwrap();
    source.migrate(VM, &destination, &[]).finish().done();
    assert!(guest.wait_for_end(HANG).is_ok(), "the source's QEMU ends");
    destination.await_state(&["finalised"]);
    let left = std::fs::read(renamed(&variables)).unwrap();
    assert!(left != std::fs::read(OVMF_VARIABLES).unwrap(), "it noted nothing");
    assert!(std::fs::read(in_pool(&destination, "nvram-")).unwrap() == left, "other variables");
    // It boots there, from the code and the variables of that host.
    let there = destination.serial(VM);
    let mut monitor = UnixStream::connect(destination.layout(VM).folder().join("run/qmp.sock")).unwrap();
    monitor.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"system_reset\"}").unwrap();
    there.wait_for_text(SHELL, HANG).unwrap();
}
