//! Migrations of a real QEMU (capability `qemu-system`) through the tokenisers: the destination gets what was rebuilt
//! from the tokens, and its guest must find all its memory intact.
//!
//! `cargo test -p novaferry-hypervisor --test migration -- --ignored record` writes the recordings that the unit
//! tests read into `tests/recorded`, from a smaller guest.

#[path = "support/capability.rs"]
mod capability;
#[path = "support/guest.rs"]
mod guest;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/recorded.rs"]
mod recorded;
#[path = "support/relay.rs"]
mod relay;

use std::path::Path;

use guest::Size;
use machine::{Machine, until};
use novaferry_hypervisor::stream::{Kind, Reason};
use relay::{Channel, Relay};
use serde_json::json;

const PROGRAM: &str = "qemu-system-x86_64";
/// Several packets of 128 pages a round.
const LIVE: Size = Size { memory_mib: 16, pages: 1000 };
/// A recording of every one of its pages is small.
const RECORDED: Size = Size { memory_mib: 4, pages: 16 };

/// How the memory travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Single,
    /// Pages that changed a little travel as deltas.
    Deltas,
    Multifd,
    PostCopy,
}

impl Mode {
    fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Single => &["return-path"],
            Self::Deltas => &["return-path", "xbzrle"],
            Self::Multifd => &["return-path", "multifd"],
            Self::PostCopy => &["return-path", "postcopy-ram"],
        }
    }
}

/// Moves a guest through the tokenisers and returns what passed: the main channel first, then those of multifd.
fn migrate(folder: &Path, size: Size, mode: Mode) -> Vec<Channel> {
    let disk = guest::boot_disk(folder, size);
    let mut source = Machine::start(folder, "source", size.memory_mib, &disk, &[]);
    source.wait_for_beats(1);
    let mut destination =
        Machine::start(folder, "destination", size.memory_mib, &disk, &["-incoming", "defer"]);
    // Slower than the guest writes: post-copy must begin before all is copied, and deltas come in the second round.
    let (bandwidth, downtime): (u64, u64) = match mode {
        Mode::PostCopy | Mode::Deltas => (4 << 20, 1),
        Mode::Single | Mode::Multifd => (1 << 30, 500),
    };
    for machine in [&mut source, &mut destination] {
        machine.capabilities(mode.capabilities());
        machine.run(
            "migrate-set-parameters",
            json!({"max-bandwidth": bandwidth, "multifd-channels": 2, "downtime-limit": downtime}),
        );
    }
    let socket = folder.join("incoming");
    destination.run("migrate-incoming", json!({"uri": format!("unix:{}", socket.display())}));
    let relay = Relay::start(&folder.join("relay"), &socket);
    source.run("migrate", json!({"uri": format!("unix:{}", relay.path().display())}));
    if mode == Mode::PostCopy {
        source.wait_for("active");
        source.run("migrate-start-postcopy", json!({}));
    }
    if mode == Mode::Deltas {
        until("a page sent as a delta", || {
            let answer = source.run("query-migrate", json!({}));
            answer["xbzrle-cache"]["pages"].as_u64().is_some_and(|pages| pages > 0)
        });
        source.run("migrate-set-parameters", json!({"downtime-limit": 60_000}));
    }
    source.wait_for("completed");
    destination.wait_for("completed");
    destination.wait_for_beats(2);
    assert!(!source.printed().contains('X'), "the guest was well before it moved");
    drop((source, destination));
    let mut channels = relay.finish();
    channels.sort_by_key(|channel| (channel.kind != Kind::Main, channel.number));
    channels
}

fn live(test: &str, mode: Mode) -> Option<Vec<Channel>> {
    if !capability::have("qemu-system", PROGRAM, test) {
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    Some(migrate(folder.path(), LIVE, mode))
}

#[test]
fn a_single_stream_is_recognised_up_to_the_device_state() {
    let Some(channels) = live("a_single_stream_is_recognised_up_to_the_device_state", Mode::Single) else {
        return;
    };
    let [main] = &channels[..] else { panic!("one connection, not {}", channels.len()) };
    assert!(matches!(&main.literal_because, Some(Reason::Content(name)) if name != "ram"), "{main:?}");
    assert!(main.pages >= LIVE.pages as usize, "{main:?}");
    assert_eq!(main.bytes.len(), main.pages * 4096 + main.literal);
    // Zero pages, 9 bytes each, and the device state.
    assert!(main.literal < main.pages * 9 + 4096 * 9 + 200_000, "{main:?}");
}

#[test]
fn deltas_are_walked_over() {
    let Some(channels) = live("deltas_are_walked_over", Mode::Deltas) else { return };
    let [main] = &channels[..] else { panic!("one connection, not {}", channels.len()) };
    assert!(matches!(&main.literal_because, Some(Reason::Content(name)) if name != "ram"), "{main:?}");
    assert!(main.pages >= LIVE.pages as usize, "{main:?}");
}

#[test]
fn multifd_channels_are_recognised_to_their_end() {
    let Some(channels) = live("multifd_channels_are_recognised_to_their_end", Mode::Multifd) else {
        return;
    };
    let [main, first, second] = &channels[..] else { panic!("three connections, not {}", channels.len()) };
    assert_eq!((main.kind, main.pages), (Kind::Main, 0));
    assert!(matches!(&main.literal_because, Some(Reason::Content(_))), "{main:?}");
    for (number, channel) in [(0, first), (1, second)] {
        assert_eq!((channel.kind, channel.number), (Kind::Multifd, number));
        assert_eq!((channel.literal, channel.multifd_because), (0, None), "{channel:?}");
        assert!(channel.syncs > 0, "{channel:?}");
        assert_eq!(channel.syncs, first.syncs, "every round ends on every channel");
    }
    assert!(first.pages + second.pages >= LIVE.pages as usize, "{first:?} {second:?}");
    // The rest of the 16 MiB was never written.
    assert!(first.zero_pages + second.zero_pages >= 2000, "{first:?} {second:?}");
}

#[test]
fn a_post_copy_stream_is_recognised_to_its_end() {
    let Some(channels) = live("a_post_copy_stream_is_recognised_to_its_end", Mode::PostCopy) else {
        return;
    };
    let [main] = &channels[..] else { panic!("one connection, not {}", channels.len()) };
    assert_eq!(main.literal_because, Some(Reason::End), "{main:?}");
    assert!(main.pages >= LIVE.pages as usize, "{main:?}");
}

/// Replaces the content of pages, which is the firmware's, by one byte that depends on it: the recordings are for
/// their frames.
fn without_contents(channel: &Channel) -> Vec<u8> {
    let mut bytes = channel.bytes.clone();
    for at in &channel.page_places {
        let page = &mut bytes[*at..at + 4096];
        let sum = page.iter().fold(1_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte));
        page.fill(sum);
    }
    bytes
}

/// Bytes kept of a stream's literal rest: enough to see that it is one.
const TAIL: usize = 256;

#[test]
#[ignore = "writes the recordings"]
fn record() {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    for (mode, names) in [
        (Mode::Single, &["single"][..]),
        (Mode::Multifd, &["multifd_main", "multifd_channel"]),
        (Mode::PostCopy, &["post_copy"]),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let channels = migrate(folder.path(), RECORDED, mode);
        for (name, channel) in names.iter().zip(&channels) {
            let mut bytes = without_contents(channel);
            let known = bytes.len() - channel.passed_through;
            bytes.truncate(known + TAIL);
            let comment = format!(
                "QEMU 10.0.2, {mode:?}, {name}: {} pages, {} zero pages, {} syncs; contents of pages replaced, cut \
                 {TAIL} bytes after the last known one.",
                channel.pages, channel.zero_pages, channel.syncs
            );
            let text = recorded::encode(&comment, &bytes);
            assert!(recorded::decode(&text) == bytes, "{name} is read back");
            std::fs::write(target.join(format!("{name}.hex")), text).expect("write a recording");
        }
    }
}
