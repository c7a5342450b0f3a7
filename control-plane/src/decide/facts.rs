//! A question as the decider reads it, and what of it goes into the log.

use crate::config::{BodyRead, Edge};
use crate::state::Core;
use capability::reason::Reason;
use decision_api::{Question, body_fact::Value};
use ledger::model::{BodyRecord, Evidence, Hash, RequestFacts, TokenRecord};
use policy::{Fact, FactKind};
use std::sync::{Arc, OnceLock};

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
    /// What that proxy has.
    pub edge: Arc<Edge>,
    /// The body, once it was wanted and came; its SHA-256 is the question's.
    pub body: Option<Arc<[u8]>>,
    /// Whether we have signed the token, once that was looked at.
    pub signed: OnceLock<bool>,
}

/// SHA-256 of the body, where it was read.
pub(super) fn body_digest(question: &Question) -> Option<Hash> {
    let digest = question.body.as_ref()?.digest.as_slice();
    digest.try_into().ok()
}

/// How long the body is that was read.
pub(super) fn body_len(facts: &Facts) -> u64 {
    facts.question.body.as_ref().map_or(0, |body| body.size)
}

/// What the log and an approval say of the body, where it was read.
pub(super) fn body_record(question: &Question) -> Option<BodyRecord> {
    Some(BodyRecord {
        sha256: body_digest(question)?,
        bytes: question.body.as_ref()?.size,
        content_type: question.content_type.clone(),
        content_encoding: question.content_encoding.clone(),
    })
}

/// The facts of the body that its route wants, each there and of its kind.
/// `None`: one is not, so nothing that looks at it can be evaluated. A request
/// without a body, of a method that needs none, has no facts and wants none.
pub(super) fn body_facts(wanted: &BodyRead, question: &Question) -> Option<Vec<(String, Fact)>> {
    let body = question.body.as_ref()?;
    if body.size == 0 && matches!(question.method.as_str(), "GET" | "HEAD" | "OPTIONS") {
        return Some(Vec::new());
    }
    let fact = |(pointer, kind): (&String, &FactKind)| {
        let found = body.facts.iter().find(|fact| fact.pointer == *pointer)?;
        let value = match found.value.clone()? {
            Value::Text(text) => Fact::Text(text),
            Value::Integer(integer) => Fact::Integer(integer),
            Value::Flag(flag) => Fact::Flag(flag),
        };
        (value.kind() == *kind).then(|| (pointer.clone(), value))
    };
    wanted.facts.iter().map(fact).collect()
}

/// Whether the client certificate that the proxy saw is the one that our own
/// record binds the token to (RFC 8705, section 3). The filter has checked it,
/// and the agent's name in it, too.
///
/// # Errors
/// `certificate_missing` or `certificate_mismatch`.
pub(super) fn certificate_fits(
    token: &TokenRecord,
    question: &Question,
    demanded: bool,
) -> Result<(), Reason> {
    let shown = &question.peer_certificate;
    if shown.is_empty() {
        return if demanded || token.x5t.is_some() {
            Err(Reason::CertificateMissing)
        } else {
            Ok(())
        };
    }
    match &token.x5t {
        Some(x5t) if *x5t != capability::b64::encode(shown) => Err(Reason::CertificateMismatch),
        _ => Ok(()),
    }
}

/// What an approval of this request would cover.
pub(super) fn digest_of(token: &TokenRecord, facts: &Facts) -> Hash {
    Core::action_digest(
        token,
        &facts.question.content_type,
        &facts.question.content_encoding,
        body_digest(&facts.question).as_ref().map(Hash::as_slice),
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
        body: body_record(&facts.question),
        certificate: capability::b64::encode(&facts.question.peer_certificate),
        observed: facts.question.observed,
    }
}

/// A claim of a token, or of a proof, whose signature is not looked at here: of
/// what is ours by [`super::own`], for the log and for what to say.
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
        &mut facts.certificate,
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
    use ledger::model::ActionRecord;

    fn token(x5t: Option<&[u8]>) -> TokenRecord {
        TokenRecord {
            token_hash: [0; 32],
            jti: "t".into(),
            agent: "spiffe://writ.example/agent/demo".into(),
            user: None,
            chain: Vec::new(),
            jkt: "k".into(),
            x5t: x5t.map(capability::b64::encode),
            action: ActionRecord {
                kind: "http_request".into(),
                method: "GET".into(),
                location: "https://tools.example/".into(),
                ..ActionRecord::default()
            },
            txn: "x".into(),
            issued_ms: 0,
            expires_ms: 1,
            lineage: Vec::new(),
            grant: None,
        }
    }

    /// What a proxy says that was taken over, or whose filter is another: our own
    /// record is asked as well.
    #[test]
    fn the_record_has_the_last_word_on_certificates() {
        let (own, other) = ([1; 32], [2; 32]);
        let (missing, mismatch) = (Reason::CertificateMissing, Reason::CertificateMismatch);
        type Row<'a> = (Option<&'a [u8]>, &'a [u8], bool, Result<(), Reason>);
        let table: [Row<'_>; 9] = [
            (None, &[], false, Ok(())),
            (None, &[], true, Err(missing)),
            (None, &own, true, Ok(())),
            (Some(&own), &own, true, Ok(())),
            (Some(&own), &own, false, Ok(())),
            (Some(&own), &other, true, Err(mismatch)),
            (Some(&own), &own[..31], true, Err(mismatch)),
            (Some(&own), &[], true, Err(missing)),
            (Some(&own), &[], false, Err(missing)),
        ];
        for (x5t, shown, demanded, expected) in table {
            let question = Question {
                peer_certificate: shown.to_vec(),
                ..Question::default()
            };
            let said = certificate_fits(&token(x5t), &question, demanded);
            assert_eq!(said, expected, "{x5t:?} {shown:?} {demanded}");
        }
    }
}
