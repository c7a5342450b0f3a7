//! A question as the decider reads it, and what of it goes into the log.

use crate::config::Site;
use crate::state::Core;
use capability::url::{Origin, Target};
use decision_api::Question;
use ledger::model::{ActionRecord, Evidence, Hash, RequestFacts, TokenRecord};

/// A question, decoded, with what the connection says of who asks.
pub struct Facts {
    /// The question.
    pub question: Question,
    /// The token's exact bytes, as shown; the question has their hash.
    pub token: String,
    /// The DPoP proof, as shown.
    pub proof: String,
    /// SHA-256 of its serialised bytes.
    pub digest: Hash,
    /// The attempt's id: prefix ‖ counter, in hex.
    pub attempt: String,
    /// The proxy's SPIFFE ID, from its certificate.
    pub proxy: String,
}

/// Whether the action we recorded at issue is the request, by the one shared
/// normaliser. The filter has checked it too; this is our own record. The origin
/// is the configured one of the question's authority: an action of another never
/// covers it.
pub(super) fn covers(
    action: &ActionRecord,
    question: &Question,
    sites: impl Iterator<Item = Site>,
) -> bool {
    let recorded = capability::action::HttpAction::from_details(&crate::state::element(action));
    let mut origins = sites.filter_map(|site| Origin::parse(&site.origin).ok());
    let asked = origins.find(|origin| origin.authority() == question.authority);
    match (recorded, asked) {
        (Ok(recorded), Some(origin)) => Target::request(&origin, question.path.as_bytes())
            .is_ok_and(|target| recorded.covers(&question.method, &target)),
        _ => false,
    }
}

/// What an approval of this request would cover.
pub(super) fn digest_of(token: &TokenRecord, facts: &Facts) -> Hash {
    Core::action_digest(
        token,
        &facts.question.content_type,
        &facts.question.content_encoding,
    )
}

pub(super) fn request_facts(facts: &Facts) -> RequestFacts {
    RequestFacts {
        method: facts.question.method.clone(),
        authority: facts.question.authority.clone(),
        path: facts.question.path.clone(),
        request_id: facts.question.request_id.clone(),
        proxy: facts.proxy.clone(),
        source: facts.question.source_address.clone(),
        question: hex::encode(facts.digest),
        observed: facts.question.observed,
    }
}

/// A claim of a token that the filter has verified and we have not: for the log
/// and for what to say, never for a decision.
pub(super) fn claim(token: &str, name: &str) -> Option<serde_json::Value> {
    let claims = token.split('.').nth(1).and_then(capability::b64::decode)?;
    let claims = capability::json::parse(&claims, &capability::Limits::CEILING).ok()?;
    claims.get(name).cloned()
}

pub(super) fn cut(text: &str) -> &str {
    let end = text
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= 512)
        .last()
        .unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// Cut so that the line it goes into stays within its limit.
pub(super) fn bounded(mut facts: RequestFacts) -> RequestFacts {
    for text in [
        &mut facts.path,
        &mut facts.authority,
        &mut facts.request_id,
        &mut facts.source,
        &mut facts.method,
    ] {
        text.truncate(cut(text).len());
    }
    facts
}

pub(super) fn evidence(facts: &Facts) -> Vec<Evidence> {
    vec![
        Evidence::new("token", facts.token.as_bytes()),
        Evidence::new("proof", facts.proof.as_bytes()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_covers_a_request_at_its_own_origin_alone() {
        let site = |name: &str, origin: &str| Site {
            name: name.to_owned(),
            origin: origin.to_owned(),
            resource: origin.to_owned(),
        };
        let sites = [
            site("", "http://a.example:8400"),
            site("b", "https://b.example"),
        ];
        let asked = |location: &str, method: &str, authority: &str, path: &str| {
            let action = ActionRecord {
                kind: "http_request".to_owned(),
                method: "GET".to_owned(),
                location: location.to_owned(),
            };
            let question = Question {
                method: method.to_owned(),
                authority: authority.to_owned(),
                path: path.to_owned(),
                ..Question::default()
            };
            covers(&action, &question, sites.iter().cloned())
        };
        let (a, b) = ("http://a.example:8400/x?y", "https://b.example/x?y");
        assert!(asked(a, "GET", "a.example:8400", "/x?y"));
        assert!(asked(b, "GET", "b.example", "/x?y"));
        for (location, method, authority, path) in [
            (a, "GET", "b.example", "/x?y"),
            (b, "GET", "a.example:8400", "/x?y"),
            (a, "GET", "a.example", "/x?y"),
            (a, "GET", "", "/x?y"),
            (a, "POST", "a.example:8400", "/x?y"),
            (a, "GET", "a.example:8400", "/x?z"),
            // An origin that is none of ours covers nothing, whoever recorded it.
            ("https://c.example/x?y", "GET", "c.example", "/x?y"),
            ("http://b.example/x?y", "GET", "b.example", "/x?y"),
        ] {
            assert!(
                !asked(location, method, authority, path),
                "{location}: {method} {authority}{path}"
            );
        }
    }
}
