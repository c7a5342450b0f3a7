//! Rows of group C that need more than a list of requests.

use capability::proof::{Expected, UnverifiedProof};
use capability::url::Target;
use capability::{Limits, Portable, Reason, b64, sha256};
use serde_json::{Value, json};

use super::cases::{PATH, Run, Wanted, listed};
use super::check::{holds, refused, same};
use super::jws::proof;
use super::nonces;
use super::stages::{ASKS, Stages};
use super::vectors;
use crate::Error;
use crate::client::{Answer, Verdict, now_s};
use crate::raw::{Http2, field};
use crate::stage::{PATIENCE, Stage, jti, text_at};
use crate::upstream::REPORT;

/// Two headers, one header with two, in HTTP/1 and HTTP/2.
pub async fn two_proofs(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let stage = &named.stage;
    let mut run = Run::begin(stage, &named.forger).await?;
    for row in listed("C03")? {
        run.one(&row).await?;
    }
    let mut connection = Http2::connect(&stage.address()).await?;
    let token = run.issue(&named.forger.agent).await?;
    let shown = named
        .forger
        .proof(&named.forger.agent, PATH, &token, &Value::Null)?;
    let authorization = format!("DPoP {token}");
    let joined = format!("{shown}, {shown}");
    let good: [(&str, &[u8]); 5] = [
        (":method", b"GET"),
        (":scheme", b"https"),
        (":authority", b"tools.example"),
        (":path", PATH.as_bytes()),
        ("authorization", authorization.as_bytes()),
    ];
    let one = ("dpop", shown.as_bytes());
    let both = ("dpop", joined.as_bytes());
    for (more, reason) in [
        (vec![one, one], Reason::MalformedCredentials),
        (
            vec![one, ("dpop", b"".as_slice())],
            Reason::MalformedCredentials,
        ),
        (vec![both], Reason::ProofMalformed),
    ] {
        let fields: Vec<_> = good.iter().copied().chain(more).collect();
        let (id, bytes) = connection.request(&fields);
        connection.send(&bytes).await?;
        let answers = connection.answers(&[id]).await?;
        let answer = answers.get(&id).cloned().unwrap_or_default();
        let got = (answer.status, answer.reason());
        same("HTTP/2", got, (reason.status(), reason.as_str().to_owned()))?;
        run.counted(reason);
    }
    // And with the one it passes.
    let fields: Vec<_> = good.iter().copied().chain([one]).collect();
    let (id, bytes) = connection.request(&fields);
    connection.send(&bytes).await?;
    let answers = connection.answers(&[id]).await?;
    same("one proof", answers.get(&id).map(|it| it.status), Some(404))?;
    run.arrived_elsewhere(1);
    run.end().await
}

/// Headers by which some upstreams take a request for another.
pub async fn overrides(stages: &mut Stages) -> Result<String, Error> {
    const NAMES: [&str; 4] = [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-original-method",
    ];
    let named = stages.named().await?;
    let mut run = Run::begin(&named.stage, &named.forger).await?;
    for row in listed("C18")? {
        run.one(&row).await?;
    }
    let seen = run.end().await?;
    let stage = &named.stage;
    let path = "/echo/override";
    for name in NAMES {
        let token = stage.agent.token("POST", path).await?;
        let mut headers = stage.credentials("POST", path, &token);
        headers.push(field(name, "DELETE"));
        headers.push(field("content-length", "0"));
        let answer = stage
            .exchange(&stage.request("POST", path, &headers))
            .await?;
        same(name, answer.status, 200)?;
        let id = jti(&token);
        let records = stage.records()?;
        let mut ours = records
            .iter()
            .filter(|it| it.header("x-writ-token-id") == Some(&id));
        let record = ours
            .next()
            .ok_or_else(|| Error::Unexpected("no record".to_owned()))?;
        holds(ours.next().is_none(), "it ran twice")?;
        same("the method", record.method.as_str(), "POST")?;
        holds(
            record.header(name).is_none(),
            format!("{name} reached the upstream"),
        )?;
    }
    Ok(format!(
        "{seen}; {} headers did not reach the upstream",
        NAMES.len()
    ))
}

/// What was approved as one type of content is not done as another.
pub async fn content_types(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let stage = &named.stage;
    let approver = stage.system.approver().await?;
    let path = "/echo/restricted/typed";
    let (json, form) = ("application/json", "application/x-www-form-urlencoded");
    let before = stage.arrived()?;
    let known = approver.inbox().await?;
    let pending = typed(stage, path, &[("content-type", json)]).await?;
    refused(&pending, 403, "approval_pending")?;
    let id = approver.next(&known, PATIENCE).await?;
    approver.decide(&id, Verdict::Approve).await?;
    same("while nobody had approved it", stage.arrived()?, before)?;
    // Other types and encodings of the same bytes are other actions.
    for headers in [
        vec![("content-type", form)],
        vec![("content-type", json), ("content-encoding", "gzip")],
        vec![
            ("content-type", json),
            ("content-encoding", "identity"),
            ("content-encoding", "identity"),
        ],
        vec![("content-type", "application/json; charset=utf-7")],
        vec![],
    ] {
        let answer = typed(stage, path, &headers).await?;
        refused(&answer, 403, "approval_pending")?;
        same(&format!("{headers:?}"), stage.arrived()?, before)?;
    }
    // Two types are no action at all, and an entry: the token was good.
    let two = [("content-type", json), ("content-type", form)];
    let answer = typed(stage, path, &two).await?;
    refused(&answer, 403, "action_mismatch")?;
    let passed = typed(stage, path, &[("content-type", json)]).await?;
    same("what was approved", passed.status, 200)?;
    same("it ran", stage.arrived()?, before + 1)?;
    Ok("of a body of two readings only the approved type ran, once; other headers are not bound, and nothing is decided by them".to_owned())
}

/// A POST of a body that reads as JSON and as a form.
async fn typed(stage: &Stage, path: &str, more: &[(&str, &str)]) -> Result<Answer, Error> {
    let body = br#"{"a":"=1&amount=1000&b="}"#;
    let token = stage.agent.token("POST", path).await?;
    let mut headers = stage.credentials("POST", path, &token);
    headers.push(field("content-length", body.len().to_string()));
    headers.extend(more.iter().map(|(name, value)| field(name, *value)));
    let bytes = [stage.request("POST", path, &headers), body.to_vec()].concat();
    stage.exchange(&bytes).await
}

/// A thousand proofs from the future.
pub async fn made_ahead(stages: &mut Stages) -> Result<String, Error> {
    const PROOFS: u64 = 1_000;
    let named = stages.named().await?;
    let mut run = Run::begin(&named.stage, &named.forger).await?;
    for row in listed("C30")? {
        run.one(&row).await?;
    }
    let token = run.issue(&named.forger.agent).await?;
    let wanted = Wanted::Refused {
        reason: Reason::ProofTime,
        entry: false,
    };
    for ahead in 1..=PROOFS {
        let iat = now_s().saturating_add(303).saturating_add(ahead);
        let row =
            json!({"name": "ahead", "token": {"raw": token}, "proof": {"claims": {"iat": iat}}});
        let built = run.build(&row).await?;
        let bytes = run.bytes(&built);
        let answer = run.send(&built, &bytes).await?;
        run.judge(&format!("{ahead} s ahead"), &wanted, &answer, &built)?;
    }
    // The token is as good as before.
    run.good("after all of them", &token, &named.forger.agent)
        .await?;
    let seen = run.end().await?;
    // Where a nonce is asked for, those of the next minutes are no good either.
    let agent = &named.stage.agent;
    let token = agent.token("GET", ASKS).await?;
    let before = named.stage.arrived()?;
    for ahead in 0..PROOFS {
        let claims = json!({"iat": now_s().saturating_add(ahead.checked_rem(298).unwrap_or(0))});
        nonces::asked_at_edge(&nonces::show(agent, &token, &claims).await?)?;
    }
    same("none of them passed", named.stage.arrived()?, before)?;
    let good = agent.present("GET", ASKS, &token).await?;
    same("with a nonce", good.status, 200)?;
    Ok(format!(
        "{seen}; {PROOFS} that were made ahead are no good, and where a nonce is asked for {PROOFS} of the next minutes neither"
    ))
}

/// The token endpoint's proofs at the edge, and the edge's there.
pub async fn elsewhere(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let forger = &named.forger;
    let mut run = Run::begin(&named.stage, forger).await?;
    for row in listed("C35")? {
        run.one(&row).await?;
    }
    let token = run.issue(&forger.agent).await?;
    let ath = b64::encode(&sha256(token.as_bytes()));
    for (name, changes, expect) in [
        ("as it is", json!({}), "proof_method"),
        ("for GET", json!({"claims": {"htm": "GET"}}), "proof_target"),
        (
            "for GET, with ath",
            json!({"claims": {"htm": "GET", "ath": ath}}),
            "proof_target",
        ),
    ] {
        let shown = forger.exchange_proof(&forger.agent, &changes)?;
        run.one(&json!({"name": name, "expect": expect,
            "token": {"raw": token}, "proof": {"raw": shown}}))
            .await?;
    }
    let agent = &named.stage.agent;
    let details = agent.details("GET", PATH).to_string();
    let made = |changes: Value| forger.proof(&forger.agent, PATH, &token, &changes);
    for (changes, reason) in [
        (json!({}), "proof_method"),
        (json!({"claims": {"htm": "POST"}}), "proof_target"),
        (
            json!({"claims": {"htm": "POST", "ath": null}}),
            "proof_target",
        ),
    ] {
        let shown = made(changes)?;
        let answer = agent
            .post_token(&agent.svid().await?, &details, &shown)
            .await?;
        let got = (answer.status, answer.reason());
        same("at the token endpoint", got, (400, reason.to_owned()))?;
    }
    let seen = run.end().await?;
    Ok(format!(
        "{seen}; the edge's proofs are no good at the token endpoint either"
    ))
}

/// What the upstream gets of the credentials.
pub async fn stripped(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let stage = &named.stage;
    let token = stage.agent.token("GET", REPORT).await?;
    let answer = stage.present(REPORT, &token).await?;
    same("status", answer.status, 200)?;
    let id = jti(&token);
    let records = stage.records()?;
    let ours: Vec<_> = records
        .iter()
        .filter(|it| it.header("x-writ-token-id") == Some(&id))
        .collect();
    let [record] = ours.as_slice() else {
        return Err(Error::Unexpected(format!(
            "{} requests of one token",
            ours.len()
        )));
    };
    let parts: Vec<&str> = token.split('.').collect();
    for (name, value) in &record.headers {
        holds(
            !["authorization", "dpop"].contains(&name.as_str()),
            format!("{name} arrived"),
        )?;
        let leaks = parts.iter().any(|part| value.contains(part));
        holds(!leaks, format!("{name} has a part of the token"))?;
    }
    same(
        "the agent",
        record.header("x-writ-agent"),
        Some(crate::system::AGENT),
    )?;
    // Not one request of any row had them.
    let bare = records
        .iter()
        .all(|it| it.header("authorization").is_none() && it.header("dpop").is_none());
    holds(bare, "credentials reached the upstream")?;
    Ok(format!(
        "none of {} requests had credentials when they arrived",
        records.len()
    ))
}

/// The examples of RFC 9449: natively at their own time as published, and at the
/// edge at this time, where all are too old at best.
pub async fn examples(stages: &mut Stages) -> Result<String, Error> {
    let file = vectors::json("rfc/rfc9449_dpop.json")?;
    let named = stages.named().await?;
    let mut run = Run::begin(&named.stage, &named.forger).await?;
    let jkt = vectors::text(&file, "/jkt");
    let mut count = 0;
    for vector in vectors::list(&file, "/vectors") {
        let shown = vectors::text(vector, "/proof");
        let accepted = natively(vector).is_ok();
        let wanted = vectors::text(vector, "/expect") == "accept";
        same(vectors::text(vector, "/id"), accepted, wanted)?;
        run.one(&json!({
            "name": vectors::text(vector, "/id"), "expect": "native", "refused": true,
            "token": {"claims": {"cnf": {"jkt": jkt}}}, "proof": {"raw": shown},
        }))
        .await?;
        count += 1;
    }
    let opaque = vectors::text(&file, "/access_token");
    if !opaque.is_empty() {
        run.one(
            &json!({"name": "the access token", "expect": "token_malformed",
            "token": {"raw": opaque}}),
        )
        .await?;
    }
    holds(count == 0 || count == 11, format!("{count} examples"))?;
    let seen = run.end().await?;
    Ok(format!("{seen}; {count} verdicts as published"))
}

fn natively(vector: &Value) -> Result<(), Reason> {
    let target =
        Target::location(vectors::text(vector, "/url")).map_err(|_| Reason::ProofTarget)?;
    let at_s = vector.get("verify_at").and_then(Value::as_u64).unwrap_or(0);
    let token = vector.get("access_token").and_then(Value::as_str);
    let proof = UnverifiedProof::parse(
        vectors::text(vector, "/proof").as_bytes(),
        &Limits::default(),
    )?;
    let expected = Expected {
        method: vectors::text(vector, "/method"),
        target: &target,
        now_ms: at_s.saturating_mul(1000),
        window_s: 300,
        ath: token.map(|token| sha256(token.as_bytes())),
        jkt: None,
        nonce: None,
    };
    proof.check(&expected, &Portable).map(|_| ())
}

/// An agent that signs whatever a model asks for reaches no other host by it.
pub async fn other_hosts(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let forger = &named.forger;
    let mut run = Run::begin(&named.stage, forger).await?;
    for row in listed("C46")? {
        run.one(&row).await?;
    }
    run.one(&proof(
        "htu of the token endpoint",
        "proof_target",
        json!({"claims": {"htu": forger.names.token_endpoint()}}),
    ))
    .await?;
    let agent = &named.stage.agent;
    let mut tried = 0;
    for location in [
        "https://other.example/files/a.txt",
        "http://tools.example/files/a.txt",
        "https://tools.example:8443/files/a.txt",
        "https://tools.example.other.example/files/a.txt",
        "https://tools.example@other.example/files/a.txt",
        "//other.example/files/a.txt",
        "/files/a.txt",
    ] {
        let details =
            json!([{"type": "http_request", "actions": ["GET"], "locations": [location]}]);
        let shown = forger.exchange_proof(&forger.agent, &json!({}))?;
        let answer = agent
            .post_token(&agent.svid().await?, &details.to_string(), &shown)
            .await?;
        let got = (answer.status, answer.oauth_error());
        same(
            location,
            got,
            (400, "invalid_authorization_details".to_owned()),
        )?;
        holds(
            text_at(&answer.json(), "/access_token").is_empty(),
            "a token for another host",
        )?;
        tried += 1;
    }
    let seen = run.end().await?;
    Ok(format!("{seen}; no token for any of {tried} other hosts"))
}
