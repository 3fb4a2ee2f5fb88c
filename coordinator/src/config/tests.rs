use super::*;

const TWO: &str = r#"# ours
current = "prod"

[context.prod]
url = "https://prod.example:7443"
token_file = "prod.token"
ca = "/etc/prod.pem"

[context.lab]   # at home
url = "https://lab.example:7443"
"#;

fn file(text: &str) -> File {
    let contents = parse(text).unwrap();
    File { path: Some("/c/novaferry/config.toml".into()), text: text.to_owned(), contents }
}

fn asked(context: Option<(&str, bool)>, url: Option<(&str, bool)>) -> Asked {
    let given = |(text, by_flag): (&str, bool)| Given { text: text.to_owned(), by_flag };
    Asked { context: context.map(given), keys: [url.map(given), None, None] }
}

#[test]
fn flags_outrank_the_environment_and_that_the_file() {
    let file = file(TWO);
    let url = |context, url| {
        let resolved = file.resolve(&asked(context, url)).unwrap();
        let Setting { value, from } = resolved.setting(Key::Url).clone();
        (value.unwrap(), from.to_string())
    };
    let (flag, variable) = (Some(("https://f", true)), Some(("https://v", false)));
    let is = |value: &str, from: &str| (value.to_owned(), from.to_owned());
    assert_eq!(url(None, None), is("https://prod.example:7443", "context prod"));
    assert_eq!(url(None, variable), is("https://v", "NOVAFERRY_URL"));
    assert_eq!(url(None, flag), is("https://f", "--url"));
    assert_eq!(url(Some(("lab", false)), None), is("https://lab.example:7443", "context lab"));
    assert_eq!(url(Some(("lab", false)), variable), is("https://v", "NOVAFERRY_URL"));
    // A context that a flag names is not mixed with what the environment says of another.
    assert_eq!(url(Some(("lab", true)), variable), is("https://lab.example:7443", "context lab"));
    assert_eq!(url(Some(("lab", true)), flag), is("https://f", "--url"));
}

#[test]
fn this_machines_token_goes_to_no_other_coordinator() {
    let resolved = file(TWO).resolve(&asked(Some(("lab", true)), None)).unwrap();
    let failure = resolved.need(Key::TokenFile).unwrap_err();
    assert_eq!(failure.message, "token_file is missing in context lab");
    assert!(failure.advice.unwrap().contains("novaferry config set lab token_file"));
    let resolved = File::default().resolve(&Asked::default()).unwrap();
    assert_eq!(resolved.setting(Key::Url).from, Source::Default);
    resolved.need(Key::TokenFile).unwrap();
}

#[test]
fn paths_are_of_the_files_folder() {
    let resolved = file(TWO).resolve(&Asked::default()).unwrap();
    assert_eq!(resolved.need(Key::TokenFile).unwrap(), "/c/novaferry/prod.token");
    assert_eq!(resolved.need(Key::Ca).unwrap(), "/etc/prod.pem");
}

#[test]
fn a_context_that_there_is_not_is_an_error() {
    let failure = file(TWO).resolve(&asked(Some(("prd", false)), None)).unwrap_err();
    assert_eq!(failure.advice.unwrap(), "did you mean prod?");
}

#[test]
fn what_makes_no_sense_is_an_error_with_its_line() {
    for (text, line, words) in [
        ("[context.a]\nurl = \"https://a\"\n\ntoken = \"nfa1_x\"\n", 4, "token"),
        ("[contexts.a]\n", 1, "contexts"),
        ("\n\ncurrent = \"b\"\n", 3, "no [context.b]"),
        ("\n[context.a]\nurl = 5\n", 3, "string"),
        ("\n[context.\"No!\"]\n", 2, "No!"),
        ("a =\n", 1, ""),
    ] {
        let (found, error) = parse(text).unwrap_err();
        assert!(found == line && error.contains(words), "{text}: line {found}: {error}");
    }
}

#[test]
fn comments_survive_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("novaferry/config.toml");
    let file = File { path: Some(path.clone()), ..file(TWO) };
    file.set(&"new".parse().unwrap(), &[(Key::Url, "https://n"), (Key::Ca, "/n")], false).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, format!("{TWO}\n[context.new]\nurl = \"https://n\"\nca = \"/n\"\n"));
    file.unset("lab", None).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# ours\ncurrent = \"prod\"\n") && !text.contains("lab"), "{text}");
    file.unset("prod", None).unwrap();
    assert!(!std::fs::read_to_string(&path).unwrap().contains("current"));
    file.unset("prod", Some(Key::Ca)).unwrap();
    assert!(!std::fs::read_to_string(&path).unwrap().contains("ca = "));
    file.make_current("lab").unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().contains("current = \"lab\"\n"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_token_is_sent_over_tls_only() {
    assert_eq!(checked_url("https://a:7443/").unwrap(), "https://a:7443");
    for bad in ["", "a", "http://a", "https://", "https://u:p@a", "https:///x", "https://a b", "ftp://a"] {
        checked_url(bad).unwrap_err();
    }
}
