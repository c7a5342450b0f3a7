//! One request of the agent's: token, proof, showing, and what follows from the
//! answer. Nothing that may have acted is sent again under another token.

use super::Reply;
use super::ahead::Ahead;
use super::problem::Problem;
use super::retry::{self, TRIES, WAIT_MAX};
use super::rules;
use crate::client::{Agent, ClientError, DpopKey, OUTCOME_WAITS, Proves, Shown, is_problem};
use bytes::Bytes;
use capability::headers;
use capability::reason::Reason;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// An exchange takes at most this long.
const EXCHANGE_WITHIN: Duration = Duration::from_secs(30);
/// An answer begins within this time: the proxy holds for 55 s at most, and its
/// upstream has 60 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// An answer ends within this time.
const STREAM_WITHIN: Duration = Duration::from_secs(24 * 60 * 60);
/// A problem document is looked into up to this size; bytes.
const PROBLEM_MAX: u64 = 64 * 1024;
/// Connections and the X.509-SVID that they show are made anew after this time.
const RENEW_AFTER: Duration = Duration::from_secs(60);

/// Where identity and tokens come from.
pub struct Issuer {
    /// Its URL.
    pub url: String,
    /// What shows it which agent this is.
    pub proves: Proves,
    /// Tokens that are fetched ahead.
    pub ahead: Arc<Ahead>,
    key: Arc<DpopKey>,
    agent: Mutex<Option<(Instant, Arc<Agent>)>>,
}

impl Issuer {
    /// With a key that is this process's alone, and what is fetched `ahead`.
    ///
    /// # Errors
    /// When there can be no key, or identities would cross the network in clear.
    pub fn new(url: String, proves: Proves, ahead: Ahead) -> Result<Self, ClientError> {
        let it = Self {
            url,
            proves,
            ahead: Arc::new(ahead),
            key: Arc::new(DpopKey::generate()?),
            agent: Mutex::new(None),
        };
        it.agent()?;
        Ok(it)
    }

    fn agent(&self) -> Result<Arc<Agent>, ClientError> {
        let mut kept = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, agent)) = kept.as_ref()
            && made.elapsed() < RENEW_AFTER
        {
            return Ok(Arc::clone(agent));
        }
        let agent = Agent::with_key(&self.url, self.proves.clone(), EXCHANGE_WITHIN, || {
            Ok(Arc::clone(&self.key))
        })?;
        let agent = Arc::new(agent);
        *kept = Some((Instant::now(), Arc::clone(&agent)));
        Ok(agent)
    }
}

/// A request that is to be made.
pub struct Wanted {
    /// The method.
    pub method: String,
    /// The URL.
    pub url: String,
    /// The headers that go on.
    pub headers: HeaderMap,
    /// The body.
    pub body: Option<Bytes>,
}

/// An answer: one to pass on, or a refusal that has been read.
enum Answered {
    Streamed(reqwest::Response),
    Refused {
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
        problem: Value,
    },
}

impl Answered {
    /// The upstream may send problem documents of its own: it can't say that they are the
    /// edge's.
    async fn read(response: reqwest::Response) -> Result<Self, ClientError> {
        let is_the_edges = response.headers().contains_key(headers::REASON);
        if !is_the_edges
            || response
                .content_length()
                .is_none_or(|len| len > PROBLEM_MAX)
        {
            return Ok(Self::Streamed(response));
        }
        let (status, headers) = (response.status(), response.headers().clone());
        let lost = |error: reqwest::Error| ClientError::Unknown(error.to_string());
        let body = response.bytes().await.map_err(lost)?;
        Ok(Self::Refused {
            status,
            headers,
            problem: serde_json::from_slice(&body).unwrap_or_default(),
            body,
        })
    }

    fn member(&self, name: &str) -> Option<&str> {
        match self {
            Self::Refused { problem, .. } => problem.get(name)?.as_str(),
            Self::Streamed(_) => None,
        }
    }

    fn reason(&self) -> Option<&str> {
        self.member("reason")
    }

    /// Whether this is a problem document that may be the edge's all the same: a filter of
    /// before does not say so.
    fn may_be_refusal(&self) -> bool {
        match self {
            Self::Streamed(response) => {
                let kind = response.headers().get(header::CONTENT_TYPE);
                let kind = kind.and_then(|it| it.to_str().ok());
                kind.is_some_and(is_problem)
            }
            Self::Refused { .. } => true,
        }
    }

    /// Whether a token that was shown for the first time is over without having been
    /// used: its time is over, or who issued it has forgotten it, or its certificate is not
    /// the one of now.
    fn is_over(&self) -> bool {
        let over = [
            Reason::TokenExpired,
            Reason::TokenUnknown,
            Reason::TokenRevoked,
            Reason::TokenKeyUnknown,
            Reason::CertificateMismatch,
            Reason::OutcomeUnknown,
        ];
        let reason = self.reason();
        over.iter().any(|over| reason == Some(over.as_str()))
    }

    fn first_use(&self) -> Option<&Value> {
        match self {
            Self::Refused { problem, .. } => problem.get("first_use"),
            Self::Streamed(_) => None,
        }
    }

    /// How long to wait before the same token may be shown again: only when this
    /// says that nothing was spent.
    fn retry_after(&self) -> Option<Duration> {
        let Self::Refused {
            status, headers, ..
        } = self
        else {
            return None;
        };
        if !matches!(status.as_u16(), 429 | 503) || self.reason().is_none() {
            return None;
        }
        let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
        let wait = Duration::from_secs(seconds.parse().ok()?);
        (wait <= WAIT_MAX).then_some(wait)
    }

    fn reply(self) -> Reply {
        let (status, headers, body) = match self {
            Self::Refused {
                status,
                headers,
                body,
                ..
            } => {
                let body = Full::new(body).map_err(|never| match never {});
                (status, headers, body.boxed())
            }
            Self::Streamed(response) => {
                let (status, headers) = (response.status(), response.headers().clone());
                let body = reqwest::Body::from(response);
                (status, headers, body.map_err(std::io::Error::other).boxed())
            }
        };
        let mut reply = Response::new(body);
        *reply.status_mut() = status;
        *reply.headers_mut() = rules::returned(&headers);
        reply
    }
}

/// Makes the request and answers it, whatever becomes of it.
pub async fn forward(
    issuer: &Issuer,
    wanted: &Wanted,
    wait: Duration,
    stop: &CancellationToken,
) -> Reply {
    let outcome = match until_decided(issuer, wanted, wait, stop).await {
        Ok(reply) => return reply,
        Err(outcome) => outcome,
    };
    let Wanted { method, url, .. } = wanted;
    let url = url.split('?').next().unwrap_or_default();
    tracing::info!(%method, ?url, reason = ?outcome.reason(), "not passed on, or its answer was lost");
    outcome.reply()
}

async fn until_decided(
    issuer: &Issuer,
    wanted: &Wanted,
    wait: Duration,
    stop: &CancellationToken,
) -> Result<Reply, Problem> {
    let deadline = Instant::now() + wait;
    let mut approved: Option<String> = None;
    let mut ahead = issuer.ahead.take(wanted);
    loop {
        let agent = issuer.agent().map_err(|error| failed(&error))?;
        issuer.ahead.fetch(&agent);
        let (token, was_ahead) = match ahead.take() {
            Some(token) => (token, true),
            None => (exchange(&agent, wanted).await?, false),
        };
        let answer = spend(&agent, wanted, &token).await?;
        // It was shown by this alone, so that what is not known of it is that it waited.
        if was_ahead && answer.is_over() {
            continue;
        }
        if answer.reason() != Some(Reason::ApprovalPending.as_str()) {
            return Ok(answer.reply());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let status_url = answer.member("status_url").unwrap_or_default().to_owned();
        let id = answer.member("approval_id").unwrap_or_default().to_owned();
        // One yes is for one request.
        if approved.as_ref() == Some(&id) {
            return Ok(answer.reply());
        }
        tracing::info!(approval = ?id, "held: a person has to say yes");
        let decided = tokio::select! {
            () = stop.cancelled() => return Ok(answer.reply()),
            decided = agent.approval(&status_url, left) => decided,
        };
        let held = match &answer {
            Answered::Refused { problem, .. } => problem,
            Answered::Streamed(_) => &Value::Null,
        };
        match decided.ok().flatten().as_deref() {
            // The same exchange and request again; the approval is found by what it covers.
            Some("approved") if Instant::now() < deadline => approved = Some(id),
            Some("denied") => return Err(Problem::not_approved(Reason::ApprovalDenied, held)),
            Some("expired") => return Err(Problem::not_approved(Reason::ApprovalExpired, held)),
            // Nobody has decided, or it can't be asked: the document says where to look.
            _ => return Ok(answer.reply()),
        }
    }
}

/// A token for exactly this request.
async fn exchange(agent: &Agent, wanted: &Wanted) -> Result<String, Problem> {
    let Wanted {
        method, url, body, ..
    } = wanted;
    let mut tries = 1;
    loop {
        match agent.token_for(method, url, body.as_deref()).await {
            Ok(granted) => return Ok(granted.access_token),
            // The issuer has made no token, and says that it may later.
            Err(ClientError::Exchange { error, .. })
                if error == retry::TEMPORARY && tries < TRIES =>
            {
                tries += 1;
                retry::pause(Duration::from_secs(retry::ISSUER_RETRY_S)).await;
            }
            Err(error) => return Err(failed(&error)),
        }
    }
}

/// Shows the token until there is an answer. Each showing is of the same token,
/// which acts once, so that nothing that is said in between can make it act twice.
async fn spend(agent: &Agent, wanted: &Wanted, token: &str) -> Result<Answered, Problem> {
    let mut tries = 1;
    let mut turned_away: Option<Answered> = None;
    loop {
        let answer = match show(agent, wanted, token).await {
            Ok(answer) => answer,
            Err(ClientError::Unknown(lost)) => return outcome(agent, wanted, token, &lost).await,
            Err(error) => return turned_away.ok_or_else(|| failed(&error)),
        };
        // The token is over: what was said before is the answer.
        if answer
            .reason()
            .is_some_and(|reason| reason.starts_with("token_"))
            && let Some(before) = turned_away
        {
            return Ok(before);
        }
        match answer.retry_after().filter(|_| tries < TRIES) {
            Some(wait) => {
                tries += 1;
                turned_away = Some(answer);
                retry::pause(wait).await;
            }
            None => return Ok(answer),
        }
    }
}

async fn show(agent: &Agent, wanted: &Wanted, token: &str) -> Result<Answered, ClientError> {
    let shown = Shown {
        method: &wanted.method,
        url: &wanted.url,
        headers: &wanted.headers,
        body: wanted.body.as_ref(),
        within: Some(STREAM_WITHIN),
    };
    let answer = async { Answered::read(agent.show(token, shown).await?).await };
    let late = |_| ClientError::Unknown("no answer came in time".into());
    tokio::time::timeout(ANSWER_WITHIN, answer)
        .await
        .map_err(late)?
}

/// What became of a request whose answer was lost: the same token is shown again.
/// If it was never spent, this is the request.
async fn outcome(
    agent: &Agent,
    wanted: &Wanted,
    token: &str,
    lost: &str,
) -> Result<Answered, Problem> {
    let mut waits = OUTCOME_WAITS.iter();
    loop {
        let answer = show(agent, wanted, token).await;
        let answer = answer.map_err(|_| Problem::unknown(lost))?;
        match (answer.reason(), answer.first_use()) {
            (None, _) if answer.may_be_refusal() => return Err(Problem::unknown(lost)),
            (None, _) => return Ok(answer),
            (Some("token_spent"), Some(first)) => {
                // It is reported when the first use ends, which may be now.
                if first.get("result").and_then(Value::as_str) != Some("unknown") {
                    let id = first.get("request_id");
                    return Err(Problem::lost(first.clone(), id));
                }
                match waits.next() {
                    Some(wait) => tokio::time::sleep(*wait).await,
                    None => return Err(Problem::unknown(lost)),
                }
            }
            // Any other refusal is about this showing alone.
            _ => return Err(Problem::unknown(lost)),
        }
    }
}

fn failed(error: &ClientError) -> Problem {
    match error {
        ClientError::Exchange {
            error,
            reason,
            description,
            request_id,
            why,
        } => Problem::exchange(error, reason, description, request_id).because(why),
        ClientError::NotSent(why) => Problem::not_sent(why),
        ClientError::Unknown(why) => Problem::unknown(why),
        ClientError::Usage(why) => Problem::request(why),
        ClientError::Key(_)
        | ClientError::Identity(_)
        | ClientError::TokenFile { .. }
        | ClientError::Issuer(..) => Problem::unavailable(&error.to_string()),
    }
}
