//! `writ serve` started by somebody whose config is wrong, and by somebody
//! whose config is right.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::plane::{Plane, Prepared, text};

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs what must end by itself; exit code and standard error.
fn ended(mut command: Command) -> (Option<i32>, String) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            let said = child.wait_with_output().unwrap();
            panic!("it runs, though it can't: {}", text(&said.stderr));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), text(&output.stderr))
}

/// It must refuse to start, and say each of `words`.
fn refuses(what: &str, prepared: &Prepared, words: &[&str]) {
    let config = prepared.write();
    let (code, said) = ended(prepared.serve(&config));
    assert_eq!(code, Some(2), "{what}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
    let last = said.lines().rev().take(12).collect::<Vec<_>>().join("\n");
    for word in words {
        assert!(last.contains(word), "{what}: no {word:?} in:\n{said}");
    }
}

/// The line of the written config that holds `text`, as errors name it.
fn at_line(prepared: &Prepared, holds: &str) -> String {
    let path = prepared.write();
    let config = std::fs::read_to_string(path).unwrap();
    let line = config
        .lines()
        .position(|line| line.contains(holds))
        .unwrap();
    format!("writ.toml:{}", line + 1)
}

#[test]
fn a_number_out_of_bounds_is_named_with_file_and_line() {
    let cases = [
        ("[token]\nlifetime_s = 301", "lifetime_s", "300"),
        ("[token]\nlifetime_s = 0", "lifetime_s", "300"),
        ("[token]\nlifetime_s = -1", "lifetime_s", "300"),
        ("[token]\nsession_s = 601", "session_s", "600"),
        ("[token]\nproof_window_s = 301", "proof_window_s", "300"),
        ("[edge]\nhold_s = 56", "hold_s", "55"),
        ("[edge]\nproof_window_s = 301", "proof_window_s", "300"),
        (
            "[edge]\ndecision_deadline_ms = 10001",
            "decision_deadline_ms",
            "10000",
        ),
        ("[identity]\nsvid_ttl_s = 9", "svid_ttl_s", "10"),
        ("[limits]\nheld_per_agent = 257", "held_per_agent", "256"),
        (
            "[limits]\nkeys_per_evidence = 257",
            "keys_per_evidence",
            "256",
        ),
        (
            "[limits]\noutstanding_per_agent = 65537",
            "outstanding_per_agent",
            "65536",
        ),
        ("[approval]\npending_s = 86401", "pending_s", "86400"),
    ];
    for (over, key, limit) in cases {
        let prepared = Prepared::new().with(over);
        let line = at_line(&prepared, key);
        refuses(over, &prepared, &[&line, key, limit]);
    }
}

#[test]
fn a_config_that_is_not_one_is_named_with_file_and_line() {
    let cases = [
        ("[token]\nlifetime_s = \"30\"", "lifetime_s", "whole number"),
        ("[token]\nlifetimes = 30", "lifetimes", "lifetimes"),
        (
            "[server]\nlisten = \"somewhere\"",
            "listen = \"somewhere\"",
            "address",
        ),
        (
            "[server]\nissuer = \"http://127.0.0.1:1/path\"",
            "issuer",
            "nothing after",
        ),
        (
            "[server]\nlogin_as = \"nobody\"",
            "login_as",
            "[[approver]]",
        ),
        ("[server]\nlisten = \"0.0.0.0:1\"", "issuer", "https"),
        (
            "[server]\nplaintext_grpc = true\ngrpc_listen = \"0.0.0.0:1\"",
            "plaintext_grpc",
            "loopback",
        ),
        (
            "[edge]\nlisten = \"0.0.0.0:1\"",
            "dev_single_uid",
            "loopback",
        ),
        ("[edge]\nmodule = \"filter.wasm\"", "module", "absolute"),
        (
            "[policy]\nfiles = []",
            "files = ",
            "nothing would ever be allowed",
        ),
        (
            "[policy]\nfiles = [\"nowhere.cedar\"]",
            "files = ",
            "nowhere.cedar",
        ),
        (
            "[[agent]]\nspiffe_id = \"demo\"\nowner = \"a\"",
            "spiffe_id = \"demo\"",
            "spiffe://",
        ),
        (
            "[[identity.workload]]\nspiffe_id = \"spiffe://elsewhere.example/a\"\nuid = 1",
            "identity.workload",
            "trust domain",
        ),
        ("[edge]\nlisten = \"127.0.0.1:0\"", "127.0.0.1:0", "a port"),
        (
            "[identity]\ncontrol_plane_id = \"spiffe://elsewhere.example/cp\"",
            "elsewhere.example/cp",
            "trust domain",
        ),
        (
            "[[edge.route]]\nname = \"a b\"\npath_prefix = \"/\"\nupstream = \"a:1\"",
            "a b",
            "letters",
        ),
        (
            "[edge]\nmodule = \"/nowhere.wasm\"",
            "/nowhere.wasm",
            "can't read",
        ),
    ];
    for (over, key, word) in cases {
        let prepared = Prepared::new().with(over);
        let line = at_line(&prepared, key);
        refuses(over, &prepared, &[&line, word]);
    }
    let prepared = Prepared::new();
    let config = prepared.path("broken.toml");
    std::fs::write(&config, "[server]\nissuer = \n").unwrap();
    let (code, said) = ended(prepared.serve(&config));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("broken.toml:2"), "{said}");
    let (code, said) = ended(prepared.serve(&prepared.path("nowhere.toml")));
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("nowhere.toml") && said.contains("--config"),
        "{said}"
    );
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let over = "[token]\nlifetime_s = 301\n[edge]\nhold_s = 56\n[limits]\nheld_total = 0";
    refuses(
        "three mistakes",
        &Prepared::new().with(over),
        &["lifetime_s", "hold_s", "held_total"],
    );
}

#[test]
fn a_taken_port_is_named() {
    for (what, port) in [("http", 0), ("grpc", 1)] {
        let prepared = Prepared::new();
        let port = [prepared.ports().http, prepared.ports().grpc][port];
        let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let address = taken.local_addr().unwrap().to_string();
        refuses(what, &prepared, &[&address, "port", "config"]);
        assert!(!prepared.data().exists(), "nothing was made");
    }
}

#[test]
fn files_and_directories_that_cannot_be_used_are_named() {
    let prepared = Prepared::new();
    std::fs::write(prepared.path("file"), "").unwrap();
    let below = format!(
        "[server]\ndata_dir = {:?}",
        prepared.path("file").join("data")
    );
    refuses(
        "a data_dir below a file",
        &prepared.with(&below),
        &["file/data", "writable"],
    );

    // Nobody may write there, not even root.
    let prepared = Prepared::new().with("[server]\ndata_dir = \"/proc/writ\"");
    refuses(
        "an unwritable data_dir",
        &prepared,
        &["/proc/writ", "writable"],
    );

    let prepared = Prepared::new();
    let nowhere = prepared.path("nowhere.wasm").display().to_string();
    let over = format!("[edge]\nmodule = {nowhere:?}");
    refuses("no module", &prepared.with(&over), &["nowhere.wasm"]);

    let prepared = Prepared::new();
    let not_wasm = prepared.path("policy.cedar").display().to_string();
    let over = format!("[edge]\nmodule = {not_wasm:?}");
    refuses(
        "a module that is none",
        &prepared.with(&over),
        &["policy.cedar"],
    );

    let prepared = Prepared::new();
    let over = format!(
        "[server]\nadmin_socket = {:?}",
        prepared.path("no/such/admin.sock")
    );
    refuses(
        "a socket in no directory",
        &prepared.with(&over),
        &["no/such/admin.sock"],
    );

    let prepared = Prepared::new();
    std::fs::write(prepared.path("workload.sock"), "precious").unwrap();
    refuses(
        "a file where the socket goes",
        &prepared,
        &["workload.sock"],
    );
    assert_eq!(
        std::fs::read(prepared.path("workload.sock")).unwrap(),
        b"precious"
    );

    let prepared = Prepared::new();
    std::fs::write(prepared.path("admin.sock"), "precious").unwrap();
    refuses(
        "a file where the admin socket goes",
        &prepared,
        &["admin.sock", "not a socket"],
    );
    assert_eq!(
        std::fs::read(prepared.path("admin.sock")).unwrap(),
        b"precious"
    );
}

#[test]
fn a_broken_policy_is_named() {
    let cases = [
        ("syntax", "permit (principal, action", "policy.cedar"),
        (
            "an unknown attribute",
            "permit (principal, action, resource) when { resource.nothing };",
            "nothing",
        ),
        (
            "approvers that nobody is",
            "@id(\"x\")\n@approvers(\"nobody\")\nforbid (principal, action, resource)\nunless { context.approvals.contains(\"x\") };",
            "nobody",
        ),
    ];
    for (what, policy, word) in cases {
        let prepared = Prepared::new();
        prepared.write_policy(policy);
        refuses(what, &prepared, &["policy", word]);
    }
}

#[tokio::test]
async fn keys_that_others_may_read_are_refused() {
    let plane = Plane::start().await;
    let keys = ["keys/token-es256.pem", "trust/jwt.key"].map(|key| plane.data().join(key));
    for key in &keys {
        let mode = std::fs::metadata(key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", key.display());
    }
    let prepared = plane.stopped().await;
    for key in &keys {
        let set =
            |mode| std::fs::set_permissions(key, std::fs::Permissions::from_mode(mode)).unwrap();
        set(0o644);
        let name = key.file_name().unwrap().to_str().unwrap();
        refuses(name, &prepared, &[name, "read by others"]);
        set(0o600);
    }
    std::fs::write(&keys[0], "no key").unwrap();
    refuses("a damaged key", &prepared, &["token-es256.pem", "restore"]);
}

#[tokio::test]
async fn two_never_share_a_data_dir_or_a_socket() {
    let plane = Plane::start().await;
    let second = Prepared::new();
    let over = format!("[server]\ndata_dir = {:?}", plane.data());
    refuses(
        "the same data_dir",
        &second.with(&over),
        &["in use", "journal"],
    );

    let second = Prepared::new();
    let over = format!("[server]\nadmin_socket = {:?}", plane.path("admin.sock"));
    refuses(
        "the same admin socket",
        &second.with(&over),
        &["admin.sock", "another process"],
    );

    let second = Prepared::new();
    let over = format!(
        "[identity]\nworkload_api = {:?}",
        plane.path("workload.sock")
    );
    refuses(
        "the same Workload API",
        &second.with(&over),
        &["workload.sock", "another process"],
    );
    // The first one took no harm.
    plane
        .agent()
        .await
        .token("GET", "/files/report.txt")
        .await
        .unwrap();
}

#[test]
fn check_says_the_same_and_starts_nothing() {
    let check = |prepared: &Prepared| {
        let config = prepared.write();
        let mut command = prepared.serve(&config);
        command.arg("--check");
        ended(command)
    };
    let good = Prepared::new();
    assert_eq!(check(&good).0, Some(0));
    assert!(!good.data().exists());
    let (code, said) = check(&Prepared::new().with("[token]\nlifetime_s = 301"));
    assert_eq!(code, Some(2));
    assert!(said.contains("lifetime_s"), "{said}");

    // All that is wrong with the file and with what it names, at once.
    let prepared = Prepared::new();
    let cut = prepared.path("cut.wasm");
    std::fs::write(&cut, b"\0asm\x01\0\0\0\0\x04\x01aA").unwrap();
    let admin = prepared.path("workload.sock").display().to_string();
    let over = format!(
        "[edge]\nmodule = {:?}\n[server]\nadmin_socket = {admin:?}\ndata_dir = {:?}",
        cut.display().to_string(),
        cut.join("data").display().to_string(),
    );
    let prepared = prepared.with(&over);
    let (code, said) = check(&prepared);
    assert_eq!(code, Some(2));
    for word in ["damaged at byte 8", "same socket", "cut.wasm/data"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(said.matches("writ.toml:").count(), 3, "{said}");
}

#[tokio::test]
async fn the_ready_file_is_for_its_owner_and_right() {
    let plane = Plane::start().await;
    let path = plane.path("ready.json");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let ready = plane.ready();
    let told = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(told("issuer"), plane.issuer());
    assert_eq!(told("ui"), plane.issuer());
    assert_eq!(told("grpc"), format!("127.0.0.1:{}", plane.ports().grpc));
    assert_eq!(
        told("workload_api"),
        plane.path("workload.sock").display().to_string()
    );
    assert_eq!(
        told("admin_socket"),
        plane.path("admin.sock").display().to_string()
    );
    assert_eq!(
        told("audit_dir"),
        plane.data().join("journal").display().to_string()
    );
    assert_eq!(ready["pid"].as_u64(), Some(u64::from(plane.pid())));
    let module = std::fs::read(std::env::var("WRIT_FILTER_WASM").unwrap()).unwrap();
    use sha2::Digest as _;
    assert_eq!(
        told("module_sha256"),
        hex::encode(sha2::Sha256::digest(module))
    );
    let (page, secret) = plane.login_link().split_once('#').unwrap();
    assert_eq!(page, format!("{}/login", plane.issuer()));
    assert!(secret.len() >= 22, "at least 128 bits");
    // Everything that it names answers.
    for path in ["/healthz", "/readyz", "/login"] {
        let answer = reqwest::get(format!("{}{path}", plane.issuer()))
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    // The link is nowhere else.
    let log = std::fs::read_to_string(plane.path("serve.log")).unwrap();
    assert!(
        !log.contains(secret),
        "the login link's secret is in the log"
    );
}
