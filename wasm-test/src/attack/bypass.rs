//! Ways round the proxy: what an upstream that verifies serves, and what it refuses.

use std::sync::Arc;

use serde_json::Value;
use tokio::net::TcpListener;

use super::check::{holds, same};
use super::stages::{Stages, options};
use super::{How, Row, Work};
use crate::Error;
use crate::stage::Stage;
use crate::system::{AGENT, Options};
use crate::verifying::{HEADER, Verifier, serve};

/// Rows of group F about the way to the upstream.
pub const ROWS: &[Row] = &[Row {
    id: "F36",
    how: How::Live(round_the_proxy),
}];

const PATH: &str = "/echo/proven/a";

/// F36: somebody who can reach the upstream itself, with nothing, with something made
/// up, and with the decision of another request.
fn round_the_proxy(_: &mut Stages) -> Work<'_> {
    Box::pin(async {
        let lost = |problem: std::io::Error| Error::Setup(problem.to_string());
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(lost)?;
        let address = listener.local_addr().map_err(lost)?;
        let routes = format!(
            r#"
[edge]
route = [
  {{ name = "files", path_prefix = "/", upstream = "{{upstream}}" }},
  {{ name = "shown", path_prefix = "/echo/shown", upstream = "{{upstream}}", decision_header = true, decision_audience = "http://{address}" }},
  {{ name = "proven", path_prefix = "/echo/proven", upstream = "{address}", decision_header = true }},
]
"#
        );
        let common = options();
        let extra_config = format!("{}{routes}", common.extra_config);
        let stage = Stage::start(Options {
            extra_config,
            ..common
        })
        .await?;
        let issuer = stage.system.issuer();
        let jwks = fetch(&format!("{issuer}/.well-known/writ-decision-jwks.json")).await?;
        let upstream = format!("http://{address}");
        let verifier = Arc::new(Verifier::new(&issuer, &upstream, &jwks));
        let server = tokio::spawn(serve(listener, verifier));
        let tried = attempts(&stage, &upstream).await;
        server.abort();
        stage.stop().await;
        tried.map(|count| format!("through the proxy served, round it refused {count} times"))
    })
}

async fn attempts(stage: &Stage, upstream: &str) -> Result<usize, Error> {
    let answer = stage.agent.call("GET", PATH).await?;
    same("through the proxy", answer.status, 200)?;
    same("served", answer.text(), format!("served {AGENT}\n"))?;
    // The decision of another request to the same upstream, taken on its way.
    let other = "/echo/shown/b";
    stage
        .agent
        .call("GET", other)
        .await?
        .expect("the other request", 200)?;
    let records = stage.system.upstream()?.records()?;
    let record = records.iter().rfind(|record| record.path == other);
    let taken = record.and_then(|record| record.header(HEADER));
    let taken = taken.ok_or_else(|| Error::Unexpected("no decision was shown".to_owned()))?;
    let shown = [None, Some("e30.e30.e30"), Some(taken)];
    for header in shown {
        let status = direct(stage, upstream, PATH, header).await?;
        same("round the proxy", status, 403)?;
    }
    // For its own request it is good, and once.
    same(
        "its own",
        direct(stage, upstream, other, Some(taken)).await?,
        200,
    )?;
    same(
        "again",
        direct(stage, upstream, other, Some(taken)).await?,
        403,
    )?;
    let answer = stage.agent.call("GET", PATH).await?;
    holds(answer.status == 200, "the next good request")?;
    Ok(shown.len() + 1)
}

async fn direct(
    stage: &Stage,
    upstream: &str,
    path: &str,
    decision: Option<&str>,
) -> Result<u16, Error> {
    let lost = |problem: reqwest::Error| Error::Unexpected(problem.to_string());
    let mut request = reqwest::Client::new()
        .get(format!("{upstream}{path}"))
        .header("host", stage.agent.authority());
    if let Some(decision) = decision {
        request = request.header(HEADER, decision);
    }
    Ok(request.send().await.map_err(lost)?.status().as_u16())
}

async fn fetch(url: &str) -> Result<Value, Error> {
    let lost = |problem: reqwest::Error| Error::Unexpected(problem.to_string());
    let answer = reqwest::Client::new().get(url).send().await.map_err(lost)?;
    answer.json().await.map_err(lost)
}
