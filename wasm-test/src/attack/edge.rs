//! What rows about the edge share: one request over HTTP/1 or HTTP/2 that
//! nothing repairs, what became of it, and what the log has of it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::check::{holds, same};
use crate::Error;
use crate::client::Answer;
use crate::raw::{Field, Http1, Http2, field, message_of};
use crate::stage::{Stage, eventually, jti, text_at};
use crate::upstream::{REPORT, Reading, Record};

/// How a request is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// Both of them.
pub const BOTH: [Over; 2] = [Over::Http1, Over::Http2];

/// One request, whatever is wrong with it.
#[derive(Clone, Debug)]
pub struct Shot {
    /// `HOST:PORT` to connect to.
    pub to: String,
    /// Method.
    pub method: Vec<u8>,
    /// What stands in the request line, or `:path`.
    pub target: Vec<u8>,
    /// `host`, or `:authority`; none of them when it is empty.
    pub authority: Vec<Vec<u8>>,
    /// The other headers.
    pub headers: Vec<Field>,
    /// A body, whose length is said.
    pub body: Vec<u8>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The status; 0 when the stream or connection ended without one.
    pub status: u16,
    /// The reason of a refusal of ours; empty for one of Envoy's own.
    pub reason: String,
}

/// What should come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The action that the token names, and a 200.
    Served,
    /// A refusal of ours: status and reason.
    No(u16, &'static str),
    /// A refusal of Envoy's own with this status; 0 for a stream or connection
    /// that ends without one.
    Envoy(u16),
}

impl Shot {
    /// `GET` of a target at the stage's own address and authority.
    pub fn get(stage: &Stage, target: impl Into<Vec<u8>>) -> Shot {
        Shot {
            to: stage.address(),
            method: b"GET".to_vec(),
            target: target.into(),
            authority: vec![stage.agent.authority().as_bytes().to_vec()],
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// With both credentials: a token, and a proof for this method and path.
    #[must_use]
    pub fn with(mut self, stage: &Stage, proof_for: (&str, &str), token: &str) -> Shot {
        let (method, path) = proof_for;
        self.headers.extend(stage.credentials(method, path, token));
        self
    }

    /// To another address.
    #[must_use]
    pub fn to(mut self, address: String) -> Shot {
        self.to = address;
        self
    }

    /// With one more header.
    #[must_use]
    pub fn and(mut self, name: &str, value: impl Into<Vec<u8>>) -> Shot {
        self.headers.push(field(name, value));
        self
    }

    /// Sends it and says what came back.
    ///
    /// # Errors
    /// When nobody listens, or nothing comes back in time.
    pub async fn fire(&self, over: Over) -> Result<Seen, Error> {
        match over {
            Over::Http1 => Ok(self
                .http1()
                .await?
                .map_or_else(Seen::closed, |answer| Seen::of(&answer))),
            Over::Http2 => self.http2().await,
        }
    }

    /// Over HTTP/1, with the whole answer; none when the connection ended.
    ///
    /// # Errors
    /// As [`Shot::fire`].
    pub async fn http1(&self) -> Result<Option<Answer>, Error> {
        let mut headers: Vec<Field> = Vec::new();
        for host in &self.authority {
            headers.push(field("host", host.as_slice()));
        }
        headers.extend(self.headers.iter().cloned());
        if !self.body.is_empty() {
            headers.push(field("content-length", self.body.len().to_string()));
        }
        let mut bytes = message_of(&self.method, &self.target, &headers);
        bytes.extend_from_slice(&self.body);
        let mut connection = Http1::connect(&self.to).await?;
        // Who refuses a request may stop reading it.
        drop(connection.send(&bytes).await);
        connection.answer().await
    }

    async fn http2(&self) -> Result<Seen, Error> {
        let mut fields: Vec<(&str, &[u8])> = vec![(":method", &self.method), (":scheme", b"http")];
        for authority in &self.authority {
            fields.push((":authority", authority));
        }
        fields.push((":path", &self.target));
        for (name, value) in &self.headers {
            fields.push((name, value));
        }
        let mut connection = Http2::connect(&self.to).await?;
        let (id, mut bytes) = if self.body.is_empty() {
            connection.request(&fields)
        } else {
            connection.open(&fields)
        };
        if !self.body.is_empty() {
            bytes.extend(Http2::data(id, &self.body, true));
        }
        drop(connection.send(&bytes).await);
        let answers = connection.answers(&[id]).await?;
        Ok(answers.get(&id).map_or_else(Seen::closed, |stream| Seen {
            status: stream.status,
            reason: stream.reason(),
        }))
    }
}

impl Seen {
    fn closed() -> Seen {
        Seen {
            status: 0,
            reason: String::new(),
        }
    }

    /// Of an answer over HTTP/1.
    pub fn of(answer: &Answer) -> Seen {
        Seen {
            status: answer.status,
            reason: answer.reason(),
        }
    }

    /// Refused by somebody, and not for want of anything.
    pub fn is_refusal(&self) -> bool {
        self.status == 0 || (400..500).contains(&self.status) || self.status == 501
    }
}

/// What was expected is what came.
///
/// # Errors
/// When it is not.
pub fn wanted(what: &str, seen: &Seen, want: Want) -> Result<(), Error> {
    let (status, reason) = match want {
        Want::Served => (200, ""),
        Want::No(status, reason) => (status, reason),
        Want::Envoy(status) => (status, ""),
    };
    let is = seen.status == status && seen.reason == reason;
    holds(
        is,
        format!(
            "{what}: {} {:?} instead of {want:?}",
            seen.status, seen.reason
        ),
    )
}

/// What reached the upstream since a moment.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    arrived: u64,
    log: u64,
}

impl Mark {
    /// Now.
    ///
    /// # Errors
    /// When the upstream is another system's.
    pub fn now(stage: &Stage) -> Result<Mark, Error> {
        let upstream = stage.system.upstream()?;
        Ok(Mark {
            arrived: upstream.arrived(),
            log: upstream.mark(),
        })
    }

    /// How many requests have arrived since.
    ///
    /// # Errors
    /// As [`Mark::now`].
    pub fn arrived(self, stage: &Stage) -> Result<u64, Error> {
        Ok(stage.arrived()?.saturating_sub(self.arrived))
    }

    /// What of them is over.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn records(self, stage: &Stage) -> Result<Vec<Record>, Error> {
        stage.system.upstream()?.records_since(self.log)
    }

    /// Nothing has reached the upstream.
    ///
    /// # Errors
    /// When anything has.
    pub fn nothing(self, what: &str, stage: &Stage) -> Result<(), Error> {
        let arrived = self.arrived(stage)?;
        holds(
            arrived == 0,
            format!("{what}: {arrived} requests reached the upstream"),
        )
    }

    /// One request has reached the upstream: these bytes, and whoever reads them
    /// takes them for this action.
    ///
    /// # Errors
    /// When it is another, or not one.
    pub fn exactly(
        self,
        what: &str,
        stage: &Stage,
        method: &str,
        path: &str,
    ) -> Result<Record, Error> {
        same(
            &format!("{what}: reached the upstream"),
            self.arrived(stage)?,
            1,
        )?;
        let records = self.records(stage)?;
        let [record] = records.as_slice() else {
            return Err(Error::Unexpected(format!("{what}: {records:?}")));
        };
        reads_as(what, record, method, path)?;
        let hosts = record.headers.iter().filter(|(name, _)| name == "host");
        let hosts: Vec<&str> = hosts.map(|(_, host)| host.as_str()).collect();
        same(what, hosts, vec![stage.agent.authority()])?;
        Ok(record.clone())
    }
}

/// These bytes are this action, whichever upstream reads them, and they carry no
/// credentials.
///
/// # Errors
/// When they are another.
pub fn reads_as(what: &str, record: &Record, method: &str, path: &str) -> Result<(), Error> {
    let line = format!("{method} {path} HTTP/1.1");
    same(
        &format!("{what}: the upstream's bytes"),
        record.line.as_str(),
        &line,
    )?;
    for reading in Reading::ALL {
        let read = reading.action(record);
        let same_action = read == (method.to_owned(), path.to_owned());
        holds(
            same_action,
            format!("{what}: {reading:?} upstreams take it for {read:?}"),
        )?;
    }
    for credential in ["authorization", "dpop"] {
        let sent = record.header(credential).is_some();
        holds(!sent, format!("{what}: the upstream has {credential}"))?;
    }
    Ok(())
}

/// What the log should have of a row when it is over.
#[derive(Debug, Default)]
pub struct Audit {
    /// Refusals of somebody known, by token and reason.
    entries: BTreeMap<(String, &'static str), usize>,
    /// Refusals of somebody unknown, by reason.
    counts: BTreeMap<&'static str, u64>,
    before: BTreeMap<String, u64>,
}

impl Audit {
    /// What the log has is counted from here.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn begin(stage: &Stage) -> Result<Audit, Error> {
        Ok(Audit {
            before: counted(&stage.entries()?),
            ..Audit::default()
        })
    }

    /// A caller whose signatures are right was refused.
    pub fn entry(&mut self, token: &str, reason: &'static str) {
        *self.entries.entry((jti(token), reason)).or_default() += 1;
    }

    /// Somebody unknown was refused.
    pub fn count(&mut self, reason: &'static str) {
        *self.counts.entry(reason).or_default() += 1;
    }

    /// Takes what is wanted of one request.
    pub fn note(&mut self, want: Want, token: &str) {
        match want {
            Want::No(_, reason @ ("action_mismatch" | "body_mismatch")) => {
                self.entry(token, reason)
            }
            Want::No(_, reason) => self.count(reason),
            Want::Served | Want::Envoy(_) => {}
        }
    }

    /// Waits until the log has all of it: in words, how much that is.
    ///
    /// # Errors
    /// When it hasn't in time.
    pub async fn settled(self, stage: &Stage) -> Result<String, Error> {
        eventually("the refusals are in the log", async || {
            let entries = stage.entries().unwrap_or_default();
            let counts = counted(&entries);
            let counted = self.counts.iter().all(|(reason, wanted)| {
                let before = self.before.get(*reason).copied().unwrap_or(0);
                let now = counts.get(*reason).copied().unwrap_or(0);
                now.saturating_sub(before) >= *wanted
            });
            counted
                && self.entries.iter().all(|((jti, reason), wanted)| {
                    let is = |entry: &&Value| {
                        text_at(entry, "/kind") == "edge_denial"
                            && text_at(entry, "/body/jti") == *jti
                            && text_at(entry, "/body/reason") == *reason
                    };
                    entries.iter().filter(is).count() == *wanted
                })
        })
        .await?;
        let entries: usize = self.entries.values().sum();
        let counts: u64 = self.counts.values().sum();
        Ok(format!("{entries} entries and {counts} counts in the log"))
    }
}

/// Refusals counted in the log, by reason.
fn counted(entries: &[Value]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for entry in entries
        .iter()
        .filter(|it| text_at(it, "/kind") == "edge_counts")
    {
        let of = entry.pointer("/body/counts").and_then(Value::as_object);
        for (reason, count) in of.into_iter().flatten() {
            *counts.entry(reason.clone()).or_default() += count.as_u64().unwrap_or(0);
        }
    }
    counts
}

/// Each worker serves the next good requests, over both protocols, without a
/// second try.
///
/// # Errors
/// When one is not served.
pub async fn next_good(stage: &Stage) -> Result<(), Error> {
    for over in [Over::Http1, Over::Http2, Over::Http1, Over::Http2] {
        let token = stage.agent.token("GET", REPORT).await?;
        let mark = Mark::now(stage)?;
        let shot = Shot::get(stage, REPORT).with(stage, ("GET", REPORT), &token);
        wanted(
            "the next good request",
            &shot.fire(over).await?,
            Want::Served,
        )?;
        mark.exactly("the next good request", stage, "GET", REPORT)?;
    }
    stage.each_once()
}

/// A moment in which what must not happen could happen.
pub async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}
