//! One proxy's ADS stream, state of the world: who asked for what, what was
//! answered, and when to say nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use envoy_types::pb::envoy::{
    config::core::v3::{Node, node::UserAgentVersionType},
    service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
};
use identity::SpiffeId;

use crate::{
    Kind, Nack, Observer, Resources, Snapshot,
    groups::{Labels, Snapshots},
    registry::{Full, ProxyKey, Registry, bounded},
};

/// Resources that a proxy may name of one kind.
const MAX_NAMES: usize = 64;
/// Responses of one kind that may wait for the proxy's word.
const MAX_OVERTAKEN: usize = 8;

/// Why a stream ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Full(#[from] Full),
    #[error("a request names more than 64 resources")]
    TooManyNames,
}

/// A stream's state. It does no I/O: requests and snapshots go in, responses
/// are in `outbox`.
pub(crate) struct Session {
    registry: Arc<Registry>,
    observer: Arc<dyn Observer>,
    peer: SpiffeId,
    key: Option<ProxyKey>,
    labels: Labels,
    snapshots: Arc<Snapshots>,
    subscriptions: BTreeMap<Kind, Subscription>,
    nonce: u64,
    pub(crate) outbox: VecDeque<DiscoveryResponse>,
}

struct Subscription {
    names: Vec<String>,
    sent: Arc<Resources>,
    nonce: String,
    /// Sent before, and not yet heard of; the oldest first.
    overtaken: VecDeque<(String, Arc<Resources>)>,
}

impl Subscription {
    fn of_nonce(&mut self, nonce: &str) -> Option<Arc<Resources>> {
        if nonce == self.nonce {
            self.overtaken.clear();
            return Some(Arc::clone(&self.sent));
        }
        let at = self.overtaken.iter().position(|(sent, _)| sent == nonce)?;
        self.overtaken
            .drain(..=at)
            .next_back()
            .map(|(_, sent)| sent)
    }
}

impl Session {
    pub(crate) fn new(
        registry: Arc<Registry>,
        observer: Arc<dyn Observer>,
        peer: SpiffeId,
        snapshots: Arc<Snapshots>,
    ) -> Self {
        Self {
            registry,
            observer,
            peer,
            key: None,
            labels: Labels::default(),
            snapshots,
            subscriptions: BTreeMap::new(),
            nonce: 0,
            outbox: VecDeque::new(),
        }
    }

    /// Takes a request: a subscription, an acknowledgement, a refusal, or
    /// something that is over.
    pub(crate) fn request(&mut self, request: DiscoveryRequest) -> Result<(), Fault> {
        if request.resource_names.len() > MAX_NAMES {
            return Err(Fault::TooManyNames);
        }
        let key = self.key(request.node.as_ref())?;
        let Some(kind) = Kind::of_type_url(&request.type_url) else {
            tracing::warn!(peer = %self.peer, type_url = ?bounded(&request.type_url), "a proxy asked for a type that is not served");
            return Ok(());
        };
        let Some(subscription) = self.subscriptions.get_mut(&kind) else {
            self.send(&key, kind, request.resource_names);
            return Ok(());
        };
        let is_latest = request.response_nonce == subscription.nonce;
        // A word on something older still says what the proxy works with.
        let Some(sent) = subscription.of_nonce(&request.response_nonce) else {
            return Ok(());
        };
        match request.error_detail {
            Some(error) => self.refused(
                &key,
                kind,
                &Nack {
                    version: sent.version().to_owned(),
                    error: bounded(&error.message),
                },
            ),
            None => {
                let news = self.taken(&key, kind, &sent);
                if news && kind == Kind::Filter {
                    self.retry_listeners(&key);
                }
            }
        }
        let wants_others = self
            .subscriptions
            .get(&kind)
            .is_some_and(|subscription| subscription.names != request.resource_names);
        if is_latest && wants_others {
            self.send(&key, kind, request.resource_names);
        }
        Ok(())
    }

    /// Takes a new configuration and sends what has changed, in order.
    pub(crate) fn update(&mut self, snapshots: Arc<Snapshots>) {
        self.snapshots = snapshots;
        let Some(key) = self.key.clone() else {
            return;
        };
        for kind in Kind::ALL {
            let Some(subscription) = self.subscriptions.get(&kind) else {
                continue;
            };
            let wanted = self.snapshot().resources(kind).version().to_owned();
            if subscription.sent.version() != wanted
                && !self.registry.has_refused(&key, kind, &wanted)
            {
                let names = subscription.names.clone();
                self.send(&key, kind, names);
            }
        }
    }

    fn key(&mut self, node: Option<&Node>) -> Result<ProxyKey, Full> {
        if let Some(key) = &self.key {
            return Ok(key.clone());
        }
        self.labels = node.map(Labels::of).unwrap_or_default();
        let key = (self.peer.clone(), self.labels.node.clone());
        let version = node.and_then(envoy_version);
        tracing::info!(peer = %key.0, node = ?key.1, envoy = version.as_ref().map(tracing::field::debug), "a proxy connected");
        self.registry
            .connected(&key, version.clone(), self.labels.clone())?;
        self.observer.connected(&key.0, &key.1);
        if let Some(version) = version {
            self.observer.runs(&key.0, &key.1, &version);
        }
        self.key = Some(key.clone());
        Ok(key)
    }

    /// What this proxy should have: its certificate and its labels say of which
    /// group it is. Before its first request it has neither asked nor got anything.
    fn snapshot(&self) -> &Arc<Snapshot> {
        self.snapshots.of(&self.peer, &self.labels)
    }

    fn send(&mut self, key: &ProxyKey, kind: Kind, names: Vec<String>) {
        let resources = self
            .registry
            .choose(key, kind, self.snapshot().resources(kind));
        self.send_these(key, kind, names, resources);
    }

    fn send_these(
        &mut self,
        key: &ProxyKey,
        kind: Kind,
        names: Vec<String>,
        resources: Arc<Resources>,
    ) {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        self.outbox.push_back(DiscoveryResponse {
            version_info: resources.version().to_owned(),
            resources: resources.select(kind, &names),
            type_url: kind.type_url(),
            nonce: nonce.clone(),
            ..Default::default()
        });
        tracing::debug!(peer = %key.0, node = ?key.1, kind = kind.as_str(), version = resources.version(), "sent");
        self.registry.sent(key, kind, &resources);
        let mut overtaken = VecDeque::new();
        if let Some(before) = self.subscriptions.remove(&kind) {
            overtaken = before.overtaken;
            overtaken.push_back((before.nonce, before.sent));
            if overtaken.len() > MAX_OVERTAKEN {
                overtaken.pop_front();
            }
        }
        self.subscriptions.insert(
            kind,
            Subscription {
                names,
                sent: resources,
                nonce,
                overtaken,
            },
        );
    }

    /// Envoy keeps a filter that it refused for the next listener, and refuses
    /// that one too. So a new good filter is worth one more attempt.
    fn retry_listeners(&mut self, key: &ProxyKey) {
        let wanted = Arc::clone(self.snapshot().resources(Kind::Listeners));
        if self.subscriptions.contains_key(&Kind::Listeners)
            && self
                .registry
                .has_refused(key, Kind::Listeners, wanted.version())
        {
            self.send_these(key, Kind::Listeners, Vec::new(), wanted);
        }
    }

    /// Notes an acknowledgement; whether it says something new.
    fn taken(&self, key: &ProxyKey, kind: Kind, sent: &Arc<Resources>) -> bool {
        let word = self.registry.acked(key, kind, sent);
        if word.tell {
            tracing::info!(peer = %key.0, node = ?key.1, kind = kind.as_str(), version = sent.version(), "ACK");
            self.observer.acked(&key.0, &key.1, kind, sent.version());
        }
        word.news
    }

    fn refused(&self, key: &ProxyKey, kind: Kind, nack: &Nack) {
        if self.registry.nacked(key, kind, nack).tell {
            tracing::error!(peer = %key.0, node = ?key.1, kind = kind.as_str(), version = nack.version, error = ?nack.error, "NACK: the proxy keeps what it had");
            self.observer.nacked(&key.0, &key.1, kind, nack);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            tracing::info!(peer = %key.0, node = ?key.1, "a proxy disconnected");
            self.registry.disconnected(key);
            self.observer.disconnected(&key.0, &key.1);
        }
    }
}

fn envoy_version(node: &Node) -> Option<String> {
    match node.user_agent_version_type.as_ref()? {
        UserAgentVersionType::UserAgentVersion(text) => Some(bounded(text)),
        UserAgentVersionType::UserAgentBuildVersion(build) => {
            let version = build.version.as_ref()?;
            Some(format!(
                "{}.{}.{}",
                version.major_number, version.minor_number, version.patch
            ))
        }
    }
}
