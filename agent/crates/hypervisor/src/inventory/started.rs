//! What a QEMU was started with, from its command line (QEMU's `qemu-options.hx`): how much it takes of its host, and
//! what it wants there.
//!
//! Read for a list of all VMs, of whoever starts them, and not for moving one: what is not understood is unknown and
//! no error, and what was plugged in since is not seen. A move reads with more care (`specification::derive`), and asks
//! QEMU.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::command_line::CommandLine;
use crate::specification::arguments::{Argument, Pairs, number, size, split};

/// Longest way from a disk's device to its file: a few filters, a format, the file. What is longer goes in circles.
const MAX_NODES: u32 = 8;

/// Block drivers that show what is below them as it is.
const FILTERS: [&str; 4] = ["throttle", "copy-on-read", "compress", "preallocate"];

/// What a QEMU was started with. What is not known is zero or empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Started {
    /// `-m`, bytes.
    pub(super) memory_bytes: u64,
    /// `-smp`: those that run at boot.
    pub(super) processors: u32,
    /// `-cpu` without its features.
    pub(super) cpu: String,
    /// `-machine` without its options; an alias stays one.
    pub(super) machine: String,
    /// KVM is the only accelerator that it may use.
    pub(super) kvm: bool,
    /// The images of all its disks; none when one of them is not known.
    pub(super) disks: Option<Vec<Image>>,
}

/// The image of a disk.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Image {
    /// The file or block device, perhaps relative to its process's folder.
    pub(super) path: PathBuf,
    /// As QEMU was told. Never probed: a guest chooses what its raw disk looks like.
    pub(super) format: String,
}

impl Started {
    pub(super) fn read(line: &CommandLine) -> Self {
        let arguments = line.texts();
        let mut all = Self { processors: 1, ..Self::default() };
        let (mut accelerators, mut disks) = (Vec::new(), Disks::default());
        for Argument { name, value } in split(&arguments) {
            let pairs = |implied| Pairs::read(name, value, implied).unwrap_or_default();
            match name {
                "m" => {
                    if let Some(text) = pairs(Some("size")).take("size") {
                        all.memory_bytes = size(name, &text, 1 << 20).unwrap_or(0);
                    }
                }
                "smp" => all.processors = processors(&pairs(Some("cpus"))).unwrap_or(0),
                "cpu" => {
                    let model = value.split(',').next().unwrap_or_default();
                    model.clone_into(&mut all.cpu);
                }
                "machine" | "M" => {
                    let mut pairs = pairs(Some("type"));
                    all.machine = pairs.take("type").unwrap_or(all.machine);
                    accelerators.extend(pairs.take("accel"));
                }
                "accel" => accelerators.extend(pairs(Some("accel")).take("accel")),
                "enable-kvm" => accelerators.push("kvm".to_owned()),
                // It may say anything of all this.
                "readconfig" => return Self::default(),
                _ => disks.read(name, value),
            }
        }
        // Of several, QEMU takes the first that works; nobody but QEMU knows which that was.
        all.kvm = !accelerators.is_empty() && accelerators.iter().all(|one| one == "kvm");
        all.disks = disks.images();
        all
    }
}

/// `machine_parse_smp_config`: the product, where no count is given.
fn processors(pairs: &Pairs) -> Option<u32> {
    let get = |key| pairs.get(key).map(|text| number::<u32>("smp", text));
    if let Some(count) = get("cpus").or_else(|| get("maxcpus")) {
        return count.ok();
    }
    let levels = ["drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"];
    let counts = levels.into_iter().filter_map(get);
    counts.into_iter().try_fold(1_u32, |product, count| product.checked_mul(count.ok()?))
}

/// What the options say about disks.
#[derive(Debug, Default)]
struct Disks {
    /// `-blockdev`, by node name.
    nodes: BTreeMap<String, Pairs>,
    /// `-drive if=none`, by id.
    drives: BTreeMap<String, Option<Image>>,
    /// What devices name: a node or a drive.
    named: BTreeSet<String>,
    /// Of drives that are devices, too. None is an image that is not known.
    own: Vec<Option<Image>>,
}

impl Disks {
    fn read(&mut self, name: &str, value: &str) {
        let pairs = |implied| Pairs::read(name, value, implied).unwrap_or_default();
        match name {
            "blockdev" => {
                let mut pairs = pairs(Some("driver"));
                if let Some(name) = pairs.take("node-name") {
                    self.nodes.insert(name, pairs);
                }
            }
            "drive" => self.drive(&pairs(None)),
            "device" => self.device(&pairs(Some("driver"))),
            // QEMU looks by itself what they are.
            "hda" | "hdb" | "hdc" | "hdd" | "sd" | "mtdblock" | "" => self.own.push(None),
            _ => {}
        }
    }

    fn drive(&mut self, pairs: &Pairs) {
        let path = pairs.get("file").or_else(|| pairs.get("file.filename")).unwrap_or_default();
        if path.is_empty() || pairs.get("media") == Some("cdrom") {
            return;
        }
        let name = path.strip_prefix("file:").unwrap_or(path);
        // Before its first slash, a colon ends a protocol's name.
        let is_file = !name.split('/').next().is_some_and(|first| first.contains(':'));
        let local = pairs.get("file.driver").is_none_or(|driver| ["file", "host_device"].contains(&driver));
        let format = pairs.get("format").or_else(|| pairs.get("driver")).filter(|_| is_file && local);
        let image = format.map(|format| Image { path: name.into(), format: format.to_owned() });
        match pairs.get("if") {
            Some("none") => {
                self.drives.insert(pairs.get("id").unwrap_or_default().to_owned(), image);
            }
            // Firmware and its variables, and what nobody has any more.
            Some("pflash" | "floppy") => {}
            Some(_) | None => self.own.push(image),
        }
    }

    fn device(&mut self, pairs: &Pairs) {
        let driver = pairs.get("driver").unwrap_or_default();
        if driver.starts_with("vhost-user-blk") {
            // Another process has the disk.
            self.own.push(None);
        }
        if driver.ends_with("-cd") || driver == "floppy" {
            return;
        }
        self.named.extend(pairs.get("drive").map(ToOwned::to_owned));
    }

    fn images(self) -> Option<Vec<Image>> {
        let named = self.named.iter().map(|name| match self.drives.get(name) {
            Some(image) => image.clone(),
            None => self.image(self.nodes.get(name)?.clone(), MAX_NODES),
        });
        named.chain(self.own.iter().cloned()).collect()
    }

    /// The image at the bottom of a node.
    fn image(&self, mut node: Pairs, left: u32) -> Option<Image> {
        let left = left.checked_sub(1)?;
        let driver = node.take("driver")?;
        if ["file", "host_device"].contains(&driver.as_str()) {
            return Some(Image { path: node.take("filename")?.into(), format: "raw".to_owned() });
        }
        // A part of a file.
        if node.get("offset").or_else(|| node.get("size")).is_some() {
            return None;
        }
        let below = match node.take("file") {
            Some(name) => self.nodes.get(&name)?.clone(),
            None => node.take_prefix("file."),
        };
        let image = self.image(below, left)?;
        if FILTERS.contains(&driver.as_str()) {
            return Some(image);
        }
        // A format in another one is nobody's.
        (image.format == "raw").then_some(Image { format: driver, ..image })
    }
}

#[cfg(test)]
mod tests;
