//! The approvers' pages over made-up data, to look at while changing them:
//! `cargo run -p control-plane --example web_preview`, then open the link.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control_plane::web::{
    Activity, Desk, DeskError, KeyChange, KeyRefusal, KeyView, KeysChanged, Logins, ProxyView,
    RightsChange, WebSettings, pages,
};
use ledger::model::{Approval, ApprovalState, Millis};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[path = "../src/web/tests/fake.rs"]
mod fake;

fn clock() -> Millis {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Millis::try_from(now.as_millis()).unwrap_or_default()
}

fn approvals(now: Millis) -> Vec<Approval> {
    let mut plain = fake::approval(
        "apr_Zm9vYmFyYmF6cXV4MTIzNA",
        now,
        "http://127.0.0.1:8400/files/reports/2026-q3.pdf",
    );
    plain.expires_ms = now + 95_000;
    let mut odd = fake::approval(
        "apr_b2RkLXVybC13aXRoLXRyaWNrcw",
        now,
        "https://files.example:8400/a/%E2%80%AEfdp.exe/<script>alert(1)</script>?to=ops%40example.com&note=Policy%20check%3A%20passed.%20Approve%20now&token\u{202e}x=1",
    );
    odd.user = None;
    odd.chain = vec![
        "spiffe://writ.example/agent/planner".into(),
        "spiffe://writ.example/agent/demo".into(),
    ];
    odd.action.method = "POST".into();
    odd.rules.push("outside-hours".into());
    odd.reasons
        .push("Changes outside working hours need a second pair of eyes.".into());
    let ended = |id: &str, state, ago: Millis| {
        let mut one = fake::approval(
            id,
            now - ago,
            "http://127.0.0.1:8400/files/reports/2025.pdf",
        );
        one.state = state;
        one.decided_by = Some("operator".into());
        one.decided_ms = Some(now - ago + 20_000);
        one
    };
    vec![
        plain,
        odd,
        ended(
            "apr_ZW5kZWQtYXBwcm92ZWQtdXNlZA",
            ApprovalState::Consumed,
            300_000,
        ),
        ended(
            "apr_ZW5kZWQtZGVuaWVkLWVuZGVkMg",
            ApprovalState::Denied,
            4_000_000,
        ),
    ]
}

fn desk(now: Millis) -> fake::FakeDesk {
    let mut desk = fake::FakeDesk::new(now, approvals(now));
    let kinds = [
        (
            "hold",
            "spiffe://writ.example/agent/demo DELETE http://127.0.0.1:8400/files/reports/2026-q3.pdf",
        ),
        (
            "allow",
            "spiffe://writ.example/agent/demo GET http://127.0.0.1:8400/files/notes.txt",
        ),
        (
            "issue",
            "spiffe://writ.example/agent/demo GET http://127.0.0.1:8400/files/notes.txt",
        ),
        ("login", "operator, browser"),
        ("config", "<b>policy</b> 0f0f0f0f\u{202e} loaded"),
    ];
    let entry = |(at, (kind, summary)): (u64, (&str, &str))| Activity {
        index: 41 - at,
        time_ms: now - at * 4_000,
        kind: kind.to_owned(),
        summary: summary.to_owned(),
    };
    desk.activity = (0..).zip(kinds).map(entry).collect();
    desk.proxies = vec![
        ProxyView {
            id: "spiffe://writ.example/proxy".into(),
            node: "writ-edge".into(),
            connected: true,
            detail: "listeners 3, routes 3, clusters 3, extension configs 2".into(),
            problem: None,
        },
        ProxyView {
            id: "spiffe://writ.example/proxy-2".into(),
            node: "writ-edge-2".into(),
            connected: false,
            detail: String::new(),
            problem: Some("extension config writ: unable to create Wasm plugin".into()),
        },
    ];
    desk
}

#[tokio::main]
async fn main() -> Result<(), std::io::Error> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let issuer = format!("http://{}", listener.local_addr()?);
    let desk = Arc::new(desk(clock()));
    let logins = Logins::new();
    println!("{issuer}/login#{}", logins.mint(desk.now_ms()));
    let ticking = desk.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            ticking.now.store(clock(), Ordering::SeqCst);
        }
    });
    if std::env::args().any(|arg| arg == "--more") {
        let busy = desk.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(8)).await;
            busy.change(|all| {
                all.push(fake::approval(
                    "apr_bmV3",
                    clock(),
                    "http://127.0.0.1:8400/files/new.txt",
                ))
            });
        });
    }
    let settings = WebSettings {
        secure_cookies: false,
        dev_single_uid: std::env::args().any(|arg| arg == "--dev"),
        issuer,
        module_sha256: watch::channel(Some("c0ffee".repeat(10) + "1234")).1,
        stop: CancellationToken::new(),
    };
    axum::serve(listener, pages(desk, logins, settings)).await
}
