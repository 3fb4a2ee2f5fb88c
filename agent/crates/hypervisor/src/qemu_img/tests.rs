use super::*;

/// What `qemu-img info` 10.0 prints for an overlay without a recorded backing format, shortened to what is read.
const GUESSED: &str = r#"[
 {"virtual-size": 1048576, "filename": "/pool/top.qcow2", "format": "qcow2", "actual-size": 200704,
  "format-specific": {"type": "qcow2", "data": {"compat": "1.1", "corrupt": true, "lazy-refcounts": false}},
  "full-backing-filename": "/etc/shadow", "backing-filename": "/etc/shadow", "dirty-flag": false},
 {"virtual-size": 1536, "filename": "/etc/shadow", "format": "raw", "dirty-flag": false}
]"#;

#[test]
fn a_guessed_backing_format_and_corruption_block() {
    let info = parse_info(GUESSED.as_bytes(), "qcow2").unwrap();
    let below = Backing { filename: "/etc/shadow".into(), format: "raw".into(), format_recorded: false };
    assert_eq!(info.backing, [below]);
    assert!(info.corrupt);
    let findings = findings(&info, true);
    assert_eq!(findings.len(), 2);
    assert!(findings.iter().all(|finding| finding.blocking));
    assert!(findings[0].what.contains("/etc/shadow"));
}

#[test]
fn an_encrypted_image_below_counts() {
    let json = r#"[
      {"virtual-size": 512, "filename": "/a", "format": "qcow2", "backing-filename": "b", "backing-filename-format": "luks"},
      {"virtual-size": 512, "filename": "/b", "format": "luks", "encrypted": true,
       "format-specific": {"type": "luks", "data": {"cipher-alg": "aes-256", "slots": []}}}
    ]"#;
    let info = parse_info(json.as_bytes(), "qcow2").unwrap();
    assert_eq!(info.encryption.as_deref(), Some("luks"));
    assert!(findings(&info, true)[0].blocking);
}

#[test]
fn a_backing_file_elsewhere_blocks() {
    let json = r#"[
      {"virtual-size": 512, "filename": "/a", "format": "qcow2", "backing-filename": "nbd://h/", "backing-filename-format": "raw"},
      {"virtual-size": 512, "filename": "nbd://h:10809", "format": "raw"}
    ]"#;
    let [finding] = &findings(&parse_info(json.as_bytes(), "qcow2").unwrap(), true)[..] else {
        panic!("one")
    };
    assert!(finding.blocking && finding.what.contains("nbd://h"));
}

#[test]
fn output_that_is_not_understood_is_an_error() {
    for json in [
        "",
        "[]",
        "{}",
        "[{}]",
        r#"[{"virtual-size": -1, "filename": "a", "format": "qcow2"}]"#,
        r#"[{"virtual-size": 512, "filename": "a", "format": "raw"}]"#,
        r#"[{"virtual-size": 512, "filename": "a", "format": "qcow2", "backing-filename": "b"}]"#,
    ] {
        let error = parse_info(json.as_bytes(), "qcow2").unwrap_err();
        assert!(matches!(error, Error::ToolOutput { .. }), "{json}: {error}");
    }
}

#[test]
fn a_plain_image_has_no_findings() {
    let json = r#"[{"virtual-size": 512, "filename": "a", "format": "raw", "children": [{"name": "file"}]}]"#;
    assert_eq!(findings(&parse_info(json.as_bytes(), "raw").unwrap(), false), []);
}
