use super::*;

fn edges(all: &[(&str, &str, bool)]) -> BTreeSet<Edge> {
    all.iter().map(|&(from, to, tests_only)| Edge { from: from.into(), to: to.into(), tests_only }).collect()
}

#[test]
fn an_edge_upwards_is_found() {
    let found = forbidden(&edges(&[
        ("novaferry-session", "novaferry-wire", false),
        ("novaferry-session", "novaferry-tunnel", false),
        ("novaferry-wire", "novaferry-engine", true),
        ("novaferry-engine", "novaferry-tunnel", false),
    ]));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("novaferry-session depends on novaferry-tunnel"), "{found:#?}");
    assert!(found[1].starts_with("novaferry-wire depends on novaferry-engine"), "{found:#?}");
}

#[test]
fn an_edge_to_a_crate_without_a_row_is_found() {
    assert_eq!(forbidden(&edges(&[("novaferry-disk", "novaferry-unheard-of", false)])).len(), 1);
}

#[test]
fn tests_may_use_the_crate_itself_and_what_is_made_for_tests() {
    let all = [
        ("novaferry-disk", "novaferry-disk", true),
        ("novaferry-tunnel", "novaferry-link", true),
        ("novaferry-e2e", "novaferry-engine", false),
    ];
    assert_eq!(forbidden(&edges(&all)), Vec::<String>::new());
    assert_eq!(forbidden(&edges(&[("novaferry-tunnel", "novaferry-link", false)])).len(), 1);
}

#[test]
fn a_heavy_dependency_outside_its_owner_is_found() {
    let found = escaped(&edges(&[
        ("novaferry-disk", "tokio-uring", false),
        ("novaferry-engine", "tokio-uring", false),
        ("novaferry-session", "tokio", true),
        ("novaferry-bench", "quinn", false),
        ("novaferry-engine", "bytes", false),
    ]));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found.iter().any(|one| one.starts_with("novaferry-engine names tokio-uring")), "{found:#?}");
    assert!(found.iter().any(|one| one.starts_with("novaferry-session names tokio,")), "{found:#?}");
}

#[test]
fn an_exception_for_tests_does_not_cover_the_crate() {
    assert_eq!(escaped(&edges(&[("novaferry-tunnel", "rcgen", true)])), Vec::<String>::new());
    assert_eq!(escaped(&edges(&[("novaferry-tunnel", "rcgen", false)])).len(), 1);
}

#[test]
fn an_exception_that_nothing_needs_is_found() {
    let agreed =
        table::HEAVY.iter().flat_map(|heavy| heavy.owners).filter(|owner| !owner.reason.is_empty()).count();
    assert_eq!(unused_exceptions(&BTreeSet::new()).len(), agreed);
}

#[test]
fn the_table_names_only_crates_below() {
    for (place, row) in table::CRATES.iter().enumerate() {
        let Uses::Only(names) = row.uses else { continue };
        for name in names {
            let below = table::CRATES[..place].iter().any(|other| other.name == *name);
            assert!(below, "{} may use {name}, which is not below it", row.name);
        }
    }
}
