//! A guest is taken back from a post-copy that its destination never ran, of a real QEMU (capability `qemu-system`).

#[path = "support/capability.rs"]
mod capability;
#[path = "support/guest.rs"]
mod guest;
#[path = "support/machine.rs"]
mod machine;

use guest::Size;
use machine::Machine;
use novaferry_hypervisor::reclaim::{answer, ram_blocks};
use serde_json::json;
use tokio::net::UnixListener;

const SIZE: Size = Size { memory_mib: 16, pages: 1000 };

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_in_a_broken_post_copy_goes_on_where_it_was() {
    let test = "a_guest_in_a_broken_post_copy_goes_on_where_it_was";
    if !capability::have("qemu-system", "qemu-system-x86_64", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let disk = guest::boot_disk(path, SIZE);
    let mut source = Machine::start(path, "source", SIZE.memory_mib, &disk, &[]);
    source.wait_for_beats(1);
    let mut destination =
        Machine::start(path, "destination", SIZE.memory_mib, &disk, &["-S", "-incoming", "defer"]);
    for machine in [&mut source, &mut destination] {
        machine.capabilities(&["return-path", "postcopy-ram", "postcopy-preempt"]);
        let slow = json!({"max-bandwidth": 1 << 20, "max-postcopy-bandwidth": 1 << 16, "downtime-limit": 1});
        machine.run("migrate-set-parameters", slow);
    }
    let uri = |name: &str| format!("unix:{}", path.join(name).display());
    destination.run("migrate-incoming", json!({"uri": uri("incoming")}));
    source.run("migrate", json!({"uri": uri("incoming")}));
    source.wait_for("active");
    source.run("stop", json!({}));
    source.run("migrate-start-postcopy", json!({}));
    source.wait_for("postcopy-active");
    drop(destination);
    source.wait_for("postcopy-paused");

    let listed = source.run("human-monitor-command", json!({"command-line": "info ramblock"}));
    let blocks = ram_blocks(listed.as_str().unwrap());
    assert_eq!(blocks["pc.ram"], u64::from(SIZE.memory_mib) << 20);
    let listener = UnixListener::bind(path.join("here")).unwrap();
    let answers = tokio::spawn(async move {
        let (first, _) = listener.accept().await.unwrap();
        let second = tokio::spawn(async move {
            let (mut second, _) = listener.accept().await.unwrap();
            tokio::io::copy(&mut second, &mut tokio::io::sink()).await
        });
        answer(first, &blocks).await.unwrap();
        second.await.unwrap().unwrap();
    });
    source.run("migrate", json!({"uri": uri("here"), "resume": true}));
    source.wait_for("completed");
    answers.await.unwrap();
    source.run("cont", json!({}));
    source.wait_for_beats(2);
    assert!(!source.printed().contains('X'), "all of its memory is there");
}
