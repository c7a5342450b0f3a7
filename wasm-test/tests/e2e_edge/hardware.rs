//! Keys in a PKCS#11 token: SoftHSM's, seen through the spy module of OpenSC, which
//! writes down each call. One that goes away is behind p11-kit's server.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::rig::{Rig, eventually};

const PIN: &str = "31415926";

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
        format!(
            "[keys.pkcs11]\nmodule = {:?}\ntoken = \"writ\"\npin_file = {:?}\n",
            module.display().to_string(),
            self.at("pin").display().to_string()
        )
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
            extra_config: self.config(&library("pkcs11-spy.so")),
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

/// A server of the token.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.0);
        let _ended = kill_process_group(group, Signal::KILL);
        let _status = self.0.wait();
    }
}

/// `writ` with these words and the system's config.
fn writ(rig: &Rig, hardware: &Hardware, words: &[&str]) -> Output {
    let mut command = rig.system.writ();
    command.envs(hardware.env()).args(words);
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

fn listed(rig: &Rig) -> Vec<Value> {
    let path = rig.system.state_dir().join("data/keys/token-keys.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn warned(rig: &Rig) -> bool {
    rig.status().to_string().contains("NO TOKEN IS ISSUED")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_in_a_token_sign_rotate_and_are_revoked_there() {
    let hardware = Hardware::new();
    // It starts, and a token passes Envoy and reaches the upstream.
    let rig = Rig::start(hardware.options()).await;
    let first = kid(&rig.agent.token("GET", REPORT).await.unwrap());
    assert!(hardware.calls("C_Sign") > 0);
    let names = std::fs::read_dir(rig.system.state_dir().join("data/keys")).unwrap();
    let names = names.map(|it| it.unwrap().file_name().into_string().unwrap());
    let token_files = names.filter(|name| name.starts_with("token-es256"));
    assert_eq!(token_files.count(), 0, "no private key is a file");

    // It can't leave the token, not even for who has the PIN.
    let id = listed(&rig)[0]["object"].as_str().unwrap().to_owned();
    let objects = said(&hardware.tool(&["--list-objects", "--type", "privkey"]));
    assert!(objects.contains(&id), "{objects}");
    let access = "sensitive, always sensitive, never extract";
    assert!(objects.contains(access), "{objects}");
    let read = ["--read-object", "--type", "privkey", "--id", &id];
    let out = hardware.at("out");
    let out = out.display().to_string();
    let read = hardware.tool(&[&read[..], &["--output-file", &out]].concat());
    assert!(!Path::new(&out).exists(), "{}", said(&read));

    // Another object, while good requests go on.
    let rotated = writ(&rig, &hardware, &["keys", "rotate"]);
    assert!(rotated.status.success(), "{}", said(&rotated));
    let mut signs = first.clone();
    let start = std::time::Instant::now();
    while signs == first {
        assert!(start.elapsed() < Duration::from_secs(30));
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        signs = kid(&token);
        let answer = rig.agent.present("GET", REPORT, &token).await.unwrap();
        // Envoy's worker may be between two streams.
        assert!([200, 503].contains(&answer.status), "{}", answer.summary());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(listed(&rig).len(), 2);

    // Revoked: its object is gone, another signs.
    let revoked = writ(&rig, &hardware, &["keys", "revoke", &first]);
    assert!(revoked.status.success(), "{}", said(&revoked));
    let objects = said(&hardware.tool(&["--list-objects"]));
    assert!(!objects.contains(&id), "{objects}");
    rig.recovers().await;
    let revoked = writ(&rig, &hardware, &["keys", "revoke", &signs]);
    assert!(revoked.status.success(), "{}", said(&revoked));
    eventually("another signs", async || {
        let token = rig.agent.token("GET", REPORT).await;
        token.is_ok_and(|token| kid(&token) != signs)
    })
    .await;
    rig.recovers().await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_away_issues_nothing_and_heals() {
    let hardware = Hardware::new();
    let served = hardware.serve();
    let mut rig = Rig::start(hardware.remote()).await;
    let held = rig.agent.token("GET", REPORT).await.unwrap();
    drop(served);
    eventually("it is seen", async || warned(&rig)).await;
    let answer = rig.agent.exchange("GET", REPORT).await.unwrap();
    assert_eq!(answer.status, 503, "{}", answer.summary());
    assert_eq!(answer.oauth_error(), "temporarily_unavailable");
    // What was issued is good: checking needs no token.
    let answer = rig.agent.present("GET", REPORT, &held).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.summary());
    // A start without it issues nothing, and is one.
    rig.system.restart_control_plane().await.unwrap();
    assert!(warned(&rig));
    let answer = rig.agent.exchange("GET", REPORT).await.unwrap();
    assert_eq!(answer.oauth_error(), "temporarily_unavailable");
    let served = hardware.serve();
    eventually("it heals", async || !warned(&rig)).await;
    rig.recovers().await;

    // A PIN that has become wrong is tried once, whatever comes.
    drop(served);
    eventually("it is seen", async || warned(&rig)).await;
    hardware.put_pin("wrong-pin", 0o600);
    let before = hardware.calls("C_Login");
    let _served = hardware.serve();
    eventually("the PIN is refused", async || {
        rig.status().to_string().contains("refused the PIN")
    })
    .await;
    for _ in 0..20 {
        let answer = rig.agent.exchange("GET", REPORT).await.unwrap();
        assert_eq!(answer.oauth_error(), "temporarily_unavailable");
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(hardware.calls("C_Login"), before + 1);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_token_is_said_at_the_start() {
    let hardware = Hardware::new();
    let rig = Rig::start(Options {
        env: hardware.env(),
        ..Options::default()
    })
    .await;
    let own = rig.system.state_dir().join("writ.toml");
    let text = std::fs::read_to_string(&own).unwrap();
    let path = hardware.at("writ.toml");
    let policy = rig.system.state_dir().join("policy.cedar");
    std::fs::copy(policy, hardware.at("policy.cedar")).unwrap();
    let serve = |module: &Path| {
        // Beside the one that runs: other ports, another directory.
        let mut config: toml::Table = text.parse().unwrap();
        let server = config["server"].as_table_mut().unwrap();
        let data = hardware.at("data").display().to_string();
        server.insert("data_dir".into(), data.into());
        for key in ["listen", "grpc_listen"] {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = free.local_addr().unwrap().to_string();
            server.insert(key.into(), address.into());
        }
        let text = format!("{config}\n{}", hardware.config(module));
        std::fs::write(&path, text).unwrap();
        let mut command = rig.system.writ();
        command.envs(hardware.env()).args(["serve", "--config"]);
        let output = command.arg(&path).output().unwrap();
        assert!(!output.status.success(), "{}", said(&output));
        said(&output)
    };
    let spy = library("pkcs11-spy.so");
    let missing = hardware.at("missing.so");
    let told = serve(&missing);
    assert!(
        told.contains("keys.pkcs11.module: there is no file"),
        "{told}"
    );
    assert!(told.contains("writ.toml:"), "{told}");
    std::fs::write(&missing, "no library").unwrap();
    let told = serve(&missing);
    assert!(told.contains("correct keys.pkcs11.module"), "{told}");

    hardware.put_pin(PIN, 0o640);
    let told = serve(&spy);
    assert!(told.contains("may be read by others (mode 640)"), "{told}");
    hardware.put_pin("", 0o600);
    assert!(serve(&spy).contains("is empty"));
    assert_eq!(hardware.calls("C_Login"), 0);

    hardware.put_pin("wrong-pin", 0o600);
    let told = serve(&spy);
    assert!(told.contains("refused the PIN"), "{told}");
    assert_eq!(hardware.calls("C_Login"), 1, "once for a start");

    // Without a token there is no first key.
    hardware.put_pin(PIN, 0o600);
    std::fs::rename(hardware.tokens(), hardware.at("away")).unwrap();
    let told = serve(&spy);
    assert!(told.contains("PKCS#11 token can't be used"), "{told}");
    rig.finish().await;
}
