//! The files of a fence: renamed, so that neither NovaCron nor anybody else who only knows the paths starts the old
//! copy, also after the host restarted.
//!
//! NovaCron needs `config.json` and the disk that it names (`disk.qcow2` in the VM's folder). The mark in vmd's own
//! record comes first and holds the list; renaming follows and is repeated at every start of vmd until it is done.
//! A QEMU that still has the files open, paused, keeps them.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::record::{Fence, replace, sync_folder_of};

/// NovaCron's names in a VM's folder.
const OF_NOVACRON: [&str; 2] = ["config.json", "disk.qcow2"];

/// What a fence will rename: NovaCron's files that are there, and others that are named.
pub(crate) fn plan(folder: &Path, generation: u64, files: &[PathBuf], since: u64) -> io::Result<Fence> {
    let mut all: Vec<PathBuf> = OF_NOVACRON.iter().map(|name| folder.join(name)).collect();
    all.extend(files.iter().cloned());
    all.sort();
    all.dedup();
    let mut renames = Vec::new();
    for from in all {
        let is_file = match std::fs::symlink_metadata(&from) {
            Ok(metadata) => metadata.is_file() || metadata.is_symlink(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        // Block devices keep their names: the VM's own configuration, which names them, is what goes.
        if is_file {
            let mut to = from.clone().into_os_string();
            to.push(format!(".migrated-{generation}"));
            renames.push((from, PathBuf::from(to)));
        }
    }
    Ok(Fence { generation, since, renames, marker: folder.join(format!("MIGRATED-{generation}.txt")) })
}

/// Does what is planned; may be repeated.
pub(crate) fn apply(vm: &str, fence: &Fence) -> io::Result<()> {
    for (from, to) in &fence.renames {
        rename(from, to)?;
    }
    if fence.marker.parent().is_some_and(Path::is_dir) {
        replace(&fence.marker, marker(vm, fence).as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Undoes it; may be repeated.
pub(crate) fn undo(fence: &Fence) -> io::Result<()> {
    for (from, to) in &fence.renames {
        rename(to, from)?;
    }
    match std::fs::remove_file(&fence.marker) {
        Ok(()) => sync_folder_of(&fence.marker),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Renames durably; that it was renamed before is no error, that something else has the name by now is.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => sync_folder_of(to),
        // Done before, or neither is there any more: then there is nothing that could be started.
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => {
            let error = io::Error::from(error);
            let what = format!("cannot rename {} to {}: {error}", from.display(), to.display());
            Err(io::Error::new(error.kind(), what))
        }
    }
}

fn marker(vm: &str, fence: &Fence) -> String {
    let mut text = format!(
        "The virtual machine {vm} was moved to another host by novaferry (generation {}).\n\n\
         Do not start it here: it would run twice, and what it writes here would be lost. Its files were renamed so\n\
         that nothing starts it by mistake. `novaferry-agent migration` shows where it is and can bring it back;\n\
         when the move is final, these files may be removed:\n\n",
        fence.generation
    );
    for (from, to) in &fence.renames {
        // Writing to a string cannot fail.
        let _infallible = writeln!(text, "  {}\n      was {}", to.display(), from.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_fence_hides_the_files_and_undoing_restores_exactly() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "disk.qcow2", "data.raw", "other"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let before = names(folder.path());
        let extra = [folder.path().join("data.raw"), folder.path().join("absent")];
        let fence = plan(folder.path(), 7, &extra, 0).unwrap();
        for _ in 0..2 {
            apply("web-1", &fence).unwrap();
            let expected = [
                "MIGRATED-7.txt",
                "config.json.migrated-7",
                "data.raw.migrated-7",
                "disk.qcow2.migrated-7",
                "other",
            ];
            assert_eq!(names(folder.path()), expected);
        }
        for _ in 0..2 {
            undo(&fence).unwrap();
            assert_eq!(names(folder.path()), before);
        }
        assert_eq!(std::fs::read(folder.path().join("disk.qcow2")).unwrap(), b"disk.qcow2");
    }

    #[test]
    fn a_half_done_fence_is_completed_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "disk.qcow2"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let fence = plan(folder.path(), 1, &[], 0).unwrap();
        let (from, to) = &fence.renames[0];
        std::fs::rename(from, to).unwrap();
        apply("a", &fence).unwrap();
        assert_eq!(names(folder.path()).len(), 3);
        // Somebody made a new disk meanwhile: it is not replaced.
        std::fs::write(folder.path().join("disk.qcow2"), b"new").unwrap();
        undo(&fence).unwrap_err();
        assert_eq!(std::fs::read(folder.path().join("disk.qcow2")).unwrap(), b"new");
    }
}
