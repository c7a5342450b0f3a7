//! The canary: it sends through each guarded route of each proxy what must never
//! pass, a token that nobody signed and one that is spent, and raises an alarm when
//! one does. It proves that the filter is there, which nothing inside the filter can.
//!
//! Its path, below the route's own prefix, names it, and so do its agent and its
//! `user-agent`: where all is well none of its requests reaches an upstream.

use crate::client::{DpopKey, asked_nonce};
use crate::config::Route;
use crate::keys::{self, CapabilityClaims, Mint};
use crate::state::{Core, element, random_id};
use capability::reason::Reason;
use ledger::model::{ActionRecord, Command, Evidence, PolicyFacts, RequestFacts, TokenRecord};
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HOST, USER_AGENT};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What the canary asks for, below the prefix of each route.
pub const PATH: &str = "/.writ-canary";
/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The most that is read of an answer; bytes.
const ANSWER_MAX: usize = 16 * 1024;
/// A spent token is used so long before its end, and then another one is made; seconds.
const SPARE_S: u64 = 30;
/// After so many rounds without a clear answer nobody knows any more that the
/// filter is there, and that is an alarm too.
const UNCLEAR_MAX: u32 = 3;

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The filter refused it, for a reason that fits.
    Refused,
    /// It was not refused: nothing guards this route.
    Passed,
    /// No answer, or one that says neither: a proxy that is down or fails closed.
    Unclear,
}

/// The two things that must not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bait {
    Bad,
    Spent,
}

struct Spent {
    token: String,
    until_s: u64,
}

/// The canary's state.
pub struct Canary {
    core: Arc<Core>,
    http: reqwest::Client,
    key: DpopKey,
    agent: String,
    /// By route.
    spent: BTreeMap<String, Spent>,
    /// Rounds without a clear answer, by what is tried.
    unclear: BTreeMap<String, u32>,
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWER_WITHIN)
        // Each probe may go to another worker, and finds whoever listens now.
        .pool_max_idle_per_host(0)
        .no_proxy()
}

impl Canary {
    /// A canary that has tried nothing yet.
    ///
    /// # Errors
    /// When it can't have an HTTP client or a key.
    pub fn new(core: Arc<Core>) -> Result<Self, String> {
        let http = builder()
            .build()
            .map_err(|error| format!("the canary: {error}"))?;
        let key = DpopKey::generate().map_err(|error| format!("the canary: {error}"))?;
        let identity = &core.config.identity;
        // Where a certificate is demanded it has to name the token's agent.
        let agent = if core.config.edge.client_certificates {
            identity.control_plane_id.clone()
        } else {
            format!("spiffe://{}/canary", identity.trust_domain)
        };
        Ok(Self {
            core,
            http,
            key,
            agent,
            spent: BTreeMap::new(),
            unclear: BTreeMap::new(),
        })
    }

    /// Tries everything, again and again, until the task is dropped.
    pub async fn run(mut self) {
        let period = Duration::from_secs(self.core.config.canary.every_s);
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The proxies are told what they are first.
        tick.tick().await;
        loop {
            tick.tick().await;
            self.round().await;
        }
    }

    /// A route that some group does not enforce as the others do is not tried, since
    /// nobody knows whose a target is: who relies on the canary has to know.
    fn say_left_out(&self, routes: &[Route]) {
        const KEY: &str = "canary left out";
        let names: Vec<&str> = routes.iter().map(|it| it.name.as_str()).collect();
        if names.is_empty() {
            self.core.warnings.lower(KEY);
            return;
        }
        let text = format!(
            "the canary does not try {}: not all proxies have the same route",
            names.join(", ")
        );
        if self.core.warnings.raise(KEY, &text) {
            tracing::warn!("{text}");
        }
    }

    /// With today's certificate of ours, where one is demanded.
    fn show_certificate(&mut self) {
        if !self.core.config.edge.client_certificates {
            return;
        }
        let client = self.core.identity.x509_credentials();
        let client = client.map_err(|error| error.to_string()).and_then(|own| {
            let build = || {
                let identity = reqwest::Identity::from_pem(own.pem.as_bytes())?;
                let authorities = own.authorities.iter();
                let authorities = authorities.map(|der| reqwest::Certificate::from_der(der));
                builder()
                    .identity(identity)
                    .tls_certs_only(authorities.collect::<Result<Vec<_>, _>>()?)
                    // A target is one proxy of several, by an address of its own:
                    // that it is of the trust domain has to do.
                    .tls_danger_accept_invalid_hostnames(true)
                    .build()
            };
            build().map_err(|error: reqwest::Error| error.to_string())
        });
        match client {
            Ok(client) => self.http = client,
            Err(error) => tracing::warn!(error, "the canary has no certificate to show"),
        }
    }

    async fn round(&mut self) {
        self.show_certificate();
        let config = &self.core.config;
        let own = vec![config.edge.origin.clone()];
        let given = config.canary.targets.clone();
        let targets = if given.is_empty() { own } else { given };
        let (routes, left_out) = self.core.edges.enforced();
        self.say_left_out(&left_out);
        for route in &routes {
            let spent = self.spent_token(route).await;
            for target in &targets {
                self.probe(target, route, Bait::Bad, &self.bad_token(route).await)
                    .await;
                if let Some(spent) = &spent {
                    self.probe(target, route, Bait::Spent, spent).await;
                }
            }
        }
    }

    async fn probe(&mut self, target: &str, route: &Route, bait: Bait, token: &str) {
        let seen = self.send(target, route, bait, token).await;
        let what = match bait {
            Bait::Bad => "a token that nobody signed",
            Bait::Spent => "a spent token",
        };
        let key = format!("canary {target} {} {bait:?}", route.name);
        let rounds = self.unclear.entry(key.clone()).or_default();
        let (result, alarm) = match seen {
            Seen::Refused => {
                *rounds = 0;
                ("refused", None)
            }
            Seen::Passed => {
                *rounds = 0;
                let text = format!(
                    "CANARY: {what} passed at {target} on the route `{}`: nothing guards it",
                    route.name
                );
                ("passed", Some(text))
            }
            Seen::Unclear => {
                *rounds = rounds.saturating_add(1);
                let text = format!(
                    "CANARY: no clear answer at {target} on the route `{}`, {rounds} times: nobody knows whether it is guarded",
                    route.name
                );
                ("unclear", (*rounds >= UNCLEAR_MAX).then_some(text))
            }
        };
        self.core.metrics.probed(result);
        self.tell(&key, (target, &route.name, result), seen, alarm)
            .await;
    }

    /// Raises an alarm that is new, ends one that is over; both are entries.
    async fn tell(
        &self,
        key: &str,
        (target, route, result): (&str, &str, &str),
        seen: Seen,
        alarm: Option<String>,
    ) {
        let event = match &alarm {
            Some(text) if self.core.warnings.raise(key, text) => {
                tracing::error!(target, route, "{text}");
                "alarm"
            }
            None if seen == Seen::Refused && self.core.warnings.lower(key) => {
                tracing::info!(target, route, "the canary is refused again");
                "over"
            }
            _ => return,
        };
        let body = serde_json::json!({
            "event": event, "target": target, "route": route, "result": result,
            "text": alarm.unwrap_or_default(),
        });
        let note = Command::Note {
            kind: "canary",
            body,
        };
        if let Err(error) = self.core.ledger.commit(note).await {
            tracing::error!(%error, "what the canary saw could not be recorded");
        }
    }

    async fn send(&self, target: &str, route: &Route, bait: Bait, token: &str) -> Seen {
        let mut answer = self.ask(target, route, token, None).await;
        if let Ok(first) = &answer
            && let Some(nonce) = asked_nonce(first.status(), first.headers())
        {
            answer = self.ask(target, route, token, Some(nonce)).await;
        }
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(target, route = route.name, %error, "the canary got no answer");
                return Seen::Unclear;
            }
        };
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_MAX {
                break;
            }
        }
        judge(answer.status(), &body, bait)
    }

    async fn ask(
        &self,
        target: &str,
        route: &Route,
        token: &str,
        nonce: Option<String>,
    ) -> reqwest::Result<reqwest::Response> {
        let path = path(route);
        let (origin, _) = self.site(route);
        let url = format!("{origin}{path}");
        let now_s = self.now_s();
        let proof = self.key.proof_with("GET", &url, Some(token), now_s, nonce);
        let authority = origin.split_once("://").map_or("", |(_, rest)| rest);
        self.http
            .get(format!("{}{path}", target.trim_end_matches('/')))
            .header(HOST, authority)
            .header(AUTHORIZATION, format!("DPoP {token}"))
            .header("dpop", proof)
            .header(USER_AGENT, "writ-canary")
            .send()
            .await
    }

    /// A token in good form whose signature is nobody's.
    async fn bad_token(&self, route: &Route) -> String {
        let good = self.mint(route, &random_id::<16>("")).await;
        let signed = good.as_deref().and_then(|token| token.rsplit_once('.'));
        let signed = signed.map_or("e30.e30", |(signed, _)| signed);
        format!("{signed}.{}", "A".repeat(86))
    }

    async fn mint(&self, route: &Route, jti: &str) -> Option<String> {
        let config = &self.core.config;
        let issued_s = self.now_s();
        let key = self.core.keys.active(issued_s);
        let key = key.inspect_err(|error| tracing::error!(%error, "the canary has no token"));
        let key = key.ok()?;
        let minted = key.mint(Mint {
            issuer: config.server.issuer.clone(),
            audience: self.site(route).1,
            subject: self.agent.clone(),
            id: jti.to_owned(),
            issued_s,
            expires_s: issued_s.saturating_add(crate::config::TOKEN_LIFETIME_MAX_S),
            claims: CapabilityClaims {
                act: None,
                sub_id: None,
                client_id: self.agent.clone(),
                txn: "canary".to_owned(),
                cnf: serde_json::json!({ "jkt": self.key.thumbprint() }),
                authorization_details: [element(&self.action(route))],
            },
        });
        minted
            .await
            .inspect_err(|error| tracing::error!(%error, "the canary has no token"))
            .ok()
    }

    /// The origin and the resource of a route. That a site of this name is there
    /// was checked when the config was read.
    fn site(&self, route: &Route) -> (String, String) {
        let found = self.core.config.edge.site_named(route.site.as_deref());
        found
            .map(|site| (site.origin, site.resource))
            .unwrap_or_default()
    }

    fn action(&self, route: &Route) -> ActionRecord {
        ActionRecord {
            kind: "http_request".to_owned(),
            method: "GET".to_owned(),
            location: format!("{}{}", self.site(route).0, path(route)),
            ..ActionRecord::default()
        }
    }

    /// A token that was issued and then spent, by a refusal: both are entries, and
    /// neither leaves this process before they are durable.
    async fn spent_token(&mut self, route: &Route) -> Option<String> {
        let now_s = self.now_s();
        if let Some(spent) = self.spent.get(&route.name)
            && now_s < spent.until_s
            // That would be refused for its key.
            && !keys::kid(&spent.token).is_some_and(|kid| self.core.keys.is_revoked(&kid))
        {
            return Some(spent.token.clone());
        }
        let jti = random_id::<16>("");
        let token = self.mint(route, &jti).await?;
        let expires_s = now_s.saturating_add(crate::config::TOKEN_LIFETIME_MAX_S);
        let token_hash = Sha256::digest(token.as_bytes()).into();
        let policy = PolicyFacts {
            version: self.core.policies.version().to_owned(),
            determining: Vec::new(),
        };
        let issue = Command::Issue {
            token: TokenRecord {
                token_hash,
                jti,
                agent: self.agent.clone(),
                user: None,
                chain: Vec::new(),
                jkt: self.key.thumbprint(),
                x5t: None,
                action: self.action(route),
                txn: "canary".to_owned(),
                issued_ms: 0,
                expires_ms: expires_s.saturating_mul(1000),
                lineage: Vec::new(),
                grant: None,
            },
            evidence_id: rand::random(),
            evidence_expires_ms: expires_s.saturating_mul(1000),
            also: Vec::new(),
            once: Vec::new(),
            proof: None,
            under: None,
            next: None,
            policy: policy.clone(),
            attachments: Vec::new(),
        };
        let spend = Command::Deny {
            token_hash,
            attempt: random_id::<16>("canary-"),
            reason: Reason::PolicyDenied.as_str().to_owned(),
            request: RequestFacts {
                method: "GET".to_owned(),
                path: path(route),
                request_id: "canary".to_owned(),
                ..RequestFacts::default()
            },
            policy,
            attachments: vec![Evidence::new("token", token.as_bytes())],
        };
        for command in [issue, spend] {
            if let Err(error) = self.core.ledger.commit(command).await {
                tracing::warn!(%error, "the canary has no spent token this time");
                return None;
            }
        }
        let until_s = expires_s.saturating_sub(SPARE_S);
        let spent = Spent {
            token: token.clone(),
            until_s,
        };
        self.spent.insert(route.name.clone(), spent);
        Some(token)
    }

    fn now_s(&self) -> u64 {
        self.core.now() / 1000
    }
}

fn path(route: &Route) -> String {
    format!("{}{PATH}", route.path_prefix.trim_end_matches('/'))
}

/// What an answer says. Whoever answers without the filter answers something else.
fn judge(status: StatusCode, body: &[u8], bait: Bait) -> Seen {
    let problem: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let reason = problem
        .as_ref()
        .and_then(|problem| problem.get("reason"))
        .and_then(serde_json::Value::as_str)
        .and_then(Reason::parse);
    match (status.as_u16(), reason) {
        (401, Some(Reason::TokenSpent | Reason::OutcomeUnknown)) => Seen::Refused,
        (401, Some(reason)) if bait == Bait::Bad && reason.as_str().starts_with("token_") => {
            Seen::Refused
        }
        // Shut, or a limit; and an answer by whoever is in front.
        (429 | 500..=599, _) => Seen::Unclear,
        // Refused for something else: guarded, though it proves less than it should.
        (status, Some(reason)) if status == reason.status() => Seen::Unclear,
        _ => Seen::Passed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_filters_own_refusal_is_one() {
        let problem = |reason: &str| format!(r#"{{"reason":"{reason}"}}"#).into_bytes();
        for (status, body, bait, seen) in [
            (401, problem("token_signature"), Bait::Bad, Seen::Refused),
            (401, problem("token_unknown"), Bait::Bad, Seen::Refused),
            (401, problem("token_spent"), Bait::Spent, Seen::Refused),
            (401, problem("outcome_unknown"), Bait::Spent, Seen::Refused),
            // Somebody checks signatures, and nobody what is spent.
            (401, problem("token_signature"), Bait::Spent, Seen::Unclear),
            (401, problem("proof_time"), Bait::Bad, Seen::Unclear),
            (
                503,
                problem("control_plane_unavailable"),
                Bait::Bad,
                Seen::Unclear,
            ),
            (500, Vec::new(), Bait::Bad, Seen::Unclear),
            (200, b"hello".to_vec(), Bait::Bad, Seen::Passed),
            (404, Vec::new(), Bait::Spent, Seen::Passed),
            // The upstream's own login is no filter.
            (401, b"who are you?".to_vec(), Bait::Bad, Seen::Passed),
            (401, problem("made_up"), Bait::Bad, Seen::Passed),
            (200, problem("token_spent"), Bait::Spent, Seen::Passed),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let text = String::from_utf8_lossy(&body).into_owned();
            assert_eq!(judge(status, &body, bait), seen, "{status} {text} {bait:?}");
        }
    }
}
