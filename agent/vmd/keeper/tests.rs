//! Fences, generations and users, without QEMU.

use super::*;
use crate::config::FileConfig;

fn keeper(base: &std::path::Path) -> Result<Keeper, Refusal> {
    let text =
        format!("vms = {:?}\nstate = {:?}\nuids = \"5000-5000\"", base.join("vms"), base.join("state"));
    Keeper::open(Config::new(toml::from_str::<FileConfig>(&text).unwrap()).unwrap())
}

#[test]
fn one_vmd_at_a_time_uses_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let first = keeper(folder.path()).unwrap();
    let error = keeper(folder.path()).unwrap_err();
    assert!(error.message.contains("another vmd"), "{}", error.message);
    drop(first);
    keeper(folder.path()).unwrap();
}

#[test]
fn generations_only_grow_and_fences_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let vm = folder.path().join("vms/a");
    std::fs::create_dir_all(&vm).unwrap();
    std::fs::write(vm.join("disk.qcow2"), b"x").unwrap();
    let keeper = keeper(folder.path()).unwrap();
    assert_eq!(keeper.fence("a", 0, &[]).unwrap_err().kind, RefusalKind::Stale);
    keeper.fence("a", 5, &[]).unwrap();
    assert_eq!(keeper.fence("a", 4, &[]).unwrap_err().kind, RefusalKind::Stale);
    // A second attempt to move a VM whose first fence nobody undid.
    let both = keeper.fence("a", 6, &[]).unwrap();
    assert_eq!((both.generation, both.renamed.len()), (6, 1));
    assert_eq!(keeper.unfence("a", 5).unwrap_err().kind, RefusalKind::Stale);
    keeper.unfence("a", 6).unwrap();
    assert_eq!(std::fs::read(vm.join("disk.qcow2")).unwrap(), b"x");
    assert_eq!(std::fs::read_dir(&vm).unwrap().count(), 1);
    keeper.unfence("a", 6).unwrap();
    assert_eq!(keeper.unfence("a", 5).unwrap_err().kind, RefusalKind::Stale);
    let many = vec![PathBuf::from("/x"); MAX_FENCED_FILES + 1];
    assert_eq!(keeper.fence("a", 7, &many).unwrap_err().kind, RefusalKind::Invalid);
}

#[test]
fn what_is_not_known_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = keeper(folder.path()).unwrap();
    for answer in [
        keeper.answer(Request::Status { vm: "x".to_owned() }),
        keeper.answer(Request::Stop { vm: "\u{1b}".repeat(1000), kill: true }),
        keeper.answer(Request::Forget { vm: String::new() }),
    ] {
        let Answer::Error(refusal) = answer else { panic!("{answer:?}") };
        assert_eq!(refusal.kind, RefusalKind::Unknown);
        assert!(refusal.message.len() < 1000 && !refusal.message.contains('\u{1b}'), "{}", refusal.message);
    }
    assert_eq!(keeper.answer(Request::List {}), Answer::Vms(Vec::new()));
}
