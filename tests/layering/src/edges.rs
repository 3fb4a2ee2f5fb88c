//! Dependencies: what each crate declares, and what a pure crate reaches.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DepKindInfo, DependencyKind, Metadata, Package, PackageId};

use crate::table::{self, Owner, PREFIX, Uses};

/// A dependency as a crate declares it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Edge {
    /// Package that declares it.
    pub from: String,
    /// Package that it names.
    pub to: String,
    /// Only for the tests of `from`.
    pub tests_only: bool,
}

/// Every declared dependency of the workspace's packages, for every platform and feature.
#[must_use]
pub fn declared(metadata: &Metadata) -> BTreeSet<Edge> {
    let edge = |package: &Package, dependency: &cargo_metadata::Dependency| Edge {
        from: package.name.to_string(),
        to: dependency.name.clone(),
        tests_only: dependency.kind == DependencyKind::Development,
    };
    metadata
        .workspace_packages()
        .into_iter()
        .flat_map(|package| package.dependencies.iter().map(move |dependency| edge(package, dependency)))
        .collect()
}

/// Edges between our crates that the table does not allow.
///
/// Tests of a crate may use what the crate may use, the crate itself (to switch a feature on), and what is made for
/// tests.
#[must_use]
pub fn forbidden(edges: &BTreeSet<Edge>) -> Vec<String> {
    let ours = |edge: &&Edge| edge.to.starts_with(PREFIX);
    let allowed = |edge: &Edge| {
        let Some(from) = table::row(&edge.from) else { return true };
        let Some(to) = table::row(&edge.to) else { return false };
        let for_tests = matches!(to.uses, Uses::Anything) || to.name == from.name;
        match from.uses {
            Uses::Anything => true,
            Uses::Only(names) => names.contains(&to.name) || (edge.tests_only && for_tests),
        }
    };
    edges
        .iter()
        .filter(ours)
        .filter(|edge| !allowed(edge))
        .map(|edge| {
            format!(
                "{} depends on {}, which the table of layers does not allow: move the code, or change the design \
                 and tests/layering/src/table.rs together",
                edge.from, edge.to
            )
        })
        .collect()
}

/// Heavy dependencies that a crate names without owning them.
#[must_use]
pub fn escaped(edges: &BTreeSet<Edge>) -> Vec<String> {
    let mut findings = Vec::new();
    for heavy in table::HEAVY {
        for edge in edges.iter().filter(|edge| edge.to == heavy.package) {
            let Some(from) = table::row(&edge.from) else { continue };
            let owns = |owner: &Owner| owner.name == from.name && (edge.tests_only || !owner.tests_only);
            if matches!(from.uses, Uses::Only(_)) && !heavy.owners.iter().any(owns) {
                let owners: Vec<_> = heavy.owners.iter().map(|owner| owner.name).collect();
                findings.push(format!(
                    "{} names {}, which only {owners:?} may: use it through them, or agree on an exception with its \
                     reason in tests/layering/src/table.rs",
                    edge.from, edge.to
                ));
            }
        }
    }
    findings
}

/// Agreed exceptions that nothing needs any more.
#[must_use]
pub fn unused_exceptions(edges: &BTreeSet<Edge>) -> Vec<String> {
    let used = |package: &str, owner: &Owner| {
        edges.iter().any(|edge| edge.to == package && edge.from.strip_prefix(PREFIX) == Some(owner.name))
    };
    table::HEAVY
        .iter()
        .flat_map(|heavy| heavy.owners.iter().map(move |owner| (heavy.package, owner)))
        .filter(|(package, owner)| !owner.reason.is_empty() && !used(package, owner))
        .map(|(package, owner)| {
            format!(
                "{} no longer names {package}: remove the exception from tests/layering/src/table.rs",
                owner.name
            )
        })
        .collect()
}

/// Packages of the workspace that the table does not know, at that folder; and names that say nothing.
#[must_use]
pub fn unknown(metadata: &Metadata) -> Vec<String> {
    let mut findings = Vec::new();
    for package in metadata.workspace_packages() {
        let folder =
            package.manifest_path.parent().and_then(|path| path.strip_prefix(&metadata.workspace_root).ok());
        match table::row(&package.name) {
            Some(row) if folder.is_some_and(|folder| folder == row.folder) => {}
            Some(row) => findings.push(format!("{} is at {folder:?}, not at {}", package.name, row.folder)),
            None => findings.push(format!(
                "{} is not in the table of layers: give it a row in tests/layering/src/table.rs",
                package.name
            )),
        }
        if package.name.split('-').any(|word| ["common", "util", "utils", "helpers", "misc"].contains(&word))
        {
            findings.push(format!("{} is named after nothing: name it after what it does", package.name));
        }
    }
    findings
}

/// What the pure crates reach although they must not, each with the way there.
///
/// # Panics
/// If the metadata was made without its dependency graph.
#[must_use]
pub fn impure(metadata: &Metadata) -> Vec<String> {
    let pure = table::CRATES.iter().filter(|row| row.pure);
    pure.flat_map(|row| reached_by(metadata, &format!("{PREFIX}{}", row.name))).collect()
}

/// What one package of the workspace reaches of [`table::IMPURE`], through dependencies that are not for tests.
///
/// # Panics
/// If the metadata was made without its dependency graph.
#[must_use]
pub fn reached_by(metadata: &Metadata, package: &str) -> Vec<String> {
    let resolve = metadata.resolve.as_ref().expect("the metadata has a dependency graph");
    let shipped: BTreeMap<&PackageId, Vec<&PackageId>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let for_tests =
                |kinds: &[DepKindInfo]| kinds.iter().all(|info| info.kind == DependencyKind::Development);
            let shipped = node.deps.iter().filter(|dependency| !for_tests(&dependency.dep_kinds));
            (&node.id, shipped.map(|dependency| &dependency.pkg).collect())
        })
        .collect();
    let mut findings = Vec::new();
    let start = metadata.workspace_packages().into_iter().find(|one| one.name.as_str() == package);
    let mut seen: BTreeSet<&PackageId> = start.iter().map(|package| &package.id).collect();
    let mut ways: Vec<Vec<&PackageId>> = seen.iter().map(|&id| vec![id]).collect();
    while let Some(way) = ways.pop() {
        for &next in way.last().and_then(|last| shipped.get(last)).into_iter().flatten() {
            if !seen.insert(next) {
                continue;
            }
            let mut longer = way.clone();
            longer.push(next);
            if table::IMPURE.contains(&metadata[next].name.as_str()) {
                let names: Vec<&str> = longer.iter().map(|&id| metadata[id].name.as_str()).collect();
                findings
                    .push(format!("a pure crate reaches I/O, a clock or randomness: {}", names.join(" -> ")));
            }
            ways.push(longer);
        }
    }
    findings
}

#[cfg(test)]
mod tests;
