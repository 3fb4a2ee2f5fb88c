//! The images behind the running VM's disks, from `-blockdev` and `-drive`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::SpecificationError;
use super::arguments::{Pairs, flag, number};

/// An image of the source host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Image {
    pub(super) path: PathBuf,
    /// None when QEMU probes it.
    pub(super) format: Option<String>,
    pub(super) read_only: bool,
    /// The name that was given to the node under the device.
    pub(super) node: Option<String>,
    /// `cache=writethrough` and `directsync` switch off the guest's write cache.
    pub(super) write_cache: Option<bool>,
}

/// Why an image cannot be carried: for a finding's evidence.
pub(super) type Obstacle = String;

/// Nodes of `-blockdev`, by name.
#[derive(Debug, Default)]
pub(super) struct Nodes(BTreeMap<String, Pairs>);

impl Nodes {
    pub(super) fn add(&mut self, mut pairs: Pairs) -> Result<(), SpecificationError> {
        let name = pairs.take("node-name");
        let name = name.ok_or_else(|| super::arguments::bad("blockdev", "node-name is missing"))?;
        self.0.insert(name, pairs);
        Ok(())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The image at the bottom of a node.
    pub(super) fn image(&self, name: &str) -> Result<Image, Obstacle> {
        let mut pairs = self.0.get(name).ok_or_else(|| format!("there is no block node {name:?}"))?.clone();
        let read_only = pairs.take("read-only").as_deref() == Some("on");
        let (path, format) = self.bottom(&mut pairs)?;
        Ok(Image { path, format: Some(format), read_only, node: Some(name.to_owned()), write_cache: None })
    }

    fn bottom(&self, pairs: &mut Pairs) -> Result<(PathBuf, String), Obstacle> {
        let driver = pairs.take("driver").unwrap_or_default();
        match driver.as_str() {
            "file" | "host_device" => {
                let path = pairs.take("filename").ok_or("an image has no file name")?;
                Ok((path.into(), "raw".to_owned()))
            }
            "raw" | "qcow2" => {
                if pairs.get("offset").or_else(|| pairs.get("size")).is_some() {
                    return Err("a disk is a part of a file (offset, size)".to_owned());
                }
                let mut file = match pairs.take("file") {
                    Some(name) => {
                        self.0.get(&name).ok_or_else(|| format!("there is no block node {name:?}"))?.clone()
                    }
                    None => pairs.take_prefix("file."),
                };
                let below = file.get("driver").unwrap_or_default().to_owned();
                if !["file", "host_device"].contains(&below.as_str()) {
                    return Err(format!("an image lies on block driver {below:?}"));
                }
                let (path, _) = self.bottom(&mut file)?;
                Ok((path, driver))
            }
            _ => Err(format!("block driver {driver:?}")),
        }
    }
}

/// `-drive`.
#[derive(Clone, Debug)]
pub(super) struct Drive {
    /// `if=`; none is the board's.
    pub(super) interface: Option<String>,
    pub(super) id: Option<String>,
    pub(super) index: Option<u32>,
    pub(super) bus_unit: (Option<u32>, Option<u32>),
    pub(super) optical: bool,
    /// None: no medium.
    pub(super) image: Option<Result<Image, Obstacle>>,
    /// `werror`, `rerror` of the device.
    pub(super) policies: Vec<(String, String)>,
}

impl Drive {
    pub(super) fn read(mut pairs: Pairs) -> Result<Self, SpecificationError> {
        let option = "drive";
        let interface = pairs.take("if");
        let id = pairs.take("id");
        let index = pairs.take("index").map(|text| number(option, &text)).transpose()?;
        let bus = pairs.take("bus").map(|text| number(option, &text)).transpose()?;
        let unit = pairs.take("unit").map(|text| number(option, &text)).transpose()?;
        let optical = pairs.take("media").as_deref() == Some("cdrom");
        let read_only = pairs.take("readonly").or_else(|| pairs.take("read-only"));
        let read_only = read_only.map(|text| flag(option, &text)).transpose()?.unwrap_or(false);
        let format = pairs.take("format").or_else(|| pairs.take("driver"));
        let cache = pairs.take("cache");
        let write_cache = match cache.as_deref() {
            Some("writethrough" | "directsync") => Some(false),
            _ => None,
        };
        let path = pairs.take("file").or_else(|| pairs.take("file.filename"));
        let mut policies = Vec::new();
        for key in ["werror", "rerror"] {
            policies.extend(pairs.take(key).map(|value| (key.to_owned(), value)));
        }
        let node = pairs.take("node-name");
        // How the host reads and caches is the destination's choice.
        for key in [
            "aio",
            "discard",
            "detect-zeroes",
            "cache.direct",
            "cache.no-flush",
            "file.driver",
            "file.locking",
            "locking",
        ] {
            pairs.take(key);
        }
        let snapshot = pairs.take("snapshot").as_deref() == Some("on");
        let image = path.filter(|path| !path.is_empty()).map(|path| {
            let name = path.strip_prefix("file:").unwrap_or(&path);
            if snapshot {
                return Err(format!("{name}: what the guest writes is thrown away (snapshot=on)"));
            }
            if let Some(key) = pairs.clone().rest().first().map(|(key, _)| key.clone()) {
                return Err(format!("{name}: option {key:?} of -drive"));
            }
            if !name.starts_with('/') && name.split('/').next().is_some_and(|first| first.contains(':')) {
                return Err(format!("{name}: the image is not a file of the host"));
            }
            Ok(Image { path: name.into(), format, read_only, node, write_cache })
        });
        Ok(Self { interface, id, index, bus_unit: (bus, unit), optical, image, policies })
    }

    /// A drive of one of the short options: `-hda`, `-cdrom`, `-fda`.
    pub(super) fn short(interface: Option<&str>, index: u32, optical: bool, path: &str) -> Self {
        let image =
            Image { path: path.into(), format: None, read_only: optical, node: None, write_cache: None };
        Self {
            interface: interface.map(ToOwned::to_owned),
            id: None,
            index: Some(index),
            bus_unit: (None, None),
            optical,
            image: Some(Ok(image)),
            policies: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Pairs {
        Pairs::read("x", text, Some("driver")).unwrap()
    }

    #[test]
    fn nodes_lead_to_their_file() {
        let mut nodes = Nodes::default();
        nodes.add(pairs("driver=file,filename=/d.raw,node-name=f0")).unwrap();
        nodes.add(pairs("driver=qcow2,file=f0,node-name=d0,read-only=on")).unwrap();
        nodes
            .add(pairs(r#"{"driver":"raw","node-name":"d1","file":{"driver":"file","filename":"/e"}}"#))
            .unwrap();
        nodes.add(pairs("driver=nbd,node-name=n0")).unwrap();
        nodes.add(pairs("driver=raw,file=n0,node-name=d2")).unwrap();
        nodes.add(pairs("driver=raw,file=f0,offset=512,node-name=d3")).unwrap();
        nodes.add(pairs("driver=raw,file=d5,node-name=d5")).unwrap();
        let image = nodes.image("d0").unwrap();
        assert_eq!(
            (image.path.to_str(), image.format.as_deref(), image.read_only),
            (Some("/d.raw"), Some("qcow2"), true)
        );
        assert_eq!(nodes.image("d1").unwrap().path.to_str(), Some("/e"));
        for bad in ["d2", "d3", "d4", "d5"] {
            assert!(nodes.image(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn drives_are_read() {
        let drive =
            Drive::read(pairs("file=/v/disk.qcow2,format=qcow2,if=virtio,cache=writethrough")).unwrap();
        let image = drive.image.unwrap().unwrap();
        assert_eq!(image.path.to_str(), Some("/v/disk.qcow2"));
        assert_eq!(image.write_cache, Some(false));
        for bad in ["file=nbd:unix:/x", "file=/a,snapshot=on", "file=/a,bps=3", "file=rbd:pool/x"] {
            assert!(Drive::read(pairs(bad)).unwrap().image.unwrap().is_err(), "{bad}");
        }
        assert!(Drive::read(pairs("if=none,id=cd,media=cdrom")).unwrap().image.is_none());
    }
}
