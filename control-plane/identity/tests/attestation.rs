//! Attestation of other processes: this test starts itself again, as itself
//! and as a copy with another name, and asks what identities they were given.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod common;

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use common::{Domain, entry};
use spiffe::{WorkloadApiClient, WorkloadApiError, transport::Endpoint};

const SOCKET: &str = "WRIT_TEST_WORKLOAD_API";

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match std::env::var_os(SOCKET) {
        Some(socket) => runtime.block_on(ask(socket.into())),
        None => {
            runtime.block_on(each_process_gets_what_its_entries_say());
            println!("attestation: each process gets what its entries say ... ok");
        }
    }
}

/// The child: prints its identities, or why it has none.
async fn ask(socket: PathBuf) {
    let client = WorkloadApiClient::connect(Endpoint::Unix(socket))
        .await
        .unwrap();
    match client.fetch_all_x509_svids().await {
        Ok(svids) => {
            let ids: Vec<String> = svids
                .iter()
                .map(|svid| svid.spiffe_id().to_string())
                .collect();
            println!("{}", ids.join(" "));
        }
        Err(WorkloadApiError::PermissionDenied(_) | WorkloadApiError::NoIdentityIssued) => {
            println!("none");
        }
        Err(error) => println!("error {error}"),
    }
}

async fn run(program: &Path, socket: &Path, uid: Option<u32>) -> String {
    let mut command = Command::new(program);
    command.env(SOCKET, socket);
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn each_process_gets_what_its_entries_say() {
    let uid = rustix::process::getuid().as_raw();
    let me = std::env::current_exe().unwrap();
    let programs = tempfile::tempdir().unwrap();
    let copy = programs.path().join("proxy");
    std::fs::copy(&me, &copy).unwrap();
    let link = programs.path().join("link");
    std::os::unix::fs::symlink(&copy, &link).unwrap();

    let domain = Domain::with(|settings| {
        settings.entries = vec![
            entry("agent/demo", Some(uid), None),
            entry("proxy", Some(uid), Some(link.clone())),
            entry("nobody", Some(uid + 1), None),
        ];
    });
    let socket = domain.socket();
    let agent = common::id("agent/demo").to_string();
    let proxy = common::id("proxy").to_string();
    assert_eq!(run(&me, &socket, None).await, agent);
    assert_eq!(run(&copy, &socket, None).await, proxy);
    assert_eq!(run(&link, &socket, None).await, proxy);

    // A file that was replaced isn't the one that runs.
    std::fs::remove_file(&copy).unwrap();
    std::fs::copy(&me, &copy).unwrap();
    assert_eq!(run(&copy, &socket, None).await, proxy);

    // Another user, where we may become one.
    if uid == 0 {
        let dir = domain.dir.path();
        for path in [dir, programs.path()] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(path, mode).unwrap();
        }
        assert_eq!(run(&copy, &socket, Some(65_534)).await, "none");
    } else {
        println!("SKIPPED: another user needs root");
    }
}
