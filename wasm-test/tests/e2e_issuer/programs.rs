//! Programs that others wrote: Node and Python clients, installed once from
//! pinned lists, and Chromium.
//!
//! Where one can't be had the tests that need it are skipped loudly, unless
//! WRIT_REQUIRE_INTEROP (or, for all but Chromium, CI) is set: then they fail.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use sha2::{Digest, Sha256};
use wasm_test::tools;

const SCRIPTS: &[&str] = &[
    "common.mjs",
    "sums.mjs",
    "svid.py",
    "certificate.py",
    "clock.py",
    "clock.mjs",
    "refresh.py",
    "refresh.mjs",
    "delegate.py",
    "delegate.mjs",
    "authzen.py",
    "resource.mjs",
    "idjag.mjs",
    "plain.mjs",
    "a2a.mjs",
    "rotated.mjs",
    "raw.py",
    "tokens.py",
    "tokens.mjs",
    "user.py",
    "oauth.mjs",
    "client.mjs",
    "mcp.mjs",
    "dpop.mjs",
    "issuer.mjs",
    "agents.mjs",
    "browser.mjs",
];
const LISTS: &[&str] = &[
    "package.json",
    "package-lock.json",
    ".npmrc",
    "requirements.txt",
];
const STAMP: &str = "installed";

/// The installed clients.
pub struct Clients {
    dir: PathBuf,
    node: PathBuf,
}

/// Skips or fails: a test that needs what is missing returns after this. One of
/// `variables` that is set makes it a failure.
fn missing(what: &str, variables: &[&str]) {
    let set = |name: &&&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if let Some(name) = variables.iter().find(set) {
        panic!("{what}; {name} is set, so this is no reason to skip");
    }
    say(&format!(
        "*** SKIPPED: {what}. WRIT_REQUIRE_INTEROP=1 makes this a failure. ***"
    ));
}

/// To the terminal, past the test harness, which hides what a passing test prints.
fn say(what: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stderr(), "\n{what}"));
}

/// A program on the PATH.
pub fn found(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)))
        .find(|candidate| candidate.is_file())
}

/// The clients, installed if need be; none when this machine can't have them.
pub fn clients() -> Option<&'static Clients> {
    static CLIENTS: OnceLock<Result<Clients, String>> = OnceLock::new();
    match CLIENTS.get_or_init(install) {
        Ok(clients) => Some(clients),
        Err(problem) => {
            missing(problem, &["CI", "WRIT_REQUIRE_INTEROP"]);
            None
        }
    }
}

/// Chromium or Chrome.
pub fn chromium() -> Option<PathBuf> {
    let names = [
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
    ];
    let found = std::env::var_os("WRIT_CHROMIUM")
        .map(PathBuf::from)
        .or_else(|| found(&names));
    if found.is_none() {
        let what =
            "no Chromium on the PATH: install the package `chromium`, or name one in WRIT_CHROMIUM";
        missing(what, &["WRIT_REQUIRE_INTEROP"]);
    }
    found
}

fn install() -> Result<Clients, String> {
    let need = |names: &[&str], what: &str| {
        found(names).ok_or_else(|| format!("{what} is not on the PATH"))
    };
    let node = need(&["node"], "Node 20.19 or later (`node`)")?;
    let npm = need(&["npm"], "`npm`")?;
    let python = need(&["python3"], "Python 3 with venv (`python3`)")?;

    let source = tools::root().join("wasm-test/interop");
    let dir = tools::root().join("target/tools/interop");
    std::fs::create_dir_all(&dir).unwrap();
    // Several test processes may come at once.
    let lock = std::fs::File::create(dir.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    for name in SCRIPTS {
        copy(&source.join(name), &dir.join(name));
    }
    let stamp = stamp(&source);
    if std::fs::read_to_string(dir.join(STAMP)).ok().as_ref() != Some(&stamp) {
        say(&format!(
            "installing the interop clients into {}",
            dir.display()
        ));
        for name in LISTS {
            copy(&source.join(name), &dir.join(name));
        }
        let quiet = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
        run(Command::new(npm).args(quiet).current_dir(&dir))?;
        let venv = dir.join("venv");
        run(Command::new(python)
            .args(["-m", "venv", "--clear"])
            .arg(&venv))?;
        run(Command::new(venv.join("bin/python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
            ])
            .args(["--only-binary", ":all:", "--requirement"])
            .arg(dir.join("requirements.txt")))?;
        std::fs::write(dir.join(STAMP), stamp).unwrap();
    }
    Ok(Clients { dir, node })
}

fn stamp(source: &Path) -> String {
    let mut digest = Sha256::new();
    for name in LISTS {
        digest.update(std::fs::read(source.join(name)).unwrap());
    }
    hex::encode(digest.finalize())
}

fn copy(from: &Path, to: &Path) {
    let wanted =
        std::fs::read(from).unwrap_or_else(|problem| panic!("{}: {problem}", from.display()));
    // Another process may be running the same script.
    if std::fs::read(to).ok().as_ref() != Some(&wanted) {
        std::fs::write(to, wanted).unwrap();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|problem| format!("{command:?} can't be started: {problem}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?} failed ({}): {said}", output.status))
}

impl Clients {
    /// A Node script.
    pub fn node(&self, script: &str) -> Command {
        self.command(&self.node, script)
    }

    /// A Python script.
    pub fn python(&self, script: &str) -> Command {
        self.command(&self.dir.join("venv/bin/python"), script)
    }

    /// A program of the Python packages.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.dir.join("venv/bin").join(name));
        command.current_dir(&self.dir);
        command
    }

    fn command(&self, program: &Path, script: &str) -> Command {
        let mut command = Command::new(program);
        command.arg(self.dir.join(script)).current_dir(&self.dir);
        for proxy in [
            "http_proxy",
            "https_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "all_proxy",
        ] {
            command.env_remove(proxy);
        }
        command
    }
}

/// Runs a script with JSON on its standard input and reads JSON back.
pub async fn ask(mut command: Command, given: Value) -> Value {
    tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(given.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let script = command.get_args().next().map(OsStr::to_owned);
        assert!(output.status.success(), "{script:?} failed:\n{said}");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|problem| panic!("{script:?} printed no JSON: {problem}\n{said}"))
    })
    .await
    .unwrap()
}
