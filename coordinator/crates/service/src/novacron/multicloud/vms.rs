//! `/multicloud/vms`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use model::Name;
use model::access::Action;
use model::host::{Host, Vm};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::KIND;
use crate::api::caller::Caller;
use crate::api::problem::Problem;
use crate::find;
use crate::fleet::Fleet;
use crate::novacron::words::time;

const MEBIBYTE: u64 = 1 << 20;
const GIBIBYTE: u64 = 1 << 30;

/// A VM. What is not known here is as Go leaves it: empty, nought, or the year 1.
#[derive(Debug, Serialize)]
pub(in crate::novacron) struct Instance {
    id: String,
    name: String,
    provider: &'static str,
    region: Name,
    availability_zone: Name,
    instance_type: String,
    state: &'static str,
    image_id: String,
    security_groups: Vec<String>,
    tags: BTreeMap<String, String>,
    created_at: String,
    updated_at: String,
    metadata: Value,
    cpu: u32,
    /// MiB.
    memory: u64,
    /// GiB.
    storage: u64,
    network_bandwidth: u64,
    hourly_rate: f64,
    monthly_estimate: f64,
}

impl Instance {
    fn of(host: &Host, vm: &Vm) -> Self {
        Self {
            id: vm.id.clone(),
            name: vm.name.clone(),
            provider: KIND,
            region: host.site.clone(),
            availability_zone: host.name.clone(),
            instance_type: String::new(),
            state: state(&vm.state),
            image_id: String::new(),
            security_groups: Vec::new(),
            tags: vm.needs.labels.clone(),
            created_at: time(None),
            updated_at: time(host.seen),
            metadata: json!({ "access": vm.access, "reason": vm.reason, "tenant": vm.needs.tenant }),
            cpu: vm.needs.processors,
            memory: vm.needs.memory_bytes / MEBIBYTE,
            storage: vm.needs.disk_bytes.div_ceil(GIBIBYTE),
            network_bandwidth: 0,
            hourly_rate: 0.0,
            monthly_estimate: 0.0,
        }
    }
}

/// A VM's state in NovaCron's words.
fn state(text: &str) -> &'static str {
    match text {
        "running" => "running",
        "suspended" | "paused" => "suspended",
        "stopped" => "stopped",
        _ => "error",
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::novacron) struct Filter {
    provider_id: String,
    provider_type: String,
    region: String,
    state: String,
    name_pattern: String,
}

impl Filter {
    fn admits(&self, vm: &Instance) -> bool {
        let is = |wanted: &str, value: &str| wanted.is_empty() || wanted == value;
        is(&self.provider_id, vm.region.as_str())
            && is(&self.provider_type, vm.provider)
            && is(&self.region, vm.region.as_str())
            && (self.state.is_empty() || state(&self.state.to_ascii_lowercase()) == vm.state)
            && vm.name.contains(self.name_pattern.as_str())
    }
}

pub(in crate::novacron) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let Query(filter) = filter?;
    let hosts = fleet.store.hosts().await?;
    let vms: Vec<Instance> = hosts
        .iter()
        .filter(|host| host.revoked.is_none())
        .flat_map(|host| {
            let vms = host.observed.iter().flat_map(|observed| &observed.vms);
            vms.map(move |vm| Instance::of(host, vm))
        })
        .filter(|vm| filter.admits(vm))
        .collect();
    Ok(Json(json!({ "count": vms.len(), "vms": vms })))
}

pub(in crate::novacron) async fn show(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Instance>, Problem> {
    let Path(id) = id?;
    caller.may(&fleet, Action::Look, &id).await?;
    let hosts = fleet.store.hosts().await?;
    let hosts: Vec<&Host> = hosts.iter().filter(|host| host.revoked.is_none()).collect();
    let (name, vm) = find::vm(&hosts, &id, None)?;
    let host = hosts.iter().find(|host| host.name == *name);
    host.map(|host| Json(Instance::of(host, vm))).ok_or_else(|| Problem::not_found("VM not found"))
}
