//! Rows that are lists of requests, each with one thing wrong: what comes of each
//! at the edge, in the log, at the token endpoint, and to the request after it.
//!
//! The form is that of `capability/tests/data/gates.json`, whose requests are
//! tried here under the ids in their names; `data/abc.json` has more, and a row
//! may make others. Besides what that file knows a request may have `"envoy"`, the
//! statuses with which Envoy itself refuses it, and `"raw"` for a whole token or
//! proof.

mod building;
mod settling;

use std::collections::BTreeMap;

use capability::gates::EdgeConfig;
use capability::url::Origin;
use capability::{Reason, sha256};
use serde_json::Value;

use super::check::holds;
use super::forge::{Forger, Key, at_this_time};
use super::stages::Stages;
use super::told::Told;
use crate::Error;
use crate::client::Answer;
use crate::raw::{Field, Http1, field};
use crate::stage::Stage;
use settling::well_formed;

/// What requests are about unless they say otherwise.
pub const PATH: &str = "/files/a.txt?v=1";
/// Headers over this are refused by Envoy itself; bytes.
const HEADERS_MAX: usize = 32 * 1024;
/// Faults that are told of one row.
const FAULTS: usize = 12;
const GATES: &str = include_str!("../../../capability/tests/data/gates.json");
const MORE: &str = include_str!("data/abc.json");
/// Requests that only a native test can make: with another clock, peer, or body.
const NATIVE: [&str; 6] = [
    "token_check",
    "require_peer",
    "peer",
    "now_ms",
    "body",
    "nonces",
];

/// Makes requests for a row, besides those of the files.
pub type More = fn(&Forger) -> Result<Vec<Value>, Error>;

/// The requests that the files have for this id.
pub fn listed(id: &str) -> Result<Vec<Value>, Error> {
    let mut found = Vec::new();
    for text in [GATES, MORE] {
        let rows: Vec<Value> = serde_json::from_str(text)
            .map_err(|problem| Error::Setup(format!("a file of requests: {problem}")))?;
        found.extend(rows.into_iter().filter(|row| {
            let name = row.get("name").and_then(Value::as_str).unwrap_or_default();
            let foreign = NATIVE.iter().any(|member| row.get(*member).is_some());
            !foreign && name.split(' ').any(|word| word == id)
        }));
    }
    Ok(found)
}

/// Tries all requests of a row.
///
/// # Errors
/// What was otherwise than it has to be, of the first few.
pub async fn all(stages: &mut Stages, id: &str, more: More) -> Result<String, Error> {
    let named = stages.named().await?;
    let mut rows = listed(id)?;
    rows.extend(more(&named.forger)?);
    holds(!rows.is_empty(), "there are no requests for it")?;
    let mut run = Run::begin(&named.stage, &named.forger).await?;
    for row in &rows {
        run.one(row).await?;
    }
    run.end().await
}

/// What has to come of a request.
pub enum Wanted {
    /// It reaches the upstream once.
    Passes,
    /// Every gate lets it through; the record says that nobody issued the token.
    NotIssued,
    /// A gate says no: an entry when both signatures are good, else a count.
    Refused {
        /// Which.
        reason: Reason,
        /// Whether both signatures are good.
        entry: bool,
    },
    /// Envoy itself refuses it with one of these.
    ByEnvoy(Vec<u64>),
}

/// A request as it is sent.
pub struct Built {
    method: String,
    path: Vec<u8>,
    headers: Vec<Field>,
    /// Sent as it is after the headers.
    body: Vec<u8>,
    token: String,
    /// Issued, so it can still be used rightly.
    issued: bool,
    key: Key,
    /// The path as Envoy hands it on, where it changes that.
    seen: Option<Vec<u8>>,
}

/// The requests of one row.
pub struct Run<'a> {
    stage: &'a Stage,
    forger: &'a Forger,
    config: EdgeConfig,
    connection: Http1,
    before: Told,
    counts: BTreeMap<&'static str, u64>,
    denials: Vec<(String, String)>,
    refused: Vec<(String, String)>,
    arrived: u64,
    faults: Vec<String>,
    tried: usize,
    passed: usize,
    at_endpoint: usize,
}

impl<'a> Run<'a> {
    /// Nothing has been tried yet.
    ///
    /// # Errors
    /// When the system can't be asked.
    pub async fn begin(stage: &'a Stage, forger: &'a Forger) -> Result<Run<'a>, Error> {
        let origin = Origin::parse(&forger.names.origin)
            .map_err(|problem| Error::Setup(problem.to_string()))?;
        let mut config = EdgeConfig::new(&forger.names.issuer, &forger.names.origin, origin);
        config.keys = vec![(forger.kid.clone(), forger.issuer.public()?)];
        Ok(Run {
            config,
            connection: stage.connect().await?,
            before: Told::read(stage)?,
            counts: BTreeMap::new(),
            denials: Vec::new(),
            refused: Vec::new(),
            arrived: stage.arrived()?,
            faults: Vec::new(),
            tried: 0,
            passed: 0,
            at_endpoint: 0,
            stage,
            forger,
        })
    }

    /// A refusal of somebody unknown that was judged elsewhere.
    pub fn counted(&mut self, reason: Reason) {
        self.tried += 1;
        *self.counts.entry(reason.as_str()).or_default() += 1;
    }

    /// Requests that passed and were judged elsewhere.
    pub fn arrived_elsewhere(&mut self, count: u64) {
        self.arrived = self.arrived.saturating_add(count);
    }

    fn fault(&mut self, name: &str, what: impl AsRef<str>) {
        self.faults.push(format!("{name}: {}", what.as_ref()));
    }

    /// Tries one request, and a good one after it on the same connection, which
    /// is the same worker.
    ///
    /// # Errors
    /// When the system can't be used any more.
    pub async fn one(&mut self, row: &Value) -> Result<(), Error> {
        let row = &at_this_time(row);
        let name = text(row, "name");
        let built = self.build(row).await?;
        let bytes = self.bytes(&built);
        let wanted = self.wanted(row, &built, &bytes)?;
        let answer = self.send(&built, &bytes).await?;
        self.tried += 1;
        self.judge(&name, &wanted, &answer, &built)?;
        let spent = matches!(wanted, Wanted::Passes);
        if built.issued && !spent {
            self.good(&name, &built.token, &built.key).await?;
        } else {
            let token = self.issue(&self.forger.agent).await?;
            self.good(&name, &token, &self.forger.agent).await?;
        }
        self.at_the_token_endpoint(row, &name).await
    }

    // ---- sending -----------------------------------------------------------------------

    /// Sends it; `None` when the connection was closed instead of an answer.
    ///
    /// # Errors
    /// When there is no connection to be had.
    pub async fn send(&mut self, built: &Built, bytes: &[u8]) -> Result<Option<Answer>, Error> {
        if bytes.len() > HEADERS_MAX {
            let connection = self.stage.connect().await?;
            return connection.exchange(bytes).await;
        }
        let bodiless = built.method == "HEAD";
        if self.connection.send(bytes).await.is_err() {
            self.connection = self.stage.connect().await?;
            self.connection.send(bytes).await?;
        }
        let answer = self.connection.answer_to(bodiless).await;
        let ends = |answer: &Answer| answer.header("connection") == Some("close");
        if !answer
            .as_ref()
            .is_ok_and(|it| it.as_ref().is_some_and(|it| !ends(it)))
        {
            self.connection = self.stage.connect().await?;
        }
        answer
    }

    /// Judges an answer, and remembers what the log must have of it.
    ///
    /// # Errors
    /// When the upstream can't be asked.
    pub fn judge(
        &mut self,
        name: &str,
        wanted: &Wanted,
        answer: &Option<Answer>,
        built: &Built,
    ) -> Result<(), Error> {
        let arrived = self.stage.arrived()?;
        let came = arrived.saturating_sub(self.arrived);
        self.arrived = arrived;
        let (status, reason) = answer
            .as_ref()
            .map_or((0, String::new()), |it| (it.status, it.reason()));
        let hash = hex::encode(sha256(built.token.as_bytes()));
        let got = format!("{status} {reason}, {came} at the upstream");
        let due = match wanted {
            Wanted::Passes => {
                self.passed += 1;
                came == 1 && [200, 404].contains(&status)
            }
            Wanted::NotIssued => {
                self.refused.push((hash, "token_unknown".to_owned()));
                came == 0 && status == 401 && reason == "token_unknown"
            }
            Wanted::Refused { reason: due, entry } => {
                if *entry {
                    self.denials.push((hash, due.as_str().to_owned()));
                } else {
                    *self.counts.entry(due.as_str()).or_default() += 1;
                }
                let told = built.method == "HEAD" || reason == due.as_str();
                let formed = answer.as_ref().is_some_and(|it| well_formed(it, *due));
                came == 0 && status == due.status() && told && formed
            }
            Wanted::ByEnvoy(statuses) => {
                came == 0 && reason.is_empty() && statuses.contains(&u64::from(status))
            }
        };
        if !due {
            self.fault(name, got);
        }
        Ok(())
    }

    /// A good request, which passes.
    ///
    /// # Errors
    /// When it can't be sent.
    pub async fn good(&mut self, name: &str, token: &str, key: &Key) -> Result<(), Error> {
        let proof = self.forger.proof(key, PATH, token, &Value::Null)?;
        let headers = [
            field("host", self.stage.agent.authority()),
            field("authorization", format!("DPoP {token}")),
            field("dpop", proof),
        ];
        let built = Built {
            method: "GET".to_owned(),
            path: PATH.into(),
            headers: headers.to_vec(),
            body: Vec::new(),
            token: token.to_owned(),
            issued: true,
            key: key.clone(),
            seen: None,
        };
        let answer = self.send(&built, &self.bytes(&built)).await?;
        let name = format!("{name}, the good request after it");
        self.judge(&name, &Wanted::Passes, &answer, &built)?;
        self.passed = self.passed.saturating_sub(1);
        Ok(())
    }

    /// A change to a proof that has nothing to do with where it is shown has the
    /// same verdict at the token endpoint.
    async fn at_the_token_endpoint(&mut self, row: &Value, name: &str) -> Result<(), Error> {
        let Some(changes) = row.get("proof") else {
            return Ok(());
        };
        let about_place = ["htm", "htu", "ath", "iat"].iter().any(|claim| {
            let said = changes.pointer(&format!("/claims/{claim}"));
            said.is_some_and(|it| !it.is_null() || *claim == "ath")
        });
        // The claim that is there twice at the edge would be there once.
        let about_place = about_place || changes.to_string().contains("ath\\");
        let elsewhere = ["request", "token", "envoy"]
            .iter()
            .any(|it| row.get(*it).is_some());
        let expect = text(row, "expect");
        let own = ["proof_key_mismatch", "native"].contains(&expect.as_str());
        if about_place || elsewhere || own || changes.get("raw").is_some() {
            return Ok(());
        }
        let key = match changes.get("key").and_then(Value::as_str) {
            Some("ed25519") => Key::ed25519("agent"),
            Some(other) => Key::p256(other)?,
            None => self.forger.agent.clone(),
        };
        let answer = self
            .exchange(&self.forger.exchange_proof(&key, changes)?)
            .await?;
        self.at_endpoint += 1;
        let wanted = if expect == "ok" {
            (200, "")
        } else {
            (400, expect.as_str())
        };
        if (answer.status, answer.reason().as_str()) != wanted {
            self.fault(name, format!("at the token endpoint {}", answer.summary()));
        }
        Ok(())
    }
}

fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    let found = value.get(name).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

fn text(value: &Value, name: &str) -> String {
    text_or(value, name, "")
}

fn text_or(value: &Value, name: &str, otherwise: &str) -> String {
    let found = value.get(name).and_then(Value::as_str);
    found.unwrap_or(otherwise).to_owned()
}

/// No requests besides those of the files.
pub fn none(_forger: &Forger) -> Result<Vec<Value>, Error> {
    Ok(Vec::new())
}
