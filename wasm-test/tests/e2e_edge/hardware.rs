//! Keys in a PKCS#11 token: SoftHSM's, seen through the spy module of OpenSC, which
//! writes down each call. One that goes away is behind p11-kit's server.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use wasm_test::client::now_s;
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::rig::{Rig, eventually};

mod trouble;

/// Long enough to be found where it leaks, and nowhere else by chance.
const PIN: &str = "canary-pin-31415926";
/// The variable that may have it.
const PIN_VARIABLE: &str = "HARDWARE_PIN";

/// The first of these that is there.
fn library(name: &str) -> PathBuf {
    let arch = std::env::consts::ARCH;
    let dirs = [
        "/usr/lib/softhsm".to_owned(),
        format!("/usr/lib/{arch}-linux-gnu/softhsm"),
        format!("/usr/lib/{arch}-linux-gnu"),
        format!("/usr/lib/{arch}-linux-gnu/pkcs11"),
        "/usr/lib64/pkcs11".to_owned(),
        "/usr/lib64".to_owned(),
    ];
    let mut all = dirs.iter().map(|dir| Path::new(dir).join(name));
    all.find(|path| path.exists()).unwrap_or_else(|| {
        panic!("no {name}: install the packages softhsm2, opensc, p11-kit and p11-kit-modules")
    })
}

/// A token in a directory of its own.
struct Hardware {
    dir: tempfile::TempDir,
}

impl Hardware {
    fn new() -> Hardware {
        let hardware = Hardware {
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(hardware.tokens()).unwrap();
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\n",
            hardware.tokens().display()
        );
        std::fs::write(hardware.at("softhsm2.conf"), conf).unwrap();
        hardware.put_pin(PIN, 0o600);
        let label = ["--init-token", "--free", "--label", "writ"];
        let pins = ["--pin", PIN, "--so-pin", "27182818"];
        let mut command = hardware.command("softhsm2-util");
        let made = command.args(label).args(pins).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        hardware
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tokens(&self) -> PathBuf {
        self.at("tokens")
    }

    fn put_pin(&self, pin: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.at("pin");
        std::fs::write(&path, format!("{pin}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn env(&self) -> Vec<(String, String)> {
        let shown = |path: PathBuf| path.display().to_string();
        [
            ("SOFTHSM2_CONF", shown(self.at("softhsm2.conf"))),
            ("PKCS11SPY", shown(library("libsofthsm2.so"))),
            ("PKCS11SPY_OUTPUT", shown(self.at("calls"))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.env());
        command
    }

    /// How often the module was called so.
    fn calls(&self, function: &str) -> usize {
        let text = std::fs::read(self.at("calls")).unwrap_or_default();
        String::from_utf8_lossy(&text).matches(function).count()
    }

    fn config(&self, module: &Path) -> String {
        config(module, &self.at("pin").display().to_string())
    }

    /// Serves the token on a socket, until it is ended.
    fn serve(&self) -> Served {
        let socket = self.at("socket");
        let _old = std::fs::remove_file(&socket);
        let mut command = self.command("p11-kit");
        command.args(["server", "--foreground", "--provider"]);
        command.arg(library("libsofthsm2.so"));
        command.arg("--name").arg(&socket).arg("pkcs11:token=writ");
        // It has a process for each connection.
        command.process_group(0);
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        Served(child)
    }

    /// As [`Hardware::options`], for a token that [`Hardware::serve`] serves.
    fn remote(&self) -> Options {
        let mut options = self.options();
        let client = library("p11-kit-client.so").display().to_string();
        let address = format!("unix:path={}", self.at("socket").display());
        options.env.push(("PKCS11SPY".to_owned(), client));
        options
            .env
            .push(("P11_KIT_SERVER_ADDRESS".to_owned(), address));
        options
    }

    fn options(&self) -> Options {
        Options {
            extra_config: self.config(&spy()),
            env: self.env(),
            ..Options::default()
        }
    }

    /// What `pkcs11-tool` says, logged in.
    fn tool(&self, words: &[&str]) -> Output {
        let mut command = self.command("pkcs11-tool");
        command.arg("--module").arg(library("libsofthsm2.so"));
        let token = ["--token-label", "writ", "--login", "--pin", PIN];
        command.args(token).args(words).output().unwrap()
    }
}

fn spy() -> PathBuf {
    library("pkcs11-spy.so")
}

fn config(module: &Path, pin_from: &str) -> String {
    let module = module.display().to_string();
    format!("[keys.pkcs11]\nmodule = {module:?}\ntoken = \"writ\"\npin_from = {pin_from:?}\n")
}

/// A server of the token.
struct Served(Child);

impl Served {
    fn signal(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _status = self.0.wait();
    }
}

/// `writ` with these words and the system's config.
fn writ(rig: &Rig, hardware: &Hardware, words: &[&str]) -> Output {
    let mut command = rig.system.writ();
    command.envs(hardware.env()).args(words);
    if words.first() == Some(&"keys") {
        command.arg("--files");
    }
    command
        .arg("--config")
        .arg(rig.system.state_dir().join("writ.toml"));
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8(both).unwrap()
}

fn kid(token: &str) -> String {
    let header = capability::b64::decode(token.split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    assert_eq!(
        (&header["alg"], &header["typ"]),
        (&"ES256".into(), &"at+jwt".into())
    );
    header["kid"].as_str().unwrap().to_owned()
}

fn list(rig: &Rig) -> PathBuf {
    rig.system.state_dir().join("data/keys/token-keys.json")
}

fn listed(rig: &Rig) -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(list(rig)).unwrap()).unwrap()
}

/// The objects' ids, in the order of the list.
fn objects(rig: &Rig) -> Vec<String> {
    let all = listed(rig);
    let ids = all.iter().filter_map(|key| key["object"].as_str());
    ids.map(ToOwned::to_owned).collect()
}

fn private_keys(rig: &Rig) -> Vec<String> {
    let names = std::fs::read_dir(rig.system.state_dir().join("data/keys")).unwrap();
    let names = names.map(|it| it.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with("token-es256"))
        .collect()
}

/// The warning that nothing is issued says this.
fn warned(rig: &Rig, why: &str) -> bool {
    let status = rig.status();
    let warnings = status["warnings"].as_array().unwrap().iter();
    let mut texts = warnings.map(|it| it.as_str().unwrap());
    texts.any(|text| text.contains("NO TOKEN IS ISSUED") && text.contains(why))
}

/// Nothing that we wrote or that others can see has the PIN.
fn no_pin_anywhere(rig: &Rig) {
    let dir = rig.system.state_dir();
    let mut todo = vec![dir.to_owned()];
    let mut read = 0;
    while let Some(path) = todo.pop() {
        let Ok(kind) = path.symlink_metadata() else {
            continue;
        };
        if kind.is_dir() {
            todo.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|it| it.unwrap().path()),
            );
        } else if kind.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(PIN.len()).any(|it| it == PIN.as_bytes());
            assert!(!found, "{}", path.display());
            read += 1;
        }
    }
    assert!(read > 5, "{read}");
    let pid = rig.system.control_plane_pid();
    let argv = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!argv.contains(PIN));
    assert!(!rig.status().to_string().contains(PIN));
}

/// Good requests go on until another key signs.
async fn until_another_signs(rig: &Rig, before: &str) -> String {
    let start = Instant::now();
    loop {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{before} still signs"
        );
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let answer = rig.agent.present("GET", REPORT, &token).await.unwrap();
        // Envoy's worker may be between two streams.
        assert!([200, 503].contains(&answer.status), "{}", answer.summary());
        let signs = kid(&token);
        if signs != before {
            return signs;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_in_a_token_sign_rotate_and_are_revoked_there() {
    let hardware = Hardware::new();
    // It starts, and a token passes Envoy and reaches the upstream.
    let rig = Rig::start(hardware.options()).await;
    let first = kid(&rig.agent.token("GET", REPORT).await.unwrap());
    assert!(hardware.calls("C_Sign") > 0);
    assert!(private_keys(&rig).is_empty(), "no private key is a file");

    // It can't leave the token, not even for who has the PIN.
    let id = objects(&rig).remove(0);
    let shown = said(&hardware.tool(&["--list-objects", "--type", "privkey"]));
    for wanted in [
        format!("ID:         {id}\n").as_str(),
        // Nor does it decrypt, unwrap or derive.
        "Usage:      sign\n",
        "Access:     sensitive, always sensitive, never extractable, local\n",
    ] {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
    let read = ["--read-object", "--type", "privkey", "--id", &id];
    let out = hardware.at("out");
    let out = out.display().to_string();
    let read = hardware.tool(&[&read[..], &["--output-file", &out]].concat());
    assert!(!Path::new(&out).exists(), "{}", said(&read));

    // Another object, while good requests go on.
    let rotated = writ(&rig, &hardware, &["keys", "rotate"]);
    assert!(rotated.status.success(), "{}", said(&rotated));
    let signs = until_another_signs(&rig, &first).await;
    assert_eq!(listed(&rig).len(), 2);

    // Revoked: its object is gone, another signs.
    let revoked = writ(&rig, &hardware, &["keys", "revoke", &first]);
    assert!(revoked.status.success(), "{}", said(&revoked));
    let shown = said(&hardware.tool(&["--list-objects"]));
    assert!(!shown.contains(&id), "{shown}");
    rig.recovers().await;
    let revoked = writ(&rig, &hardware, &["keys", "revoke", &signs]);
    assert!(revoked.status.success(), "{}", said(&revoked));
    eventually("another signs", async || {
        let token = rig.agent.token("GET", REPORT).await;
        token.is_ok_and(|token| kid(&token) != signs)
    })
    .await;
    rig.recovers().await;
    no_pin_anywhere(&rig);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_makes_and_removes_keys_in_the_token() {
    let hardware = Hardware::new();
    let mut options = hardware.options();
    let pin_from = format!("env:{PIN_VARIABLE}");
    options.extra_config = format!(
        "[keys]\nrotate_every_days = 1\n{}",
        config(&spy(), &pin_from)
    );
    options.env.push((PIN_VARIABLE.to_owned(), PIN.to_owned()));
    let rig = Rig::start(options).await;
    let first = kid(&rig.agent.token("GET", REPORT).await.unwrap());
    // As if it had been made long ago.
    let ago = |days: u64| now_s() - days * 86_400;
    let put = |keys: &[Value]| {
        std::fs::write(list(&rig), serde_json::to_vec(keys).unwrap()).unwrap();
    };
    let mut keys = listed(&rig);
    keys[0]["made_s"] = ago(9).into();
    put(&keys);
    let second = until_another_signs(&rig, &first).await;
    let ids = objects(&rig);
    assert_eq!((ids.len(), private_keys(&rig).len()), (2, 0));
    let on_schedule = rig.entries_of("keys");
    let on_schedule = on_schedule
        .iter()
        .filter(|entry| entry["body"]["why"] == "schedule" && entry["body"]["kid"] == second);
    assert_eq!(on_schedule.count(), 1);

    // And now both, so that the first is long over when the third is made.
    let mut keys = listed(&rig);
    keys[0]["made_s"] = ago(9).into();
    keys[1]["from_s"] = ago(3).into();
    keys[1].as_object_mut().unwrap().remove("made_s");
    put(&keys);
    until_another_signs(&rig, &second).await;
    assert_eq!(listed(&rig).len(), 2, "the first is forgotten");
    let shown = said(&hardware.tool(&["--list-objects"]));
    assert!(
        !shown.contains(&ids[0]) && shown.contains(&ids[1]),
        "{shown}"
    );
    no_pin_anywhere(&rig);
    rig.recovers().await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_move_from_files_into_the_token_and_back() {
    let hardware = Hardware::new();
    let mut rig = Rig::start(Options {
        env: hardware.env(),
        ..Options::default()
    })
    .await;
    let path = rig.system.state_dir().join("writ.toml");
    let files = std::fs::read_to_string(&path).unwrap();
    let in_file = kid(&rig.agent.token("GET", REPORT).await.unwrap());
    std::fs::write(&path, format!("{files}\n{}", hardware.config(&spy()))).unwrap();
    rig.system.restart_control_plane().await.unwrap();
    // The file's key signs until everybody knows the other.
    let token = rig.agent.token("GET", REPORT).await.unwrap();
    assert_eq!(kid(&token), in_file);
    let in_token = until_another_signs(&rig, &in_file).await;
    assert_eq!(objects(&rig).len(), 1);
    // Back, while the token is gone: the list says what its keys are.
    std::fs::write(&path, files).unwrap();
    std::fs::rename(hardware.tokens(), hardware.at("away")).unwrap();
    rig.system.restart_control_plane().await.unwrap();
    let back = kid(&rig.agent.token("GET", REPORT).await.unwrap());
    assert!(back != in_token && back != in_file);
    let published = reqwest::get(format!("{}/.well-known/jwks.json", rig.system.http_url()));
    let published = published.await.unwrap().text().await.unwrap();
    for known in [&in_file, &in_token, &back] {
        assert!(published.contains(known.as_str()), "{published}");
    }
    rig.recovers().await;
    rig.finish().await;
}
