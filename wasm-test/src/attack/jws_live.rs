//! Rows of group A that need more than a list of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use capability::{Reason, b64};
use serde_json::{Value, json};

use super::cases::{PATH, Run, Wanted, listed};
use super::check::{holds, same};
use super::forge::{Key, random};
use super::jws::{proof, token};
use super::stages::{Named, Stages};
use super::stress::resident;
use crate::Error;
use crate::bench::cpu;
use crate::raw::{field, message};
use crate::stage::text_at;

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let ms = since.and_then(|since| u64::try_from(since.as_millis()).ok());
    ms.unwrap_or(0)
}

/// Tokens that end two seconds ago to two seconds ahead, and around that moment.
pub async fn around_exp(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let mut run = Run::begin(&named.stage, &named.forger).await?;
    for row in listed("A22")? {
        run.one(&row).await?;
    }
    let (mut good, mut ended) = (0, 0);
    for ahead in -2..=2_i64 {
        let this = now_ms() / 1000;
        let exp = this.saturating_add_signed(ahead);
        // One after the other until that second has gone by.
        loop {
            let row = token(
                "exp",
                "native",
                json!({"claims": {"exp": exp, "iat": exp - 20}}),
            );
            let built = run.build(&row).await?;
            let bytes = run.bytes(&built);
            let before = now_ms();
            let answer = run.send(&built, &bytes).await?;
            let after = now_ms();
            let at = exp * 1000;
            let reason = answer.as_ref().map(|it| it.reason()).unwrap_or_default();
            let expired = Wanted::Refused {
                reason: Reason::TokenExpired,
                entry: false,
            };
            let wanted = if before >= at || (after >= at && reason == "token_expired") {
                ended += 1;
                expired
            } else {
                good += 1;
                Wanted::NotIssued
            };
            run.judge(
                &format!("exp {at}, {before} to {after}"),
                &wanted,
                &answer,
                &built,
            )?;
            if before >= at {
                break;
            }
            // Closest together where it matters.
            let left = at.saturating_sub(now_ms());
            tokio::time::sleep(Duration::from_millis((left / 2).clamp(1, 400))).await;
        }
    }
    let seen = run.end().await?;
    holds(good > 5, "no token was good")?;
    Ok(format!(
        "{seen}; {good} before exp passed every gate, {ended} from exp on did not"
    ))
}

/// Everything that the system signs, or is signed for it, in every place but its own.
pub async fn types(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let forger = &named.forger;
    let mut run = Run::begin(&named.stage, forger).await?;
    for row in listed("A26")? {
        run.one(&row).await?;
    }
    let agent = &named.stage.agent;
    let issued = run.issue(&forger.agent).await?;
    let certificate = std::fs::read_to_string(forger.trust.join("ca.crt"))
        .map_err(Error::file("read", &forger.trust.join("ca.crt")))?;
    let certificate: String = certificate.lines().filter(|it| !it.contains('-')).collect();
    let artefacts = [
        ("token", issued.clone()),
        (
            "edge proof",
            forger.proof(&forger.agent, PATH, &issued, &json!({}))?,
        ),
        (
            "exchange proof",
            forger.exchange_proof(&forger.agent, &json!({}))?,
        ),
        ("JWT-SVID", agent.svid().await?),
        (
            "JWT-SVID for the origin",
            agent.svid_for(&forger.names.origin).await?,
        ),
        ("certificate", certificate),
        (
            "login",
            named
                .stage
                .system
                .serve_ready()
                .approver_login
                .replace('#', "."),
        ),
    ];
    let mut tried = 0;
    for (name, artefact) in &artefacts {
        if *name != "token" {
            let row = json!({"name": format!("{name} as the token"), "expect": "native",
                "refused": true, "token": {"raw": artefact}});
            run.one(&row).await?;
            tried += 1;
        }
        // With a token of its own, so that nothing else is wrong.
        let row = json!({"name": format!("{name} as the proof"), "expect": "native",
            "refused": true, "proof": {"raw": artefact}});
        run.one(&row).await?;
        let details = agent.details("GET", PATH).to_string();
        if *name != "JWT-SVID" {
            let fresh = forger.exchange_proof(&forger.agent, &json!({}))?;
            let answer = agent.post_token(artefact, &details, &fresh).await?;
            same(&format!("{name} as subject_token"), answer.status, 400)?;
            tried += 1;
        }
        if *name != "exchange proof" {
            let svid = agent.svid().await?;
            let answer = agent.post_token(&svid, &details, artefact).await?;
            let told = (answer.status, answer.oauth_error());
            let wanted = (400, "invalid_dpop_proof".to_owned());
            same(&format!("{name} as the exchange's proof"), told, wanted)?;
            tried += 1;
        }
        tried += 1;
    }
    let seen = run.end().await?;
    Ok(format!(
        "{seen}; {} artefacts in {tried} wrong places",
        artefacts.len()
    ))
}

/// Headers that say where a key is to be had: nobody goes there.
pub async fn canary(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let forger = &named.forger;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.map_err(Error::http("the canary"))?;
    let url = listener.local_addr().map(|it| format!("http://{it}/keys"));
    let url = url.map_err(Error::http("the canary"))?;
    let hits = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&hits);
    let watch = tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            seen.fetch_add(1, Ordering::SeqCst);
        }
    });
    let own = Key::p256("thief")?;
    let jwk = own.public()?.to_jwk();
    let mut run = Run::begin(&named.stage, forger).await?;
    for row in listed("A28")? {
        run.one(&row).await?;
    }
    for (member, value) in [
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("jwk", jwk.clone()),
        ("x5c", json!(["AAAA"])),
    ] {
        for kid in [json!(forger.kid), json!(own.public()?.thumbprint())] {
            for key in [None, Some("thief")] {
                let mut changes = json!({"header": {member: value, "kid": kid}});
                if let (Some(key), Some(all)) = (key, changes.as_object_mut()) {
                    all.insert("key".to_owned(), json!(key));
                }
                run.one(&token(
                    format!("{member}, {kid}, {key:?}"),
                    "token_malformed",
                    changes,
                ))
                .await?;
            }
        }
        if member != "jwk" {
            let changes = json!({"header": {member: value}});
            run.one(&proof(format!("proof: {member}"), "ok", changes))
                .await?;
        }
    }
    let told = run.end().await?;
    watch.abort();
    same("connections to the canary", hits.load(Ordering::SeqCst), 0)?;
    Ok(format!("{told}; the canary was not asked once"))
}

/// What requests of one kind cost Envoy: CPU per request in microseconds, and how
/// many bytes it has grown by.
async fn cost(named: &Named, bytes: &[u8], count: u32) -> Result<(f64, u64), Error> {
    let pid = named.stage.system.envoy_pid();
    let (cpu_before, before) = (cpu::time_us(pid)?, resident(pid));
    for _ in 0..count {
        let connection = named.stage.connect().await?;
        let answer = connection.exchange(bytes).await?;
        let status = answer.map_or(0, |it| it.status);
        holds([400, 401, 431].contains(&status), format!("{status}"))?;
    }
    let spent = cpu::time_us(pid)? - cpu_before;
    Ok((
        spent / f64::from(count),
        resident(pid).saturating_sub(before),
    ))
}

/// No request of these costs more than the list allows, or leaves memory behind.
async fn cheap(named: &Named, tokens: &[(&str, String)]) -> Result<String, Error> {
    const COUNT: u32 = 40;
    const CPU_US: f64 = 5_000.0;
    const GROWTH: u64 = 32 * 1024 * 1024;
    let mut told = Vec::new();
    for (name, made) in tokens {
        let headers = [
            field("host", named.stage.agent.authority()),
            field("authorization", format!("DPoP {made}")),
            field("dpop", "e30.e30.AA"),
        ];
        let (us, grown) = cost(named, &message("GET", PATH, &headers), COUNT).await?;
        holds(us < CPU_US, format!("{name}: {us:.0} us of CPU each"))?;
        holds(
            grown < GROWTH,
            format!("{name}: Envoy grew by {grown} bytes"),
        )?;
        told.push(format!("{name} {us:.0} us"));
    }
    // They are in the log before the next row counts.
    tokio::time::sleep(Duration::from_secs(6)).await;
    Ok(told.join(", "))
}

/// A token with this claim besides the good ones.
fn with_claims(named: &Named, more: Value) -> Result<String, Error> {
    let jkt = named.forger.agent.public()?.thumbprint();
    named.forger.token(PATH, &jkt, &json!({"claims": more}))
}

/// So many claims.
fn many(count: usize) -> Value {
    Value::Object((0..count).map(|at| (format!("c{at}"), json!(1))).collect())
}

/// Large tokens cost little.
pub async fn large(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let mut run = Run::begin(&named.stage, &named.forger).await?;
    for row in listed("A30")? {
        run.one(&row).await?;
    }
    let seen = run.end().await?;
    let good = with_claims(named, json!({}))?;
    let padded = |size: usize| format!("{good}{}", "A".repeat(size));
    let tokens = [
        ("8 KiB", padded(8 * 1024)),
        ("64 KiB", padded(64 * 1024)),
        ("1 MiB", padded(1024 * 1024)),
        ("10,000 claims", with_claims(named, many(10_000))?),
        (
            "a claim of 1 MiB",
            with_claims(named, json!({"x": "a".repeat(1 << 20)}))?,
        ),
    ];
    let told = cheap(named, &tokens).await?;
    Ok(format!("{seen}; of Envoy's CPU each: {told}"))
}

/// JSON of great depth, in tokens, proofs and bodies.
pub async fn deep(stages: &mut Stages) -> Result<String, Error> {
    const DEPTH: usize = 100_000;
    let named = stages.named().await?;
    let nested = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
    let mut run = Run::begin(&named.stage, &named.forger).await?;
    for row in listed("A32")? {
        run.one(&row).await?;
    }
    for of in ["token", "proof"] {
        for part in ["header", "claims"] {
            let splice = format!("{part}_end");
            let changes = json!({splice: format!(",\"x\":{nested}")});
            let row = json!({"name": format!("depth {DEPTH}: {of} {part}"), "expect": "native", of: changes});
            run.one(&row).await?;
        }
    }
    let seen = run.end().await?;
    let stage = &named.stage;
    let path = "/echo/deep";
    let made = stage.agent.token("POST", path).await?;
    let mut headers = stage.credentials("POST", path, &made);
    headers.push(field("content-type", "application/json"));
    headers.push(field("content-length", nested.len().to_string()));
    let mut connection = stage.connect().await?;
    connection
        .send(&stage.request("POST", path, &headers))
        .await?;
    let answer = connection.exchange(nested.as_bytes()).await?;
    same("a deep body", answer.map(|it| it.status), Some(200))?;
    Ok(format!(
        "{seen}; a body of that depth is the upstream's business"
    ))
}

/// Very many keys in one object.
pub async fn flood(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let mut run = Run::begin(&named.stage, &named.forger).await?;
    for (count, expect) in [(200, "token_malformed"), (100_000, "native")] {
        let row = token(
            format!("{count} keys"),
            expect,
            json!({"claims": many(count)}),
        );
        run.one(&row).await?;
    }
    let seen = run.end().await?;
    let tokens = [
        ("200 keys", with_claims(named, many(200))?),
        ("10^5 keys", with_claims(named, many(100_000))?),
    ];
    let told = cheap(named, &tokens).await?;
    Ok(format!("{seen}; of Envoy's CPU each: {told}"))
}

/// How long refusals take that differ in what is wrong, and that they look alike.
pub async fn timing(stages: &mut Stages) -> Result<String, Error> {
    const SAMPLES: usize = 1_000;
    let named = stages.named().await?;
    let mut run = Run::begin(&named.stage, &named.forger).await?;
    let kinds = [
        (
            "unknown kid",
            Reason::TokenKeyUnknown,
            json!({"header": {"kid": "x"}}),
        ),
        (
            "bad signature",
            Reason::TokenSignature,
            json!({"signature": "flipped"}),
        ),
        (
            "bad claim",
            Reason::TokenIssuer,
            json!({"claims": {"iss": "https://x.example"}}),
        ),
    ];
    let mut told = Vec::new();
    let mut shapes = Vec::new();
    for (name, reason, changes) in kinds {
        let built = run.build(&token(name, reason.as_str(), changes)).await?;
        let bytes = run.bytes(&built);
        let wanted = Wanted::Refused {
            reason,
            entry: false,
        };
        let mut took = Vec::new();
        for _ in 0..SAMPLES {
            let start = Instant::now();
            let answer = run.send(&built, &bytes).await?;
            took.push(start.elapsed());
            run.judge(name, &wanted, &answer, &built)?;
            if shapes.len() < told.len() + 1 {
                let answer = answer.unwrap_or(crate::client::Answer {
                    status: 0,
                    headers: Vec::new(),
                    body: Vec::new(),
                });
                let json = answer.json();
                let members: Vec<String> = json
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, _)| name.clone())
                    .collect();
                let names: Vec<String> = answer.headers.into_iter().map(|(name, _)| name).collect();
                shapes.push((answer.status, names, members));
            }
        }
        took.sort();
        let at = |part: usize| {
            took.get(SAMPLES * part / 100)
                .map_or(0, Duration::as_micros)
        };
        told.push(format!("{name}: p50 {} us, p99 {} us", at(50), at(99)));
    }
    run.end().await?;
    shapes.dedup();
    same("forms of refusals", shapes.len(), 1)?;
    Ok(format!("{SAMPLES} each; {}", told.join("; ")))
}

/// Text that reads like a JWS goes into what the control plane signs, and comes
/// out as text alone.
pub async fn said_by_others(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let forger = &named.forger;
    let agent = &named.stage.agent;
    let thief = Key::p256("thief")?;
    let claims = json!({"iss": forger.names.issuer, "jti": random()}).to_string();
    let said = thief.seal(forger.header().to_string().as_bytes(), claims.as_bytes());
    let mut run = Run::begin(&named.stage, forger).await?;
    let mut tried = 0;
    for path in [format!("/files/{said}"), format!("/files/a.txt?v={said}")] {
        let fresh = forger.exchange_proof(&forger.agent, &json!({}))?;
        let details = agent.details("GET", &path).to_string();
        let answer = agent
            .post_token(&agent.svid().await?, &details, &fresh)
            .await?;
        let minted = text_at(&answer.expect("an exchange", 200)?.json(), "/access_token");
        let mut parts = minted
            .split('.')
            .map(|it| b64::decode(it).unwrap_or_default());
        let header: Value =
            serde_json::from_slice(&parts.next().unwrap_or_default()).unwrap_or_default();
        same("the header", &header, &forger.header())?;
        let claims: Value =
            serde_json::from_slice(&parts.next().unwrap_or_default()).unwrap_or_default();
        let location = text_at(&claims, "/authorization_details/0/locations/0");
        holds(location.ends_with(&path), format!("it is for {location}"))?;
        // Cut out again, it is nobody's.
        let row = token(
            "what was said, as the token",
            "native",
            json!({"raw": said}),
        );
        run.one(&row).await?;
        let row = proof(
            "what was said, as the proof",
            "native",
            json!({"raw": said}),
        );
        run.one(&row).await?;
        for shown in [&said, &minted] {
            let fresh = forger.exchange_proof(&forger.agent, &json!({}))?;
            let answer = agent.post_token(shown, &details, &fresh).await?;
            same("as subject_token", answer.status, 400)?;
        }
        tried += 4;
    }
    // An SVID is for whatever audience was asked: still no token, whoever asks.
    for audience in [forger.names.origin.as_str(), said.as_str(), "at+jwt"] {
        let svid = agent.svid_for(audience).await?;
        let row = token(
            "an SVID as the token",
            "token_malformed",
            json!({"raw": svid}),
        );
        run.one(&row).await?;
        tried += 1;
    }
    let seen = run.end().await?;
    Ok(format!(
        "{seen}; text that reads like a token was signed and shown in {tried} ways"
    ))
}
