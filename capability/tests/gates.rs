//! The gates, row by row: each row changes one thing of a good request and
//! names the reason that has to come out. The rows are in data/gates.json; ids
//! in their names are those of the list of attacks.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

#[expect(dead_code, reason = "each test file uses its own part")]
mod common;
#[path = "common/rows.rs"]
mod rows;

use capability::action::Body;
use capability::decide::{Echo, Pending, Verdict};
use capability::gates::{self, Checked, EdgeConfig, Refusal, RequestView, Site, TokenCheck};
use capability::token::UnverifiedToken;
use capability::url::Origin;
use capability::{Limits, Portable, Reason, sha256};
use common::{AGENT, ISSUER, ORIGIN, PATH};
use rows::{SITES, case, keys, messages, rows};
use serde_json::Value;

fn run(row: &Value) -> Result<Checked, Refusal> {
    let case = case(row);
    let peer = case.peer();
    let mut config = EdgeConfig {
        keys: keys(),
        require_peer: case.require_peer,
        sites: SITES
            .map(|(origin, resource)| Site {
                origin: Origin::parse(origin).unwrap(),
                resource: resource.to_owned(),
            })
            .to_vec(),
        ..EdgeConfig::new(ISSUER, ORIGIN, Origin::parse(ORIGIN).unwrap())
    };
    if case.record {
        config.token_check = TokenCheck::Record;
    }
    let body = match case.body.as_deref() {
        None => Body::Unread,
        Some("") => Body::Empty,
        Some(body) => Body::of(body.as_bytes()),
    };
    let request = RequestView {
        headers: &case.headers,
        peer: peer.as_ref(),
        body,
        nonces: case.nonces.as_deref(),
    };
    gates::check(&request, &config, case.now_ms, &Portable)
}

#[test]
fn every_row_gives_its_reason() {
    let mut wrong = Vec::new();
    for row in rows().into_iter().chain(messages()) {
        let (name, expected) = (&row["name"], row["expect"].as_str().unwrap());
        assert!(
            expected == "ok" || Reason::parse(expected).is_some(),
            "{name}: unknown reason"
        );
        let outcome = run(&row);
        let got = match &outcome {
            Ok(_) => "ok",
            Err(refusal) => refusal.reason.as_str(),
        };
        if got != expected {
            wrong.push(format!("{name}: {got}, and not {expected}"));
        }
        // Only what both signatures vouch for may become an entry.
        let known = outcome.is_err_and(|refusal| refusal.authenticated.is_some());
        if known != (row["authenticated"] == true) {
            wrong.push(format!("{name}: authenticated is {known}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_gate_that_this_crate_runs_has_a_row() {
    let rows = rows();
    let at_the_control_plane = [
        "token_unknown",
        "token_spent",
        "outcome_unknown",
        "token_revoked",
        "proof_replayed",
        "policy_denied",
        "policy_error",
        "approval_pending",
        "approval_denied",
        "approval_expired",
        "agent_inactive",
        "limit_exceeded",
        "control_plane_unavailable",
        "internal_error",
    ];
    for reason in Reason::ALL {
        let here = rows.iter().any(|row| row["expect"] == reason.as_str());
        let there = at_the_control_plane.contains(&reason.as_str());
        assert_ne!(here, there, "{reason}");
    }
}

#[test]
fn a_checked_request_says_who_and_what() {
    let checked = run(&Value::Null).unwrap();
    assert_eq!(checked.agent(), AGENT);
    assert_eq!(checked.user(), None);
    assert_eq!((checked.jti(), checked.proof_jti()), ("token-1", "proof-1"));
    assert_eq!(
        (checked.method(), checked.authority(), checked.path()),
        ("GET", "tools.example", PATH)
    );
    assert_eq!(checked.token_hash(), sha256(checked.token().as_bytes()));
    assert!(UnverifiedToken::parse(checked.token().as_bytes(), &Limits::default()).is_ok());
}

#[test]
fn only_a_fitting_answer_makes_a_permit() {
    let checked = run(&Value::Null).unwrap();
    let (hash, digest) = (checked.token_hash(), sha256(b"question"));
    let settle = |token_hash: &[u8], question_digest: &[u8], verdict| {
        Pending::new(checked.clone(), b"question")
            .settle(Echo {
                token_hash,
                question_digest,
                verdict,
            })
            .map(|permit| permit.checked().jti().to_owned())
            .map_err(|refused| refused.reason)
    };
    assert_eq!(
        settle(&hash, &digest, Verdict::Allow),
        Ok("token-1".to_owned())
    );
    let denied = Verdict::Deny(Reason::TokenSpent);
    assert_eq!(settle(&hash, &digest, denied), Err(Reason::TokenSpent));
    let other = sha256(b"another");
    for (token_hash, question_digest) in [
        (&other[..], &digest[..]),
        (&hash[..], &other[..]),
        (&digest[..], &hash[..]),
        (&hash[..31], &digest[..]),
        (&hash[..], &[]),
        (&[], &[]),
    ] {
        assert_eq!(
            settle(token_hash, question_digest, Verdict::Allow),
            Err(Reason::InternalError)
        );
    }
}
