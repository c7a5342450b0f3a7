//! The body of a question that a human is to be asked about: it comes in a
//! message of its own, before the hold is committed, so that the hold's entry
//! has it beside it.

use super::facts::{Facts, body_digest};
use super::questions::{Entry, Prefix};
use super::service::Shared;
use crate::approval::Room;
use capability::reason::Reason;
use decision_api::BodyWanted;
use ledger::model::{Approval, Hash};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// How long a body may take to come: less than the filter waits for an answer
/// by default.
const BODY_WITHIN: Duration = Duration::from_millis(1_500);

impl Shared {
    /// Gets the body from the proxy that has it, with room for it.
    ///
    /// # Errors
    /// `limit_exceeded` when there is no room for it, and `internal_error` when it
    /// doesn't come or is another than the question says. Nothing was spent.
    pub(super) async fn body(
        &self,
        prefix: &Prefix,
        counter: u64,
        entry: &Entry,
        facts: &Facts,
    ) -> Result<(Arc<[u8]>, Room<'_>), Reason> {
        let core = &self.engine.core;
        let size = facts.question.body.as_ref().map_or(0, |body| body.size);
        let open = |id: &str| core.ledger.approval(id).is_some_and(|it| it.is_open());
        let Some(room) = core.bodies.reserve(size, &open) else {
            tracing::warn!("as many bodies as may wait for a human do: a request is refused");
            return Err(Reason::LimitExceeded);
        };
        let given = prefix.want_body(
            entry,
            BodyWanted {
                id: Some(prefix.id(counter)),
                token_hash: facts.question.token_hash.clone(),
                question_digest: facts.digest.to_vec(),
            },
        );
        let body = tokio::time::timeout(BODY_WITHIN, given).await;
        entry.body_given_up();
        let Ok(Ok(body)) = body else {
            tracing::warn!(peer = prefix.seat.peer, "a proxy did not send a body");
            return Err(Reason::InternalError);
        };
        let digest: Hash = Sha256::digest(&body).into();
        if body_digest(&facts.question) != Some(digest) {
            tracing::error!(
                peer = prefix.seat.peer,
                "a proxy sent another body than it asked about"
            );
            return Err(Reason::InternalError);
        }
        Ok((body.into(), room))
    }

    /// Keeps the body for those who decide about the approval, which may be an
    /// equal request's: the digest that it covers has the body's in it.
    pub(super) fn keep_body(&self, facts: &Facts, approval: &Approval) {
        if let Some(body) = &facts.body {
            self.engine.core.bodies.keep(&approval.id, body.clone());
        }
    }
}
