//! Client certificates: whose they are, and what is bound to them.

mod around;
mod guarded;

use base64ct::{Base64, Base64UrlUnpadded, Encoding as _};
use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose, SanType, date_time_ymd};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::check::{holds, refused, same};
use super::stages::Stages;
use super::{How, Row};
use crate::Error;
use crate::certificates::{Authority, uri};
use crate::client::Call;
use crate::stage::{jti, text_at};
use crate::system::AGENT;
use crate::upstream::REPORT;
use around::{nobody_looks, rotated, shared_by_a_proxy, stolen_evidence};
pub use guarded::Guarded;
use guarded::bound_to;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "D01",
        how: How::Live(|it| Box::pin(no_certificate(it))),
    },
    Row {
        id: "D02",
        how: How::Live(|it| Box::pin(another_of_the_same(it))),
    },
    Row {
        id: "D03",
        how: How::Live(|it| Box::pin(other_digests(it))),
    },
    Row {
        id: "D05",
        how: How::Live(|it| Box::pin(forwarded(it))),
    },
    Row {
        id: "D06",
        how: How::Live(|it| Box::pin(injected(it))),
    },
    Row {
        id: "D07",
        how: How::Live(|it| Box::pin(two_names(it))),
    },
    Row {
        id: "D09",
        how: How::Live(|it| Box::pin(no_leaf(it))),
    },
    Row {
        id: "D10",
        how: How::Live(|it| Box::pin(similar_names(it))),
    },
    Row {
        id: "D11",
        how: How::Live(|it| Box::pin(foreign(it))),
    },
    Row {
        id: "D13",
        how: How::Live(|it| Box::pin(shared_by_a_proxy(it))),
    },
    Row {
        id: "D15",
        how: How::Live(|it| Box::pin(stolen_evidence(it))),
    },
    Row {
        id: "D17",
        how: How::Live(|it| Box::pin(nobody_looks(it))),
    },
    // It makes another authority for the stage, so it comes last.
    Row {
        id: "D14",
        how: How::Live(|it| Box::pin(rotated(it))),
    },
];

async fn no_certificate(stages: &mut Stages) -> Result<String, Error> {
    let guarded = stages.guarded().await?;
    guarded
        .ends_at_the_handshake("no certificate", None)
        .await?;
    let x5t = guarded.own.x5t();
    // Where the listener demands none, the filter does for such a token.
    let plain = stages.single().await?;
    let token = Guarded::forged(plain, &plain.agent, bound_to(&x5t)).await?;
    let before = plain.arrived()?;
    let answer = plain.present(REPORT, &token).await?;
    refused(&answer, 401, "certificate_missing")?;
    same("requests at the upstream", plain.arrived()?, before)?;
    let forged = jti(&token);
    let is_it = |entry: &Value| {
        text_at(entry, "/kind") == "edge_denial" && entry.to_string().contains(&forged)
    };
    plain.entry("certificate_missing", is_it).await?;
    plain.good_request().await?;
    Ok("ends at the handshake; 401 certificate_missing where none is demanded".to_owned())
}

async fn another_of_the_same(stages: &mut Stages) -> Result<String, Error> {
    let guarded = stages.guarded().await?;
    let other = guarded.authority.svid(AGENT)?;
    // Bound to the one certificate.
    let holder = guarded.bound(&guarded.own)?;
    let token = holder.token("GET", REPORT).await?;
    let thief = guarded.showing(Some(&other))?;
    let answer = thief.present("GET", REPORT, &token).await?;
    refused(&answer, 401, "certificate_mismatch")?;
    guarded.has_entry(&token, "certificate_mismatch").await?;
    let answer = holder.present("GET", REPORT, &token).await?;
    answer.expect("the holder, with the same token", 200)?;
    let spent = jti(&token);
    for (kind, pointer) in [
        ("issue", "/body/token/x5t"),
        ("allow", "/body/request/certificate"),
    ] {
        let is_it = |entry: &Value| {
            text_at(entry, "/kind") == kind && text_at(entry, "/body/token/jti") == spent
        };
        let entry = guarded.stage.entry(kind, is_it).await?;
        same(pointer, text_at(&entry, pointer), guarded.own.x5t())?;
    }
    // Bound to the SPIFFE ID alone: any certificate of the agent's will do.
    let token = guarded.stage.agent.token("GET", REPORT).await?;
    let answer = thief.present("GET", REPORT, &token).await?;
    answer.expect("a token that is bound to the SPIFFE ID", 200)?;
    guarded.good_request().await?;
    Ok("refused where x5t binds, taken where the SPIFFE ID does; entries name it".to_owned())
}

async fn other_digests(stages: &mut Stages) -> Result<String, Error> {
    let guarded = stages.guarded().await?;
    let own = &guarded.own;
    let digest = Sha256::digest(&own.der);
    let of = |bytes: &[u8]| Base64UrlUnpadded::encode_string(bytes);
    let spki = spki(&own.der).ok_or_else(|| Error::Unexpected("no public key".to_owned()))?;
    // Its first 20 bytes have the length of SHA-1, whatever they are.
    let short = digest.get(..20).unwrap_or_default();
    let wrong = [
        ("hex", hex::encode(digest), "token_malformed"),
        ("padded", format!("{}=", own.x5t()), "token_malformed"),
        (
            "the other alphabet",
            Base64::encode_string(&digest),
            "token_malformed",
        ),
        ("SHA-1's length", of(short), "token_malformed"),
        (
            "of the PEM text",
            of(&Sha256::digest(&own.pem)),
            "certificate_mismatch",
        ),
        (
            "of the public key",
            of(&Sha256::digest(spki)),
            "certificate_mismatch",
        ),
    ];
    let agent = &guarded.stage.agent;
    let before = guarded.stage.arrived()?;
    for (what, x5t, reason) in &wrong {
        let token = Guarded::forged(&guarded.stage, agent, bound_to(x5t)).await?;
        let answer = agent.present("GET", REPORT, &token).await?;
        refused(&answer, 401, reason)
            .map_err(|problem| Error::Unexpected(format!("x5t {what}: {problem}")))?;
    }
    // The right one passes every gate, and is none that was issued.
    let token = Guarded::forged(&guarded.stage, agent, bound_to(&own.x5t())).await?;
    let answer = agent.present("GET", REPORT, &token).await?;
    refused(&answer, 401, "token_unknown")?;
    same("requests at the upstream", guarded.stage.arrived()?, before)?;
    guarded.good_request().await?;
    Ok(format!("{} wrong values refused", wrong.len()))
}

/// The SubjectPublicKeyInfo of a certificate for P-256, which ends before the
/// extensions and begins 91 bytes before its end.
fn spki(der: &[u8]) -> Option<&[u8]> {
    const HEAD: &[u8] = &[0x30, 0x59, 0x30, 0x13, 0x06, 0x07];
    let at = der.windows(HEAD.len()).position(|window| window == HEAD)?;
    der.get(at..at + 91)
}

async fn forwarded(stages: &mut Stages) -> Result<String, Error> {
    let guarded = stages.guarded().await?;
    let other = guarded
        .authority
        .svid("spiffe://writ.example/agent/other")?;
    let pem = guarded.own.pem.replace('\n', "%0A").replace('+', "%2B");
    let digest = hex::encode(Sha256::digest(&guarded.own.der));
    let claim = format!("Hash={digest};Cert=\"{pem}\";URI={AGENT}");
    let names = [
        "x-forwarded-client-cert",
        "X-Forwarded-Client-Cert",
        "x-writ-peer",
        "client-cert",
    ];
    for name in names {
        let thief = guarded.showing(Some(&other))?;
        let token = guarded.stage.agent.token("GET", REPORT).await?;
        let answer = sends(&thief, &token, &[(name, &claim)]).await?;
        refused(&answer, 401, "certificate_mismatch")?;
        guarded.has_entry(&token, "certificate_mismatch").await?;
        // And the holder's own claim reaches nobody.
        let answer = sends(&guarded.stage.agent, &token, &[(name, &claim)]).await?;
        answer.expect("the holder, who claims as well", 200)?;
    }
    for record in guarded.stage.records()? {
        let seen = record.header("x-forwarded-client-cert");
        holds(seen.is_none(), "the upstream got a forwarded certificate")?;
    }
    guarded.good_request().await?;
    Ok("no header says who the peer is; none reaches the upstream".to_owned())
}

async fn sends(
    agent: &crate::client::Agent,
    token: &str,
    headers: &[(&str, &str)],
) -> Result<crate::client::Answer, Error> {
    let proof = agent.key().proof("GET", &agent.url(REPORT), Some(token));
    let call = Call {
        method: "GET",
        path: REPORT,
        token: Some(token),
        proof: Some(&proof),
        headers,
        ..Call::default()
    };
    agent.send(call).await
}

async fn injected(stages: &mut Stages) -> Result<String, Error> {
    let guarded = stages.guarded().await?;
    let names = [
        format!("{AGENT}\";URI=\"{AGENT}"),
        format!("spiffe://writ.example/x;URI={AGENT}"),
        format!("spiffe://writ.example/x,By={AGENT};URI={AGENT}"),
        format!("spiffe://writ.example/x\r\nx-forwarded-client-cert: URI={AGENT}"),
        format!("{AGENT}\0evil"),
        format!("{AGENT} "),
        format!("{AGENT}%00"),
    ];
    for name in &names {
        let certificate = guarded.authority.svid(name)?;
        guarded
            .ends_at_the_filter(&format!("{name:?}"), &certificate)
            .await?;
    }
    guarded.good_request().await?;
    Ok(format!("{} names with separators refused", names.len()))
}

async fn two_names(stages: &mut Stages) -> Result<String, Error> {
    let guarded = stages.guarded().await?;
    let other = "spiffe://writ.example/agent/other";
    let tables: [(&str, &[&str]); 4] = [
        ("its own first", &[AGENT, other]),
        ("its own second", &[other, AGENT]),
        ("its own twice", &[AGENT, AGENT]),
        ("a web page beside it", &[AGENT, "https://a.example/"]),
    ];
    for (what, names) in tables {
        let certificate = guarded.authority.changed(AGENT, |parameters| {
            let names: Result<Vec<SanType>, Error> = names.iter().map(|it| uri(it)).collect();
            parameters.subject_alt_names = names?;
            Ok(())
        })?;
        guarded.ends_at_the_filter(what, &certificate).await?;
    }
    // The name where it is no URI is no name: there is no trust domain to ask.
    let dns = guarded.authority.changed(AGENT, |parameters| {
        let name = "agent.writ.example".try_into();
        let name = name.map_err(|_| Error::Unexpected("a name".to_owned()))?;
        parameters.subject_alt_names = vec![SanType::DnsName(name)];
        Ok(())
    })?;
    guarded.ends_at_the_handshake("no URI", Some(&dns)).await?;
    guarded.good_request().await?;
    Ok("two URIs end at the filter, none at the handshake".to_owned())
}

async fn no_leaf(stages: &mut Stages) -> Result<String, Error> {
    let guarded = stages.guarded().await?;
    let authority = &guarded.authority;
    let table = [
        (
            "a CA",
            authority.changed(AGENT, |it| {
                it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                Ok(())
            })?,
        ),
        (
            "may sign certificates",
            authority.changed(AGENT, |it| {
                it.key_usages.push(KeyUsagePurpose::KeyCertSign);
                Ok(())
            })?,
        ),
        (
            "may sign lists",
            authority.changed(AGENT, |it| {
                it.key_usages.push(KeyUsagePurpose::CrlSign);
                Ok(())
            })?,
        ),
        ("no path", authority.svid("spiffe://writ.example")?),
        (
            "expired",
            authority.changed(AGENT, |it| {
                it.not_after = date_time_ymd(2021, 1, 1);
                Ok(())
            })?,
        ),
        (
            "not yet valid",
            authority.changed(AGENT, |it| {
                it.not_before = date_time_ymd(2098, 1, 1);
                Ok(())
            })?,
        ),
    ];
    for (what, certificate) in &table {
        guarded
            .ends_at_the_handshake(what, Some(certificate))
            .await?;
    }
    guarded.good_request().await?;
    Ok(format!("{} certificates end at the handshake", table.len()))
}

async fn similar_names(stages: &mut Stages) -> Result<String, Error> {
    let guarded = stages.guarded().await?;
    let mut names: Vec<String> = [
        "spiffe://writ.example/agent/demo-admin",
        "spiffe://writ.example/agent/dem",
        "spiffe://writ.example/agent/Demo",
        "spiffe://writ.example/agent/demo/",
        "spiffe://writ.example//agent/demo",
        "spiffe://writ.example/agent",
        "spiffe://Writ.example/agent/demo",
        "SPIFFE://writ.example/agent/demo",
        "spiffe://writ.example:443/agent/demo",
        "spiffe://writ.example/agent/demo?x=1",
    ]
    .map(str::to_owned)
    .to_vec();
    let published = names.len();
    names.extend(published_invalid());
    let mut tried = 0;
    for (at, name) in names.iter().enumerate() {
        // What is not ASCII can't be a name in a certificate.
        let Ok(certificate) = guarded.authority.svid(name) else {
            holds(at >= published, format!("{name} makes no certificate"))?;
            continue;
        };
        let token = guarded.stage.agent.token("GET", REPORT).await?;
        let before = guarded.stage.arrived()?;
        let stranger = guarded.showing(Some(&certificate))?;
        match stranger.present("GET", REPORT, &token).await {
            // Envoy finds no bundle for its trust domain.
            Err(_) => {}
            Ok(answer) => refused(&answer, 401, "certificate_mismatch")
                .map_err(|problem| Error::Unexpected(format!("{name:?}: {problem}")))?,
        }
        same("requests at the upstream", guarded.stage.arrived()?, before)?;
        tried += 1;
    }
    guarded.good_request().await?;
    Ok(format!("{tried} names refused, of {}", names.len()))
}

/// The published texts that are no SPIFFE IDs, where they are.
fn published_invalid() -> Vec<String> {
    let root = std::env::var_os("WRIT_VECTORS").map_or_else(
        || crate::tools::root().join("../shared/vectors"),
        std::path::PathBuf::from,
    );
    let text = std::fs::read(root.join("spiffe/spiffe_id_cases.json")).unwrap_or_default();
    let cases: Value = serde_json::from_slice(&text).unwrap_or_default();
    let invalid = cases.get("invalid").and_then(Value::as_array);
    let names = invalid.into_iter().flatten();
    names
        .filter_map(|case| case.get(0)?.as_str().map(str::to_owned))
        .collect()
}

async fn foreign(stages: &mut Stages) -> Result<String, Error> {
    let guarded = stages.guarded().await?;
    let partner = Authority::fresh("partner.example")?;
    let alike = Authority::fresh("writ.example")?;
    for (what, certificate) in [
        ("the ID by a partner's authority", partner.svid(AGENT)?),
        (
            "the ID by an authority of the same name",
            alike.svid(AGENT)?,
        ),
        (
            "the same path in the partner's domain",
            partner.svid("spiffe://partner.example/agent/demo")?,
        ),
        (
            "the partner's name by our own authority",
            guarded
                .authority
                .svid("spiffe://partner.example/agent/demo")?,
        ),
    ] {
        guarded
            .ends_at_the_handshake(what, Some(&certificate))
            .await?;
    }
    guarded.good_request().await?;
    Ok("no other authority's word counts, nor ours on another domain".to_owned())
}
