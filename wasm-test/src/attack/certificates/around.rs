//! What stands around a certificate: a proxy that shares one, evidence that was
//! stolen, a config that forgets to ask, an authority that changes.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::check::{holds, refused, same};
use super::super::stages::Stages;
use crate::Error;
use crate::stage::{eventually, text_at};
use crate::system::AGENT;
use crate::upstream::REPORT;

/// What an ambient mesh does: its proxy ends the agents' TLS and shows its own
/// certificate for all of them.
pub(super) async fn shared_by_a_proxy(stages: &mut Stages) -> Result<String, Error> {
    let guarded = stages.guarded().await?;
    let proxy = guarded.authority.svid("spiffe://writ.example/ztunnel")?;
    guarded
        .ends_at_the_filter("a proxy's certificate", &proxy)
        .await?;
    // One connection, and a token that is bound to another certificate on it.
    let connection = guarded.showing(Some(&guarded.own))?;
    let other = guarded.authority.svid(AGENT)?;
    let elsewhere = guarded.bound(&other)?.token("GET", REPORT).await?;
    let answer = connection.call("GET", REPORT).await?;
    answer.expect("the connection's own agent", 200)?;
    let answer = connection.present("GET", REPORT, &elsewhere).await?;
    refused(&answer, 401, "certificate_mismatch")?;
    let answer = connection.call("GET", REPORT).await?;
    answer.expect("the connection's own agent again", 200)?;
    guarded.good_request().await?;
    Ok("a shared connection carries its own certificate's agent and nobody else".to_owned())
}

/// A JWT-SVID that a thief shows under keys of its own.
pub(super) async fn stolen_evidence(stages: &mut Stages) -> Result<String, Error> {
    const KEYS: usize = 20;
    const MOST: usize = 16;
    let guarded = stages.guarded().await?;
    let holder = &guarded.stage.agent;
    // Its own key has been shown with the SVID that is stolen now.
    let svid = holder.svid().await?;
    holder.token("GET", REPORT).await?;
    let details = holder.details("GET", REPORT).to_string();
    let mut granted = 0;
    for _ in 0..KEYS {
        let thief = holder.with_fresh_key()?;
        let answer = thief
            .post_token(&svid, &details, &thief.token_proof())
            .await?;
        if answer.status == 200 {
            granted += 1;
            continue;
        }
        same("the status beyond the limit", answer.status, 400)?;
        same(
            "the error",
            answer.oauth_error(),
            "invalid_request".to_owned(),
        )?;
        let reason = text_at(&answer.json(), "/reason");
        same("the reason", reason, "limit_exceeded".to_owned())?;
    }
    holds(granted < MOST, format!("{granted} other keys got a token"))?;
    let is_it = |entry: &Value| {
        text_at(entry, "/kind") == "exchange_refused"
            && entry.to_string().contains("limit_exceeded")
    };
    guarded.stage.entry("the alarm", is_it).await?;
    let log = guarded.stage.system.log("control-plane");
    let text = std::fs::read_to_string(&log).map_err(Error::file("read", &log))?;
    holds(text.contains("ALARM"), "the log has no alarm")?;
    // A stolen SVID does not even get in where a certificate has to go with it.
    let other = guarded
        .authority
        .svid("spiffe://writ.example/agent/other")?;
    let thief = guarded.bound(&other)?;
    let answer = thief
        .post_token(&svid, &details, &thief.token_proof())
        .await?;
    same("the status under another certificate", answer.status, 400)?;
    let reason = text_at(&answer.json(), "/reason");
    same("the reason", reason, "certificate_mismatch".to_owned())?;
    guarded.good_request().await?;
    Ok(format!(
        "{granted} of {KEYS} other keys, then 400; the holder goes on"
    ))
}

/// A listener that would take bound tokens without a certificate.
pub(super) async fn nobody_looks(stages: &mut Stages) -> Result<String, Error> {
    let guarded = stages.guarded().await?;
    let dir = guarded.stage.system.state_dir();
    let config = dir.join("writ.toml");
    let text = std::fs::read_to_string(&config).map_err(Error::file("read", &config))?;
    let without = text.replace("client_certificates = \"required\"\n", "");
    holds(without != text, "the config demands certificates")?;
    let changed = dir.join("without.toml");
    std::fs::write(&changed, without).map_err(Error::file("write", &changed))?;
    let mut command = guarded.stage.system.writ();
    command.args(["serve", "--check", "--config"]).arg(&changed);
    let output = command
        .output()
        .map_err(Error::file("run", &guarded.stage.system.tools().writ))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    holds(!output.status.success(), "it would be served")?;
    let names = said.contains("without.toml:") && said.contains("server.mtls_listen");
    holds(names, format!("it says {said}"))?;
    guarded
        .ends_at_the_handshake("no certificate", None)
        .await?;
    guarded.good_request().await?;
    Ok("refused at the start, with file and line".to_owned())
}

/// The trust domain gets another authority.
pub(super) async fn rotated(stages: &mut Stages) -> Result<String, Error> {
    const SOON: Duration = Duration::from_secs(30);
    let guarded = stages.guarded().await?;
    let (old, envoys) = (guarded.own.clone(), guarded.stage.system.envoy_pids());
    let trust = guarded.stage.system.data_dir().join("trust");
    guarded.stage.system.stop_control_plane().await;
    for name in ["ca.key", "ca.crt"] {
        let path = trust.join(name);
        std::fs::remove_file(&path).map_err(Error::file("remove", &path))?;
    }
    let start = Instant::now();
    guarded.stage.system.start_control_plane().await?;
    guarded.renew()?;
    guarded.recovers().await?;
    let took = start.elapsed();
    let ends = async || {
        let stranger = guarded.showing(Some(&old));
        match stranger {
            Ok(stranger) => stranger.call("GET", REPORT).await.is_err(),
            Err(_) => false,
        }
    };
    eventually("the old authority's certificate is refused", ends).await?;
    guarded
        .ends_at_the_handshake("the old authority's", Some(&old))
        .await?;
    holds(took < SOON, format!("it took {took:?}"))?;
    same(
        "Envoy's processes",
        guarded.stage.system.envoy_pids(),
        envoys,
    )?;
    guarded.good_request().await?;
    Ok(format!(
        "the new authority counts after {:.1} s, without a restart of Envoy",
        took.as_secs_f64()
    ))
}
