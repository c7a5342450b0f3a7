//! A changed `[edge]` goes the way of a changed module, a group may have its own, and
//! a question is decided by that of the proxy which asks it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};
use toml::Table;
use wasm_test::client::Answer;

use super::rig::{Rig, eventually, field, message};
use super::rollout::{Junk, LONG, WATCH_S, start, tries, warned};

const NOTE: &str = "/echo/notes/a";
const BODY: &[u8] = b"a note";
const SHOWN: &str = "/echo/shown/a";

fn file(rig: &Rig) -> PathBuf {
    rig.system.state_dir().join("writ.toml")
}

/// Changes the config file, and starts the control plane anew.
async fn restart_with(rig: &mut Rig, change: impl FnOnce(&mut Table)) {
    let text = std::fs::read_to_string(file(rig)).unwrap();
    let mut config: Table = text.parse().unwrap();
    change(&mut config);
    std::fs::write(file(rig), config.to_string()).unwrap();
    rig.system.restart_control_plane().await.unwrap();
    rig.system.configured().await.unwrap();
}

fn list<'c>(config: &'c mut Table, name: &str) -> &'c mut Vec<toml::Value> {
    let edge = config["edge"].as_table_mut().unwrap();
    edge[name].as_array_mut().unwrap()
}

/// A route that shows its upstream our decision, and whose bodies nobody reads.
fn shows(config: &mut Table) {
    let mut route = list(config, "route")[0].clone();
    let own = route.as_table_mut().unwrap();
    own.insert("name".into(), "shown".into());
    own.insert("path_prefix".into(), "/echo/shown".into());
    own.insert("decision_header".into(), true.into());
    list(config, "route").push(route);
}

/// A route whose bodies are read, up to so many bytes.
fn reads(config: &mut Table, limit: i64) {
    let routes = list(config, "route");
    let known = |it: &toml::Value| it["name"].as_str() == Some("notes");
    let at = routes.iter().position(known).unwrap_or_else(|| {
        let mut route = routes[0].clone();
        let own = route.as_table_mut().unwrap();
        own.insert("name".into(), "notes".into());
        own.insert("path_prefix".into(), "/echo/notes".into());
        own.insert("body".into(), "read".into());
        routes.push(route);
        routes.len() - 1
    });
    let route = routes[at].as_table_mut().unwrap();
    route.insert("body_limit".into(), limit.into());
}

/// The `[edge]` that each node's filters said last.
fn edges(rig: &Rig) -> BTreeMap<String, String> {
    let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
    let after = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name}=\""))?;
        rest.split('"').next().map(str::to_owned)
    };
    let connected = log.lines().filter(|it| it.contains("a filter connected"));
    let said = connected.map(|line| {
        let name = after(line, "module").unwrap();
        let (_, edge) = name.rsplit_once('.').unwrap();
        (after(line, "node").unwrap(), edge.to_owned())
    });
    said.collect()
}

/// The steps of all that was tried, oldest first.
fn steps(rig: &Rig) -> Vec<Value> {
    let mut all = rig.entries_of("rollout");
    all.retain(|it| it["body"]["event"] != "pinned");
    all.sort_by_key(|it| it["i"].as_u64());
    all.iter().map(|it| it["body"].clone()).collect()
}

/// Waits for these steps while notes are sent.
async fn reaches(rig: &Rig, wanted: &[&str], answers: &[u16]) {
    let start = Instant::now();
    loop {
        notes(rig, answers).await;
        let said = steps(rig);
        let seen: Vec<&str> = said
            .iter()
            .map(|it| it["event"].as_str().unwrap())
            .collect();
        if seen == wanted {
            return;
        }
        assert!(wanted.starts_with(&seen), "{wanted:?} and not {said:#?}");
        assert!(start.elapsed() < LONG, "it stays at {seen:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A filter that was just told what it is may not have its stream yet. Nothing else is
/// the system's fault.
fn is_not_there_yet(answer: &Answer) -> bool {
    answer.status == 503 && answer.json()["reason"] == "control_plane_unavailable"
}

/// Notes at a time, each on a connection of its own, so that each node gets some.
async fn notes(rig: &Rig, answers: &[u16]) {
    let sent = (0..20).map(async |_| {
        let token = rig.agent.token("POST", NOTE).await.unwrap();
        let mut headers = rig.credentials("POST", NOTE, &token);
        headers.push(field("host", rig.authority()));
        headers.push(field("content-length", BODY.len().to_string()));
        let bytes = [&message("POST", NOTE, &headers), BODY].concat();
        let answer = rig.exchange_raw(&bytes).await;
        assert!(
            answers.contains(&answer.status) || is_not_there_yet(&answer),
            "a note: {}",
            answer.text()
        );
    });
    join_all(sent).await;
}

/// Requests of the path that has a route of its own for some; how many of them the
/// upstream was shown a decision of.
async fn shown(rig: &Rig) -> usize {
    let before = rig.records().len();
    let sent = (0..20).map(async |_| {
        let token = rig.agent.token("GET", SHOWN).await.unwrap();
        let answer = rig.exchange_raw(&rig.signed("GET", SHOWN, &token)).await;
        let went = answer.status == 200 || is_not_there_yet(&answer);
        assert!(went, "{}", answer.text());
    });
    join_all(sent).await;
    let records = rig.records();
    let new = records.iter().skip(before).filter(|it| it.path == SHOWN);
    new.filter(|it| it.header("x-writ-decision").is_some())
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_config_goes_the_same_way_and_a_group_keeps_its_own() {
    let mut rig = start(3, "").await;
    // What is read of bodies is the same for all, and changes for all at once. Then
    // node 2 is pinned to what all have.
    let own = rig.system.state_dir().join("own.toml");
    restart_with(&mut rig, |config| {
        reads(config, 1024);
        let mut edge = config["edge"].as_table().unwrap().clone();
        for key in ["module", "rollout", "group"] {
            edge.remove(key).unwrap();
        }
        let text = Table::from_iter([("edge".to_owned(), edge.into())]).to_string();
        std::fs::write(&own, text).unwrap();
        let mut group = list(config, "group")[0].clone();
        let pinned = group.as_table_mut().unwrap();
        pinned.insert("name".into(), "pinned".into());
        pinned.insert("nodes".into(), vec!["writ-proxy-2"].into());
        pinned.insert("config".into(), own.display().to_string().into());
        list(config, "group").push(group);
    })
    .await;
    rig.recovers().await;
    let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
    assert!(log.contains("the changed [edge] goes to all proxies at once: `body`"));
    let common = edges(&rig);
    let kinds: BTreeSet<&String> = common.values().collect();
    assert_eq!(kinds.len(), 1, "it is what all have: {common:?}");
    notes(&rig, &[200]).await;
    assert_eq!(shown(&rig).await, 0);
    assert_eq!(steps(&rig), Vec::<Value>::new());
    let (junk, task) = Junk::start(&rig).await;

    // What is good is watched first, to compare with. Then node 0 has the other alone
    // for as long as is said, and then all but node 2. A question is decided by what
    // the proxy that asks has.
    restart_with(&mut rig, shows).await;
    reaches(&rig, &["try"], &[200]).await;
    // By the log: nobody knows from outside when the watching began.
    let time = |entry: &Value| entry["t"].as_u64().unwrap();
    let began = rig.entries_of("epoch").iter().map(time).max().unwrap();
    let step = rig.entries_of("rollout").iter().map(time).max().unwrap();
    assert!(step - began >= WATCH_S * 1000, "at once: {began} {step}");
    let tried = Instant::now();
    eventually("node 0 has it", async || {
        edges(&rig)["writ-proxy-0"] != common["writ-proxy-0"]
    })
    .await;
    assert!(warned(&rig, "the [edge] ") && warned(&rig, "is tried on the groups first"));
    let mut decisions = 0;
    while tried.elapsed() < Duration::from_secs(WATCH_S - 2) {
        decisions += shown(&rig).await;
        let now = edges(&rig);
        for node in ["writ-proxy-1", "writ-proxy-2"] {
            assert_eq!(now[node], common[node], "too early");
        }
    }
    assert!(decisions > 0, "node 0 shows none");
    reaches(&rig, &["try", "all", "done"], &[200]).await;
    let all = edges(&rig);
    assert_eq!(all["writ-proxy-0"], all["writ-proxy-1"]);
    assert_ne!(all["writ-proxy-0"], common["writ-proxy-0"]);
    assert_eq!(all["writ-proxy-2"], common["writ-proxy-2"], "it is pinned");
    assert_eq!(rig.status()["warnings"], json!([]));
    let mut decisions = 0;
    for _ in 0..4 {
        decisions += shown(&rig).await;
    }
    assert!(
        (1..80).contains(&decisions),
        "{decisions} of 80, of two of three"
    );

    // What refuses to known callers what passed is taken back, and tried again by
    // the next start.
    restart_with(&mut rig, |config| reads(config, 1)).await;
    let bad = ["try", "all", "done", "try", "back"];
    reaches(&rig, &bad, &[200, 413]).await;
    let why = steps(&rig).last().unwrap()["why"].to_string();
    assert!(why.contains("refusals jumped"), "{why}");
    assert!(warned(&rig, "was taken back"));
    eventually("all have the good one", async || edges(&rig) == all).await;
    rig.recovers().await;
    notes(&rig, &[200]).await;
    restart_with(&mut rig, |_| ()).await;
    let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
    assert!(log.contains("the start is with the module and the [edge] that were good last"));
    let again = [&bad[..], &["try"]].concat();
    reaches(&rig, &again, &[200, 413]).await;

    // The good one is in the file again: there is nothing to try.
    restart_with(&mut rig, |config| reads(config, 1024)).await;
    rig.recovers().await;
    eventually("all have the good one", async || edges(&rig) == all).await;
    assert_eq!(rig.status()["warnings"], json!([]));
    assert!(tries(&rig).await);
    junk.end(&rig, task).await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_closed_is_closed_at_all_proxies_at_once() {
    const OPEN: &str = "/assets/logo.svg";
    let mut rig = start(
        2,
        r#"
[[edge.unguarded]]
name = "assets"
path_prefix = "/assets"
upstream = "{upstream}"
shares_upstream_with = ["files"]
"#,
    )
    .await;
    let ask = async |rig: &Rig| {
        let headers = [field("host", rig.authority())];
        rig.exchange_raw(&message("GET", OPEN, &headers))
            .await
            .status
    };
    assert_ne!(ask(&rig).await, 401, "it is unguarded");
    let before = edges(&rig);
    restart_with(&mut rig, |config| {
        config["edge"]
            .as_table_mut()
            .unwrap()
            .remove("unguarded")
            .unwrap();
    })
    .await;
    eventually("both are told", async || {
        let now = edges(&rig);
        now.iter().all(|(node, version)| before[node] != *version)
    })
    .await;
    rig.recovers().await;
    for _ in 0..20 {
        assert_eq!(ask(&rig).await, 401);
    }
    let config = file(&rig).display().to_string();
    let check = |more: &[&str]| {
        let mut command = rig.system.writ();
        command
            .args(["edge", "check", "--config", &config])
            .args(more);
        let output = command.arg("/dev/null").output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!check(&["--group", "first"]).contains("is no [[edge.group]]"));
    assert!(check(&["--group", "second"]).contains("`second` is no [[edge.group]]"));
    let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
    assert!(log.contains("the changed [edge] goes to all proxies at once"));
    assert_eq!(steps(&rig), Vec::<Value>::new(), "nothing was tried");
    rig.finish().await;
}
