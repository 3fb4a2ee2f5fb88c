//! The page in a browser: headless Chromium, driven over WebDriver, against a real coordinator.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hosts::{Host, Progress};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Far beyond what anything takes here.
const HANG: Duration = Duration::from_secs(90);
const DRIVER: &str = "chromedriver";
/// What would be done by a page that writes names as markup.
const HOSTILE: &str = "<img src=x onerror=\"document.title='broken'\"><b>'; DROP TABLE hosts; --";

/// SHA-256 of the key that the coordinator shows, as Chromium wants it: it knows no CA with an Ed25519 key.
fn key_of(api: &str, state: &Path) -> String {
    let ca = CertificateDer::from_pem_file(state.join("ca.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let host = api.rsplit_once(':').unwrap().0;
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut line = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(api).unwrap();
    rustls::Stream::new(&mut line, &mut socket).flush().unwrap();
    let shown = line.peer_certificates().unwrap()[0].clone();
    let (_, certificate) = x509_parser::parse_x509_certificate(&shown).unwrap();
    data_encoding::BASE64.encode(&Sha256::digest(certificate.tbs_certificate.subject_pki.raw))
}

/// A driver with one browser; both end with the test. Of WebDriver (W3C) it needs so few calls, each JSON over HTTP, that
/// the client which is here anyway asks them.
struct Browser {
    driver: Child,
    url: String,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn start(key: &str) -> Self {
        let mut driver =
            Command::new(DRIVER).arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port =
            lines.find_map(|line| line.split_once("successfully on port ").map(|(_, rest)| rest.to_owned()));
        let port = port.expect("the driver gets ready");
        // Whoever does not read a pipe stops who writes into it.
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless=new".to_owned(),
            // The test may run as root.
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--window-size=1280,1600".to_owned(),
            format!("--ignore-certificate-errors-spki-list={key}"),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments, "perfLoggingPrefs": { "enableNetwork": true } },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        let url = format!("http://127.0.0.1:{}", port.trim_end_matches('.'));
        let mut browser = Self { driver, url, session: String::new(), _profile: profile };
        let session = browser.post("/session", &wanted);
        session["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        browser
    }

    #[track_caller]
    fn post(&self, path: &str, body: &Value) -> Value {
        let agent =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(HANG)).build();
        let asked = ureq::Agent::new_with_config(agent).post(format!("{}{path}", self.url)).send_json(body);
        let mut answer = asked.unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        assert!(answer.status().is_success(), "{path}: {text}");
        serde_json::from_str::<Value>(&text).unwrap()["value"].take()
    }

    #[track_caller]
    fn ask(&self, path: &str, body: &Value) -> Value {
        self.post(&format!("/session/{}{path}", self.session), body)
    }

    fn open(&self, url: &str) {
        self.ask("/url", &json!({ "url": url }));
    }

    /// What a piece of JavaScript returns.
    #[track_caller]
    fn run(&self, script: &str) -> Value {
        self.ask("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Types into whatever has the focus.
    fn keys(&self, text: &str) {
        let keys = text.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
        });
        let keys: Vec<_> = keys.collect();
        self.ask("/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": keys }] }));
    }

    /// Waits until a piece of JavaScript returns something that is so.
    #[track_caller]
    fn until(&self, script: &str, so: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let found = self.run(script);
            if so(&found) {
                return found;
            }
            assert!(began.elapsed() < HANG, "{script} never became so: {found}");
        }
    }

    /// Waits until the text of an element has all of these words.
    #[track_caller]
    fn shows(&self, id: &str, words: &[&str]) -> String {
        let script = format!("return document.getElementById({id:?}).innerText");
        let has = |text: &Value| words.iter().all(|word| text.as_str().unwrap_or_default().contains(word));
        self.until(&script, has).as_str().unwrap().to_owned()
    }

    /// Keeps what is seen now, for people: in the build's folder.
    fn picture(&self, name: &str) {
        let whole = json!({ "cmd": "Page.captureScreenshot", "params": { "captureBeyondViewport": true } });
        let picture = self.ask("/goog/cdp/execute", &whole);
        let picture = data_encoding::BASE64.decode(picture["data"].as_str().unwrap().as_bytes()).unwrap();
        std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name), picture).unwrap();
    }

    /// Colours as for people who like it dark, or not.
    fn scheme(&self, name: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": name }]);
        let wanted = json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.ask("/goog/cdp/execute", &wanted);
    }

    /// Messages of one of the browser's logs.
    fn log(&self, kind: &str) -> Vec<Value> {
        self.ask("/se/log", &json!({ "type": kind })).as_array().unwrap().clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let end = ureq::delete(format!("{}/session/{}", self.url, self.session)).call();
            drop(end);
        }
        // It may have ended already.
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}

/// Text whose contrast with what is behind it is less than WCAG AA wants, and controls without a name.
const CHECK: &str = r#"
const wrong = [];
const luminance = (colour) => {
  const [r, g, b] = colour.match(/[\d.]+/g).map(Number).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (node) => {
  for (let at = node; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (!/, 0\)$/.test(colour) && colour !== "transparent") return colour;
  }
  return "rgb(255, 255, 255)";
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let texts = 0;
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !node.checkVisibility() || ["SCRIPT", "STYLE", "NOSCRIPT", "TITLE", "title"].includes(node.tagName)) continue;
  texts += 1;
  const style = getComputedStyle(node);
  const ink = node instanceof SVGElement ? style.fill : style.color;
  const [a, b] = [luminance(ink), luminance(behind(node))].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < 4.5) wrong.push(`${contrast.toFixed(2)}: ${walker.currentNode.data.trim().slice(0, 40)}`);
}
for (const control of document.querySelectorAll("button, input, a, progress, [role=img]")) {
  if (!control.checkVisibility()) continue;
  const label = control.labels?.[0]?.innerText ?? control.getAttribute("aria-label") ?? control.innerText;
  if (!label?.trim()) wrong.push(`no name: ${control.outerHTML.slice(0, 80)}`);
}
for (const table of document.querySelectorAll("table")) {
  if (!table.caption?.textContent) wrong.push("a table without a caption");
  if (table.querySelector("thead th:not([scope=col]), tbody th:not([scope=row])")) wrong.push("a head without a scope");
}
const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
if (new Set(ids).size !== ids.length) wrong.push("an id twice");
const levels = [...document.querySelectorAll("h1, h2, h3")].filter((one) => one.checkVisibility()).map((one) => +one.tagName[1]);
if (levels[0] !== 1 || levels.some((level, nth) => nth && level > levels[nth - 1] + 1)) wrong.push(`levels of headings: ${levels}`);
if (document.documentElement.lang !== "en") wrong.push("no language");
if (texts < 5) wrong.push("hardly any text was looked at");
return wrong;
"#;

fn progress(id: &str, role: &str, state: &str) -> Progress {
    let (id, role, state) = (id.to_owned(), role.to_owned(), state.to_owned());
    Progress { id, vm: "web-1".to_owned(), role, state, ..Progress::default() }
}

fn report(total_ms: u64, downtime_ms: u64) -> String {
    let predicted = json!({ "total_ms": 4200, "downtime_ms": 80, "wire_bytes": 100_000_000 });
    json!({ "report": {
        "mode": "live", "total_ms": total_ms, "downtime_ms": downtime_ms, "ram_wire": 90_000_000, "disk_wire": 10_000_000,
        "predicted": predicted,
    } })
    .to_string()
}

#[test]
fn a_browser_shows_the_fleet_as_it_changes() {
    if !hosts::have("browser", &[DRIVER, "chromium"], "a_browser_shows_the_fleet_as_it_changes") {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let mut coordinator =
        hosts::Coordinator::new(Path::new(env!("CARGO_BIN_EXE_novaferry")), state.path(), None, &[]);
    coordinator.start();
    coordinator.ready();
    let api = hosts::Api::new(state.path(), &[coordinator.api()]);
    let join = |name: &str| {
        let answer = api.post("/v1/host-tokens", name, &json!({ "site": format!("site-of-{name}") }));
        Host::join(&coordinator.agents(), answer.body["token"].as_str().unwrap(), name)
    };
    let mut source = join("host-a");
    source.has(&[["web-1", "shop", "running"], ["evil", HOSTILE, "running"]]);
    let viewer = api.post("/v1/tokens", "viewer", &json!({ "name": "viewer", "role": "viewer" }));
    let viewer = viewer.body["token"].as_str().unwrap().to_owned();

    let browser = Browser::start(&key_of(coordinator.api().trim_start_matches("https://"), state.path()));
    browser.open(&coordinator.api());
    // The field has the focus: everything is done by keys.
    browser.until("return document.activeElement.id", |id| id == "token");
    assert_eq!(browser.run(CHECK), json!([]), "at the door");
    browser.keys("nfa1_wrong\u{e007}");
    browser.shows("token-error", &["Bearer"]);
    browser.keys(&format!("{viewer}\u{e007}"));
    browser.shows("live", &["Live"]);
    let shown = browser.shows("vms", &["shop", HOSTILE]);
    assert!(shown.contains("host-a"), "{shown}");
    assert_eq!(browser.run("return document.querySelectorAll('#fleet img, #fleet b').length"), 0);
    assert_eq!(browser.run("return document.title"), "novaferry");

    // What changes appears by itself.
    let destination = join("host-b");
    destination.has(&[]);
    browser.shows("hosts", &["host-b", "site-of-host-b", "connected"]);
    let wanted = json!({ "vm": "web-1", "to": "host-b" });
    let begun = api.post("/v1/migrations", "one", &wanted);
    let id = begun.body["id"].as_str().unwrap().to_owned();
    while source.intent().migrations.is_empty() {}
    source.moved(Progress {
        disk_done: 1,
        disk_total: 1,
        ram_remaining: 250,
        ram_total: 1000,
        rate: 117_000_000,
        expected_downtime_ms: 45,
        ..progress(&id, "source", "pre-copy")
    });
    browser.shows("running", &["shop (web-1)", "moving", "pre-copy", "memory 75 %", "117 MB/s", "45 ms"]);
    assert_eq!(browser.run(CHECK), json!([]), "while something moves");
    browser.picture("page-moving.png");
    browser.scheme("dark");
    assert_eq!(browser.run(CHECK), json!([]), "in the dark");
    browser.picture("page-dark.png");
    browser.scheme("light");
    // A viewer may look, and is told that this is all.
    browser.run("document.querySelector('#running button').focus()");
    browser.keys("\u{e007}");
    browser.shows("ask-title", &["Cancel the migration of web-1?"]);
    browser.run("document.getElementById('ask-yes').focus()");
    browser.keys("\u{e007}");
    browser.shows("ask-error", &["operator"]);
    assert_eq!(browser.run(CHECK), json!([]), "while it asks");
    browser.keys("\u{e00c}");
    browser.until("return document.getElementById('ask').open", |open| *open == false);

    let over = |role: &str, state: &str, report: String| Progress {
        over: true,
        report,
        ..progress(&id, role, state)
    };
    destination.moved(over("destination", "finalised", String::new()));
    source.moved(over("source", "finalised", report(4000, 62)));
    browser.shows("history", &["web-1", "completed", "4.0 s", "4.2 s", "62 ms", "80 ms", "100 MB"]);
    browser.until("return document.querySelectorAll('#history svg rect').length", |bars| *bars == 2);
    browser.shows("running", &["No migration runs."]);
    // By the names of their columns, the table and the charts say the same.
    let about = browser.run("return document.querySelector('#pauses svg').getAttribute('aria-label')");
    assert!(about.as_str().unwrap().contains("most 62 ms"), "{about}");
    browser.picture("page-history.png");

    // A filter, by keys; what does not fit is not shown.
    browser.run("document.getElementById('vm-filter').focus()");
    browser.keys("SHOP");
    browser.until("return document.querySelectorAll('#vms tbody tr').length", |rows| *rows == 1);

    // The coordinator is away: that is said, and what was known stays. It comes back: so does the page.
    coordinator.kill();
    browser.shows("live", &["Connection lost", "shown as of"]);
    assert!(browser.shows("hosts", &["host-b"]).contains("host-a"));
    coordinator.start();
    coordinator.ready();
    browser.shows("live", &["Live"]);
    browser.shows("hosts", &["away"]);

    // The token is gone when it is forgotten.
    browser.run("document.getElementById('leave').click()");
    browser.until("return document.getElementById('fleet').hidden", |hidden| *hidden == true);
    assert_eq!(browser.run("return sessionStorage.length"), 0);
    assert_eq!(browser.run("return document.querySelectorAll('#enter:not([hidden])').length"), 1);

    // Nothing went wrong meanwhile but what had to, and nothing was asked of anybody else.
    let mut complaints = browser.log("browser");
    complaints.retain(|entry| {
        let text = entry["message"].as_str().unwrap();
        !text.contains("401") && !text.contains("403") && !text.contains("net::ERR")
    });
    assert_eq!(complaints, Vec::<Value>::new());
    let (mut own, mut foreign) = (0, BTreeSet::new());
    for entry in browser.log("performance") {
        let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
        if message["message"]["method"] == "Network.requestWillBeSent" {
            let url = message["message"]["params"]["request"]["url"].as_str().unwrap().to_owned();
            match url.starts_with(&coordinator.api()) {
                true => own += 1,
                // The tab's first page, and pictures that a file holds itself.
                false if url.starts_with("data:") || url.starts_with("chrome") => {}
                false => drop(foreign.insert(url)),
            }
        }
    }
    assert!(own > 10 && foreign.is_empty(), "{own}, and {foreign:?}");
}
