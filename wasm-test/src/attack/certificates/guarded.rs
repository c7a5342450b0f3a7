//! A system whose proxy demands client certificates, as those see it who have
//! its authority's key and its issuer's.

use base64ct::{Base64UrlUnpadded, Encoding as _};
use serde_json::{Value, json};

use super::super::check::{holds, refused, same};
use super::super::forge::Forger;
use crate::Error;
use crate::certificates::{Authority, Certified};
use crate::client::{Agent, Answer};
use crate::stage::{Stage, eventually, jti, text_at};
use crate::system::{AGENT, Options, System, until};
use crate::upstream::REPORT;

/// It, and what the agent shows.
pub struct Guarded {
    /// The system. Its agent shows [`Guarded::own`].
    pub stage: Stage,
    /// The trust domain's authority.
    pub authority: Authority,
    /// An X.509-SVID of the agent's.
    pub own: Certified,
}

impl Guarded {
    /// Starts it.
    ///
    /// # Errors
    /// When it can't be started, or good requests don't pass.
    pub async fn start(options: Options) -> Result<Guarded, Error> {
        let policy = crate::tools::root().join("wasm-test/tests/e2e_edge/policy.cedar");
        let options = Options {
            client_certificates: true,
            policy: Some(policy),
            ..options
        };
        let system = System::for_test(options).await?;
        let (agent, authority) = (system.agent().await?, system.authority()?);
        let mut guarded = Guarded {
            own: authority.svid(AGENT)?,
            stage: Stage { system, agent },
            authority,
        };
        guarded.renew()?;
        guarded.recovers().await?;
        Ok(guarded)
    }

    /// A new certificate of the authority that the system has now, and connections
    /// of its own.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn renew(&mut self) -> Result<(), Error> {
        self.authority = self.stage.system.authority()?;
        self.own = self.authority.svid(AGENT)?;
        self.stage.agent = self.showing(Some(&self.own))?;
        Ok(())
    }

    /// The agent with a certificate, or none, on connections of its own.
    ///
    /// # Errors
    /// When the certificate can't be used.
    pub fn showing(&self, certificate: Option<&Certified>) -> Result<Agent, Error> {
        let client = self.authority.client(certificate)?;
        Ok(self.stage.agent.clone().with_client(client))
    }

    /// The agent with a certificate at the token endpoint for certificates.
    ///
    /// # Errors
    /// As [`Guarded::showing`].
    pub fn bound(&self, certificate: &Certified) -> Result<Agent, Error> {
        let agent = self.showing(Some(certificate))?;
        Ok(agent.with_token_endpoint(&self.stage.system.mtls_url()))
    }

    /// Waits until good requests pass on every worker.
    ///
    /// # Errors
    /// When they don't.
    pub async fn recovers(&self) -> Result<(), Error> {
        const IN_A_ROW: usize = 6;
        self.stage.system.configured().await?;
        let passed = std::cell::Cell::new(0);
        until("good requests pass with a certificate", || async {
            let agent = self.showing(Some(&self.own));
            let passes = match &agent {
                Ok(agent) => agent
                    .call("GET", REPORT)
                    .await
                    .is_ok_and(|it| it.status == 200),
                Err(_) => false,
            };
            passed.set(if passes { passed.get() + 1 } else { 0 });
            passed.get() >= IN_A_ROW
        })
        .await
    }

    /// The next good request passes and reaches the upstream once.
    ///
    /// # Errors
    /// When it doesn't.
    pub async fn good_request(&self) -> Result<(), Error> {
        let token = self.stage.agent.token("GET", REPORT).await?;
        let answer = self.stage.agent.present("GET", REPORT, &token).await?;
        answer.expect("the next good request", 200)?;
        let uses = self.stage.uses()?.get(&jti(&token)).copied();
        same("uses of the next good request", uses, Some(1))
    }

    /// A certificate gets nobody past the handshake, and Envoy counts that.
    ///
    /// # Errors
    /// When it gets an answer, or the upstream a request.
    pub async fn ends_at_the_handshake(
        &self,
        what: &str,
        certificate: Option<&Certified>,
    ) -> Result<(), Error> {
        let token = self.stage.agent.token("GET", REPORT).await?;
        let (before, failures) = (self.stage.arrived()?, self.failed_handshakes().await?);
        let stranger = self.showing(certificate)?;
        let answer = stranger.present("GET", REPORT, &token).await;
        let answer = answer.map(|answer| answer.summary());
        holds(answer.is_err(), format!("{what} gets in: {answer:?}"))?;
        let counted = async || {
            let now = self.failed_handshakes().await;
            now.is_ok_and(|now| now > failures)
        };
        eventually(&format!("Envoy counts a failed handshake: {what}"), counted).await?;
        same("requests at the upstream", self.stage.arrived()?, before)?;
        // Nothing was spent.
        let answer = self.stage.agent.present("GET", REPORT, &token).await?;
        answer.expect(&format!("the same token after {what}"), 200)?;
        Ok(())
    }

    /// A certificate gets past the handshake and no further: a token is refused
    /// for it, with an entry, and is not spent.
    ///
    /// # Errors
    /// When it is anything else.
    pub async fn ends_at_the_filter(
        &self,
        what: &str,
        certificate: &Certified,
    ) -> Result<(), Error> {
        let token = self.stage.agent.token("GET", REPORT).await?;
        let before = self.stage.arrived()?;
        let stranger = self.showing(Some(certificate))?;
        let answer = stranger.present("GET", REPORT, &token).await?;
        refused(&answer, 401, "certificate_mismatch")
            .map_err(|problem| Error::Unexpected(format!("{what}: {problem}")))?;
        self.is_challenge(&answer)?;
        same("requests at the upstream", self.stage.arrived()?, before)?;
        self.has_entry(&token, "certificate_mismatch").await?;
        let answer = self.stage.agent.present("GET", REPORT, &token).await?;
        answer.expect(&format!("the same token after {what}"), 200)?;
        Ok(())
    }

    /// RFC 8705, section 3: `invalid_token`.
    fn is_challenge(&self, answer: &Answer) -> Result<(), Error> {
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        let is = challenge.starts_with("DPoP error=\"invalid_token\"");
        holds(is, format!("the challenge is {challenge}"))
    }

    /// The log has a refusal of this token for this reason.
    ///
    /// # Errors
    /// When it doesn't come.
    pub async fn has_entry(&self, token: &str, reason: &str) -> Result<(), Error> {
        let jti = jti(token);
        let is_it = |entry: &Value| {
            text_at(entry, "/kind") == "edge_denial"
                && entry.to_string().contains(&jti)
                && entry.to_string().contains(reason)
        };
        let entry = self.stage.entry(reason, is_it).await?;
        holds(
            entry.to_string().contains(AGENT),
            format!("the entry names another agent: {entry}"),
        )
    }

    async fn failed_handshakes(&self) -> Result<u64, Error> {
        let admin = self.stage.system.admin_urls().into_iter().next();
        let admin = admin.unwrap_or_default();
        let url = format!("{admin}/stats?filter=listener.*ssl.(fail_verify|connection_error)");
        let text = async {
            let client = crate::client::http_client();
            client.get(&url).send().await?.text().await
        };
        let text = text.await.map_err(Error::http(&url))?;
        let values = text.lines().filter_map(|line| line.rsplit_once(": "));
        Ok(values
            .filter_map(|(_, value)| value.parse::<u64>().ok())
            .sum())
    }

    /// A token of this system, good but for what is changed in its claims, and a
    /// `jti` of its own: it has been sealed with the issuer's key and never issued.
    ///
    /// # Errors
    /// When the key or a good token can't be had.
    pub async fn forged(
        stage: &Stage,
        agent: &Agent,
        change: impl FnOnce(&mut Value),
    ) -> Result<String, Error> {
        let token = agent.token("GET", REPORT).await?;
        let bad = || Error::Unexpected("a token that can't be read".to_owned());
        let mut parts = token.split('.');
        let (Some(header), Some(claims)) = (parts.next(), parts.next()) else {
            return Err(bad());
        };
        let claims = Base64UrlUnpadded::decode_vec(claims).map_err(|_| bad())?;
        let mut claims: Value = serde_json::from_slice(&claims).map_err(|_| bad())?;
        if let Some(claims) = claims.as_object_mut() {
            claims.insert("jti".to_owned(), json!(format!("forged {}", jti(&token))));
        }
        change(&mut claims);
        let header = Base64UrlUnpadded::decode_vec(header).map_err(|_| bad())?;
        let issuer = Forger::active(&stage.system)?.issuer;
        Ok(issuer.seal(&header, claims.to_string().as_bytes()))
    }
}

/// Claims bound to a certificate with this `x5t#S256`.
pub fn bound_to(x5t: &str) -> impl FnOnce(&mut Value) {
    let x5t = json!(x5t);
    move |claims| {
        if let Some(cnf) = claims.pointer_mut("/cnf").and_then(Value::as_object_mut) {
            cnf.insert("x5t#S256".to_owned(), x5t);
        }
    }
}
