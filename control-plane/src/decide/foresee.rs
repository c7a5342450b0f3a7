//! What a proxy would be told of a request that nobody has made yet.
//!
//! The same look at registry, policy and approvals as for one that was made. Nothing is
//! written, and nothing is promised: the request itself is decided when it comes.

use super::engine::{Engine, HELD_BODY_MAX};
use super::facts::Facts;
use super::opinion::Opinion;
use crate::config::BodyRead;
use crate::state::{element, split_location};
use capability::action::{Action, Body};
use capability::body::{self, Scalar};
use capability::reason::Reason;
use capability::rpc;
use decision_api::{BodyFact, Question, ReadBody, body_fact::Value};
use ledger::model::{Approval, PolicyFacts, TokenRecord};
use std::sync::OnceLock;

/// What goes with the action, as its digest has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Content<'c> {
    /// `content-type`, exactly; empty without one.
    pub media_type: &'c str,
    /// `content-encoding`, exactly; empty without one.
    pub encoding: &'c str,
    /// The whole body, where it is known.
    pub body: Option<&'c [u8]>,
}

/// What would become of the request.
#[derive(Debug)]
pub enum Foreseen {
    /// It would pass. A person has approved it already, or need not be asked.
    Passes(PolicyFacts),
    /// It would not.
    Refused(PolicyFacts, Reason),
    /// It would wait for a person: this is what they would be asked.
    Asks(PolicyFacts, Box<Approval>),
    /// Its body decides, and is not known.
    Unseen,
}

/// Methods whose requests have no body, where nobody says otherwise.
const BODILESS: [&str; 4] = ["GET", "HEAD", "OPTIONS", "DELETE"];

impl Engine {
    /// What would become of a request with this token and content, now.
    #[must_use]
    pub fn foresee(&self, token: &TokenRecord, content: Content<'_>) -> Foreseen {
        let edge = self.core.config.edge.clone();
        let none = || PolicyFacts {
            version: self.core.policies.version().to_owned(),
            determining: Vec::new(),
        };
        let site = edge.site_of(split_location(&token.action.location).0);
        let action = Action::from_details(&element(&token.action));
        let (Some(site), Ok(action)) = (site, action) else {
            return Foreseen::Refused(none(), Reason::ActionMismatch);
        };
        let (authority, path) = (site.authority().to_owned(), action.path_and_query());
        let body = match edge.body_of(&authority, &path) {
            None => None,
            Some(wanted) => {
                let empty = action.content_digest() == Some(capability::sha256(b""));
                let bodiless =
                    action.content_digest().is_none() && BODILESS.contains(&action.method());
                let bytes = match content.body {
                    None if empty || bodiless => b"".as_slice(),
                    None => return Foreseen::Unseen,
                    Some(bytes) => bytes,
                };
                let is_json = rpc::is_json(content.media_type, content.encoding);
                if action.call().is_some() && !is_json {
                    return Foreseen::Refused(none(), Reason::ActionMismatch);
                }
                if let Err(reason) = action.covers_body(Body::of(bytes)) {
                    return Foreseen::Refused(none(), reason);
                }
                Some(read(bytes, wanted, content))
            }
        };
        if body.as_ref().is_some_and(|body| body.size > HELD_BODY_MAX) {
            return Foreseen::Refused(none(), Reason::TooLarge);
        }
        let facts = Facts {
            question: Question {
                method: token.action.method.clone(),
                authority,
                path,
                content_type: content.media_type.to_owned(),
                content_encoding: content.encoding.to_owned(),
                body,
                ..Question::default()
            },
            token: String::new(),
            proof: String::new(),
            digest: [0; 32],
            attempt: String::new(),
            proxy: String::new(),
            edge,
            body: None,
            signed: OnceLock::new(),
        };
        match self.opinion(token, &facts) {
            Opinion::Allow(policy, _) => Foreseen::Passes(policy),
            Opinion::Deny(policy, reason) => Foreseen::Refused(policy, reason),
            Opinion::Hold(policy, demands) => {
                let approval = self.approval(token, &facts, &policy, &demands);
                Foreseen::Asks(policy, Box::new(approval))
            }
        }
    }
}

/// A body as the filter reads it.
fn read(bytes: &[u8], wanted: &BodyRead, content: Content<'_>) -> ReadBody {
    let pointers: Vec<String> = wanted.facts.keys().cloned().collect();
    let found = match body::is_json(content.media_type, content.encoding) {
        true => body::facts(bytes, &pointers),
        false => Vec::new(),
    };
    let fact = |(pointer, value)| BodyFact {
        pointer,
        value: Some(match value {
            Scalar::Text(text) => Value::Text(text),
            Scalar::Integer(integer) => Value::Integer(integer),
            Scalar::Flag(flag) => Value::Flag(flag),
        }),
    };
    ReadBody {
        digest: capability::sha256(bytes).to_vec(),
        size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        facts: found.into_iter().map(fact).collect(),
        // The token says which message it is, and the body has been held against that.
        message: None,
    }
}
