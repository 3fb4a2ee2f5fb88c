use std::fs;
use std::path::Path;

use super::*;
use crate::inventory::{Access, Needs, State};

fn vm(disks: Option<Vec<Disk>>) -> Vm {
    Vm {
        id: "a".to_owned(),
        name: "a".to_owned(),
        folder: None,
        process: None,
        state: State::Stopped,
        access: Access::Stopped,
        config: None,
        needs: Needs { disks, ..Needs::default() },
        findings: Vec::new(),
    }
}

#[tokio::test]
async fn raw_images_tell_their_size_and_plans_stand_in_for_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.raw");
    fs::write(&path, [0; 1000]).unwrap();
    let raw = || Disk::look(&path, "raw");
    let absent = || Disk::look(Path::new("/nowhere/a"), "raw");
    let no_file = || Disk::look(folder.path(), "raw");
    let mut sizes = Sizes::default();
    let vms = [
        vm(None),
        vm(Some(Vec::new())),
        vm(Some(vec![raw()])),
        vm(Some(vec![raw(), raw()])),
        vm(Some(vec![raw(), absent()])),
        vm(Some(vec![raw(), no_file()])),
        vm(Some(vec![absent().planned(7 << 30)])),
        vm(Some(vec![raw().planned(7 << 30)])),
    ];
    assert_eq!(sizes.of(&vms).await, [0, 0, 1024, 2048, 0, 0, 7 << 30, 1024]);
    assert!(sizes.known.is_empty(), "nobody was asked");
}

#[tokio::test]
async fn what_is_remembered_is_believed_while_the_file_is_the_same_or_it_is_young() {
    let folder = tempfile::tempdir().unwrap();
    // Whoever looked into it would find no image.
    let path = folder.path().join("a.qcow2");
    fs::write(&path, b"x").unwrap();
    let disk = Disk::look(&path, "qcow2");
    let print = disk.file.unwrap();
    let vms = [vm(Some(vec![disk.clone()]))];
    let long_ago = Instant::now().checked_sub(2 * BETWEEN).unwrap();
    let of_another = (print.changed.0 + 1, print.changed.1, print.changed.2);
    for (size, changed, at, expected) in [
        (4096, print.changed, long_ago, 4096),
        (4096, of_another, Instant::now(), 4096),
        (4096, of_another, long_ago, 0),
        (0, print.changed, Instant::now(), 0),
    ] {
        let mut sizes = Sizes::default();
        let key = (path.clone(), "qcow2".to_owned(), print.file);
        sizes.known.insert(key.clone(), Known { size, changed, at, used: false });
        assert_eq!(sizes.of(&vms).await, [expected]);
        assert!(sizes.known[&key].changed == print.changed || expected > 0);
        assert_eq!(sizes.of(&[]).await, [0; 0]);
        assert!(sizes.known.is_empty(), "what nobody asks for is forgotten");
    }
}
