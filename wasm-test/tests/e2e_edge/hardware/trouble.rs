//! What may be wrong with a token: it is away, hangs, signs wrongly, or was never
//! there.

use super::*;

/// An exchange is refused, for now; how long that took.
async fn refused(rig: &Rig) -> Duration {
    let start = Instant::now();
    let answer = rig.agent.exchange("GET", REPORT).await.unwrap();
    assert_eq!(answer.status, 503, "{}", answer.summary());
    assert_eq!(answer.oauth_error(), "temporarily_unavailable");
    assert_eq!(answer.reason(), "control_plane_unavailable");
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_away_issues_nothing_and_heals() {
    let hardware = Hardware::new();
    let served = hardware.serve();
    let mut rig = Rig::start(hardware.remote()).await;
    let held = rig.agent.token("GET", REPORT).await.unwrap();
    drop(served);
    eventually("it is seen", async || warned(&rig, "")).await;
    refused(&rig).await;
    let svid = rig.agent.svid().await.unwrap();
    let details = rig.agent.details("GET", REPORT).to_string();
    let proof = rig.agent.token_proof();
    let answer = rig.agent.post_token(&svid, &details, &proof).await.unwrap();
    assert_eq!(answer.status, 503, "{}", answer.summary());
    let why = rig.entry("why nothing was issued", |entry| {
        entry["body"]["reason"] == "control_plane_unavailable"
    });
    why.await;
    // What was issued is good: checking needs no token.
    let answer = rig.agent.present("GET", REPORT, &held).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.summary());
    // A start without it issues nothing, and is one.
    rig.system.restart_control_plane().await.unwrap();
    assert!(warned(&rig, ""));
    refused(&rig).await;
    let served = hardware.serve();
    eventually("it heals", async || !warned(&rig, "")).await;
    rig.recovers().await;

    // A PIN that has become wrong is tried once, whatever comes.
    drop(served);
    eventually("it is seen", async || warned(&rig, "")).await;
    hardware.put_pin("wrong-pin", 0o600);
    let before = hardware.calls("C_Login");
    let _served = hardware.serve();
    eventually("the PIN is refused", async || {
        warned(&rig, "refused the PIN")
    })
    .await;
    for _ in 0..20 {
        let answer = rig.agent.exchange("GET", REPORT).await.unwrap();
        assert_eq!(answer.oauth_error(), "temporarily_unavailable");
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(hardware.calls("C_Login"), before + 1);
    // Who may not log in may revoke, and is told what is missing.
    let signs = kid(&held);
    let revoked = writ(&rig, &hardware, &["keys", "revoke", &signs]);
    let told = said(&revoked);
    assert_eq!(revoked.status.code(), Some(2), "{told}");
    let wanted = format!("{signs} is revoked, and no key signs: ");
    assert!(told.contains(&wanted), "{told}");
    assert_eq!(listed(&rig).len(), 1);
    assert_eq!(hardware.calls("C_Login"), before + 2, "the command's");
    // Another is tried.
    hardware.put_pin(PIN, 0o600);
    eventually("it is seen", async || warned(&rig, "all are revoked")).await;
    assert_eq!(hardware.calls("C_Login"), before + 3);
    let rotated = writ(&rig, &hardware, &["keys", "rotate"]);
    assert!(rotated.status.success(), "{}", said(&rotated));
    rig.recovers().await;
    no_pin_anywhere(&rig);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_hangs_holds_nobody() {
    let hardware = Hardware::new();
    let served = hardware.serve();
    let rig = Rig::start(hardware.remote()).await;
    let held = rig.agent.token("GET", REPORT).await.unwrap();
    let proof = rig.agent.token_proof();
    served.signal(Signal::STOP);
    // More than may wait; all at once.
    let start = Instant::now();
    let all = (0..100).map(|_| refused(&rig));
    let waited = futures::future::join_all(all).await;
    let took = start.elapsed();
    let late = Duration::from_secs(10);
    assert!(took < late, "{took:?}");
    // Who found a place waited to the end, who found none did not.
    let wait = Duration::from_secs(2);
    let at_once = waited.iter().filter(|it| **it < wait).count();
    assert!((20..=60).contains(&at_once), "{at_once}: {waited:?}");
    // Everything else goes on.
    let answer = rig.agent.present("GET", REPORT, &held).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.summary());
    eventually("it is seen", async || warned(&rig, "")).await;
    let svid = rig.agent.svid().await.unwrap();
    let details = rig.agent.details("GET", REPORT).to_string();
    let answer = rig.agent.post_token(&svid, &details, &proof).await.unwrap();
    assert_eq!(answer.status, 503, "{}", answer.summary());

    // It goes on by itself, and signs nothing for those who have left.
    let before = hardware.calls("C_SignInit");
    served.signal(Signal::CONT);
    eventually("it heals", async || !warned(&rig, "")).await;
    let signed = hardware.calls("C_SignInit") - before;
    assert!(signed < 10, "{signed}");
    // The proof that came to nothing counts still.
    let answer = rig.agent.post_token(&svid, &details, &proof).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.summary());
    let again = rig.agent.post_token(&svid, &details, &proof).await.unwrap();
    assert_eq!(again.reason(), "proof_replayed", "{}", again.summary());
    rig.recovers().await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_signature_does_not_leave() {
    let hardware = Hardware::new();
    let rig = Rig::start(hardware.options()).await;
    let first = kid(&rig.agent.token("GET", REPORT).await.unwrap());
    let id = objects(&rig).remove(0);
    let gone = hardware.tool(&["--delete-object", "--type", "privkey", "--id", &id]);
    assert!(gone.status.success(), "{}", said(&gone));
    refused(&rig).await;
    eventually("it is seen", async || {
        warned(&rig, "not one private key with the id")
    })
    .await;
    // Somebody else's key under its name.
    let pair = ["--keypairgen", "--key-type", "EC:prime256v1", "--id", &id];
    let made = hardware.tool(&pair);
    assert!(made.status.success(), "{}", said(&made));
    eventually("it is seen", async || warned(&rig, "signs wrongly")).await;
    let before = hardware.calls("C_SignInit");
    for _ in 0..5 {
        refused(&rig).await;
    }
    assert!(hardware.calls("C_SignInit") >= before + 5, "it was asked");
    // Its key is of no use any more; another heals it, with no restart.
    let revoked = writ(&rig, &hardware, &["keys", "revoke", &first]);
    assert!(revoked.status.success(), "{}", said(&revoked));
    eventually("it heals", async || !warned(&rig, "")).await;
    let shown = said(&hardware.tool(&["--list-objects"]));
    assert!(!shown.contains(&id), "{shown}");
    rig.recovers().await;
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
    let spy = spy();
    // In the last table, which is at the end.
    let line_of = |key: &str| {
        let text = std::fs::read_to_string(&path).unwrap();
        let at = text.lines().collect::<Vec<_>>();
        1 + at.iter().rposition(|line| line.starts_with(key)).unwrap()
    };
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

    // Everything at once.
    std::fs::remove_file(&missing).unwrap();
    hardware.put_pin(PIN, 0o640);
    let told = serve(&missing);
    for (wanted, line) in [
        ("keys.pkcs11.module: there is no file", line_of("module = ")),
        ("may be read by others (mode 640)", line_of("pin_from = ")),
    ] {
        let position = format!("writ.toml:{line}: ");
        let mut lines = told.lines();
        let found = lines.find(|line| line.contains(wanted));
        assert!(found.is_some_and(|it| it.contains(&position)), "{told}");
    }
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
