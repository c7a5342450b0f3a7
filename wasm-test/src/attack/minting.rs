//! Rows of group E: what is shown for a token, and what it brings.

mod clock;
mod floods;
mod forms;
mod once;
mod routes;
mod setting;
mod wider;

use serde_json::{Value, json};

use super::check::{holds, refused, same};
use super::stages::Stages;
use super::{How, Row};
use crate::Error;
use crate::client::{DpopKey, now_s};
use crate::stage::{Stage, text_at};
use crate::system::{AGENT, Options};
use crate::upstream::REPORT;
use setting::{
    ACCESS, APP, CHILD, DELEGATION, Desk, ID_TOKEN, IDP, JWT, OTHER, Signers, not_stored,
};

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    live("E01", |it| Box::pin(types(it))),
    live("E02", |it| Box::pin(wider::wider(it))),
    live("E04", |it| Box::pin(may_act(it))),
    live("E05", |it| Box::pin(anothers_key(it))),
    live("E06", |it| Box::pin(once::once(it))),
    live("E08", |it| Box::pin(forms::targets(it))),
    live("E09", |it| Box::pin(forms::forms(it))),
    live("E10", |it| Box::pin(forms::kept_by_nobody(it))),
    live("E12", |it| Box::pin(clock::steps(it))),
    Row {
        id: "E13",
        how: How::Covered(&[
            "control-plane/src/exchange/naming.rs::names_differ_where_randomness_repeats",
            "control-plane/ledger/tests/ledger/commands.rs::a_token_is_issued_spent_once_and_remembered",
        ]),
    },
    live("E14", |it| Box::pin(floods::unused(it))),
    // The keys change while good requests go on.
    Row {
        id: "E16",
        how: How::Covered(&["wasm-test/src/attack/keys.rs::rotated"]),
    },
    live("E17", |it| Box::pin(routes::nobody(it))),
];

const fn live(id: &'static str, work: super::Live) -> Row {
    Row {
        id,
        how: How::Live(work),
    }
}

/// A system whose token endpoint knows users and a client.
pub struct Minting {
    /// It.
    pub stage: Stage,
    signers: Signers,
}

impl Minting {
    /// Starts it.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn start(options: Options) -> Result<Minting, Error> {
        let signers = Signers::new()?;
        let stage = Stage::start(signers.options(options)).await?;
        Ok(Minting { stage, signers })
    }

    fn desk(&self) -> Result<Desk<'_>, Error> {
        Desk::at(&self.stage, &self.signers)
    }
}

/// Everything that can be shown, as every type that there is: what is taken is what the
/// reference says, and nothing else.
async fn types(stages: &mut Stages) -> Result<String, Error> {
    const OTHERS: [&str; 4] = [
        "urn:ietf:params:oauth:token-type:refresh_token",
        "urn:ietf:params:oauth:token-type:saml2",
        "urn:ietf:params:oauth:token-type:saml1",
        "jwt",
    ];
    let minting = stages.minting().await?;
    let desk = minting.desk()?;
    let signers = desk.signers;
    let user = |typ: &str| {
        let claims = json!({"iss": IDP, "sub": "ann@example.com", "aud": setting::US});
        signers.idp.jwt(&claims, &json!({"typ": typ}))
    };
    let session = desk.token("a session", &desk.for_session()).await?;
    let element = json!({
        "type": "delegation", "delegate": AGENT, "actions": ["GET"],
        "locations": [desk.url("/files/*")], "uses": 64,
    });
    let delegation = desk.delegating(CHILD, &element);
    let delegation = desk.token("a delegation", &delegation).await?;
    let capability = desk.token("a capability", &desk.good(AGENT)).await?;
    let client = desk.as_client(&signers.assertion(&desk.issuer()));
    let client = once::when_taken(&desk, client).await?;
    let refresh = text_at(&client, "/refresh_token");
    holds(!refresh.is_empty(), "no refresh token")?;
    let (svid, assertion) = (desk.svid(AGENT), signers.assertion(&desk.issuer()));
    let (jag, proof) = (signers.id_jag(&desk.issuer()), desk.proof());
    // With another's evidence beside it or not, and the types that it is taken as.
    type Shown<'s> = (&'s str, &'s str, bool, &'s [&'s str]);
    let (id_token, access_token) = (user("JWT"), user("at+jwt"));
    let table: [Shown<'_>; 11] = [
        ("an SVID", &svid, false, &[JWT]),
        ("an SVID beside an SVID", &svid, true, &[]),
        ("an ID token", &id_token, true, &[JWT, ID_TOKEN, ACCESS]),
        ("an access token", &access_token, true, &[JWT, ACCESS]),
        ("a session", &session, false, &[ACCESS]),
        ("a delegation", &delegation, true, &[DELEGATION, JWT]),
        ("a capability", &capability, false, &[]),
        ("a refresh token", &refresh, false, &[]),
        ("a client's assertion", &assertion, false, &[]),
        ("an ID-JAG", &jag, true, &[]),
        ("a proof", &proof, false, &[]),
    ];
    let (mut taken, mut not) = (0, 0);
    for (what, token, beside, wanted) in table {
        for kind in [JWT, ID_TOKEN, ACCESS, DELEGATION].iter().chain(&OTHERS) {
            let ask = match beside {
                true => desk.acting(token, kind),
                false => desk
                    .good(AGENT)
                    .with("subject_token", token)
                    .with("subject_token_type", kind),
            };
            let answer = desk.send(&ask).await?;
            let what = format!("{what} as {kind}");
            if wanted.contains(kind) {
                not_stored(&what, &answer.expect(&what, 200)?)?;
                taken += 1;
                continue;
            }
            // What it is not is said in the one word or the other.
            let got = (answer.status, answer.oauth_error());
            same(&what, got, (400, "invalid_request".to_owned()))?;
            let known = ["malformed_credentials", "token_malformed", "token_issuer"];
            let said = known.contains(&answer.reason().as_str());
            holds(said, format!("{what}: {}", answer.text()))?;
            not_stored(&what, &answer)?;
            not += 1;
        }
    }
    // The same of who acts.
    let actors = [
        ("an SVID", desk.svid(AGENT), vec![JWT]),
        ("a user's token", user("JWT"), vec![]),
        ("a session", session.clone(), vec![]),
        ("a delegation", delegation.clone(), vec![]),
        ("a capability", capability.clone(), vec![]),
    ];
    for (what, token, wanted) in actors {
        for kind in [JWT, ID_TOKEN, ACCESS, DELEGATION].iter().chain(&OTHERS) {
            let ask = desk.acting(&user("JWT"), ID_TOKEN);
            let ask = ask
                .with("actor_token", &token)
                .with("actor_token_type", kind);
            let answer = desk.send(&ask).await?;
            let what = format!("{what} as the actor's {kind}");
            let status = if wanted.contains(kind) { 200 } else { 400 };
            same(&what, answer.status, status)?;
            if status == 200 {
                taken += 1;
            } else {
                same(&what, answer.oauth_error(), "invalid_request".to_owned())?;
                not += 1;
            }
        }
    }
    desk.stage.good_request().await?;
    Ok(format!(
        "of {} pairs of a token and a type {taken} were taken, as the reference has them, and {not} refused",
        taken + not
    ))
}

/// Who may act is whom the user's token says, whoever shows it.
async fn may_act(stages: &mut Stages) -> Result<String, Error> {
    let minting = stages.minting().await?;
    let desk = minting.desk()?;
    let good = [
        json!({}),
        json!({"may_act": {"sub": AGENT}}),
        json!({"may_act": {"client_id": APP, "iss": IDP}}),
        json!({"act": {"sub": AGENT, "act": {"sub": OTHER}}}),
    ];
    for claims in &good {
        let ask = desk.acting(&desk.signers.user(claims), ID_TOKEN);
        let token = desk.token(&claims.to_string(), &ask).await?;
        let told = claims_of(&token);
        same("act", text_at(&told, "/act/sub"), AGENT.to_owned())?;
        same("act ends", told.pointer("/act/act"), None)?;
        let answer = desk.stage.agent.present("GET", REPORT, &token).await?;
        answer.expect("what it brought", 200)?;
    }
    let bad = [
        json!({"may_act": {"sub": OTHER}}),
        json!({"may_act": {"client_id": "other-app"}}),
        json!({"may_act": {"sub": AGENT, "client_id": "other-app"}}),
        json!({"may_act": {"sub": AGENT, "iss": "https://elsewhere.example"}}),
        json!({"may_act": {"sub": AGENT, "role": "reader"}}),
        json!({"may_act": {"iss": IDP}}),
        json!({"may_act": {}}),
        json!({"may_act": []}),
        json!({"may_act": [{"sub": AGENT}]}),
        json!({"may_act": AGENT}),
        json!({"may_act": true}),
        json!({"may_act": {"sub": [AGENT]}}),
        json!({"may_act": {"sub": "ann@example.com"}}),
        json!({"act": {"sub": OTHER}}),
        json!({"act": {"sub": OTHER, "act": {"sub": AGENT}}}),
        json!({"may_act": {"sub": AGENT}, "act": {"sub": OTHER}}),
    ];
    let no = (400, "invalid_request", "agent_inactive");
    for claims in &bad {
        let ask = desk.acting(&desk.signers.user(claims), ID_TOKEN);
        desk.refused(&claims.to_string(), &ask, no).await?;
        // Nor when the agent authenticates in another way.
        let ask = ask
            .without("actor_token")
            .without("actor_token_type")
            .with("client_assertion_type", setting::BY_SVID)
            .with("client_assertion", &desk.svid(AGENT))
            .proven(desk.proof());
        desk.refused(&claims.to_string(), &ask, no).await?;
    }
    // Nor does the agent that it names pass it on to another.
    let element = json!([{
        "type": "delegation", "delegate": OTHER, "actions": ["GET"],
        "locations": [desk.url("/files/*")],
    }])
    .to_string();
    let passing = |claims: &Value| {
        desk.acting(&desk.signers.user(claims), ID_TOKEN)
            .with("requested_token_type", DELEGATION)
            .with("authorization_details", &element)
    };
    let alone = (400, "invalid_request", "token_audience");
    for claims in good.iter().skip(1).chain([&json!({"aud": APP})]) {
        desk.refused(&claims.to_string(), &passing(claims), alone)
            .await?;
    }
    desk.token("for whoever has it", &passing(&json!({})))
        .await?;
    // One that names the other agent is the other's, and not this one's.
    let others = desk.signers.user(&json!({"may_act": {"sub": OTHER}}));
    let ask = desk
        .acting(&others, ID_TOKEN)
        .with("actor_token", &desk.svid(OTHER));
    desk.token("the other's", &ask).await?;
    desk.stage.good_request().await?;
    Ok(format!(
        "{} tokens for this agent brought what passed; {} for another, or for nobody that is known, nothing",
        good.len(),
        bad.len()
    ))
}

fn claims_of(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap_or_default();
    let bytes = capability::b64::decode(part).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// A token is bound to the key that has signed the proof, whatever else is sent.
async fn anothers_key(stages: &mut Stages) -> Result<String, Error> {
    let minting = stages.minting().await?;
    let desk = minting.desk()?;
    let victim = desk.key();
    let thief = DpopKey::generate()?;
    let endpoint = desk.endpoint();
    let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": victim.jwk()});
    let claims = json!({
        "htm": "POST", "htu": endpoint, "iat": now_s(), "jti": super::forge::random(),
    });
    // The victim's key in the header, the thief's signature.
    let proof = |reason| (400, "invalid_dpop_proof", reason);
    let ask = desk.good(AGENT).proven(thief.sign(&header, &claims));
    desk.refused("signed by another", &ask, proof("proof_signature"))
        .await?;
    let own = thief.proof("POST", &endpoint, None);
    let mut two = desk.good(AGENT);
    two.proofs = vec![own.clone(), desk.proof()];
    desk.refused("two proofs", &two, proof("proof_malformed"))
        .await?;
    let ask = desk.good(AGENT).proven(format!("{own}, {}", desk.proof()));
    desk.refused("two in one", &ask, proof("proof_malformed"))
        .await?;
    // Parameters that name the victim's key bind nothing.
    let jkt = victim.thumbprint();
    let cnf = json!({"jkt": jkt}).to_string();
    let named = [
        ("cnf", cnf.as_str()),
        ("jkt", &jkt),
        ("dpop_jkt", &jkt),
        ("req_cnf", &cnf),
    ];
    for (name, value) in named {
        let ask = desk
            .good(AGENT)
            .also(name, value)
            .proven(thief.proof("POST", &endpoint, None));
        let token = desk.token(name, &ask).await?;
        let told = text_at(&claims_of(&token), "/cnf/jkt");
        same(name, told, thief.thumbprint())?;
        // The victim can't use it, and the log has whose key it is.
        let answer = desk.stage.agent.present("GET", REPORT, &token).await?;
        refused(&answer, 401, "proof_key_mismatch")?;
    }
    let mut element: Value = serde_json::from_str(&desk.details("GET", REPORT)).unwrap_or_default();
    if let Some(one) = element.get_mut(0).and_then(Value::as_object_mut) {
        one.insert("cnf".to_owned(), json!({"jkt": jkt}));
    }
    let ask = desk
        .good(AGENT)
        .with("authorization_details", &element.to_string());
    let details = (400, "invalid_authorization_details", "action_mismatch");
    desk.refused("a key in the action", &ask, details).await?;
    // What is bound already needs that key.
    let bound = desk.signers.user(&json!({"cnf": {"jkt": jkt}}));
    let mismatch = (400, "invalid_request", "proof_key_mismatch");
    let ask = desk
        .acting(&bound, ID_TOKEN)
        .proven(thief.proof("POST", &endpoint, None));
    desk.refused("a user's bound token", &ask, mismatch).await?;
    desk.token("the same with its key", &desk.acting(&bound, ID_TOKEN))
        .await?;
    let session = desk.token("a session", &desk.for_session()).await?;
    let ask = desk
        .good(AGENT)
        .with("subject_token", &session)
        .with("subject_token_type", ACCESS)
        .proven(thief.proof("POST", &endpoint, None));
    desk.refused("a session", &ask, mismatch).await?;
    // What is the victim's is of no use to the thief.
    let token = desk.token("the victim's", &desk.good(AGENT)).await?;
    let other = desk.stage.agent.with_fresh_key()?;
    refused(
        &other.present("GET", REPORT, &token).await?,
        401,
        "proof_key_mismatch",
    )?;
    let answer = desk.stage.agent.present("GET", REPORT, &token).await?;
    answer.expect("the victim", 200)?;
    Ok(format!(
        "three forged proofs, {} parameters, an action, a session and a user's token: bound is the proof's own key, and nothing else",
        named.len()
    ))
}
