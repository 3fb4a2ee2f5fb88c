//! What a test needs of its machine.

/// Whether these programs are in PATH. If not, prints the SKIP line, or fails when the capability is demanded
/// (`NOVAFERRY_REQUIRE`, a comma list).
///
/// # Panics
/// When it is demanded, and not there.
#[must_use]
pub fn have(capability: &str, programs: &[&str], test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &&&str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let Some(missing) = programs.iter().find(|program| !there(program)) else { return true };
    let required = std::env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == capability),
        "{test} requires {missing} (NOVAFERRY_REQUIRE={required})"
    );
    #[expect(clippy::print_stdout, reason = "a skipped test says so by name")]
    {
        println!("SKIP {test}: {missing} is not installed");
    }
    false
}
