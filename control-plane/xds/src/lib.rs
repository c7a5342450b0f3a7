//! Envoy's configuration over ADS, made from one [`Settings`].
//!
//! A listener, its routes, their clusters, and the filter by ECDS with its
//! module inline. What the settings can't say can't be configured: no retry,
//! no rewrite, no mirror, no other filter than this one's two instances, and no
//! way round the one before the router but by the name of what goes round it
//! ([`Exempt`]). [`lint`] holds any Envoy's configuration to the same rules.

mod access_log;
mod ads;
mod cluster;
mod exempt;
mod groups;
pub mod lint;
mod listener;
mod observing;
mod registry;
mod routes;
mod sections;
mod session;
mod settings;
mod snapshot;
mod stripping;
mod tls;

pub use access_log::REASON_FILTER_STATE;
pub use ads::{Ads, AdsService};
pub use exempt::{Exempt, Metadata, Preflight, Probe, Unguarded};
pub use groups::Group;
pub use observing::Observing;
pub use registry::{Nack, NoObserver, Observer, ProxyStatus, TypeStatus, bounded};
pub use settings::{
    AccessLog, Listener, Module, Route, Settings, SettingsError, Site, default_stream_idle_ms,
};
pub use snapshot::{Kind, Resources, Snapshot};

/// The cluster that leads to the control plane: static, in the bootstrap.
pub const CONTROL_PLANE_CLUSTER: &str = "writ_control_plane";
/// The cluster of the Workload API's socket beside the proxy, which speaks SDS:
/// static, in the bootstrap.
pub const WORKLOAD_API_CLUSTER: &str = "writ_workload_api";
/// The name of the filter in front of the router, and of its ECDS resource.
pub const FILTER_NAME: &str = "writ.filter";
/// The name of the instance that reads bodies, and of its ECDS resource.
pub const BODIES_FILTER_NAME: &str = "writ.bodies";
/// The name of the one listener.
pub const LISTENER_NAME: &str = "writ.edge";
/// The name of the one route table.
pub const ROUTES_NAME: &str = "writ.routes";
