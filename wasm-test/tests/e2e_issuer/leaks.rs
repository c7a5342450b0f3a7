//! No secret and no token is anywhere but where it belongs: a life of everything, told as
//! loudly as can be, and then looked for in all that was said of it.
//!
//! Envoy itself is not at its loudest: its own `http` logger writes requests' headers as
//! they come, whatever is in them (docs/operate.md says so). Its other loggers are, and the
//! filter's.

mod life;
mod secrets;

use std::path::Path;

use wasm_test::child::Child;
use wasm_test::system::{Options, System};

use self::life::Life;
use crate::plane::{entries, run, text};

/// Envoy's loggers that write what comes over the wire, which is none of ours to change.
const WIRE: &[&str] = &[
    "http",
    "http2",
    "connection",
    "client",
    "router",
    "filter",
    "pool",
];

/// Something that was said, and where.
pub struct Said {
    pub place: String,
    pub text: String,
}

impl Said {
    fn new(place: impl Into<String>, text: impl Into<String>) -> Said {
        Said {
            place: place.into(),
            text: text.into(),
        }
    }
}

fn options(dir: &Path, metrics: u16) -> (Options, life::Given) {
    let given = life::Given::new(dir);
    let quiet: Vec<String> = WIRE.iter().map(|name| format!("{name}:info")).collect();
    let options = Options {
        policy: Some(given.policy.clone()),
        routes: life::ROUTES.to_owned(),
        hold_s: 30,
        token_lifetime_s: 120,
        env: vec![("WRIT_LOG".to_owned(), "trace".to_owned())],
        envoy_args: [
            "--log-level",
            "trace",
            "--component-log-level",
            &quiet.join(","),
        ]
        .map(str::to_owned)
        .to_vec(),
        extra_config: format!(
            "[server]\nmetrics_listen = \"127.0.0.1:{metrics}\"\n{}",
            given.config
        ),
        ..Options::default()
    };
    (options, given)
}

/// What a command prints, on both outputs.
async fn printed(system: &System, args: &[&str]) -> Said {
    let mut command = system.writ();
    command.env("WRIT_LOG", "trace").args(args);
    command.env_remove("XDG_STATE_HOME");
    let output = run(command).await;
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    Said::new(format!("writ {}", args.join(" ")), said)
}

async fn fetched(url: &str) -> Said {
    let answer = reqwest::get(url).await.unwrap();
    assert_eq!(answer.status(), 200, "{url}");
    Said::new(url, answer.text().await.unwrap())
}

fn file(path: &Path) -> Said {
    let bytes = std::fs::read(path).unwrap();
    assert!(!bytes.is_empty(), "{}", path.display());
    Said::new(path.display().to_string(), String::from_utf8_lossy(&bytes))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_and_no_token_is_told_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = wasm_test::ports::one().unwrap();
    let (options, given) = options(dir.path(), metrics);
    let system = System::for_test(options).await.unwrap();
    let mut life = Life::begin(&system, given).await;
    life.signs_in().await;
    life.asks_for_itself().await;
    life.asks_for_a_user().await;
    life.passes_on().await;
    life.goes_on_by_refresh_tokens().await;
    life.is_held_with_a_body().await;
    life.waits_for_a_person().await;
    life.asks_about_tokens().await;
    life.administers().await;
    life.looks_at_every_page().await;
    let side = life.has_a_sidecar(dir.path()).await;
    let (mut said, mut secrets) = life.end();
    secrets.add_keys_of(&system.state_dir().join("data"));

    let commands: &[&[&str]] = &[
        &["status", "--json"],
        &["agents", "list", "--json"],
        &["agents", "show", wasm_test::system::AGENT, "--json"],
        &["approvals", "list", "--json"],
    ];
    for args in commands {
        said.push(printed(&system, args).await);
    }
    let config = system.state_dir().join("writ.toml").display().to_string();
    said.push(printed(&system, &["keys", "list", "--config", &config, "--json"]).await);
    said.push(fetched(&format!("http://127.0.0.1:{metrics}/metrics")).await);
    for path in [
        "config_dump?include_eds",
        "stats?format=json",
        "clusters",
        "certs",
    ] {
        said.push(fetched(&format!("{}/{path}", system.admin_url())).await);
    }
    let logs = [system.log("control-plane"), system.log("envoy"), side];
    // What ends writes more.
    let kept = tempfile::tempdir().unwrap();
    system_ended(system, &logs, kept.path()).await;
    let lines: Vec<String> = entries(&kept.path().join("journal"))
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(lines.len() > 20, "{}", lines.len());
    said.push(Said::new("the journal's lines", lines.join("\n")));
    for log in &logs {
        said.push(file(&kept.path().join(log.file_name().unwrap())));
    }
    loud_enough(&said);

    let found: Vec<String> = said.iter().flat_map(|it| secrets.within(it)).collect();
    assert!(found.is_empty(), "{found:#?}");

    // The same look finds each of them in each place, once it is there.
    for it in &said {
        let from = it
            .text
            .floor_char_boundary(it.text.len().saturating_sub(1_000));
        for (name, secret) in secrets.all() {
            let text = format!("{}\nx={secret};\n", it.text.split_at(from).1);
            let found = secrets.within(&Said::new(&it.place, text));
            assert!(
                found.iter().any(|it| it.contains(name)),
                "{name} in {}",
                it.place
            );
        }
    }
}

/// What was looked at is what says much: else nothing would be found in it whatever is told.
fn loud_enough(said: &[Said]) {
    let wanted = [
        ("control-plane.log", "TRACE"),
        ("control-plane.log", "DEBUG"),
        ("envoy.log", "[trace]"),
        ("envoy.log", "wasm"),
        ("envoy.log", "\"request_id\""),
        ("sidecar.log", "TRACE"),
        ("metrics", "writ_"),
        ("journal", "\"issue\""),
        ("config_dump", "writ"),
    ];
    for (place, text) in wanted {
        let there = said.iter().filter(|it| it.place.contains(place));
        let there: Vec<bool> = there.map(|it| it.text.contains(text)).collect();
        assert!(there.contains(&true), "{place} has no {text}");
    }
}

/// Copies the logs and the journal once all of it has ended, before its directory goes.
async fn system_ended(mut system: System, logs: &[std::path::PathBuf], to: &Path) {
    system.stop_envoy().await;
    system.stop_control_plane().await;
    for log in logs {
        std::fs::copy(log, to.join(log.file_name().unwrap())).unwrap();
    }
    let journal = system.audit_dir();
    let copy = to.join("journal");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(journal).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
}

/// Ends a child, so that its log is whole.
async fn ended(mut child: Child) -> std::path::PathBuf {
    child.stop().await;
    child.log().to_owned()
}
