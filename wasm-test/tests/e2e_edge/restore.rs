//! A backup is put in place: what was spent, approved and granted since, and
//! before, opens nothing until a person has looked.

use std::fs;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::process::{Command, Output};

use wasm_test::client::Verdict;
use wasm_test::system::{Options, System};
use wasm_test::upstream::REPORT;

use super::rig::{Rig, eventually};

const RESTRICTED: &str = "/echo/restricted/restored";

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

async fn run(mut command: Command) -> Output {
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap());
    ended.await.unwrap()
}

async fn writ(system: &System, args: &[&str], input: &str) -> Output {
    let mut file = tempfile::tempfile().unwrap();
    writeln!(file, "{input}").unwrap();
    file.rewind().unwrap();
    let mut command = system.writ();
    command.env_remove("XDG_STATE_HOME").args(args).stdin(file);
    run(command).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_opens_nothing_before_a_person_has_confirmed_it() {
    let options = Options {
        hold_s: 1,
        token_lifetime_s: 300,
        ..Options::default()
    };
    let mut rig = Rig::start(options).await;
    let approver = rig.system.approver().await.unwrap();

    // The backup has an approval that was given and not used.
    let waiting = rig.agent.call("GET", RESTRICTED).await.unwrap();
    assert_eq!(waiting.reason(), "approval_pending");
    let id = waiting.json()["approval_id"].as_str().unwrap().to_owned();
    approver.decide(&id, Verdict::Approve).await.unwrap();
    let unused = rig.agent.token("GET", REPORT).await.unwrap();
    let journal = rig.system.audit_dir();
    let backup = rig.system.state_dir().join("backup");
    rig.system.stop_control_plane().await;
    copy(&journal, &backup);

    // The system goes on from there: what it does next is not in the backup.
    rig.system.start_control_plane().await.unwrap();
    rig.recovers().await;
    let later = rig.agent.token("GET", REPORT).await.unwrap();
    assert_eq!(rig.present(REPORT, &later).await.status, 200);
    rig.system.stop_control_plane().await;

    // Put in place by hand it is noticed: the journal is behind the head beside it.
    fs::remove_dir_all(&journal).unwrap();
    copy(&backup, &journal);
    let before = rig.arrived();
    assert!(rig.system.start_control_plane().await.is_err());
    let log = fs::read_to_string(rig.system.log("control-plane")).unwrap();
    assert!(log.contains("writ ledger restore"), "{log}");
    rig.system.stop_control_plane().await;

    fs::remove_dir_all(&journal).unwrap();
    let (from, to) = (backup.to_str().unwrap(), journal.to_str().unwrap());
    let done = writ(&rig.system, &["ledger", "restore", from, "--dir", to], "").await;
    assert!(done.status.success(), "{done:?}");
    rig.system.start_control_plane().await.unwrap();

    // No agent gets a token, and no old one passes.
    let refused = async || {
        let answer = rig.agent.exchange("GET", REPORT).await;
        answer.is_ok_and(|answer| answer.status == 400 || answer.status == 403)
    };
    eventually("the exchange answers, with a no", refused).await;
    let issued = rig.entries_of("issue").len();
    assert!(rig.agent.token("GET", REPORT).await.is_err());
    assert_eq!(rig.entries_of("issue").len(), issued);
    let last = rig.entries_of("exchange_refused");
    assert_eq!(last.last().unwrap()["body"]["reason"], "agent_inactive");
    for token in [&unused, &later] {
        assert_ne!(rig.present(REPORT, token).await.status, 200);
    }
    assert_eq!(rig.arrived(), before, "something passed");

    // Nobody's peer credentials confirm; a person does.
    let confirm = ["ledger", "confirm"];
    assert!(!writ(&rig.system, &confirm, "").await.status.success());
    assert!(rig.agent.token("GET", REPORT).await.is_err());
    let link = rig.system.serve_ready().approver_login.clone();
    let login = writ(&rig.system, &["login"], &link).await;
    assert!(login.status.success(), "{login:?}");
    let confirmed = writ(&rig.system, &confirm, "").await;
    assert!(confirmed.status.success(), "{confirmed:?}");
    rig.recovers().await;
    rig.good_request().await;

    // The yes that the backup held is void: a person is asked anew.
    let before = rig.arrived();
    let again = rig.agent.call("GET", RESTRICTED).await.unwrap();
    assert_eq!(again.reason(), "approval_pending");
    assert_ne!(again.json()["approval_id"], id.as_str());
    assert_eq!(rig.arrived(), before, "a void approval let it pass");
    for kind in ["restored", "confirmed"] {
        assert_eq!(rig.entries_of(kind).len(), 1, "{kind}");
    }
    rig.finish().await;
}
