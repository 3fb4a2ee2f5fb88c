//! `completions` and `man`: what shells and `man` know of the command line.

use std::path::Path;

use clap_complete::Shell;
use serde_json::json;

use super::show::said;
use crate::failure::Failure;
use crate::output::Format;

/// The completions of a shell, as its script.
pub(super) fn completions(mut command: clap::Command, shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "novaferry", &mut script);
    script
}

/// Writes a manual page of each command into a folder.
pub(super) fn man(command: clap::Command, folder: &Path, format: Format) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let what = format!("cannot write manual pages into {}: {error}", folder.display());
        Failure::new("files", what, "name a folder that you may write to")
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let pages = pages(&command, folder).map_err(failed)?;
    let shown = json!({ "folder": folder, "pages": pages });
    said(format, &shown, &format!("{pages} manual pages are in {}", folder.display()));
    Ok(())
}

fn pages(command: &clap::Command, folder: &Path) -> std::io::Result<usize> {
    clap_mangen::Man::new(command.clone()).manual("novaferry").generate_to(folder)?;
    let below =
        command.get_subcommands().map(|below| pages(below, folder)).sum::<std::io::Result<usize>>()?;
    Ok(1 + below)
}
