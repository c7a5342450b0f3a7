//! A control plane alone: config, process, and what it wrote.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use wasm_test::child::Child;
use wasm_test::client::Agent;
use wasm_test::ports::{self, Ports};
use wasm_test::system::{AGENT, PROXY};
use wasm_test::tools::Tools;

/// Like the starter policy, with a second rule whose approver is somebody else.
pub const POLICY: &str = r#"
@id("read-files")
permit (principal is Writ::Agent, action == Writ::Action::"GET", resource)
when { resource.path like "/files/*" };

@id("restricted-needs-approval")
@approvers("platform")
@reason("Restricted files are read only after somebody has looked.")
forbid (principal, action, resource)
when { resource.path like "/files/restricted/*" }
unless { context.approvals.contains("restricted-needs-approval") };

@id("board-needs-the-board")
@approvers("board")
@reason("Only the board decides about board papers.")
forbid (principal, action, resource)
when { resource.path like "/files/board/*" }
unless { context.approvals.contains("board-needs-the-board") };
"#;

/// A person whom no rule but the board's names, and groups to go with POLICY.
pub const BOARD: &str = r#"
[[approver]]
name = "operator"
groups = ["platform"]
[[approver]]
name = "chair"
groups = ["board"]
"#;

/// A directory with a config that works until a test changes it.
pub struct Prepared {
    dir: tempfile::TempDir,
    ports: Ports,
    config: toml::Table,
    env: Vec<(String, String)>,
    /// How many files it may have open, where that is not this process's own limit.
    files: Option<u32>,
    tools: Tools,
}

/// A control plane that runs.
pub struct Plane {
    child: Child,
    ready: Value,
    prepared: Prepared,
}

impl Prepared {
    pub fn new() -> Prepared {
        let tools = Tools::from_env().unwrap();
        let dir = tempfile::Builder::new().prefix("writ-").tempdir().unwrap();
        let ports = ports::free(None).unwrap();
        let uid = rustix::process::getuid().as_raw();
        let path = |name: &str| format!("{:?}", dir.path().join(name).display().to_string());
        let config = format!(
            r#"
[server]
issuer = "http://127.0.0.1:{http}"
listen = "127.0.0.1:{http}"
grpc_listen = "127.0.0.1:{grpc}"
data_dir = {data}
admin_socket = {admin}

[identity]
workload_api = {workload}
trust_domain = "writ.example"
control_plane_id = "spiffe://writ.example/control-plane"
dev_single_uid = true

[[identity.workload]]
spiffe_id = "{AGENT}"
uid = {uid}

[[proxy]]
spiffe_id = "{PROXY}"

[[agent]]
spiffe_id = "{AGENT}"
owner = "platform@example.com"

[edge]
listen = "127.0.0.1:{proxy}"
origin = "http://127.0.0.1:{proxy}"
module = {module:?}

[[edge.route]]
name = "files"
path_prefix = "/"
upstream = "127.0.0.1:{upstream}"

[policy]
files = ["policy.cedar"]
{BOARD}"#,
            http = ports.http,
            grpc = ports.grpc,
            proxy = ports.proxy,
            upstream = ports.upstream,
            data = path("data"),
            admin = path("admin.sock"),
            workload = path("workload.sock"),
            module = tools.filter_wasm.display().to_string(),
        );
        let prepared = Prepared {
            config: config.parse().unwrap(),
            dir,
            ports,
            env: Vec::new(),
            files: None,
            tools,
        };
        prepared.write_policy(POLICY);
        prepared
    }

    /// Sets keys: `over` is laid over the config table by table.
    pub fn with(mut self, over: &str) -> Prepared {
        lay(&mut self.config, over.parse().unwrap());
        self
    }

    /// More environment for the control plane.
    pub fn with_env(mut self, env: Vec<(String, String)>) -> Prepared {
        self.env.extend(env);
        self
    }

    /// The control plane may have no more files open.
    pub fn with_files(mut self, files: u32) -> Prepared {
        self.files = Some(files);
        self
    }

    pub fn write_policy(&self, text: &str) {
        std::fs::write(self.path("policy.cedar"), text).unwrap();
    }

    /// Writes the config and returns its path.
    pub fn write(&self) -> PathBuf {
        let path = self.path("writ.toml");
        std::fs::write(&path, toml::to_string(&self.config).unwrap()).unwrap();
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn ports(&self) -> Ports {
        self.ports
    }

    pub fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.http)
    }

    pub fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.proxy)
    }

    pub fn writ(&self) -> Command {
        let mut command = Command::new(&self.tools.writ);
        command
            .env_remove("XDG_STATE_HOME")
            .env("HOME", self.dir.path())
            .env("WRIT_ISSUER", self.issuer())
            .env("WRIT_WORKLOAD_API", self.path("workload.sock"))
            .env("WRIT_ADMIN_SOCKET", self.path("admin.sock"))
            .current_dir(self.dir.path());
        command
    }

    pub fn serve(&self, config: &Path) -> Command {
        let mut command = self.writ();
        command.arg("serve").arg("--config").arg(config);
        command
    }

    pub async fn start(self) -> Plane {
        let config = self.write();
        let ready_file = self.path("ready.json");
        let mut command = self.serve(&config);
        command.envs(self.env.iter().cloned());
        command.arg("--ready-file").arg(&ready_file);
        if let Some(files) = self.files {
            command = limited(&command, files);
        }
        let mut child =
            Child::spawn("the control plane", &mut command, &self.path("serve.log")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready_file.exists() {
            child.still_running().unwrap();
            assert!(Instant::now() < deadline, "not ready in 30 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let ready = serde_json::from_slice(&std::fs::read(&ready_file).unwrap()).unwrap();
        Plane {
            child,
            ready,
            prepared: self,
        }
    }
}

impl Plane {
    pub async fn start() -> Plane {
        Prepared::new().start().await
    }

    pub fn ready(&self) -> &Value {
        &self.ready
    }

    pub fn login_link(&self) -> &str {
        self.ready["approver_login"].as_str().unwrap()
    }

    pub fn token_endpoint(&self) -> String {
        format!("{}/oauth2/token", self.issuer())
    }

    pub async fn agent(&self) -> Agent {
        let socket = self.path("workload.sock");
        Agent::connect(&self.issuer(), &self.origin(), &socket)
            .await
            .unwrap()
    }

    /// Every entry of the log, oldest first.
    pub fn entries(&self) -> Vec<Value> {
        entries(&self.data().join("journal"))
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Stops it; its directory stays.
    pub async fn stopped(mut self) -> Prepared {
        self.child.stop().await;
        std::fs::remove_file(self.path("ready.json")).unwrap();
        self.prepared
    }

    /// Stops it and starts it again, on the same data and ports.
    pub async fn restart(self) -> Plane {
        self.stopped().await.start().await
    }
}

impl std::ops::Deref for Plane {
    type Target = Prepared;

    fn deref(&self) -> &Prepared {
        &self.prepared
    }
}

/// The same command, by a shell that first says how many files may be open.
fn limited(command: &Command, files: u32) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
    shell.arg("-c").arg(script);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        shell.current_dir(dir);
    }
    shell
}

/// Every entry of a log, oldest first.
pub fn entries(journal: &Path) -> Vec<Value> {
    let mut reader = audit::reader::Reader::new(journal);
    let mut found = Vec::new();
    while let Some(group) = reader.next_group().unwrap() {
        found.extend(
            group
                .into_iter()
                .map(|entry| serde_json::from_str(&entry.text).unwrap()),
        );
    }
    found
}

/// Runs a command to its end, off the runtime's threads.
pub async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lay(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => lay(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
