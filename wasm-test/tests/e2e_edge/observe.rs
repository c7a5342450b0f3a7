//! A route that observes: nothing is refused on it, everything is asked and
//! recorded, and everybody is told. The route beside it refuses as ever.

use wasm_test::system::Options;
use wasm_test::upstream::{REPORT, Reading, Upstream};

use super::headers::{other_spellings, spelt_otherwise};
use super::rig::{Rig, authorization, eventually, field, jti};

const OPEN: &str = "/echo/open/form";
const RESTRICTED: &str = "/echo/restricted/form";

/// `/echo` observes; the rest, `/echoes` too, enforces.
const ROUTES: &str = r#"
[edge]
route = [
  { name = "files", path_prefix = "/", upstream = "{upstream}" },
  { name = "echo", path_prefix = "/echo", upstream = "{upstream}", mode = "observe", shares_upstream_with = ["files"] },
]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_forwards_what_it_would_refuse_and_says_so_everywhere() {
    let mut rig = Rig::start(Options {
        token_lifetime_s: 300,
        extra_config: ROUTES.to_owned(),
        ..Options::default()
    })
    .await;

    // No credentials, the client's own word of who it is, another's proof.
    let mut forged = vec![
        field("x-writ-agent", "spiffe://writ.example/agent/admin"),
        field("x-writ-token-id", "forged"),
        field("cookie", "a=1; writ_session=secret; b=2"),
        field("destination", "/admin/keys.txt"),
    ];
    forged.extend(other_spellings().iter().map(|name| field(name, "forged")));
    let answer = rig.exchange_raw(&rig.request("GET", OPEN, &forged)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // A token for another action: the filter would refuse it by itself.
    let report = rig.agent.token("GET", REPORT).await.unwrap();
    let answer = rig.exchange_raw(&rig.signed("GET", OPEN, &report)).await;
    assert_eq!(answer.status, 200);
    // Nobody is asked about what goes on anyway.
    let held = rig.agent.token("GET", RESTRICTED).await.unwrap();
    assert_eq!(rig.present(RESTRICTED, &held).await.status, 200);
    // A good one goes on by its permit, and is spent: a second time would be refused.
    let good = rig.agent.token("GET", OPEN).await.unwrap();
    for _ in 0..2 {
        assert_eq!(rig.present(OPEN, &good).await.status, 200);
    }
    let echoed: Vec<_> = rig
        .records()
        .into_iter()
        .filter(|record| record.path.starts_with("/echo"))
        .collect();
    assert_eq!(echoed.len(), 5);
    assert_eq!(echoed[0].header("cookie"), Some("a=1; b=2"));
    assert_eq!(echoed[0].header("destination"), None);
    for (at, record) in echoed.iter().enumerate() {
        assert_eq!(spelt_otherwise(record), Vec::<&str>::new(), "{at}");
        let named = record.header("x-writ-agent");
        assert_eq!(
            named.is_some(),
            at == 3,
            "only what was verified has an agent: {at}"
        );
        assert_eq!(record.header("x-writ-token-id").is_some(), at == 3, "{at}");
        assert!(record.header("authorization").is_none(), "{at}");
        assert!(record.header("dpop").is_none(), "{at}");
    }

    // Each is in the log with what the answer would have been.
    let denial = rig
        .entry("the mismatch", |entry| {
            entry["kind"] == "edge_denial" && entry["body"]["jti"] == jti(&report)
        })
        .await;
    assert_eq!(denial["body"]["reason"], "action_mismatch");
    assert_eq!(denial["body"]["observed"], true);
    let counts = rig
        .entry("the counts", |entry| {
            entry["kind"] == "edge_counts" && entry["body"]["observed"].is_object()
        })
        .await;
    assert_eq!(counts["body"]["observed"]["missing_credentials"], 1);
    let denied = rig.entries_of("deny");
    assert_eq!(denied.len(), 1);
    assert_eq!(denied[0]["body"]["reason"], "approval_pending");
    assert_eq!(denied[0]["body"]["request"]["observed"], true);
    assert_eq!(denied[0]["body"]["token"]["jti"], jti(&held));
    assert!(rig.entries_of("hold").is_empty());
    let spent = rig.entries_of("question_refused");
    let again = spent
        .iter()
        .find(|it| it["body"]["reason"] == "token_spent");
    assert_eq!(again.unwrap()["body"]["request"]["observed"], true);

    // The route beside it, whose name begins in the same way, refuses.
    let before = rig.arrived();
    for path in [REPORT, "/echoes", "/echo.txt"] {
        let answer = rig.exchange_raw(&rig.request("GET", path, &forged)).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (401, "missing_credentials")
        );
    }
    let stolen = rig.request("GET", REPORT, &[authorization(&report)]);
    assert_eq!(rig.exchange_raw(&stolen).await.status, 401);
    assert_eq!(rig.arrived(), before);
    rig.good_request().await;

    // It is said wherever one looks.
    let warning = "the route `echo` only observes: NOTHING IS REFUSED on it";
    assert_eq!(rig.status()["warnings"][0], warning);
    let config = &rig.entries_of("config")[0];
    assert_eq!(config["body"]["observed_routes"][0], "echo");
    let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
    assert!(log.contains(warning));
    let approver = rig.system.approver().await.unwrap();
    let page = approver.page("/").await.unwrap().text();
    assert!(page.contains("NOTHING IS REFUSED"), "{page}");
    eventually("metrics are told", async || {
        rig.stat("wasmcustom.writ.observed.missing_credentials")
            .await
            == 1
    })
    .await;
    assert_eq!(rig.stat("wasmcustom.writ.observe_routes").await, 1);
    assert_eq!(
        rig.stat("wasmcustom.writ.observed.approval_pending").await,
        1
    );

    // Without the control plane the one forwards, and the other doesn't.
    rig.system.kill_control_plane();
    let answer = rig.exchange_raw(&rig.signed("GET", OPEN, &good)).await;
    assert_eq!(answer.status, 200);
    let closed = rig.exchange_raw(&rig.signed("GET", REPORT, &report)).await;
    assert_eq!(closed.status, 503);
    eventually("unobserved is told", async || {
        rig.stat("wasmcustom.writ.unobserved").await == 1
    })
    .await;
    rig.system.start_control_plane().await.unwrap();
    rig.recovers().await;
    rig.finish().await;
}

/// `/echo` observes beside `/`, which enforces at the same upstream; `/apart`
/// observes at an upstream of its own. What a server could read as a path of `/` is
/// asked for its token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_a_path_that_another_route_enforces_is_enforced() {
    let logs = tempfile::tempdir().unwrap();
    let apart = Upstream::start(0, Some(&logs.path().join("apart"))).unwrap();
    let more = format!(
        "  {{ name = \"apart\", path_prefix = \"/apart\", upstream = \"{}\", mode = \"observe\" }},\n]",
        apart.address()
    );
    let rig = Rig::start(Options {
        extra_config: ROUTES.replace("\n]", &format!("\n{more}")),
        ..Options::default()
    })
    .await;
    let arrived = || (rig.arrived(), apart.arrived());
    for path in [
        "/echo",
        "/echo/a-b.c~d/x",
        "/echo/x?q=/..;/%2F",
        "/echo/x/../y",
    ] {
        let before = arrived();
        let answer = rig.exchange_raw(&rig.request("GET", path, &[])).await;
        assert_eq!((answer.status, arrived().0), (200, before.0 + 1), "{path}");
        let record = rig.records().pop().unwrap();
        for reading in Reading::ALL {
            let (_, read) = reading.action(&record);
            assert!(
                read.starts_with("/echo"),
                "{path}: {reading:?} serves {read}"
            );
        }
    }
    let before = arrived();
    rig.exchange_raw(&rig.request("GET", "/apart/a%20b", &[]))
        .await;
    assert_eq!(arrived(), (before.0, before.1 + 1));

    let before = arrived();
    for path in [
        // Envoy itself takes this for the other route's.
        "/echo/..;/files/report.txt",
        "/echo/..%3b/files/report.txt",
        "/echo/..;x/files/report.txt",
        "/echo/x;y",
        "/echo/;/x",
        "/echo/%252e%252e/files/report.txt",
        "/echo/%25%32%65/x",
        "/echo/%c0%ae%c0%ae/files/report.txt",
        "/echo/a%20b",
        "/echo/*",
        "/ECHO/x",
        "/Echo/..;/x",
        "/Files/report.txt",
        "/apart/..;/files/report.txt",
        "/apart/%252e%252e/x",
        "/apart/..%3b/files/report.txt",
        "/apart/a;b",
    ] {
        let answer = rig.exchange_raw(&rig.request("GET", path, &[])).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (401, "missing_credentials"),
            "{path}"
        );
    }
    assert_eq!(arrived(), before);
    // It is enforced, and not lost: a token for it is good.
    let token = rig.agent.token("GET", "/echo/a%20b").await.unwrap();
    assert_eq!(rig.present("/echo/a%20b", &token).await.status, 200);
    let denied = rig.present("/echo/a%20b", &token).await;
    assert_eq!(
        (denied.status, denied.reason().as_str()),
        (401, "token_spent")
    );
    rig.finish().await;
}
