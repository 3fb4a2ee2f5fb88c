//! Volumes: files with content, loop devices, small file systems.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) const MIB: u64 = 1 << 20;

/// Seeded numbers (splitmix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        for part in out.chunks_mut(8) {
            let bytes = self.roll().to_le_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
    }
}

/// A file of incompressible bytes.
pub(crate) fn random_file(path: &Path, size: u64, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut file = File::create(path).unwrap();
    let mut block = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        let now = usize::try_from(left.min(MIB)).unwrap();
        dice.fill(&mut block[..now]);
        file.write_all(&block[..now]).unwrap();
        left -= now as u64;
    }
}

/// A file like a disk's: random parts, text, holes, written zeros and repetitions, and an end that fits no sector.
pub(crate) fn mixed_file(path: &Path, size: u64, seed: u64) {
    let mut dice = Dice::new(seed);
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut first = vec![0; 65_536];
    dice.fill(&mut first);
    let mut block = vec![0; 65_536];
    let mut at = 0;
    while at < size {
        let now = usize::try_from((size - at).min(65_536)).unwrap();
        match dice.below(8) {
            0 => {}
            1 => file.write_all_at(&vec![0; now], at).unwrap(),
            2 => file.write_all_at(&first[..now], at).unwrap(),
            3 => {
                let text = format!("line {} of a log that says much the same every time\n", dice.below(1000));
                let text: Vec<u8> = text.bytes().cycle().take(now).collect();
                file.write_all_at(&text, at).unwrap();
            }
            _ => {
                dice.fill(&mut block[..now]);
                file.write_all_at(&block[..now], at).unwrap();
            }
        }
        at += now as u64;
    }
}

/// Overwrites random pages.
pub(crate) fn change_pages(path: &Path, count: u64, seed: u64) {
    let file = File::options().write(true).open(path).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    let mut dice = Dice::new(seed);
    let mut page = [0; 4096];
    for _ in 0..count {
        dice.fill(&mut page);
        file.write_all_at(&page, dice.below(pages) * 4096).unwrap();
    }
}

/// How many bytes differ in the first `size` of two volumes, without holding either in memory.
pub(crate) fn differing_bytes(a: &Path, b: &Path, size: u64) -> u64 {
    let (mut a, mut b) = (File::open(a).unwrap().take(size), File::open(b).unwrap().take(size));
    let (mut of_a, mut of_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut differing = 0;
    loop {
        let (in_a, in_b) = (read_full(&mut a, &mut of_a), read_full(&mut b, &mut of_b));
        if of_a[..in_a] != of_b[..in_b] {
            let common = of_a[..in_a].iter().zip(&of_b[..in_b]).filter(|(a, b)| a != b).count();
            differing += (common + in_a.abs_diff(in_b)) as u64;
        }
        if in_a == 0 && in_b == 0 {
            return differing;
        }
    }
}

fn read_full(from: &mut impl Read, into: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < into.len() {
        match from.read(&mut into[filled..]).unwrap() {
            0 => break,
            n => filled += n,
        }
    }
    filled
}

/// Two files are the same.
#[track_caller]
pub(crate) fn same(a: &Path, b: &Path) {
    let lengths = [a, b].map(|path| path.metadata().unwrap().len());
    assert_eq!(lengths[0], lengths[1], "{} and {} differ in length", a.display(), b.display());
    assert_eq!(differing_bytes(a, b, lengths[0]), 0, "bytes of {} differ from {}", b.display(), a.display());
}

/// Runs a tool that has to work.
#[track_caller]
pub(crate) fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A loop device over a file, which stays.
pub(crate) struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Over a sparse file that is made here.
    pub(crate) fn new(backing: &Path, size: u64, sector: u32) -> Self {
        File::create(backing).unwrap().set_len(size).unwrap();
        Self::over(backing, sector)
    }

    pub(crate) fn over(backing: &Path, sector: u32) -> Self {
        let sector = sector.to_string();
        let name = tool("losetup", &["--find", "--show", "--sector-size", &sector, text(backing)]);
        Self { path: name.trim().into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // What counts is that it goes; a failure shows as a device that is left over.
        drop(Command::new("losetup").arg("--detach").arg(&self.path).output());
    }
}

/// A mounted file system; unmounted when dropped.
pub(crate) struct Mount {
    folder: PathBuf,
    device: Option<LoopDevice>,
}

impl Mount {
    pub(crate) fn tmpfs(folder: &Path, size: u64) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        tool("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "tmpfs", text(folder)]);
        Self { folder: folder.to_owned(), device: None }
    }

    /// An ext4 on a loop device over a file that is made beside the folder.
    pub(crate) fn ext4(folder: &Path, size: u64) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let device = LoopDevice::new(&folder.with_extension("ext4"), size, 512);
        tool("mkfs.ext4", &["-q", "-F", "-m", "0", text(device.path())]);
        tool("mount", &[text(device.path()), text(folder)]);
        Self { folder: folder.to_owned(), device: Some(device) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn device(&self) -> &Path {
        self.device.as_ref().unwrap().path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, so that nothing stays mounted when a process of a failed test still holds a file.
        drop(Command::new("umount").arg("--lazy").arg(&self.folder).output());
    }
}
