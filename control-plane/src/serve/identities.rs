//! Where this process and its workloads have their identities from.

use super::ServeError;
use crate::config::Config;
use crate::state::Clock;
use identity::{BuiltIn, Source, SpiffeId, TrustDomainSettings, WorkloadEntry};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// JWT-SVIDs can be stolen and shown by others: the built-in ones are short-lived.
const JWT_SVID_TTL_MAX: Duration = Duration::from_secs(300);

/// The built-in trust domain is consumed like SPIRE: over its socket.
pub async fn identities_from(
    config: &Config,
    clock: &Clock,
    stop: &CancellationToken,
) -> Result<Source, ServeError> {
    let identity = &config.identity;
    let own = spiffe_id(&identity.control_plane_id)?;
    if identity.built_in {
        if identity.dev_single_uid {
            tracing::warn!(
                "dev_single_uid: every process of one uid is one principal; this is for trying things out"
            );
        }
        let mut entries = Vec::new();
        for workload in &identity.workloads {
            entries.push(WorkloadEntry {
                spiffe_id: spiffe_id(&workload.spiffe_id)?,
                uid: workload.uid,
                executable: workload.executable.clone(),
            });
        }
        let ttl = Duration::from_secs(identity.svid_ttl_s);
        let built_in = BuiltIn::open(TrustDomainSettings {
            name: identity.trust_domain.clone(),
            dir: config.server.data_dir.join("trust"),
            socket: identity.workload_api.clone(),
            self_id: own.clone(),
            entries,
            hosts: hosts(config)?,
            x509_ttl: ttl,
            jwt_ttl: ttl.min(JWT_SVID_TTL_MAX),
            clock: clock.clone(),
        })?;
        built_in.serve(stop.clone())?;
    }
    let socket = &identity.workload_api;
    Source::connect_as(socket, &own, Duration::from_secs(10))
        .await
        .map_err(|error| ServeError::Source(socket.clone(), error))
}

/// What each that agents connect to over TLS is reached by, so that any client
/// finds it in its certificate.
fn hosts(config: &Config) -> Result<BTreeMap<SpiffeId, Vec<String>>, ServeError> {
    let mut hosts = BTreeMap::new();
    if config.edge.client_certificates {
        for proxy in &config.proxies {
            let sites = config.edge.all_sites();
            hosts.insert(
                spiffe_id(proxy)?,
                sites.map(|site| host_of(&site.origin)).collect(),
            );
        }
    }
    if let Some(url) = &config.server.mtls_url {
        let own = spiffe_id(&config.identity.control_plane_id)?;
        hosts.insert(own, vec![host_of(url)]);
    }
    Ok(hosts)
}

/// The host of an origin, without port and brackets.
fn host_of(origin: &str) -> String {
    let authority = origin.split_once("://").map_or(origin, |(_, rest)| rest);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    host.trim_matches(['[', ']']).to_owned()
}

fn spiffe_id(text: &str) -> Result<SpiffeId, ServeError> {
    SpiffeId::parse(text).map_err(|error| ServeError::Edge(format!("`{text}`: {error}")))
}
