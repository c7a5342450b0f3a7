//! What each proxy has been sent, has taken and has refused.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use identity::SpiffeId;

use crate::{
    Kind, Resources,
    groups::{Labels, Snapshots},
};

/// Proxies that are remembered, connected or not.
const MAX_PROXIES: usize = 1024;
/// The longest node id and error that are kept, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// Changes of one kind and version that an observer is told of, for each proxy.
/// A proxy may take, refuse and take again; more than this is noise.
const MAX_TOLD: u32 = 8;

/// Is told what proxies do, at most eight times of one kind and version while
/// that version is the one that the proxy speaks of. Every method returns quickly: it runs on the stream.
pub trait Observer: Send + Sync {
    /// A proxy has opened its stream.
    fn connected(&self, peer: &SpiffeId, node_id: &str) {
        let _ = (peer, node_id);
    }

    /// A proxy has opened its stream, and says that it is this version of Envoy: the
    /// proxy's text, so show it as data.
    fn runs(&self, peer: &SpiffeId, node_id: &str, envoy: &str) {
        let _ = (peer, node_id, envoy);
    }

    /// A proxy's stream has ended.
    fn disconnected(&self, peer: &SpiffeId, node_id: &str) {
        let _ = (peer, node_id);
    }

    /// A proxy works with a version.
    fn acked(&self, peer: &SpiffeId, node_id: &str, kind: Kind, version: &str) {
        let _ = (peer, node_id, kind, version);
    }

    /// A proxy has refused a version and works on with the one before. The same
    /// refusal is told once.
    fn nacked(&self, peer: &SpiffeId, node_id: &str, kind: Kind, nack: &Nack) {
        let _ = (peer, node_id, kind, nack);
    }
}

/// An observer that does nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoObserver;

impl Observer for NoObserver {}

/// A refused version. The error is the proxy's text: show it as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// The version that was refused.
    pub version: String,
    /// Envoy's reason, at most 1 KiB.
    pub error: String,
}

/// One kind of resource at one proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeStatus {
    /// Which kind.
    pub kind: Kind,
    /// The version that was sent last.
    pub sent: Option<String>,
    /// The version that the proxy works with.
    pub acked: Option<String>,
    /// The refusal, as long as the refused version is the one wanted.
    pub nack: Option<Nack>,
    /// Refusals since the control plane started.
    pub nacks: u64,
}

/// One proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyStatus {
    /// Who it is, by its certificate.
    pub peer: SpiffeId,
    /// What it calls itself: a label, never an authority.
    pub node_id: String,
    /// The group that it is of, by its certificate first.
    pub group: Option<String>,
    /// Envoy's version, as it says.
    pub envoy_version: Option<String>,
    /// Whether a stream is open.
    pub connected: bool,
    /// What it has of each kind that it asked for.
    pub types: Vec<TypeStatus>,
}

/// A proxy: the identity decides, the node id tells replicas apart.
pub(crate) type ProxyKey = (SpiffeId, String);

#[derive(Default)]
struct Proxy {
    streams: u32,
    envoy_version: Option<String>,
    labels: Labels,
    types: BTreeMap<Kind, TypeRecord>,
}

#[derive(Default)]
struct TypeRecord {
    sent: Option<Arc<Resources>>,
    acked: Option<Arc<Resources>>,
    nack: Option<Nack>,
    nacks: u64,
    /// The version that the observer was last told of, and how often.
    told: Option<(String, u32)>,
}

/// What a proxy's word is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word {
    /// It changes what is known of the proxy.
    pub(crate) news: bool,
    /// The observer should hear of it.
    pub(crate) tell: bool,
}

/// All proxies.
#[derive(Default)]
pub(crate) struct Registry {
    proxies: Mutex<BTreeMap<ProxyKey, Proxy>>,
}

/// No room for another proxy.
#[derive(Debug, thiserror::Error)]
#[error("too many proxies are connected")]
pub(crate) struct Full;

impl Registry {
    pub(crate) fn connected(
        &self,
        key: &ProxyKey,
        envoy_version: Option<String>,
        labels: Labels,
    ) -> Result<(), Full> {
        let mut proxies = self.lock();
        if !proxies.contains_key(key) && proxies.len() >= MAX_PROXIES {
            let gone = proxies
                .iter()
                .find(|(_, proxy)| proxy.streams == 0)
                .map(|(key, _)| key.clone())
                .ok_or(Full)?;
            proxies.remove(&gone);
        }
        let proxy = proxies.entry(key.clone()).or_default();
        proxy.streams = proxy.streams.saturating_add(1);
        proxy.envoy_version = envoy_version;
        proxy.labels = labels;
        Ok(())
    }

    pub(crate) fn disconnected(&self, key: &ProxyKey) {
        if let Some(proxy) = self.lock().get_mut(key) {
            proxy.streams = proxy.streams.saturating_sub(1);
        }
    }

    /// What a proxy should get where `wanted` is current: what it took last
    /// when it has refused `wanted`, and `wanted` itself else.
    pub(crate) fn choose(
        &self,
        key: &ProxyKey,
        kind: Kind,
        wanted: &Arc<Resources>,
    ) -> Arc<Resources> {
        let proxies = self.lock();
        let record = proxies.get(key).and_then(|proxy| proxy.types.get(&kind));
        match record {
            Some(TypeRecord {
                nack: Some(nack),
                acked: Some(acked),
                ..
            }) if nack.version == wanted.version() => Arc::clone(acked),
            _ => Arc::clone(wanted),
        }
    }

    /// Whether a proxy has refused a version and no other since.
    pub(crate) fn has_refused(&self, key: &ProxyKey, kind: Kind, version: &str) -> bool {
        let proxies = self.lock();
        let record = proxies.get(key).and_then(|proxy| proxy.types.get(&kind));
        record
            .and_then(|record| record.nack.as_ref())
            .is_some_and(|nack| nack.version == version)
    }

    pub(crate) fn sent(&self, key: &ProxyKey, kind: Kind, resources: &Arc<Resources>) {
        self.record(key, kind, |record| {
            record.sent = Some(Arc::clone(resources));
        });
    }

    /// Notes that a proxy took a version.
    pub(crate) fn acked(&self, key: &ProxyKey, kind: Kind, resources: &Arc<Resources>) -> Word {
        self.word(key, kind, resources.version(), |record| {
            let mut news = record
                .acked
                .as_ref()
                .is_none_or(|acked| acked.version() != resources.version());
            // The refusal of another version stays until that one is not
            // wanted any more, or is taken after all.
            if record
                .nack
                .as_ref()
                .is_some_and(|nack| nack.version == resources.version())
            {
                record.nack = None;
                news = true;
            }
            record.acked = Some(Arc::clone(resources));
            news
        })
    }

    /// Notes that a proxy refused a version.
    pub(crate) fn nacked(&self, key: &ProxyKey, kind: Kind, nack: &Nack) -> Word {
        self.word(key, kind, &nack.version, |record| {
            record.nacks = record.nacks.saturating_add(1);
            let news = record.nack.as_ref() != Some(nack);
            record.nack = Some(nack.clone());
            news
        })
    }

    /// Makes a change that says whether it is news.
    fn word(
        &self,
        key: &ProxyKey,
        kind: Kind,
        version: &str,
        change: impl FnOnce(&mut TypeRecord) -> bool,
    ) -> Word {
        let mut word = Word {
            news: false,
            tell: false,
        };
        self.record(key, kind, |record| {
            word.news = change(record);
            word.tell = word.news && record.may_tell(version);
        });
        word
    }

    /// Drops refusals of versions that nobody wants any more.
    pub(crate) fn forget_refusals(&self, snapshots: &Snapshots) {
        for ((peer, _), proxy) in self.lock().iter_mut() {
            let wanted = snapshots.of(peer, &proxy.labels);
            for (kind, record) in &mut proxy.types {
                if record
                    .nack
                    .as_ref()
                    .is_some_and(|nack| nack.version != wanted.resources(*kind).version())
                {
                    record.nack = None;
                }
            }
        }
    }

    pub(crate) fn status(&self, snapshots: &Snapshots) -> Vec<ProxyStatus> {
        let proxies = self.lock();
        proxies
            .iter()
            .map(|((peer, node_id), proxy)| {
                let group = snapshots.group_of(peer, &proxy.labels);
                let wanted = snapshots.of(peer, &proxy.labels);
                let types = proxy.types.iter();
                let types = types
                    .map(|(kind, record)| record.status(*kind, wanted.resources(*kind).version()));
                ProxyStatus {
                    peer: peer.clone(),
                    node_id: node_id.clone(),
                    group: group.map(ToOwned::to_owned),
                    envoy_version: proxy.envoy_version.clone(),
                    connected: proxy.streams > 0,
                    types: types.collect(),
                }
            })
            .collect()
    }

    fn record(&self, key: &ProxyKey, kind: Kind, change: impl FnOnce(&mut TypeRecord)) {
        if let Some(proxy) = self.lock().get_mut(key) {
            change(proxy.types.entry(kind).or_default());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ProxyKey, Proxy>> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TypeRecord {
    fn may_tell(&mut self, version: &str) -> bool {
        let (_, times) = match self.told.take() {
            Some(told) if told.0 == version => self.told.insert(told),
            _ => self.told.insert((version.to_owned(), 0)),
        };
        *times = times.saturating_add(1);
        *times <= MAX_TOLD
    }

    fn status(&self, kind: Kind, wanted: &str) -> TypeStatus {
        let version = |resources: &Arc<Resources>| resources.version().to_owned();
        TypeStatus {
            kind,
            sent: self.sent.as_ref().map(version),
            acked: self.acked.as_ref().map(version),
            // The refusal of an older version may come late.
            nack: self.nack.clone().filter(|nack| nack.version == wanted),
            nacks: self.nacks,
        }
    }
}

/// A text of the proxy's, cut to what is kept of it here.
#[must_use]
pub fn bounded(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}
