//! The aggregated discovery service (ADS v3, state of the world).

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use futures::{Stream, StreamExt, stream};
use identity::mtls::Peer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Group, Kind, Observer, ProxyStatus, Settings, SettingsError, Snapshot, groups::Snapshots,
    registry::Registry, session::Session,
};

/// A request is a node description and a few names.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The configuration of all proxies, and their state. Clones are one.
#[derive(Clone)]
pub struct Ads {
    inner: Arc<Inner>,
}

struct Inner {
    snapshots: watch::Sender<Arc<Snapshots>>,
    /// One update at a time, so that the last one wins everywhere.
    updating: Mutex<()>,
    registry: Arc<Registry>,
    observer: Arc<dyn Observer>,
    closed: CancellationToken,
}

impl Ads {
    /// Starts with some settings.
    ///
    /// # Errors
    /// When a setting can't be served.
    pub fn new(settings: &Settings, observer: Arc<dyn Observer>) -> Result<Self, SettingsError> {
        Self::with_groups(settings, Vec::new(), observer)
    }

    /// Starts with some settings, and with others for groups of proxies; a proxy is
    /// of the first group that has it.
    ///
    /// # Errors
    /// When a setting can't be served.
    pub fn with_groups(
        settings: &Settings,
        groups: Vec<(Group, Settings)>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, SettingsError> {
        let snapshot = Snapshot::build(settings)?;
        let groups = groups.into_iter().map(|(group, settings)| {
            let snapshot = Snapshot::build(&settings)?;
            Ok((group, Arc::new(snapshot)))
        });
        let groups = groups.collect::<Result<Vec<_>, SettingsError>>()?;
        tracing::info!(
            module_sha256 = settings.module.sha256_hex(),
            version = snapshot.resources(Kind::Filter).version(),
            "the filter module is served"
        );
        Ok(Self {
            inner: Arc::new(Inner {
                snapshots: watch::Sender::new(Arc::new(Snapshots {
                    others: Arc::new(snapshot),
                    groups,
                })),
                updating: Mutex::new(()),
                registry: Arc::default(),
                observer,
                closed: CancellationToken::new(),
            }),
        })
    }

    /// Pushes new settings to all proxies that are of no group, what has changed in
    /// them; whether anything has.
    ///
    /// # Errors
    /// When a setting can't be served; the old ones stay.
    pub fn update(&self, settings: &Settings) -> Result<bool, SettingsError> {
        self.update_group(None, settings)
    }

    /// As [`Ads::update`], for one group; of a name that there is not, nothing changes.
    ///
    /// # Errors
    /// As [`Ads::update`].
    pub fn update_group(
        &self,
        group: Option<&str>,
        settings: &Settings,
    ) -> Result<bool, SettingsError> {
        let snapshot = Arc::new(Snapshot::build(settings)?);
        let _one = self
            .inner
            .updating
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut snapshots = Snapshots::clone(&self.inner.snapshots.borrow());
        let Some(place) = snapshots.place(group) else {
            return Ok(false);
        };
        if **place == *snapshot {
            return Ok(false);
        }
        *place = Arc::clone(&snapshot);
        tracing::info!(
            group,
            module_sha256 = settings.module.sha256_hex(),
            version = snapshot.resources(Kind::Filter).version(),
            "new settings are pushed"
        );
        self.inner.registry.forget_refusals(&snapshots);
        self.inner.snapshots.send_replace(Arc::new(snapshots));
        Ok(true)
    }

    /// What proxies of no group are served now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.inner.snapshots.borrow().others)
    }

    /// Every proxy that is or was connected since the start.
    pub fn status(&self) -> Vec<ProxyStatus> {
        self.inner.registry.status(&self.inner.snapshots.borrow())
    }

    /// Ends every stream, for a graceful shutdown of the server.
    pub fn close(&self) {
        self.inner.closed.cancel();
    }

    /// The gRPC service, for a server whose connections have a [`Peer`].
    pub fn service(&self) -> AggregatedDiscoveryServiceServer<AdsService> {
        AggregatedDiscoveryServiceServer::new(AdsService {
            inner: Arc::clone(&self.inner),
        })
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(usize::MAX)
    }
}

/// The gRPC service of an [`Ads`].
pub struct AdsService {
    inner: Arc<Inner>,
}

/// One stream: its state, its requests and the settings it follows.
struct Conversation {
    session: Session,
    requests: Streaming<DiscoveryRequest>,
    settings: watch::Receiver<Arc<Snapshots>>,
}

impl Conversation {
    async fn next(&mut self) -> Option<Result<DiscoveryResponse, Status>> {
        loop {
            if let Some(response) = self.session.outbox.pop_front() {
                return Some(Ok(response));
            }
            tokio::select! {
                message = self.requests.message() => match message {
                    Ok(Some(request)) => {
                        if let Err(fault) = self.session.request(request) {
                            return Some(Err(Status::resource_exhausted(fault.to_string())));
                        }
                    }
                    Ok(None) => return None,
                    Err(status) => return Some(Err(status)),
                },
                changed = self.settings.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                    let snapshots = Arc::clone(&self.settings.borrow_and_update());
                    self.session.update(snapshots);
                }
            }
        }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsService {
    type StreamAggregatedResourcesStream = Replies<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Replies<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        // The certificate says who it is. What the node calls itself is a label.
        let peer = request
            .extensions()
            .get::<Peer>()
            .map(|peer| peer.id.clone())
            .ok_or_else(|| Status::unauthenticated("the connection has no identity"))?;
        let mut settings = self.inner.snapshots.subscribe();
        let snapshots = Arc::clone(&settings.borrow_and_update());
        let conversation = Conversation {
            session: Session::new(
                Arc::clone(&self.inner.registry),
                Arc::clone(&self.inner.observer),
                peer,
                snapshots,
            ),
            requests: request.into_inner(),
            settings,
        };
        let replies = stream::unfold(Some(conversation), |conversation| async move {
            let mut conversation = conversation?;
            let reply = conversation.next().await?;
            let next = reply.is_ok().then_some(conversation);
            Some((reply, next))
        })
        .take_until(self.inner.closed.clone().cancelled_owned());
        Ok(Response::new(Box::pin(replies)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented(
            "delta ADS is not served: configure api_type GRPC",
        ))
    }
}
