//! A changed module is tried on a few first, goes on to all when all is well, and is
//! taken back by itself when it is not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use wasm_test::client::Agent;
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::raw::Http1;
use super::rig::{Field, Rig, authorization, eventually, field, message, sha256};
use super::watching::{deploy, open_filter};

const OTHER: &str = "/files/notes.txt";
/// Seconds for which each step is watched; the least that the config takes.
pub(super) const WATCH_S: u64 = 10;
/// Some steps, on a machine that is busy.
pub(super) const LONG: Duration = Duration::from_secs(90);

/// The node 0 is the first; further groups are as `more` says.
pub(super) async fn start(envoys: usize, more: &str) -> Rig {
    let groups = format!(
        r#"
[limits]
outstanding_per_agent = 65536
exchanges_per_agent = 1000000
exchanges_per_owner = 1000000
[edge.rollout]
first = ["first"]
watch_s = {WATCH_S}
[[edge.group]]
name = "first"
proxies = ["spiffe://writ.example/proxy"]
nodes = ["writ-proxy-0"]
"#
    );
    Rig::start(Options {
        envoys,
        token_lifetime_s: 300,
        extra_config: groups + more,
        ..Options::default()
    })
    .await
}

/// The module with another hash: a custom section (id 0) is no code.
fn relabelled(module: &[u8], label: u8) -> Vec<u8> {
    [module, &[0, 5, 4, b'r', b'o', b'l', label]].concat()
}

/// The steps of this module, oldest first, and why the last one was taken.
fn steps(rig: &Rig, module: &[u8]) -> (Vec<String>, String) {
    let mut own = rig.entries_of("rollout");
    own.retain(|entry| entry["body"]["module"] == sha256(module));
    own.sort_by_key(|entry| entry["i"].as_u64());
    let text = |entry: &Value, name: &str| entry["body"][name].as_str().unwrap().to_owned();
    let why = own.last().map(|entry| text(entry, "why"));
    let steps = own.iter().map(|entry| text(entry, "event"));
    (steps.collect(), why.unwrap_or_default())
}

async fn reaches(rig: &Rig, module: &[u8], wanted: &[&str]) {
    let start = Instant::now();
    loop {
        // Somebody good has to pass as well: strangers alone say nothing.
        tries(rig).await;
        let (seen, why) = steps(rig, module);
        if seen == wanted {
            return;
        }
        let on_the_way = seen.len() < wanted.len() && wanted.starts_with(&borrowed(&seen));
        assert!(on_the_way, "{seen:?} and not {wanted:?}: {why}");
        assert!(
            start.elapsed() < LONG,
            "it stays at {seen:?}, before {wanted:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn borrowed(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// The filter's version that each node works with.
fn versions(rig: &Rig) -> BTreeMap<String, String> {
    let status = rig.status();
    let version = |detail: &str| {
        let at = detail.split("Filter ").nth(1).unwrap_or_default();
        at.split(' ').next().unwrap_or_default().to_owned()
    };
    let proxies = status["proxies"].as_array().unwrap().iter();
    proxies
        .map(|it| {
            let text = |name: &str| it[name].as_str().unwrap();
            (text("node").to_owned(), version(text("detail")))
        })
        .collect()
}

/// What this node has said of filters that it was given.
fn words(rig: &Rig, node: &str) -> usize {
    let mut said = rig.entries_of("proxy");
    said.retain(|it| it["body"]["node"] == node && it["body"]["kind"] == "Filter");
    said.len()
}

pub(super) fn warned(rig: &Rig, of: &str) -> bool {
    rig.status()["warnings"].to_string().contains(of)
}

/// The modules that this node's filters said they are.
fn modules(rig: &Rig, node: &str) -> BTreeSet<String> {
    let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
    let node = format!("node=\"{node}\"");
    let own = log.lines().filter(|line| line.contains(&node));
    let digest = |line: &str| Some(line.split('+').nth(1)?.get(..12)?.to_owned());
    let connected = own.filter(|line| line.contains("a filter connected"));
    connected.map(|line| digest(line).unwrap()).collect()
}

/// Good requests at a time, each on a connection of its own.
pub(super) async fn tries(rig: &Rig) -> bool {
    let passed = join_all((0..20).map(|_| rig.passes())).await;
    passed.iter().all(|passed| *passed)
}

/// Enough good requests to compare with, on each node.
async fn busy(rig: &Rig) {
    for _ in 0..6 {
        assert!(tries(rig).await, "good requests under the good module");
    }
}

/// What must never pass, sent all the time.
#[derive(Default)]
pub(super) struct Junk {
    stop: AtomicBool,
    sent: AtomicU64,
}

impl Junk {
    pub(super) async fn start(rig: &Rig) -> (Arc<Junk>, tokio::task::JoinHandle<()>) {
        let junk = Arc::new(Junk::default());
        let agent = rig.agent.with_fresh_key().unwrap();
        // While the control plane is there: who started it may restart that at once.
        let token = agent.token("GET", REPORT).await.unwrap();
        let sender = junk.clone().send(agent, token, rig.authority());
        (junk, tokio::spawn(sender))
    }

    async fn send(self: Arc<Junk>, agent: Agent, token: String, authority: String) {
        let thief = agent.with_fresh_key().unwrap();
        while !self.stop.load(Ordering::SeqCst) {
            let proof = thief.key().proof("GET", &agent.url(REPORT), Some(&token));
            let bare = vec![field("host", authority.clone())];
            let with = |more: &[Field]| [bare.as_slice(), more].concat();
            let spoofed = with(&[field("x-writ-token-id", "spoofed".to_owned())]);
            let stolen = with(&[authorization(&token), field("dpop", proof)]);
            for headers in [bare.clone(), spoofed, stolen] {
                // Each on a connection of its own, so that each node gets some.
                let mut connection = Http1::connect(&authority).await;
                connection.send(&message("GET", REPORT, &headers)).await;
                let answer = connection.answer().await.expect("no answer");
                assert!(
                    [401, 500, 503].contains(&answer.status),
                    "a bad request: {}",
                    answer.text()
                );
                self.sent.fetch_add(1, Ordering::SeqCst);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// None of it arrived: each request that did has an `allow` of its own.
    pub(super) async fn end(self: Arc<Junk>, rig: &Rig, task: tokio::task::JoinHandle<()>) {
        self.stop.store(true, Ordering::SeqCst);
        task.await.unwrap();
        let sent = self.sent.load(Ordering::SeqCst);
        assert!(sent > 100, "{sent} bad requests are no load");
        let allowed = rig.entries_of("allow");
        let allowed: BTreeSet<&str> = allowed
            .iter()
            .map(|it| it["body"]["token"]["jti"].as_str().unwrap())
            .collect();
        for (jti, uses) in rig.uses() {
            assert_eq!(uses, 1, "{jti} passed {uses} times");
            assert!(allowed.contains(jti.as_str()), "{jti} passed unasked");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_a_few_then_all_and_a_pinned_group_stays() {
    let pinned = std::env::var("WRIT_FILTER_WASM").unwrap();
    let pinned = format!(
        r#"
[[edge.group]]
name = "pinned"
proxies = ["spiffe://writ.example/proxy"]
nodes = ["writ-proxy-2"]
module = "{pinned}"
"#
    );
    let mut rig = start(3, &pinned).await;
    let (junk, task) = Junk::start(&rig).await;
    let old = std::fs::read(rig.system.module_file()).unwrap();
    let begin = versions(&rig);
    let one =
        |versions: &BTreeMap<String, String>| versions.values().collect::<BTreeSet<_>>().len() == 1;
    assert!(begin.len() == 3 && one(&begin), "{begin:?}");
    let groups = rig.status()["proxies"].to_string();
    assert!(groups.contains("in the group first") && groups.contains("in the group pinned"));

    // A good one: node 0 has it alone for as long as is said, and then all but node 2.
    let good = relabelled(&old, 1);
    deploy(&rig, &good);
    reaches(&rig, &good, &["try"]).await;
    let tried = Instant::now();
    eventually("node 0 runs it", async || {
        versions(&rig)["writ-proxy-0"] != begin["writ-proxy-0"]
    })
    .await;
    assert!(warned(&rig, "is tried on the groups first"));
    while tried.elapsed() < Duration::from_secs(WATCH_S - 2) {
        let now = versions(&rig);
        for node in ["writ-proxy-1", "writ-proxy-2"] {
            assert_eq!(now[node], begin[node], "too early");
        }
        assert_eq!(
            rig.status()["module_sha256"],
            sha256(&old),
            "not all get it"
        );
        rig.good_request().await;
    }
    reaches(&rig, &good, &["try", "all", "done"]).await;
    let all = versions(&rig);
    assert_eq!(all["writ-proxy-0"], all["writ-proxy-1"]);
    assert_eq!(all["writ-proxy-2"], begin["writ-proxy-2"], "it is pinned");
    assert_eq!(rig.status()["module_sha256"], sha256(&good));
    assert_eq!(rig.status()["warnings"], serde_json::json!([]));

    // The control plane dies while the next one is tried: it starts with the good one,
    // says so, and tries again.
    let next = relabelled(&old, 2);
    deploy(&rig, &next);
    reaches(&rig, &next, &["try"]).await;
    rig.system.kill_control_plane();
    rig.system.start_control_plane().await.unwrap();
    let configs = rig.entries_of("config");
    let configs: Vec<&str> = configs
        .iter()
        .map(|it| it["body"]["module"].as_str().unwrap())
        .collect();
    assert!(!configs.contains(&sha256(&next).as_str()), "{configs:?}");
    assert_eq!(configs.last(), Some(&sha256(&good).as_str()));
    let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
    assert!(log.contains("the start is with the module and the [edge] that were good last"));
    reaches(&rig, &next, &["try", "try", "all", "done"]).await;
    let all = versions(&rig);
    assert_eq!(all["writ-proxy-0"], all["writ-proxy-1"]);
    let own = modules(&rig, "writ-proxy-2");
    assert!(
        own.len() == 1 && own.contains(sha256(&old).get(..12).unwrap()),
        "{own:?}"
    );
    assert_eq!(steps(&rig, &old).0, ["pinned", "pinned"], "at each start");
    junk.end(&rig, task).await;
    rig.recovers().await;
    rig.finish().await;
}

/// Takes a module that is no good through its trial: node 1 never hears of it, and
/// node 0 runs the good one again. `meanwhile` is done while it is tried.
async fn goes_back(rig: &Rig, module: &[u8], why: &str, meanwhile: impl AsyncFn()) {
    let (good, said) = (versions(rig), words(rig, "writ-proxy-1"));
    let sha = rig.status()["module_sha256"].clone();
    busy(rig).await;
    deploy(rig, module);
    let start = Instant::now();
    while steps(rig, module).0.len() < 2 {
        meanwhile().await;
        assert!(start.elapsed() < LONG, "{why}: it stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (seen, said_why) = steps(rig, module);
    assert_eq!(seen, ["try", "back"], "{why}: {said_why}");
    assert!(said_why.contains(why), "{why}: {said_why}");
    assert!(warned(rig, "was taken back"));
    eventually("all run the good one", async || versions(rig) == good).await;
    assert_eq!(
        words(rig, "writ-proxy-1"),
        said,
        "{why}: node 1 heard of it"
    );
    assert_eq!(rig.status()["module_sha256"], sha);
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_is_no_good_goes_back_by_itself() {
    let rig = start(2, "").await;
    let (junk, task) = Junk::start(&rig).await;
    let old = std::fs::read(rig.system.module_file()).unwrap();
    let nothing = async || {};
    let good = async || {
        tries(&rig).await;
    };

    // What Envoy refuses.
    let corrupt = with_code(&old, "proxy_on_request_headers", 0xff);
    goes_back(&rig, &corrupt, "refused it", nothing).await;
    let other_abi = renamed(&old, "proxy_abi_version_0_2_1", "proxy_abi_version_9_9_9");
    goes_back(&rig, &other_abi, "refused it", nothing).await;
    let at_start = with_code(&old, "proxy_on_configure", UNREACHABLE);
    goes_back(&rig, &at_start, "refused it", nothing).await;

    // What crashes at a request, and what knows no token any more.
    let crashes = with_code(&old, "proxy_on_request_headers", UNREACHABLE);
    goes_back(&rig, &crashes, "crashed", good).await;
    let knows_nobody = renamed(&old, "jktx5t#S256", "jkqx5t#S256");
    goes_back(&rig, &knows_nobody, "refusals jumped", good).await;

    // What is refused to callers who are known counts whoever else passes.
    let token = rig.agent.token("GET", REPORT).await.unwrap();
    let strict = relabelled(&old, 3);
    goes_back(&rig, &strict, "refusals jumped", async || {
        let answer = rig.exchange_raw(&rig.signed("GET", OTHER, &token)).await;
        assert!([403, 503].contains(&answer.status), "{}", answer.text());
    })
    .await;
    junk.end(&rig, task).await;

    // Whoever writes the module can open the gate. It shows, and is on a few alone.
    goes_back(&rig, &open_filter(), "opened a stream", nothing).await;
    rig.finish().await;
}

/// WebAssembly's `unreachable`.
const UNREACHABLE: u8 = 0;

/// The module with another text in place of one of the same length.
fn renamed(module: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = module
        .windows(from.len())
        .position(|it| it == from.as_bytes());
    let mut module = module.to_vec();
    module[at.expect("the text is there")..][..to.len()].copy_from_slice(to.as_bytes());
    module
}

/// The module with an exported function that has no locals and begins with this
/// instruction.
fn with_code(module: &[u8], function: &str, instruction: u8) -> Vec<u8> {
    let mut sections = BTreeMap::new();
    let mut at = 8;
    while at < module.len() {
        let id = module[at];
        let (size, body) = number(module, at + 1);
        sections.insert(id, body);
        at = body + size;
    }
    let mut imported = 0;
    let (count, mut at) = number(module, sections[&2]);
    for _ in 0..count {
        for _ in 0..2 {
            let (size, text) = number(module, at);
            at = text + size;
        }
        assert_eq!(module[at], 0, "functions are imported, and nothing else");
        imported += 1;
        at = number(module, at + 1).1;
    }
    let (count, mut at) = number(module, sections[&7]);
    let mut index = None;
    for _ in 0..count {
        let (size, text) = number(module, at);
        let kind = text + size;
        let (number, next) = number(module, kind + 1);
        if &module[text..kind] == function.as_bytes() {
            index = Some(number);
        }
        at = next;
    }
    let own = index.expect("it is exported") - imported;
    let (_, mut at) = number(module, sections[&10]);
    for _ in 0..own {
        let (size, body) = number(module, at);
        at = body + size;
    }
    let (size, body) = number(module, at);
    // No locals, the instruction, and `nop` up to the function's `end`.
    let mut module = module.to_vec();
    module[body..body + size - 1].fill(1);
    module[body] = 0;
    module[body + 1] = instruction;
    module
}

/// A LEB128 number, and what comes after it.
fn number(bytes: &[u8], mut at: usize) -> (usize, usize) {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[at];
        at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return (value, at);
        }
    }
}
