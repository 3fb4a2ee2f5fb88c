//! What a machine may lack.

/// Whether `program` is in PATH. If not, prints the SKIP line, or fails when the capability is required.
pub(crate) fn have(capability: &str, program: &str, test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return true;
    }
    let required = std::env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == capability),
        "{test} requires {program} (NOVAFERRY_REQUIRE={required})"
    );
    #[expect(clippy::print_stdout, reason = "a skipped test says so by name")]
    {
        println!("SKIP {test}: {program} is not installed");
    }
    false
}
