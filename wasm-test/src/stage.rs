//! Running systems as those who attack them see them: connections to a chosen
//! Envoy, exact bytes, and what reached the upstream and the log.

mod pair;
mod sockets;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Error;
use crate::client::{Agent, Answer};
use crate::raw::{Field, Http1, Http2, field, message};
use crate::system::{Options, System};
use crate::upstream::{REPORT, Record};
pub use pair::Pair;

/// How long anything that happens later may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// The policy that attacks run under, below the repository's root.
const POLICY: &str = "wasm-test/tests/e2e_edge/policy.cedar";

/// A system with one agent.
#[derive(Debug)]
pub struct Stage {
    /// The system.
    pub system: System,
    /// The agent.
    pub agent: Agent,
}

impl Stage {
    /// A system under the end-to-end tests' policy, once good requests pass on it.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn start(options: Options) -> Result<Stage, Error> {
        let policy = crate::tools::root().join(POLICY);
        let options = Options {
            policy: options.policy.or(Some(policy)),
            ..options
        };
        let system = System::for_test(options).await?;
        let agent = system.agent().await?;
        let stage = Stage { system, agent };
        stage.recovers().await?;
        Ok(stage)
    }

    /// Stops all of it.
    pub async fn stop(self) {
        self.system.stop().await;
    }

    // ---- connections ---------------------------------------------------------------

    /// `127.0.0.1:PORT` of the system's Envoys.
    pub fn address(&self) -> String {
        let url = self.system.proxy_url();
        url.trim_start_matches("http://").to_owned()
    }

    /// A connection to one of its Envoys, whichever the kernel chooses.
    ///
    /// # Errors
    /// When none listens.
    pub async fn connect(&self) -> Result<Http1, Error> {
        Http1::connect(&self.address()).await
    }

    /// A connection to this one of its Envoys.
    ///
    /// # Errors
    /// When it takes none within [`PATIENCE`].
    pub async fn connect_to(&self, envoy: usize) -> Result<Http1, Error> {
        let start = Instant::now();
        loop {
            let connection = self.connect().await?;
            if self.is_with(envoy, connection.local_port()).await {
                return Ok(connection);
            }
            late(start, &format!("no connection to Envoy {envoy}"))?;
        }
    }

    /// As [`Stage::connect_to`], for HTTP/2.
    ///
    /// # Errors
    /// As [`Stage::connect_to`].
    pub async fn connect_http2(&self, envoy: usize) -> Result<Http2, Error> {
        let start = Instant::now();
        loop {
            let connection = Http2::connect(&self.address()).await?;
            if self.is_with(envoy, connection.local_port()).await {
                return Ok(connection);
            }
            late(start, &format!("no HTTP/2 connection to Envoy {envoy}"))?;
        }
    }

    /// Whether the connection from this port has been accepted by this Envoy.
    async fn is_with(&self, envoy: usize, port: u16) -> bool {
        let pids = self.system.envoy_pids();
        if pids.len() == 1 {
            return true;
        }
        for _ in 0..40 {
            // Before it is accepted it is nobody's.
            match sockets::owner(port, &pids) {
                Some(owner) => return owner == envoy,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        false
    }

    // ---- requests --------------------------------------------------------------------

    /// Both credentials for a request, with a fresh proof.
    pub fn credentials(&self, method: &str, path: &str, token: &str) -> Vec<Field> {
        let key = self.agent.key();
        let proof = key.proof(method, &self.agent.url(path), Some(token));
        vec![
            field("authorization", format!("DPoP {token}")),
            field("dpop", proof),
        ]
    }

    /// The bytes of a request without a body, with these headers besides `host`.
    pub fn request(&self, method: &str, path: &str, headers: &[Field]) -> Vec<u8> {
        let mut all = vec![field("host", self.agent.authority())];
        all.extend_from_slice(headers);
        message(method, path, &all)
    }

    /// The bytes of a request with both credentials.
    pub fn signed(&self, method: &str, path: &str, token: &str) -> Vec<u8> {
        self.request(method, path, &self.credentials(method, path, token))
    }

    /// Sends bytes on a connection of their own and reads one answer.
    ///
    /// # Errors
    /// When none comes.
    pub async fn exchange(&self, bytes: &[u8]) -> Result<Answer, Error> {
        let mut connection = self.connect().await?;
        connection.send(bytes).await?;
        let closed = || Error::Unexpected("closed without an answer".to_owned());
        connection.answer().await?.ok_or_else(closed)
    }

    /// Presents a token for a GET on a connection of its own.
    ///
    /// # Errors
    /// As [`Stage::exchange`].
    pub async fn present(&self, path: &str, token: &str) -> Result<Answer, Error> {
        self.exchange(&self.signed("GET", path, token)).await
    }

    /// Whether exchange and request pass at this moment.
    pub async fn passes(&self) -> bool {
        let Ok(token) = self.agent.token("GET", REPORT).await else {
            return false;
        };
        let answer = self.present(REPORT, &token).await;
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// Waits until good requests pass on every worker: several in a row, each on
    /// a connection of its own.
    ///
    /// # Errors
    /// When they don't within [`PATIENCE`].
    pub async fn recovers(&self) -> Result<(), Error> {
        const IN_A_ROW: usize = 12;
        self.system.configured().await?;
        let start = Instant::now();
        let mut passed = 0;
        while passed < IN_A_ROW {
            passed = if self.passes().await { passed + 1 } else { 0 };
            if passed == 0 {
                late(start, "good requests pass no more")?;
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// The next good request passes and reaches the upstream once.
    ///
    /// # Errors
    /// When it doesn't.
    pub async fn good_request(&self) -> Result<(), Error> {
        self.good_request_seen_by(self).await
    }

    /// As [`Stage::good_request`], where the upstream is another stage's.
    ///
    /// # Errors
    /// When it doesn't.
    pub async fn good_request_seen_by(&self, upstream: &Stage) -> Result<(), Error> {
        let token = self.agent.token("GET", REPORT).await?;
        let answer = self.present(REPORT, &token).await?;
        answer.expect("the next good request", 200)?;
        match upstream.uses()?.get(&jti(&token)) {
            Some(1) => Ok(()),
            uses => Err(Error::Unexpected(format!(
                "the next good request reached the upstream {} times",
                uses.unwrap_or(&0)
            ))),
        }
    }

    // ---- what came of it -------------------------------------------------------------

    /// Requests whose headers have reached the upstream.
    ///
    /// # Errors
    /// When the upstream is another system's.
    pub fn arrived(&self) -> Result<u64, Error> {
        Ok(self.system.upstream()?.arrived())
    }

    /// Every request that reached the upstream and is over.
    ///
    /// # Errors
    /// When the upstream is another system's, or its log can't be read.
    pub fn records(&self) -> Result<Vec<Record>, Error> {
        self.system.upstream()?.records()
    }

    /// How often each token reached the upstream, by its `jti`.
    ///
    /// # Errors
    /// When a request came without a verified token's id.
    pub fn uses(&self) -> Result<BTreeMap<String, usize>, Error> {
        let mut uses = BTreeMap::new();
        for record in self.records()? {
            let id = record.header("x-writ-token-id").ok_or_else(|| {
                Error::Unexpected(format!("{} came without a verified token", record.path))
            })?;
            *uses.entry(id.to_owned()).or_default() += 1;
        }
        Ok(uses)
    }

    /// All entries of the log.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn entries(&self) -> Result<Vec<Value>, Error> {
        let output = self
            .tail()
            .output()
            .map_err(Error::file("run", &self.system.tools().writ))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::Unexpected(format!("the log can't be read: {said}")));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let parsed = text.lines().map(serde_json::from_str);
        parsed
            .collect::<Result<_, _>>()
            .map_err(|problem| Error::Unexpected(format!("a line of the log: {problem}")))
    }

    /// The `jti` of each token that the log says was let through, once for each
    /// time. Reads line by line: the log may be long.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn allowed(&self) -> Result<BTreeMap<String, usize>, Error> {
        let mut command = self.tail();
        let run = Error::file("run", &self.system.tools().writ);
        let child = command.stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(run)?;
        let mut allowed = BTreeMap::new();
        let lines = child.stdout.take().map(|out| BufReader::new(out).lines());
        for line in lines.into_iter().flatten().map_while(Result::ok) {
            if !line.contains(r#""kind":"allow""#) {
                continue;
            }
            let entry: Value = serde_json::from_str(&line).unwrap_or_default();
            if text_at(&entry, "/kind") == "allow" {
                *allowed
                    .entry(text_at(&entry, "/body/token/jti"))
                    .or_default() += 1;
            }
        }
        let ended = child.wait();
        let whole = ended.is_ok_and(|status| status.success());
        let cut = || Error::Unexpected("the log can't be read to its end".to_owned());
        whole.then_some(allowed).ok_or_else(cut)
    }

    /// A command that prints the whole log, one entry a line.
    pub fn tail(&self) -> std::process::Command {
        let mut command = self.system.writ();
        command.args(["audit", "tail", "-n", "100000000", "--no-follow"]);
        command.arg(self.system.audit_dir());
        command
    }

    /// The log is whole, by `writ audit verify`: how many entries it has.
    ///
    /// # Errors
    /// When it is damaged, or can't be read.
    pub fn verified(&self) -> Result<u64, Error> {
        let mut command = self.system.writ();
        command.args(["audit", "verify", "--json"]);
        let output = command
            .arg(self.system.audit_dir())
            .output()
            .map_err(Error::file("run", &self.system.tools().writ))?;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if !output.status.success() || report.get("whole") != Some(&Value::Bool(true)) {
            return Err(Error::Unexpected(format!("the log is not whole: {report}")));
        }
        Ok(report.get("entries").and_then(Value::as_u64).unwrap_or(0))
    }

    /// Waits for an entry that may come later.
    ///
    /// # Errors
    /// When it doesn't come within [`PATIENCE`].
    pub async fn entry(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value, Error> {
        let start = Instant::now();
        loop {
            if let Some(found) = self.entries()?.into_iter().rev().find(&is_it) {
                return Ok(found);
            }
            late(start, &format!("no entry in the log: {what}"))?;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// What is true of every token whatever happened: none reached the upstream
    /// twice, and none without an `allow` of its own in a whole log.
    ///
    /// # Errors
    /// When it isn't true.
    pub fn each_once(&self) -> Result<(), Error> {
        self.verified()?;
        let (uses, allowed) = (self.uses()?, self.allowed()?);
        for (jti, times) in &uses {
            if *times != 1 {
                return Err(Error::Unexpected(format!("{jti} passed {times} times")));
            }
            if allowed.get(jti) != Some(&1) {
                return Err(Error::Unexpected(format!("{jti} passed without one entry")));
            }
        }
        match allowed.iter().find(|(_, times)| **times != 1) {
            Some((jti, times)) => Err(Error::Unexpected(format!(
                "{jti} has {times} entries that let it pass"
            ))),
            None => Ok(()),
        }
    }
}

/// A token's `jti`, unverified; empty when it has none.
pub fn jti(token: &str) -> String {
    use base64ct::{Base64UrlUnpadded, Encoding as _};
    let part = token.split('.').nth(1).unwrap_or_default();
    let claims = Base64UrlUnpadded::decode_vec(part).unwrap_or_default();
    let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
    text_at(&claims, "/jti")
}

/// The string at a JSON pointer; empty when there is none.
pub fn text_at(value: &Value, pointer: &str) -> String {
    let text = value.pointer(pointer).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

/// Waits until something holds.
///
/// # Errors
/// When it doesn't within [`PATIENCE`].
pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) -> Result<(), Error> {
    let start = Instant::now();
    while !holds().await {
        late(start, what)?;
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn late(start: Instant, what: &str) -> Result<(), Error> {
    if start.elapsed() < PATIENCE {
        return Ok(());
    }
    Err(Error::Unexpected(format!("waited in vain: {what}")))
}
