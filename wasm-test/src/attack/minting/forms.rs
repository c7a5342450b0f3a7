//! E08, E09 and E10: how a request for a token is written, and its answer.

use serde_json::{Value, json};

use super::claims_of;
use super::setting::{Ask, CHILD, EXCHANGE, ID_TOKEN, is_refused, not_stored};
use crate::Error;
use crate::attack::check::{holds, same};
use crate::attack::stages::Stages;
use crate::client::now_s;
use crate::raw::{Http1, field, message_of};
use crate::stage::text_at;
use crate::system::AGENT;
use crate::upstream::REPORT;

const REQUEST: (u16, &str, &str) = (400, "invalid_request", "malformed_credentials");
const TARGET: (u16, &str, &str) = (400, "invalid_target", "action_mismatch");

/// `resource` and `audience`: the protected resource, or under it, once.
pub async fn targets(stages: &mut Stages) -> Result<String, Error> {
    let minting = stages.minting().await?;
    let desk = minting.desk()?;
    let origin = desk.stage.system.origin();
    let bare = origin.trim_start_matches("http://").to_owned();
    let bad = [
        "https://elsewhere.example".to_owned(),
        format!("{origin}0"),
        format!("{origin}.elsewhere.example"),
        format!("{origin}@elsewhere.example/"),
        format!("{origin}#"),
        format!("{origin}/files#top"),
        format!("{origin}?x=1"),
        origin.replace("http:", "https:"),
        origin.replace("http:", "HTTP:"),
        format!(" {origin}"),
        format!("http://user@{bare}/"),
        bare,
        "/files/report.txt".to_owned(),
        "urn:writ:anything".to_owned(),
        "*".to_owned(),
        desk.issuer(),
        "writ".to_owned(),
    ];
    for target in &bad {
        for name in ["resource", "audience"] {
            let ask = desk.good(AGENT).also(name, target);
            desk.refused(&format!("{name} {target}"), &ask, TARGET)
                .await?;
        }
    }
    let mut twice = 0;
    for name in ["resource", "audience"] {
        for other in [origin.as_str(), "https://elsewhere.example"] {
            let ask = desk.good(AGENT).also(name, &origin).also(name, other);
            desk.refused(&format!("{name} twice"), &ask, TARGET).await?;
            twice += 1;
        }
        let ask = desk.good(AGENT).also(name, "https://elsewhere.example");
        let beside = if name == "resource" {
            "audience"
        } else {
            "resource"
        };
        let ask = ask.also(beside, &origin);
        desk.refused("one of the two", &ask, TARGET).await?;
        for good in [origin.clone(), format!("{origin}/files")] {
            let ask = desk.good(AGENT).also(name, &good);
            let token = desk.token(&good, &ask).await?;
            same("aud", text_at(&claims_of(&token), "/aud"), origin.clone())?;
        }
    }
    desk.stage.good_request().await?;
    Ok(format!(
        "{} wrong ones by both names, {twice} pairs and two that differ were refused; aud is the resource",
        bad.len()
    ))
}

/// One of each parameter, in a form, in the body.
pub async fn forms(stages: &mut Stages) -> Result<String, Error> {
    let minting = stages.minting().await?;
    let desk = minting.desk()?;
    let address = desk.stage.system.http_url();
    let address = address.trim_start_matches("http://");
    let good = || desk.acting(&desk.signers.user(&json!({})), ID_TOKEN);
    let mut tried = 0;
    // Each twice: the same, another, and none beside it.
    for (name, value) in &good().params {
        for other in [value.as_str(), "x"] {
            let ask = good().also(name, other);
            desk.refused(&format!("{name} twice"), &ask, REQUEST)
                .await?;
            tried += 1;
        }
    }
    for name in ["scope", "client_id", "anything"] {
        let ask = desk.good(AGENT).also(name, "a").also(name, "b");
        desk.refused(&format!("{name} twice"), &ask, REQUEST)
            .await?;
        tried += 1;
    }
    let form = good().form()?;
    let body = |text: &str| text.as_bytes().to_vec();
    let escaped = form.replacen("grant_type", "grant%5Ftype", 1);
    let urlencoded = "application/x-www-form-urlencoded";
    type Bytes<'b> = (&'b str, &'b str, Vec<&'b str>, Vec<u8>, u16);
    let target = "/oauth2/token";
    let in_query = format!("{target}?{form}");
    let partly = format!("{target}?grant_type={EXCHANGE}");
    let both = format!("{form}&{}", form.replacen("grant_type", "grant%5ftype", 1));
    let table: Vec<Bytes<'_>> = vec![
        (
            "as it should be",
            target,
            vec![urlencoded],
            body(&form),
            200,
        ),
        (
            "a name that is escaped",
            target,
            vec![urlencoded],
            body(&escaped),
            200,
        ),
        (
            "a name twice, once escaped",
            target,
            vec![urlencoded],
            body(&both),
            400,
        ),
        (
            "all in the query",
            &in_query,
            vec![urlencoded],
            Vec::new(),
            400,
        ),
        (
            "some in the query",
            &partly,
            vec![urlencoded],
            body(&form),
            400,
        ),
        (
            "an empty query",
            "/oauth2/token?",
            vec![urlencoded],
            body(&form),
            400,
        ),
        ("no type", target, vec![], body(&form), 400),
        (
            "JSON's type",
            target,
            vec!["application/json"],
            body(&form),
            400,
        ),
        ("text's type", target, vec!["text/plain"], body(&form), 400),
        (
            "multipart",
            target,
            vec!["multipart/form-data; boundary=x"],
            body(&form),
            400,
        ),
        (
            "a longer type",
            target,
            vec!["application/x-www-form-urlencoded2"],
            body(&form),
            400,
        ),
        (
            "two types in one",
            target,
            vec!["text/plain, application/x-www-form-urlencoded"],
            body(&form),
            400,
        ),
        (
            "two types",
            target,
            vec![urlencoded, "application/json"],
            body(&form),
            400,
        ),
        (
            "two types, the other first",
            target,
            vec!["application/json", urlencoded],
            body(&form),
            400,
        ),
        ("JSON", target, vec![urlencoded], b"{}".to_vec(), 400),
        ("nothing", target, vec![urlencoded], Vec::new(), 400),
        (
            "no UTF-8",
            target,
            vec![urlencoded],
            b"grant_type=\xff".to_vec(),
            400,
        ),
        (
            "too much",
            target,
            vec![urlencoded],
            vec![b'x'; 40_000],
            400,
        ),
    ];
    for (what, target, types, body, status) in &table {
        let mut headers = vec![
            field("host", address),
            field("dpop", desk.proof()),
            field("content-length", body.len().to_string()),
        ];
        headers.extend(types.iter().map(|it| field("content-type", *it)));
        let mut connection = Http1::connect(address).await?;
        let head = message_of(b"POST", target.as_bytes(), &headers);
        connection.send(&head).await?;
        let answer = match connection.exchange(body).await? {
            Some(answer) => answer,
            None => return Err(Error::Unexpected(format!("{what}: no answer"))),
        };
        if *status == 200 {
            answer.expect(what, 200)?;
            continue;
        }
        let reason = if *what == "too much" {
            "too_large"
        } else {
            "malformed_credentials"
        };
        is_refused(what, &answer, (*status, "invalid_request", reason))?;
        tried += 1;
    }
    // Nothing but POST is there.
    for method in ["GET", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "post"] {
        let headers = [field("host", address), field("dpop", desk.proof())];
        let mut connection = Http1::connect(address).await?;
        let head = message_of(method.as_bytes(), in_query.as_bytes(), &headers);
        connection.send(&head).await?;
        let answer = connection.answer().await?;
        let status = answer.map_or(0, |it| it.status);
        holds(
            [400, 405].contains(&status),
            format!("{method} got {status}"),
        )?;
        tried += 1;
    }
    desk.stage.good_request().await?;
    Ok(format!("{tried} forms were refused, each for its form"))
}

/// Nobody on the way keeps a token, or why there is none.
pub async fn kept_by_nobody(stages: &mut Stages) -> Result<String, Error> {
    let minting = stages.minting().await?;
    let desk = minting.desk()?;
    let element = json!({
        "type": "delegation", "delegate": CHILD, "actions": ["GET"],
        "locations": [desk.url("/files/*")],
    });
    let far = json!({"iat": now_s() - 4_000});
    let late = desk.key().proof_with("POST", &desk.endpoint(), None, &far);
    let asks: Vec<(&str, u16, Ask)> = vec![
        ("a token", 200, desk.good(AGENT)),
        ("a session", 200, desk.for_session()),
        ("a delegation", 200, desk.delegating(AGENT, &element)),
        ("a nonce", 400, desk.good(AGENT).proven(late)),
        ("a wrong form", 400, desk.good(AGENT).without("grant_type")),
        (
            "policy's no",
            400,
            desk.good(AGENT)
                .with("authorization_details", &desk.details("GET", "/elsewhere")),
        ),
    ];
    for (what, status, ask) in &asks {
        let answer = desk.send(ask).await?.expect(what, *status)?;
        not_stored(what, &answer)?;
    }
    let session = desk.token("a session", &desk.for_session()).await?;
    let url = format!("{}/api/v1/capabilities", desk.issuer());
    for (what, proof, status) in [
        (
            "a batch",
            desk.key().proof("POST", &url, Some(&session)),
            200,
        ),
        ("no batch", desk.key().proof("POST", &url, None), 400),
    ] {
        let details: Value = serde_json::from_str(&desk.details("GET", REPORT)).unwrap_or_default();
        let request = reqwest::Client::new()
            .post(&url)
            .header("authorization", format!("DPoP {session}"))
            .header("dpop", proof)
            .header("content-type", "application/json")
            .body(json!({ "authorization_details": details }).to_string());
        let answer = request.send().await.map_err(Error::http(&url))?;
        let answer = crate::client::Answer::read(answer).await?;
        not_stored(what, &answer.expect(what, status)?)?;
    }
    Ok(format!(
        "{} answers said no-store and no-cache, once each",
        asks.len() + 2
    ))
}
