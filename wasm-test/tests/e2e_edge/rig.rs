//! One running system, and what tests ask of it: what reached the upstream,
//! what the log says, and whether the next good request passes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use base64ct::{Base64UrlUnpadded, Encoding as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use wasm_test::client::{Agent, Answer};
pub use wasm_test::raw::{Field, field, message};
use wasm_test::stage;
pub use wasm_test::stage::{PATIENCE, jti};
use wasm_test::system::{Options, System};
use wasm_test::upstream::{REPORT, Record};

use super::raw::Http1;

const POLL: Duration = Duration::from_millis(50);

/// A system with one agent.
pub struct Rig {
    pub system: System,
    pub agent: Agent,
}

impl Rig {
    /// A system under this directory's policy.
    pub async fn start(options: Options) -> Rig {
        let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e_edge/policy.cedar");
        let options = Options {
            policy: options.policy.or(Some(policy)),
            ..options
        };
        let system = System::for_test(options).await.unwrap();
        let agent = system.agent().await.unwrap();
        let rig = Rig { system, agent };
        rig.system.settled().await.unwrap();
        rig.recovers().await;
        rig
    }

    /// `127.0.0.1:PORT` of Envoy's listener.
    pub fn authority(&self) -> String {
        self.system
            .proxy_url()
            .trim_start_matches("http://")
            .to_owned()
    }

    pub async fn connect(&self) -> Http1 {
        Http1::connect(&self.authority()).await
    }

    // ---- the upstream --------------------------------------------------------

    /// Requests whose headers have reached the upstream.
    pub fn arrived(&self) -> u64 {
        self.system.upstream().unwrap().arrived()
    }

    pub fn records(&self) -> Vec<Record> {
        self.system.upstream().unwrap().records().unwrap()
    }

    /// How often each token reached the upstream, by its `jti`.
    pub fn uses(&self) -> BTreeMap<String, usize> {
        let mut uses = BTreeMap::new();
        for record in self.records() {
            let id = record.header("x-writ-token-id");
            let id = id.expect("a request reached the upstream without a verified token id");
            *uses.entry(id.to_owned()).or_default() += 1;
        }
        uses
    }

    // ---- requests --------------------------------------------------------------

    /// A proof for a request that the agent makes with this token.
    pub fn proof(&self, method: &str, path: &str, token: &str) -> String {
        self.agent
            .key()
            .proof(method, &self.agent.url(path), Some(token))
    }

    /// The bytes of a request with both credentials.
    pub fn signed(&self, method: &str, path: &str, token: &str) -> Vec<u8> {
        self.request(method, path, &self.credentials(method, path, token))
    }

    /// Both credentials, with a fresh proof.
    pub fn credentials(&self, method: &str, path: &str, token: &str) -> Vec<Field> {
        vec![
            authorization(token),
            field("dpop", self.proof(method, path, token)),
        ]
    }

    /// The bytes of a request without a body.
    pub fn request(&self, method: &str, path: &str, headers: &[Field]) -> Vec<u8> {
        let mut all = vec![field("host", self.authority())];
        all.extend_from_slice(headers);
        message(method, path, &all)
    }

    /// Sends bytes on a connection of their own and reads one answer.
    pub async fn exchange_raw(&self, bytes: &[u8]) -> Answer {
        let mut connection = self.connect().await;
        connection.send(bytes).await;
        connection.answer().await.expect("no answer")
    }

    /// Exchange and request pass, and reach the upstream once.
    pub async fn good_request(&self) {
        let before = self.arrived();
        let answer = self.agent.call("GET", REPORT).await.unwrap();
        assert_eq!(
            answer.status,
            200,
            "the next good request: {}",
            answer.text()
        );
        assert_eq!(self.arrived(), before + 1, "the next good request, once");
    }

    /// Waits until good requests pass on every worker again, after something
    /// was down: one after the other, each on a connection of its own.
    pub async fn recovers(&self) {
        const IN_A_ROW: usize = 12;
        self.system.configured().await.unwrap();
        let start = Instant::now();
        let mut passed = 0;
        while passed < IN_A_ROW {
            passed = if self.passes().await { passed + 1 } else { 0 };
            if passed == 0 {
                assert!(start.elapsed() < PATIENCE, "good requests pass no more");
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// Whether exchange and request pass at this moment, on a new connection.
    pub async fn passes(&self) -> bool {
        let Ok(token) = self.agent.token("GET", REPORT).await else {
            return false;
        };
        self.exchange_raw(&self.signed("GET", REPORT, &token))
            .await
            .status
            == 200
    }

    /// Sends a GET that takes the token through whatever comes of it.
    pub async fn present(&self, path: &str, token: &str) -> Answer {
        self.agent.present("GET", path, token).await.unwrap()
    }

    // ---- the log -----------------------------------------------------------------

    /// `writ audit verify --json`, which must find the log whole.
    pub fn verified(&self) -> Value {
        let mut command = self.system.writ();
        command
            .args(["audit", "verify", "--json"])
            .arg(self.system.audit_dir());
        let output = command.output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "the log is damaged: {report}");
        assert_eq!(report["whole"], true);
        report
    }

    /// All entries of the log, as `writ audit tail` prints them.
    pub fn entries(&self) -> Vec<Value> {
        let mut command = self.system.writ();
        command.args(["audit", "tail", "-n", "1000000", "--no-follow"]);
        let output = command.arg(self.system.audit_dir()).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Entries of one kind.
    pub fn entries_of(&self, kind: &str) -> Vec<Value> {
        let all = self.entries().into_iter();
        all.filter(|entry| entry["kind"] == kind).collect()
    }

    /// Waits for an entry that may come later: refusals at the edge and
    /// outcomes are sent in batches.
    pub async fn entry(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            if let Some(found) = self.entries().into_iter().rev().find(|entry| is_it(entry)) {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "no entry in the log: {what}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    // ---- processes ----------------------------------------------------------------

    /// `writ status --json`.
    pub fn status(&self) -> Value {
        let output = self
            .system
            .writ()
            .args(["status", "--json"])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Stops all threads of the control plane, or lets them go on.
    pub async fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        let pid = i32::try_from(self.system.control_plane_pid()).unwrap();
        kill_process(Pid::from_raw(pid).expect("it runs"), signal).unwrap();
        // The signal is sent; on a busy machine a thread may still go on.
        let stopped = |stat: String| stat.rsplit(") ").next().unwrap().starts_with('T');
        eventually("every thread has heard", async || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
                .unwrap()
                .flatten();
            let mut stats =
                threads.filter_map(|it| std::fs::read_to_string(it.path().join("stat")).ok());
            stats.all(|stat| stopped(stat) == frozen)
        })
        .await;
    }

    /// Envoy's resident memory in bytes.
    pub fn envoy_memory(&self) -> u64 {
        let path = format!("/proc/{}/statm", self.system.envoy_pid());
        let pages = std::fs::read_to_string(path).unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// One of Envoy's statistics; 0 when there is none of that name.
    pub async fn stat(&self, name: &str) -> u64 {
        let url = format!("{}/stats?filter=^{name}$", self.system.admin_url());
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        let value = text.lines().find_map(|line| line.split_once(": "));
        value.map_or(0, |(_, value)| value.trim().parse().unwrap())
    }

    /// Nothing was lost on the way: the log is whole, no process has ended.
    pub async fn finish(mut self) {
        self.good_request().await;
        self.verified();
        let ended = self.system.ended();
        assert!(ended.is_empty(), "{ended:?}");
        self.system.stop().await;
    }
}

/// The header that carries a token.
pub fn authorization(token: &str) -> Field {
    field("authorization", format!("DPoP {token}"))
}

/// Waits until something holds.
pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    stage::eventually(what, holds).await.unwrap();
}

/// A token's claims, unverified.
pub fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&Base64UrlUnpadded::decode_vec(part).unwrap()).unwrap()
}

/// SHA-256 of bytes, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
