//! What the rooms of the control plane share.

use crate::config::Config;
use crate::decide::DecisionKey;
use crate::edges::Edges;
use crate::fleet::Fleet;
use crate::keys::KeyRing;
use crate::metrics::Metrics;
use crate::nonces::EdgeNonces;
use crate::refusals::Refusals;
use crate::seen::Seen;
use crate::warnings::Warnings;
use capability::action::Action;
use capability::rpc::{Call, Protocol};
use identity::oidc::SKEW_MS;
use ledger::model::{ActionRecord, Given, Hash, TokenRecord};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Reads a clock: milliseconds since the Unix epoch. Only the outermost shell
/// passes the system's own.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| u64::try_from(since.as_millis()).ok())
            .unwrap_or(0)
    })
}

/// The parts that decisions rest on.
pub struct Core {
    /// The config as it was read.
    pub config: Config,
    /// What of it proxies have.
    pub edges: Edges,
    /// The one commit point.
    pub ledger: ledger::Ledger,
    /// Policy.
    pub policies: policy::Policies,
    /// The keys that sign capability tokens.
    pub keys: KeyRing,
    /// The key that signs what upstreams are shown.
    pub decision_key: DecisionKey,
    /// The nonces of routes that ask for one.
    pub edge_nonces: EdgeNonces,
    /// Who the evidence says it is.
    pub identity: identity::Source,
    /// Whose SVIDs count.
    pub federation: identity::federation::Federation,
    /// Who else may say it.
    pub issuers: crate::exchange::Issuers,
    /// Clients that are no workloads.
    pub clients: crate::clients::Clients,
    /// Refusals that are counted instead of written.
    pub refusals: Refusals,
    /// When agents were last seen.
    pub seen: Seen,
    /// Bodies that humans are asked about.
    pub bodies: crate::approval::Bodies,
    /// What filters do under the modules that they run.
    pub fleet: Fleet,
    /// What is counted.
    pub metrics: Metrics,
    /// What people have to be told.
    pub warnings: Warnings,
    /// Now.
    pub clock: Clock,
    /// When this process started, in ms: evidence of replay from before is gone.
    pub started_ms: u64,
    /// The journal was begun by this start: there was nobody to use anything.
    pub is_first: bool,
    /// What was made from then on, in ms, nobody can have used before this start, or there
    /// is a record of it. A client's clock may be ahead of ours.
    pub once_from_ms: u64,
}

/// Whether an agent may act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Registered and active.
    Active,
    /// Registered, but not active, or suspended since a restore.
    Inactive,
    /// Not in the registry.
    Unknown,
}

/// When the control plane started.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// With a ledger in files by its time, as all that is judged by it: a clock that was set
    /// back while nothing ran has not made anything unused again. ms.
    pub ms: u64,
    /// The first second that is no other process's, in ms.
    pub second_ms: u64,
    /// The first moment, in ms, of which this process knows what was used.
    pub once_from_ms: u64,
}

impl Start {
    /// A start at this time of the clock, with a ledger that stands at that; `begun`: it was
    /// made just now, and `in_files`: it begins each start without the record of what was
    /// used.
    #[must_use]
    pub fn at(clock_ms: u64, ledger_ms: u64, begun: bool, in_files: bool) -> Self {
        // A database knows what was used, whatever the clock says.
        let ms = match in_files {
            true => clock_ms.max(ledger_ms),
            false => clock_ms,
        };
        // With a ledger that was just made there was nobody to use anything.
        let second_s = match begun {
            true => ms / 1000,
            false => ms.div_ceil(1000),
        };
        let second_ms = second_s.saturating_mul(1000);
        let once_from_ms = match begun || !in_files {
            true => second_ms,
            // What was used may be of a clock ahead.
            false => ms.saturating_add(SKEW_MS),
        };
        Self {
            ms,
            second_ms,
            once_from_ms,
        }
    }
}

impl Core {
    /// Now, in ms: the ledger's time where the clock has stepped back, so that
    /// nothing that ended comes back.
    #[must_use]
    pub fn now(&self) -> u64 {
        (self.clock)().max(self.ledger.now())
    }

    /// The first moment, in ms, of which an assertion that counts once can be told to be
    /// unused: an epoch begins without the record of those that were used.
    #[must_use]
    pub fn once_from_ms(&self) -> u64 {
        self.remembers_from_ms().max(self.once_from_ms)
    }

    /// This agent has authenticated just now, whatever comes of it.
    pub fn saw(&self, agent: &str) {
        self.seen.saw(agent, self.now(), || self.ledger.rights());
    }

    /// The first second whose proofs are remembered when they are used: by this process, and
    /// by the ledger, which forgets them all when an epoch begins. By a proof's own clock,
    /// and by ours.
    #[must_use]
    pub fn proofs_from_s(&self) -> (u64, u64) {
        let began_ms = self.ledger.epoch_since().unwrap_or_default();
        let ours_ms = match self.is_first {
            true => self.once_from_ms,
            false => self.started_ms,
        };
        let ours_s = ours_ms.max(began_ms).div_ceil(1000);
        (self.once_from_ms().div_ceil(1000), ours_s)
    }

    /// Since when the ledger remembers what was used: an epoch begins without that record,
    /// and what was used before may say that it was made later, by a clock ahead of ours.
    fn remembers_from_ms(&self) -> u64 {
        let began_ms = self.ledger.epoch_since().unwrap_or_default();
        match self.ledger.epoch() {
            // There was none before it.
            0 | 1 => began_ms,
            _ => began_ms.saturating_add(SKEW_MS),
        }
    }

    /// What the registry says of this agent.
    #[must_use]
    pub fn standing(&self, agent: &str) -> Standing {
        let suspended = self.ledger.suspended().is_some();
        match self.ledger.rights().agent(agent) {
            Some(known) if known.is_active(self.now()) && !suspended => Standing::Active,
            Some(_) => Standing::Inactive,
            None => Standing::Unknown,
        }
    }

    /// Whether this agent may do anything: it is active, and nobody has stopped it.
    #[must_use]
    pub fn may_act(&self, agent: &str) -> bool {
        let now = self.now();
        let bar = || self.ledger.rights().bar(&Given::to(agent, now), now);
        self.standing(agent) == Standing::Active && bar().is_none()
    }

    /// SHA-256 of what an approval covers: design's action digest. The body is
    /// there where bodies are read, as SHA-256 of its bytes.
    #[must_use]
    pub fn action_digest(
        token: &TokenRecord,
        content_type: &str,
        content_encoding: &str,
        body: Option<&[u8]>,
    ) -> Hash {
        let body = body.map(capability::b64::encode);
        capability::action::digest(&capability::action::DigestInput {
            agent: &token.agent,
            user: token
                .user
                .as_ref()
                .map(|user| (user.issuer.as_str(), user.subject.as_str())),
            chain: &token.chain,
            element: &element(&token.action),
            content_type: Some(content_type).filter(|text| !text.is_empty()),
            content_encoding: Some(content_encoding).filter(|text| !text.is_empty()),
            body_digest: body.as_deref(),
        })
    }
}

/// The `authorization_details` element of an action.
#[must_use]
pub fn element(action: &ActionRecord) -> serde_json::Value {
    let mut element = serde_json::json!({ "type": action.kind, "actions": [action.method], "locations": [action.location] });
    let more = [
        ("content_digest", &action.content_digest),
        ("name", &action.name),
        ("arguments_digest", &action.arguments_digest),
        ("skill", &action.skill),
    ];
    if let Some(members) = element.as_object_mut() {
        for (name, value) in more {
            if let Some(value) = value {
                members.insert(name.to_owned(), value.as_str().into());
            }
        }
    }
    element
}

/// An action as the log and a token's record have it.
#[must_use]
pub fn record(action: &Action) -> ActionRecord {
    let digest = |digest: Option<[u8; 32]>| digest.map(|it| capability::b64::encode(&it));
    let call = action.call();
    let named = |protocol: Protocol| {
        let call = call.filter(|it| it.protocol() == protocol);
        call.and_then(Call::name).map(str::to_owned)
    };
    ActionRecord {
        kind: action.kind().to_owned(),
        method: call.map_or(action.method(), Call::method).to_owned(),
        location: action.location(),
        content_digest: digest(action.content_digest()),
        name: named(Protocol::Mcp),
        arguments_digest: digest(call.and_then(Call::arguments_digest)),
        skill: named(Protocol::A2a),
    }
}

/// What policy is asked about an action: the HTTP method, and the message that it is.
#[must_use]
pub fn asked(action: &ActionRecord) -> (&str, Option<policy::Message<'_>>) {
    let protocol = match action.kind.as_str() {
        "mcp_request" => policy::Protocol::Mcp,
        "a2a_request" => policy::Protocol::A2a,
        _ => return (&action.method, None),
    };
    let message = policy::Message {
        protocol,
        method: &action.method,
        name: action.name.as_deref().or(action.skill.as_deref()),
        arguments_digest: action.arguments_digest.as_deref(),
    };
    ("POST", Some(message))
}

/// The parts of a normalised absolute URL that policy sees: origin, path, query.
#[must_use]
pub fn split_location(location: &str) -> (&str, &str, &str) {
    let after_scheme = location.find("://").map_or(0, |at| at + 3);
    let path_at = location
        .get(after_scheme..)
        .and_then(|rest| rest.find('/'))
        .map_or(location.len(), |at| after_scheme + at);
    let (origin, rest) = location.split_at_checked(path_at).unwrap_or((location, ""));
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    (origin, path, query)
}

/// `N` random bytes, base64url, after `prefix`.
#[must_use]
pub fn random_id<const N: usize>(prefix: &str) -> String {
    use base64ct::{Base64UrlUnpadded, Encoding};
    let bytes: [u8; N] = rand::random();
    format!("{prefix}{}", Base64UrlUnpadded::encode_string(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_makes_nothing_unused() {
        // The clock, the ledger, whether it was made just now and is in files; the start,
        // and from when on it is known what was used.
        let table = [
            ((5_500, 0, true, true), (5_500, 5_000)),
            ((5_500, 0, true, false), (5_500, 5_000)),
            ((5_500, 4_000, false, false), (5_500, 6_000)),
            ((5_500, 4_000, false, true), (5_500, 5_500 + SKEW_MS)),
            ((5_500, 66_000, false, false), (5_500, 6_000)),
            ((5_500, 66_000, false, true), (66_000, 66_000 + SKEW_MS)),
        ];
        for ((clock, ledger, begun, in_files), wanted) in table {
            let start = Start::at(clock, ledger, begun, in_files);
            assert_eq!((start.ms, start.once_from_ms), wanted, "{clock} {ledger}");
        }
    }
}
