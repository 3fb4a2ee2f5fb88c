use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Format, Left, check, create};
use crate::init::slots::{BLOCK, Disk};

#[test]
fn an_image_is_checked_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    create(&path, Format::Raw, 1 << 20, b"boot").unwrap();
    assert_eq!(check(&path, Format::Raw).unwrap(), Left::Nothing);

    let disk = Disk::new(3, 255).unwrap();
    let image = File::options().write(true).open(&path).unwrap();
    image.write_all_at(&disk.header().0, 0).unwrap();
    assert_eq!(check(&path, Format::Raw).unwrap(), Left::Writes(0));
    for sequence in 1..=10 {
        let offset = disk.slot_of(sequence) * BLOCK as u64;
        image.write_all_at(&disk.block(sequence).0, offset).unwrap();
        assert_eq!(check(&path, Format::Raw).unwrap(), Left::Writes(sequence));
    }
    // The last write of one slot is taken back.
    let lost =
        (1..10).find(|one| (one + 1..=10).all(|later| disk.slot_of(later) != disk.slot_of(*one))).unwrap();
    image.write_all_at(&[0; BLOCK], disk.slot_of(lost) * BLOCK as u64).unwrap();
    let error = check(&path, Format::Raw).unwrap_err();
    assert!(
        std::error::Error::source(&error).unwrap().to_string().starts_with("1 slots are wrong: disk slot")
    );
}
