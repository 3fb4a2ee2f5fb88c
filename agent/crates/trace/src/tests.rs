use super::*;

const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn contexts_are_told_from_other_text() {
    assert!(is_context(GOOD));
    for bad in [
        "",
        "00",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
        "00-0af7651916cd43dd8448eb211c80319é-b7ad6b7169203331-01",
    ] {
        assert!(!is_context(bad), "{bad}");
    }
    assert!(!is_context(&GOOD.repeat(1000)));
}

#[test]
fn without_an_exporter_a_context_is_passed_on_as_it_is() {
    let span = tracing::info_span!("nobody listens");
    assert_eq!(hand_on(&span, Some(GOOD)).as_deref(), Some(GOOD));
    assert_eq!(hand_on(&span, Some("nonsense")), None);
    assert_eq!(hand_on(&span, None), None);
}
