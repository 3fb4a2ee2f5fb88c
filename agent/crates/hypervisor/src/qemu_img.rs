//! Images as `qemu-img` sees them: inspect, create, and what a copy through NBD would lose.
//!
//! The format is always named, never probed: a guest with a raw disk can write a qcow2 header into its first
//! sector and let a prober read any file of the host as its backing file.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use volume::MAX_VOLUME;

use crate::error::Error;
use crate::tool;

const PROGRAM: &str = "qemu-img";
/// Output accepted of `qemu-img info`: an image with a thousand snapshots prints about 400 KiB.
const MAX_INFO: usize = 8 << 20;
/// `qemu-img info` reads a few metadata blocks of each image of the chain; a minute means hung storage.
const INFO_TIMEOUT: Duration = Duration::from_secs(60);
/// Creating without preallocation writes less than a megabyte.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);
/// QEMU counts in sectors of this many bytes; a qcow2 image cannot have another size.
const SECTOR: u64 = 512;
/// First bytes of a qcow2 image.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// An image and its backing chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageInfo {
    /// What the guest sees, in bytes, as QEMU counts: the size of a raw file is rounded up to 512.
    pub virtual_size: u64,
    /// The format that was named.
    pub format: String,
    /// The images below, nearest first. Empty when the image stands alone.
    pub backing: Vec<Backing>,
    /// Internal snapshots of the image itself.
    pub snapshots: Vec<Snapshot>,
    /// Bitmaps stored in the image itself.
    pub bitmaps: Vec<Bitmap>,
    /// How the image, or one below, is encrypted (`luks`, `aes`).
    pub encryption: Option<String>,
    /// The file that holds the data when the image holds only metadata; of the image or of one below.
    pub data_file: Option<String>,
    /// The image is marked corrupt.
    pub corrupt: bool,
}

/// One image of a backing chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backing {
    /// Its file name as QEMU resolved it.
    pub filename: String,
    /// Its format.
    pub format: String,
    /// Whether the image above records that format. Otherwise QEMU guesses, and the guest may have a say in it.
    pub format_recorded: bool,
}

/// An internal snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Snapshot {
    /// Its number.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A stored dirty bitmap.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity: u64,
    /// `auto` (it records), `in-use` (it was not saved properly and must not be used).
    #[serde(default)]
    pub flags: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawInfo {
    virtual_size: u64,
    filename: String,
    format: String,
    #[serde(default)]
    encrypted: bool,
    backing_filename: Option<String>,
    backing_filename_format: Option<String>,
    #[serde(default)]
    snapshots: Vec<Snapshot>,
    format_specific: Option<RawSpecific>,
}

#[derive(Deserialize)]
struct RawSpecific {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: RawData,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawData {
    #[serde(default)]
    bitmaps: Vec<Bitmap>,
    encrypt: Option<RawEncrypt>,
    data_file: Option<String>,
    #[serde(default)]
    corrupt: bool,
}

#[derive(Deserialize)]
struct RawEncrypt {
    format: String,
}

impl RawInfo {
    fn encryption(&self) -> Option<String> {
        let inside =
            self.format_specific.as_ref().and_then(|s| s.data.encrypt.as_ref()).map(|e| e.format.clone());
        let specific_luks = self.format_specific.as_ref().is_some_and(|s| s.kind == "luks");
        inside
            .or_else(|| (specific_luks || self.format == "luks").then(|| "luks".to_owned()))
            .or_else(|| self.encrypted.then(|| "unknown".to_owned()))
    }

    fn data_file(&self) -> Option<String> {
        self.format_specific.as_ref().and_then(|s| s.data.data_file.clone())
    }

    fn corrupt(&self) -> bool {
        self.format_specific.as_ref().is_some_and(|s| s.data.corrupt)
    }
}

/// Looks at an image of the named format and at everything below it. Takes QEMU's shared locks for a moment.
///
/// # Errors
/// When `qemu-img` is missing, fails, takes longer than a minute, or prints what is not understood; when the image
/// is in use by a writer.
pub async fn inspect(path: &Path, format: &str) -> Result<ImageInfo, Error> {
    tool::check_format(format)?;
    let options = tool::image_options(path, format)?;
    let arguments = tool::arguments([
        OsStr::new("info"),
        OsStr::new("--output=json"),
        OsStr::new("--backing-chain"),
        OsStr::new("--image-opts"),
        options.as_os_str(),
    ]);
    let out =
        tool::run(PROGRAM, &arguments, MAX_INFO, INFO_TIMEOUT).await.map_err(|error| in_use(error, path))?;
    parse_info(&out, format)
}

/// How large the guest sees an image of the named format, in bytes; also while a QEMU has it. Looks at the image alone,
/// not at what is below it, and takes no lock.
///
/// # Errors
/// As for [`inspect`], with that patience; not because it is in use.
pub async fn virtual_size(path: &Path, format: &str, patience: Duration) -> Result<u64, Error> {
    tool::check_format(format)?;
    let options = tool::image_options(path, format)?;
    let arguments = tool::arguments([
        OsStr::new("info"),
        OsStr::new("--output=json"),
        OsStr::new("--force-share"),
        OsStr::new("--image-opts"),
        options.as_os_str(),
    ]);
    let out = tool::run(PROGRAM, &arguments, MAX_INFO, patience).await?;
    let info: RawInfo = serde_json::from_slice(&out)
        .map_err(|error| Error::ToolOutput { program: PROGRAM, why: error.to_string() })?;
    Ok(info.virtual_size)
}

fn in_use(error: Error, path: &Path) -> Error {
    match error {
        Error::ToolFailed { stderr, .. } if tool::says_locked(&stderr) => {
            Error::InUse { path: path.to_owned(), stderr }
        }
        other => other,
    }
}

/// Understands the output of `qemu-img info --output=json --backing-chain`.
fn parse_info(json: &[u8], format: &str) -> Result<ImageInfo, Error> {
    let odd = |why: String| Error::ToolOutput { program: PROGRAM, why };
    let chain: Vec<RawInfo> = serde_json::from_slice(json).map_err(|error| odd(error.to_string()))?;
    let Some((top, below)) = chain.split_first() else { return Err(odd("an empty chain".to_owned())) };
    if top.format != format {
        return Err(odd(format!("format {} instead of {format}", top.format)));
    }
    // An image whose backing file is gone never gets here, but one whose name is cut off would.
    if top.backing_filename.is_some() && below.is_empty() {
        return Err(odd("a backing file that is not in the chain".to_owned()));
    }
    let backing = chain
        .iter()
        .zip(below)
        .map(|(above, image)| Backing {
            filename: image.filename.clone(),
            format: image.format.clone(),
            format_recorded: above.backing_filename_format.is_some(),
        })
        .collect();
    Ok(ImageInfo {
        virtual_size: top.virtual_size,
        format: top.format.clone(),
        backing,
        snapshots: top.snapshots.clone(),
        bitmaps: top.format_specific.as_ref().map(|s| s.data.bitmaps.clone()).unwrap_or_default(),
        encryption: chain.iter().find_map(RawInfo::encryption),
        data_file: chain.iter().find_map(RawInfo::data_file),
        corrupt: chain.iter().any(RawInfo::corrupt),
    })
}

/// Makes a qcow2 image of exactly `size` bytes that reads as zeros: clusters of the default size, nothing
/// preallocated, reference counts written at once (not lazily), so that a crash leaves at most leaked clusters.
///
/// # Errors
/// `Exists` when the file is there; `Unsupported` when the size is 0, above [`volume::MAX_VOLUME`], or no multiple
/// of 512, which qcow2 cannot hold exactly; those of running `qemu-img`. After a failure the file is gone.
pub async fn create_qcow2(path: &Path, size: u64) -> Result<(), Error> {
    if size == 0 || size > MAX_VOLUME {
        return Err(Error::Size { target: path.display().to_string(), size });
    }
    if !size.is_multiple_of(SECTOR) {
        return Err(Error::Unsupported {
            target: path.display().to_string(),
            what: format!("hold exactly {size} bytes as qcow2, which counts in sectors of {SECTOR} bytes"),
            advice: "use the raw format for this destination",
        });
    }
    let path = tool::absolute(path)?;
    // Found before the file is made, so that a missing program leaves nothing behind.
    tool::find(PROGRAM)?;
    // qemu-img would overwrite what is there.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    match made {
        Ok(file) => drop(file),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(Error::Exists { path }),
        Err(source) => return Err(Error::System { what: format!("create {}", path.display()), source }),
    }
    let unfinished = Unfinished(&path);
    let mut target = OsString::from("file:");
    target.push(&path);
    let text = size.to_string();
    let arguments = tool::arguments([
        OsStr::new("create"),
        OsStr::new("-q"),
        OsStr::new("-f"),
        OsStr::new("qcow2"),
        OsStr::new("-o"),
        OsStr::new("lazy_refcounts=off,preallocation=off"),
        target.as_os_str(),
        OsStr::new(&text),
    ]);
    tool::run(PROGRAM, &arguments, MAX_INFO, CREATE_TIMEOUT).await.map_err(|error| in_use(error, &path))?;
    let info = inspect(&path, "qcow2").await?;
    if info.virtual_size != size {
        let why = format!("{} bytes were created instead of {size}", info.virtual_size);
        return Err(Error::ToolOutput { program: PROGRAM, why });
    }
    std::mem::forget(unfinished);
    Ok(())
}

/// Removes a file that was not finished.
struct Unfinished<'a>(&'a Path);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove an unfinished image; remove it by hand");
        }
    }
}

/// Whether a file starts like a qcow2 image. Only good for a warning ("you said raw, it looks like qcow2"): the
/// bytes may be the guest's, so they must never decide the format.
///
/// # Errors
/// When the file cannot be read.
pub fn looks_like_qcow2(path: &Path) -> Result<bool, Error> {
    let system =
        |source| Error::System { what: format!("read the first bytes of {}", path.display()), source };
    let mut magic = [0; 4];
    match File::open(path).map_err(system)?.read_exact(&mut magic) {
        Ok(()) => Ok(magic == QCOW2_MAGIC),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(system(error)),
    }
}

/// Something that the user must know before an image is copied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The copy must not start.
    pub blocking: bool,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub advice: String,
}

/// What a copy of the guest-visible content would lose or change. `drop_snapshots` is the user's word that
/// snapshots and bitmaps may be lost.
#[must_use]
pub fn findings(info: &ImageInfo, drop_snapshots: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |blocking, what: String, advice: &str| {
        found.push(Finding { blocking, what, advice: advice.to_owned() });
    };
    let names = |names: Vec<&str>| names.join("\", \"");
    if !info.snapshots.is_empty() {
        let list = names(info.snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect());
        add(
            !drop_snapshots,
            format!("internal snapshots do not survive the copy: \"{list}\""),
            "pass --drop-snapshots to copy without them, or merge them first with qemu-img snapshot",
        );
    }
    if !info.bitmaps.is_empty() {
        let list = names(info.bitmaps.iter().map(|bitmap| bitmap.name.as_str()).collect());
        add(
            !drop_snapshots,
            format!("stored dirty bitmaps do not survive the copy: \"{list}\""),
            "pass --drop-snapshots to copy without them; the next backup is then a full one",
        );
    }
    if let Some(scheme) = &info.encryption {
        add(
            true,
            format!("the image is encrypted ({scheme}) and its content would travel and arrive decrypted"),
            "copy the file itself as a raw volume, which keeps it encrypted, or decrypt it first",
        );
    }
    if let Some(file) = &info.data_file {
        add(
            true,
            format!(
                "the data is in another file that the image names ({file}), which may be any file of this host"
            ),
            "copy that file as a raw volume, or bring the image into one file with qemu-img convert first",
        );
    }
    let guessed: Vec<&str> = info
        .backing
        .iter()
        .filter(|image| !image.format_recorded)
        .map(|image| image.filename.as_str())
        .collect();
    if !guessed.is_empty() {
        add(
            true,
            format!(
                "the format of backing files is not recorded, so it would be guessed: \"{}\"",
                names(guessed)
            ),
            "record it with qemu-img rebase -u -F FORMAT -b FILE IMAGE",
        );
    }
    let elsewhere: Vec<&str> = info
        .backing
        .iter()
        .map(|image| image.filename.as_str())
        .filter(|name| !name.starts_with('/'))
        .collect();
    if !elsewhere.is_empty() {
        add(
            true,
            format!("backing files are no local files: \"{}\"", names(elsewhere)),
            "bring the image into one file with qemu-img convert first",
        );
    }
    if info.corrupt {
        add(true, "the image is marked corrupt".to_owned(), "repair it with qemu-img check -r all first");
    }
    found
}

#[cfg(test)]
mod tests;
