use super::*;

fn source(path: &str, text: &str) -> [Source; 1] {
    [Source { path: path.into(), text: text.into() }]
}

#[test]
fn a_long_file_is_found() {
    assert_eq!(too_long(&source("a.rs", &"x\n".repeat(MOST_LINES))), Vec::<String>::new());
    assert_eq!(too_long(&source("a.rs", &"x\n".repeat(MOST_LINES + 1))).len(), 1);
}

#[test]
fn bad_names_are_found() {
    for path in ["a/mod.rs", "a/utils.rs", "common/src/lib.rs"] {
        assert_eq!(badly_named(&source(path, "")).len(), 1, "{path}");
    }
    assert_eq!(badly_named(&source("a/modern.rs", "")), Vec::<String>::new());
}

#[test]
fn unsafe_code_is_found_outside_its_crate_only() {
    let text = "fn f() { unsafe { g() } }";
    let found = unsafe_elsewhere(&source("agent/crates/wire/src/lib.rs", text));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].starts_with("agent/crates/wire/src/lib.rs:1: `unsafe`"), "{found:#?}");
    assert_eq!(unsafe_elsewhere(&source("agent/crates/disk/src/lib.rs", text)), Vec::<String>::new());
    assert_eq!(unsafe_elsewhere(&source("a.rs", "// unsafe\nlet x = \"unsafe\";")), Vec::<String>::new());
    assert_eq!(unsafe_elsewhere(&source("a.rs", "#![expect(unsafe_code)]")).len(), 1);
}

#[test]
fn unbounded_channels_are_found() {
    for text in [
        "let (a, b) = mpsc::unbounded_channel();",
        "let (a, b) = async_channel::unbounded::<u8>();",
        "let (a, b) = std::sync::mpsc::channel();",
        "let (a, b) = mpsc::channel::<Vec<u8>>();",
    ] {
        assert_eq!(unbounded_channels(&source("a.rs", text)).len(), 1, "{text}");
    }
    for text in ["mpsc::channel(16)", "mpsc::channel::<u8>(LIMIT)", "mpsc::sync_channel(1)", "// unbounded"] {
        assert_eq!(unbounded_channels(&source("a.rs", text)), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn missing_lints_are_found() {
    let inherits = |manifest: &str| inherits_lints(&manifest.parse().unwrap());
    assert!(inherits("[lints]\nworkspace = true"));
    for manifest in ["", "[lints]\nworkspace = false", "[lints.rust]\nunsafe_code = \"allow\""] {
        assert!(!inherits(manifest), "{manifest}");
    }
}

#[test]
fn bans_are_read_in_both_forms() {
    let rules: toml::Table =
        "disallowed-methods = [\"a::b\", { path = \"c::d\", reason = \"e\" }]".parse().unwrap();
    assert_eq!(banned(&rules), ["a::b", "c::d"]);
    assert_eq!(banned(&toml::Table::new()), Vec::<&str>::new());
}
