//! One configuration as the resources that a proxy asks for.

use std::sync::Arc;

use envoy_types::{
    pb::{
        envoy::config::{
            cluster::v3::Cluster, core::v3::TypedExtensionConfig, listener::v3::Listener,
            route::v3::RouteConfiguration,
        },
        google::protobuf::Any,
    },
    util::pack_any,
};
use prost::{Message, Name};
use sha2::{Digest, Sha256};

use crate::{LISTENER_NAME, ROUTES_NAME, Settings, SettingsError, cluster, listener, routes};

/// A type of resource, in the order in which changes are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// CDS.
    Clusters,
    /// ECDS: the filter's instances.
    Filter,
    /// LDS.
    Listeners,
    /// RDS.
    Routes,
}

impl Kind {
    /// Every kind, in the order of sending.
    pub const ALL: [Self; 4] = [Self::Clusters, Self::Filter, Self::Listeners, Self::Routes];

    /// The protobuf type URL.
    pub fn type_url(self) -> String {
        match self {
            Self::Clusters => Cluster::type_url(),
            Self::Listeners => Listener::type_url(),
            Self::Filter => TypedExtensionConfig::type_url(),
            Self::Routes => RouteConfiguration::type_url(),
        }
    }

    /// The kind of a type URL, unless we serve no such type.
    pub fn of_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// What Envoy's documentation calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clusters => "CDS",
            Self::Listeners => "LDS",
            Self::Filter => "ECDS",
            Self::Routes => "RDS",
        }
    }

    /// Whether a proxy gets all resources of this kind without naming them.
    pub(crate) fn is_wildcard(self) -> bool {
        matches!(self, Self::Clusters | Self::Listeners)
    }
}

/// All resources of one kind, and their version: a digest of their content.
#[derive(Debug, PartialEq)]
pub struct Resources {
    version: String,
    named: Vec<(String, Any)>,
}

impl Resources {
    fn new(named: Vec<(String, Any)>) -> Arc<Self> {
        let mut content = Sha256::new();
        for (_, resource) in &named {
            let bytes = resource.encode_to_vec();
            // With lengths, two lists of resources are never one text.
            content.update(bytes.len().to_be_bytes());
            content.update(bytes);
        }
        let mut version = hex::encode(content.finalize());
        version.truncate(16);
        Arc::new(Self { version, named })
    }

    /// The version: equal content, equal version.
    pub fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn select(&self, kind: Kind, names: &[String]) -> Vec<Any> {
        let all = kind.is_wildcard();
        self.named
            .iter()
            .filter(|(name, _)| all || names.contains(name))
            .map(|(_, resource)| resource.clone())
            .collect()
    }
}

/// One configuration, all kinds.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    clusters: Arc<Resources>,
    listeners: Arc<Resources>,
    filter: Arc<Resources>,
    routes: Arc<Resources>,
}

impl Snapshot {
    /// Makes the resources of some settings.
    ///
    /// # Errors
    /// When a setting can't be served.
    pub fn build(settings: &Settings) -> Result<Self, SettingsError> {
        settings.check()?;
        let unguarded = settings.exempt.unguarded.iter().map(|it| &it.route);
        let clusters = settings
            .routes
            .iter()
            .chain(unguarded)
            .map(|route| (cluster::name(route), pack_any(cluster::build(route))))
            .collect();
        let listener = (
            LISTENER_NAME.to_owned(),
            pack_any(listener::build(settings)?),
        );
        let filters = listener::filters(settings)
            .into_iter()
            .map(|filter| (filter.name.clone(), pack_any(filter)))
            .collect();
        let routes = (ROUTES_NAME.to_owned(), pack_any(routes::build(settings)));
        Ok(Self {
            clusters: Resources::new(clusters),
            listeners: Resources::new(vec![listener]),
            filter: Resources::new(filters),
            routes: Resources::new(vec![routes]),
        })
    }

    /// The resources of one kind.
    pub fn resources(&self, kind: Kind) -> &Arc<Resources> {
        match kind {
            Kind::Clusters => &self.clusters,
            Kind::Listeners => &self.listeners,
            Kind::Filter => &self.filter,
            Kind::Routes => &self.routes,
        }
    }
}
