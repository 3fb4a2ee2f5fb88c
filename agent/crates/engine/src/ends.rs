//! Volumes on this host as a person names them: a path, a block device, an NBD export; and how each is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, SourceOptions};
use hypervisor::nbd::{Access, NbdVolume, Uri};
use hypervisor::{qemu_img, qemu_nbd};
use volume::{Op, Source, VolumeError};
use wire::{FailCode, VolumeFormat};

use crate::error::EngineError;
use crate::target::Home;

/// A volume on this host.
#[derive(Clone, Debug)]
pub enum LocalVolume {
    /// A file or block device, and how its bytes are to be understood.
    Path {
        /// Where.
        path: PathBuf,
        /// Its format.
        format: VolumeFormat,
    },
    /// An NBD export.
    Nbd(Uri),
}

/// An open source, and the process that serves it, if one does.
pub struct OpenSource {
    source: Arc<dyn Source>,
    export: Option<qemu_nbd::Export>,
}

impl std::fmt::Debug for OpenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenSource({})", self.source.describe())
    }
}

impl From<disk::FileSource> for OpenSource {
    fn from(source: disk::FileSource) -> Self {
        Self { source: Arc::new(source), export: None }
    }
}

impl OpenSource {
    /// The volume.
    #[must_use]
    pub fn volume(&self) -> &dyn Source {
        &*self.source
    }

    /// Ends the process that serves it.
    pub async fn close(self) -> Result<(), EngineError> {
        let label = self.source.describe();
        drop(self.source);
        match self.export {
            Some(export) => {
                Ok(export.close().await.map_err(|error| error.in_volume(Op::Close, label, None))?)
            }
            None => Ok(()),
        }
    }
}

impl LocalVolume {
    /// The name that sessions are remembered by: a path as it is found, or the URI.
    pub fn label(&self) -> Result<String, EngineError> {
        match self {
            Self::Path { path, .. } => {
                let absolute = std::path::absolute(path).map_err(|error| {
                    EngineError::Volume(VolumeError::io(Op::Open, path.display().to_string(), error))
                })?;
                Ok(absolute.display().to_string())
            }
            Self::Nbd(uri) => Ok(uri.to_string()),
        }
    }

    /// How a target of this name is stored.
    #[must_use]
    pub fn format(&self) -> VolumeFormat {
        match self {
            Self::Path { format, .. } => *format,
            Self::Nbd(_) => VolumeFormat::Raw,
        }
    }

    /// Opens it to read. With `drop_snapshots`, internal snapshots and bitmaps of an image may be left behind.
    pub async fn open(&self, disk: &Disk, drop_snapshots: bool) -> Result<OpenSource, EngineError> {
        match self {
            Self::Path { path, format: VolumeFormat::Raw } => {
                match qemu_img::looks_like_qcow2(path) {
                    Ok(true) => tracing::warn!(
                        path = %path.display(),
                        "it starts like a qcow2 image but is copied byte for byte; if it is one, pass --source-format qcow2"
                    ),
                    Ok(false) => {}
                    // Opening it fails the same way, with a better message.
                    Err(error) => tracing::debug!(%error, "not looked at"),
                }
                let source = disk.open_source(path, SourceOptions::default())?;
                Ok(source.into())
            }
            Self::Path { path, format: VolumeFormat::Qcow2 } => open_qcow2(path, drop_snapshots).await,
            Self::Nbd(uri) => {
                let options = hypervisor::nbd::client::Options::default();
                let volume = NbdVolume::open(uri, Access::ReadOnly, &options)
                    .await
                    .map_err(|error| error.in_volume(Op::Open, uri.to_string(), None))?;
                Ok(OpenSource { source: Arc::new(volume), export: None })
            }
        }
    }

    /// Its home as a target.
    pub fn home(&self, state: &Path) -> Result<Home, EngineError> {
        match self {
            Self::Path { path, .. } => Home::at_path(path, state),
            Self::Nbd(uri) => Home::at_export(uri, state),
        }
    }
}

/// Opens an image through a read-only `qemu-nbd`, backing files and all, unless something of it would be lost.
pub(crate) async fn open_qcow2(path: &Path, drop_snapshots: bool) -> Result<OpenSource, EngineError> {
    let label = path.display().to_string();
    let fail = |error: hypervisor::Error| EngineError::from(error.in_volume(Op::Open, label.clone(), None));
    let info = qemu_img::inspect(path, "qcow2").await.map_err(fail)?;
    let mut blocking = Vec::new();
    for finding in qemu_img::findings(&info, drop_snapshots) {
        if finding.blocking {
            blocking.push(finding);
        } else {
            tracing::warn!(image = %label, what = %finding.what, advice = %finding.advice, "finding");
        }
    }
    if !blocking.is_empty() {
        let (whats, advices): (Vec<_>, Vec<_>) =
            blocking.into_iter().map(|finding| (finding.what, finding.advice)).unzip();
        let what = format!("{label} cannot be copied as it is: {}; {}", whats.join(", "), advices.join("; "));
        return Err(EngineError::refused(FailCode::Unsupported, what));
    }
    let export = qemu_nbd::Exporter::read_only(path, "qcow2").start().await.map_err(fail)?;
    let volume = export.volume().await.map_err(fail)?;
    Ok(OpenSource { source: Arc::new(volume), export: Some(export) })
}
