//! Many tokens that are outstanding at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Error;
use crate::client::{Answer, DpopKey};

/// Tokens that one request brings.
const BATCH: usize = 32;
/// Requests under way at a time.
const AT_ONCE: usize = 16;

/// An agent that asks for many at once.
pub(super) struct Holder {
    pub(super) key: DpopKey,
    /// Its broker session.
    pub(super) session: String,
}

/// When the tokens were brought, and for what.
pub(super) struct Crowd {
    url: String,
    body: Arc<Value>,
    life: Duration,
    brought: VecDeque<(Instant, usize)>,
}

impl Crowd {
    /// Nobody has anything yet. A token is for `action`, an element of
    /// `authorization_details`, and ends after `life`.
    pub(super) fn new(issuer: &str, action: &Value, life: Duration) -> Crowd {
        Crowd {
            url: format!("{issuer}/api/v1/capabilities"),
            body: Arc::new(json!({ "authorization_details": vec![action; BATCH] })),
            life,
            brought: VecDeque::new(),
        }
    }

    /// How many have not ended yet.
    pub(super) fn outstanding(&self) -> usize {
        let live = self
            .brought
            .iter()
            .filter(|(at, _)| at.elapsed() < self.life);
        live.map(|(_, count)| count).sum()
    }

    /// Brings these agents as many as are missing, or have ended, to `most`.
    ///
    /// # Errors
    /// When one is refused.
    pub(super) async fn fill(&mut self, holders: Vec<Holder>, most: usize) -> Result<(), Error> {
        let holders = Arc::new(holders);
        let mut said = self.outstanding();
        loop {
            while self
                .brought
                .front()
                .is_some_and(|(at, _)| at.elapsed() >= self.life)
            {
                self.brought.pop_front();
            }
            let there = self.outstanding();
            if there >= most {
                return Ok(());
            }
            if there >= said.saturating_add(100_000) {
                println!("· {there} of {most}");
                said = there;
            }
            let at = Instant::now();
            let mut asking = tokio::task::JoinSet::new();
            for one in 0..AT_ONCE {
                let (holders, url) = (Arc::clone(&holders), self.url.clone());
                let body = Arc::clone(&self.body);
                asking.spawn(async move { several(&holders, one, &url, &body).await });
            }
            let mut count = 0_usize;
            while let Some(asked) = asking.join_next().await {
                let asked = asked.map_err(|problem| Error::Unexpected(problem.to_string()))?;
                count = count.saturating_add(asked?);
            }
            self.brought.push_back((at, count));
        }
    }
}

/// One batch for each of the holders whose turn it is.
async fn several(
    holders: &[Holder],
    first: usize,
    url: &str,
    body: &Value,
) -> Result<usize, Error> {
    let client = reqwest::Client::new();
    let mut count = 0_usize;
    for holder in holders.iter().skip(first).step_by(AT_ONCE) {
        let session = &holder.session;
        let request = client
            .post(url)
            .header("authorization", format!("DPoP {session}"))
            .header("dpop", holder.key.proof("POST", url, Some(session)))
            .json(body);
        let answer = Answer::read(request.send().await.map_err(Error::http(url))?).await?;
        let answer = answer.expect("a batch", 200)?.json();
        let each = answer.get("capabilities").and_then(Value::as_array);
        let each = each.into_iter().flatten();
        let had = each.filter(|one| one.get("access_token").is_some()).count();
        if had != BATCH {
            return Err(Error::Unexpected(format!("{had} of {BATCH}: {answer}")));
        }
        count = count.saturating_add(had);
    }
    Ok(count)
}
