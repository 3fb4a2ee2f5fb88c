//! The machine: its state, processors, memory and object tree (`qapi/{run-state,machine,qom,control,net}.json`).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::words::{CpuExpansion, RunState};
use super::{MonitorError, Qmp, Version};

/// `query-status`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Status {
    /// Whether the guest's processors run.
    pub running: bool,
    /// Why or why not.
    pub status: RunState,
}

/// One of `query-cpus-fast`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cpu {
    /// Its number.
    pub cpu_index: u64,
    /// Its object.
    pub qom_path: String,
    /// The host's thread that runs it.
    pub thread_id: u64,
    /// QEMU's name of the architecture.
    pub target: String,
}

/// `query-memory-size-summary`, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemorySize {
    /// What the machine started with.
    pub base_memory: u64,
    /// What was plugged in since; `None` where the machine cannot.
    pub plugged_memory: Option<u64>,
}

/// One of `qom-list`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct QomProperty {
    /// Its name.
    pub name: String,
    /// Its type; `child<...>` is an object below.
    #[serde(rename = "type")]
    pub kind: String,
}

/// One of `query-cpu-definitions`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuDefinition {
    /// The model's name.
    pub name: String,
    /// Whether the model means the same on other hosts; `None` if QEMU does not know.
    pub migration_safe: Option<bool>,
    /// Whether the model means the same in every version of QEMU.
    #[serde(rename = "static")]
    pub is_static: bool,
    /// Features of the model that this host lacks: it runs here if there are none. `None` if QEMU cannot tell.
    pub unavailable_features: Option<Vec<String>>,
    /// The model that an alias stands for.
    pub alias_of: Option<String>,
}

/// A CPU model with its properties.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CpuModel {
    /// Its name.
    pub name: String,
    /// What is changed or spelled out; most are booleans.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub props: Map<String, Value>,
}

/// When the guest's network cards announce themselves, in milliseconds (`AnnounceParameters`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Announce {
    /// Until the second announcement.
    pub initial: u64,
    /// Longest pause.
    pub max: u64,
    /// How many; 0 for none.
    pub rounds: u64,
    /// What each pause is longer than the one before.
    pub step: u64,
}

impl Default for Announce {
    /// QEMU's own (`migration/options.c`).
    fn default() -> Self {
        Self { initial: 50, max: 550, rounds: 5, step: 100 }
    }
}

impl Qmp {
    /// `query-status`.
    ///
    /// # Errors
    /// As [`Qmp::execute`], here and below.
    pub async fn query_status(&self) -> Result<Status, MonitorError> {
        self.execute("query-status", &()).await
    }

    /// `query-version`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_version(&self) -> Result<Version, MonitorError> {
        self.execute("query-version", &()).await
    }

    /// `query-name`: what `-name` gave.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_name(&self) -> Result<Option<String>, MonitorError> {
        #[derive(Deserialize)]
        struct Name {
            name: Option<String>,
        }
        Ok(self.execute::<Name>("query-name", &()).await?.name)
    }

    /// `query-uuid`: all zeros if none was given.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_uuid(&self) -> Result<String, MonitorError> {
        #[derive(Deserialize)]
        struct Uuid {
            #[serde(rename = "UUID")]
            uuid: String,
        }
        Ok(self.execute::<Uuid>("query-uuid", &()).await?.uuid)
    }

    /// `query-cpus-fast`: does not disturb the guest.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_cpus(&self) -> Result<Vec<Cpu>, MonitorError> {
        self.execute("query-cpus-fast", &()).await
    }

    /// `query-memory-size-summary`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_memory_size(&self) -> Result<MemorySize, MonitorError> {
        self.execute("query-memory-size-summary", &()).await
    }

    /// `qom-list`: the properties of an object.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn qom_list(&self, path: &str) -> Result<Vec<QomProperty>, MonitorError> {
        self.execute("qom-list", &json!({ "path": path })).await
    }

    /// `qom-get`: one property of an object.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn qom_get<T: DeserializeOwned>(&self, path: &str, property: &str) -> Result<T, MonitorError> {
        self.execute("qom-get", &json!({ "path": path, "property": property })).await
    }

    /// The versioned machine type that runs, for example `pc-i440fx-10.0`. What `-machine` takes is the object's
    /// type without the ending `-machine`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn machine_type(&self) -> Result<String, MonitorError> {
        let object: String = self.qom_get("/machine", "type").await?;
        Ok(object.strip_suffix("-machine").unwrap_or(&object).to_owned())
    }

    /// `query-cpu-definitions`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_cpu_definitions(&self) -> Result<Vec<CpuDefinition>, MonitorError> {
        self.execute("query-cpu-definitions", &()).await
    }

    /// `query-cpu-model-expansion`: what a model means on this host.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_cpu_model_expansion(
        &self,
        kind: CpuExpansion,
        model: &CpuModel,
    ) -> Result<CpuModel, MonitorError> {
        #[derive(Deserialize)]
        struct Expansion {
            model: CpuModel,
        }
        let arguments =
            json!({ "type": kind.as_str(), "model": { "name": model.name, "props": model.props } });
        Ok(self.execute::<Expansion>("query-cpu-model-expansion", &arguments).await?.model)
    }

    /// `stop`: the guest's processors stop.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn stop(&self) -> Result<(), MonitorError> {
        self.command("stop", &()).await
    }

    /// `cont`: the guest's processors run.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn cont(&self) -> Result<(), MonitorError> {
        self.command("cont", &()).await
    }

    /// `quit`: QEMU ends. It may close the connection before its answer is read: ask the process, too.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn quit(&self) -> Result<(), MonitorError> {
        self.command("quit", &()).await
    }

    /// `system_powerdown`: presses the guest's power button.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn system_powerdown(&self) -> Result<(), MonitorError> {
        self.command("system_powerdown", &()).await
    }

    /// `announce-self`: the guest's network cards tell the network where they are now.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn announce_self(&self, announce: &Announce) -> Result<(), MonitorError> {
        self.command("announce-self", announce).await
    }
}
