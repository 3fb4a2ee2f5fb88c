//! The workspace as it is, against the table of layers and the conventions.

use std::path::{Path, PathBuf};

use cargo_metadata::{CargoOpt, Metadata, MetadataCommand};
use novaferry_layering::{edges, sources, table};

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml"))
        .features(CargoOpt::AllFeatures)
        // What is shipped. Without it, cargo downloads the crates of every other system too.
        .other_options(["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"].map(String::from))
        .exec()
        .unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn folders(metadata: &Metadata) -> Vec<PathBuf> {
    let folder =
        |manifest: &Path| manifest.parent().unwrap().strip_prefix(&metadata.workspace_root).unwrap().into();
    metadata.workspace_packages().iter().map(|package| folder(package.manifest_path.as_std_path())).collect()
}

#[track_caller]
fn none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn every_crate_has_its_row_and_a_name_that_says_something() {
    none(&edges::unknown(&metadata()));
}

#[test]
fn crates_use_only_what_lies_below_them() {
    let declared = edges::declared(&metadata());
    assert!(declared.iter().any(|edge| edge.to.starts_with(table::PREFIX)), "no edge was read");
    none(&edges::forbidden(&declared));
}

#[test]
fn heavy_dependencies_stay_in_their_crates() {
    none(&edges::escaped(&edges::declared(&metadata())));
}

#[test]
fn exceptions_are_still_needed() {
    none(&edges::unused_exceptions(&edges::declared(&metadata())));
}

#[test]
fn pure_crates_reach_no_runtime_socket_clock_or_randomness() {
    let metadata = metadata();
    none(&edges::impure(&metadata));

    // The same walk, from a crate that is not pure, finds what it looks for.
    assert!(!edges::reached_by(&metadata, "novaferry-disk").is_empty());
}

#[test]
fn every_crate_inherits_the_lints() {
    none(&sources::without_lints(&root(), &folders(&metadata())).unwrap());
}

#[test]
fn every_clippy_toml_bans_what_it_must() {
    none(&sources::missing_bans(&root(), &folders(&metadata())).unwrap());
}

#[test]
fn the_sources_keep_the_conventions() {
    let all = sources::read_all(&root()).unwrap();
    assert!(
        all.iter().any(|source| source.path == Path::new("agent/crates/volume/src/lib.rs")),
        "no source was read"
    );
    let findings = [
        sources::too_long(&all),
        sources::badly_named(&all),
        sources::unsafe_elsewhere(&all),
        sources::unbounded_channels(&all),
    ];
    none(&findings.concat());
}
