//! `cargo xtask up`: a system to play with, until somebody stops it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::Error;
use crate::ports::{self, Ports};
use crate::system::{Options, Ready, System};
use crate::tools::Tools;

// A person needs a moment to find the approvals page; clients wait a minute.
const HOLD_S: u64 = 25;
const WATCH: Duration = Duration::from_millis(500);

/// Starts a system, says where everything is, and stops it on SIGINT or SIGTERM.
///
/// # Errors
/// When it can't be started, or when none of it runs any more.
pub async fn run(ready_file: Option<PathBuf>) -> Result<(), Error> {
    let tools = Tools::from_env()?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let options = Options {
        wanted_ports: Some(ports::USUAL),
        hold_s: HOLD_S,
        keep: true,
        ..Options::default()
    };
    if let Some(path) = &ready_file {
        // Whoever waits for the file must not find an earlier run's.
        drop(std::fs::remove_file(path));
    }
    let mut say = |step: &str| println!("· {step}");
    // A signal during the start drops it, which stops what had been started.
    let mut system = tokio::select! {
        system = System::start(&tools, options, &mut say) => system?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    let ready = system.ready();
    if let Some(path) = &ready_file {
        ready.write(path)?;
    }
    print!("{}", directions(&ready, system.state_dir()));
    for line in moved(system.ports()) {
        println!("{line}");
    }
    let outcome = tokio::select! {
        outcome = watch(&mut system) => outcome,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    println!("\n· stopping");
    system.stop().await;
    if let Some(path) = &ready_file {
        drop(std::fs::remove_file(path));
    }
    outcome
}

/// Returns when no process of the system is left. One that ends by itself or is
/// killed is reported, and the rest goes on: an Envoy without a control plane
/// refuses everything, which is worth seeing.
async fn watch(system: &mut System) -> Result<(), Error> {
    let mut told = Vec::new();
    loop {
        tokio::time::sleep(WATCH).await;
        let ended = system.ended();
        for (name, problem) in &ended {
            if !told.contains(name) {
                told.push(*name);
                println!("\n{problem}");
            }
        }
        if ended.len() == 2 {
            return Err(Error::Setup(
                "neither the control plane nor Envoy runs any more".to_owned(),
            ));
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Error> {
    signal(kind).map_err(|problem| Error::Setup(format!("cannot listen for signals: {problem}")))
}

fn directions(ready: &Ready, state_dir: &Path) -> String {
    let writ = quoted(&ready.writ.display().to_string());
    let proxy = &ready.proxy;
    let demo = &ready.demo;
    let exports: Vec<String> = ready
        .env
        .iter()
        .map(|(name, value)| format!("    export {name}={}", quoted(value)))
        .collect();
    let exports = exports.join("\n");
    format!(
        "
Writ is up. Ctrl-C stops all of it.

  proxy (Envoy)      {proxy}
  token endpoint     {issuer}/oauth2/token
  approvals page     {login}   (signs you in, once)
  Envoy's admin      {admin}
  Workload API       {workload_api}
  audit log          {audit}
  upstream's log     {upstream_log}
  processes          control plane {control_plane}, Envoy {envoy}
  everything else    {state}

First, in another terminal:

{exports}

Then try:

    {writ} call {proxy}{allowed}
        allowed: a token for this one GET, spent by this one GET
    {writ} call {proxy}{denied}
        refused at the exchange: policy doesn't allow it
    {writ} call {proxy}{held}
        held until you approve it on the page above

",
        issuer = ready.issuer,
        login = ready.approver_login,
        admin = ready.envoy_admin,
        workload_api = ready.workload_api.display(),
        audit = ready.audit_dir.display(),
        upstream_log = demo.upstream_log.display(),
        state = state_dir.display(),
        control_plane = ready.pids.control_plane,
        envoy = ready.pids.envoy,
        allowed = demo.allowed,
        denied = demo.denied,
        held = demo.held,
    )
}

/// Which of the usual ports others had.
fn moved(got: Ports) -> Vec<String> {
    let usual = ports::USUAL;
    [
        ("the proxy (Envoy)", usual.proxy, got.proxy),
        ("the token endpoint and the pages", usual.http, got.http),
        ("the control plane's gRPC", usual.grpc, got.grpc),
        ("Envoy's admin", usual.admin, got.admin),
        ("the upstream", usual.upstream, got.upstream),
    ]
    .into_iter()
    .filter(|(_, usual, got)| usual != got)
    .map(|(what, usual, got)| {
        format!("Port {usual} was taken: {what} is on {got}. Put that into commands that you copy.")
    })
    .collect()
}

/// `text` as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_were_taken_are_said() {
        assert!(moved(ports::USUAL).is_empty());
        let got = Ports {
            http: 20_000,
            ..ports::USUAL
        };
        let said = moved(got);
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("8480 was taken") && said[0].contains("20000"));
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("/a/b-c"), "/a/b-c");
        assert_eq!(quoted("/a b/c"), "'/a b/c'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
