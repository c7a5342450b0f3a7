//! Tokens that are fetched ahead, for what an agent asks for again and again.
//!
//! Only for what is read (GET and HEAD), and only after it was asked for twice within a
//! minute: then, each time that its token is used, the next one is fetched while the answer
//! is on its way. So of each there is at most one that is not used.

use super::forward::Wanted;
use crate::client::{Agent, Fetched};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Actions for which tokens can be fetched ahead: one batch.
pub const AHEAD_MAX: usize = 32;
/// What was not asked for within this time is not fetched ahead.
const AGAIN_WITHIN: Duration = Duration::from_secs(60);
/// A token that ends sooner is not used: it has a way to go.
const LEFT_MIN: Duration = Duration::from_secs(3);
/// A session that ends sooner is not used.
const SESSION_LEFT_MIN: Duration = Duration::from_secs(30);
/// After a failure nothing is fetched ahead for so long.
const REST: Duration = Duration::from_secs(30);
/// Actions that are remembered for each that may be fetched ahead.
const REMEMBERED: usize = 8;

type Action = (String, String);

/// What is kept ahead.
pub struct Ahead {
    most: usize,
    kept: Mutex<HashMap<Action, Kept>>,
    session: tokio::sync::Mutex<Option<Lasting>>,
    is_fetching: AtomicBool,
    /// Nothing is fetched before, since it failed.
    rests_until: Mutex<Option<Instant>>,
}

struct Kept {
    asked_at: Instant,
    is_due: bool,
    token: Option<Lasting>,
}

struct Lasting {
    token: String,
    until: Instant,
}

impl Lasting {
    fn of(fetched: Fetched) -> Self {
        Self {
            token: fetched.token,
            until: Instant::now() + fetched.lives,
        }
    }

    fn lasts(&self, least: Duration) -> bool {
        self.until.saturating_duration_since(Instant::now()) > least
    }
}

impl Ahead {
    /// For so many actions at a time; none: nothing is fetched ahead.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most: most.min(AHEAD_MAX),
            kept: Mutex::default(),
            session: tokio::sync::Mutex::default(),
            is_fetching: AtomicBool::new(false),
            rests_until: Mutex::default(),
        }
    }

    /// The token that was fetched ahead for this request, and takes note of it.
    pub fn take(&self, wanted: &Wanted) -> Option<String> {
        let is_read = matches!(wanted.method.as_str(), "GET" | "HEAD") && wanted.body.is_none();
        if self.most == 0 || !is_read {
            return None;
        }
        let now = Instant::now();
        let recent = |kept: &Kept| now.saturating_duration_since(kept.asked_at) < AGAIN_WITHIN;
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let action = (wanted.method.clone(), wanted.url.clone());
        if let Some(kept) = all.get_mut(&action) {
            kept.is_due = recent(kept);
            kept.asked_at = now;
            let token = kept.token.take();
            return token.filter(|it| it.lasts(LEFT_MIN)).map(|it| it.token);
        }
        if all.len() >= self.most.saturating_mul(REMEMBERED) {
            all.retain(|_, kept| recent(kept));
        }
        if all.len() < self.most.saturating_mul(REMEMBERED) {
            let fresh = Kept {
                asked_at: now,
                is_due: false,
                token: None,
            };
            all.insert(action, fresh);
        }
        None
    }

    /// Fetches what is due, if nobody does, beside what goes on.
    pub fn fetch(self: &Arc<Self>, agent: &Arc<Agent>) {
        if self.most == 0
            || self.rests()
            || self.due().is_empty()
            || self.is_fetching.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let (ahead, agent) = (Arc::clone(self), Arc::clone(agent));
        tokio::spawn(async move {
            let due = ahead.due();
            if let Err(error) = ahead.fetched(&agent, &due).await {
                tracing::debug!(%error, "nothing is fetched ahead");
                *ahead.session.lock().await = None;
                let mut rests = ahead
                    .rests_until
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *rests = Some(Instant::now() + REST);
            }
            ahead.is_fetching.store(false, Ordering::Release);
        });
    }

    fn rests(&self) -> bool {
        let until = self
            .rests_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// The actions that are asked for again and have no token, those of the latest first.
    fn due(&self) -> Vec<Action> {
        let all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |kept: &Kept| {
            let token = kept.token.as_ref();
            token.is_some_and(|it| it.lasts(LEFT_MIN))
        };
        let room = all.values().filter(|kept| has(kept)).count();
        let mut due: Vec<_> = all
            .iter()
            .filter(|(_, kept)| kept.is_due && !has(kept))
            .map(|(action, kept)| (kept.asked_at, action.clone()))
            .collect();
        due.sort_by_key(|(asked_at, _)| std::cmp::Reverse(*asked_at));
        due.truncate(self.most.saturating_sub(room));
        due.into_iter().map(|(_, action)| action).collect()
    }

    async fn fetched(
        &self,
        agent: &Agent,
        due: &[Action],
    ) -> Result<(), crate::client::ClientError> {
        let Some((_, url)) = due.first() else {
            return Ok(());
        };
        let endpoint = agent.endpoint_for(url).await?;
        // Those of one scheme: what is bound to a certificate is asked for with it.
        let scheme = |url: &str| url.split(':').next().map(str::to_owned);
        let due: Vec<&Action> = due
            .iter()
            .filter(|(_, other)| scheme(other) == scheme(url))
            .collect();
        let elements: Vec<Value> = due
            .iter()
            .map(|(method, url)| {
                json!({ "type": "http_request", "actions": [method], "locations": [url] })
            })
            .collect();
        let session = match endpoint.shows_certificate {
            true => None,
            false => Some(self.session(agent, &endpoint.url).await?),
        };
        let tokens = agent
            .several(&endpoint.url, session.as_deref(), &elements)
            .await?;
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for (action, token) in due.into_iter().zip(tokens) {
            if let Some(kept) = all.get_mut(action) {
                kept.is_due = false;
                kept.token = token.map(Lasting::of);
            }
        }
        Ok(())
    }

    async fn session(
        &self,
        agent: &Agent,
        endpoint: &str,
    ) -> Result<String, crate::client::ClientError> {
        let mut kept = self.session.lock().await;
        if let Some(session) = kept.as_ref().filter(|it| it.lasts(SESSION_LEFT_MIN)) {
            return Ok(session.token.clone());
        }
        let session = Lasting::of(agent.session(endpoint).await?);
        let token = session.token.clone();
        *kept = Some(session);
        Ok(token)
    }
}
