//! CDS: one cluster for each route, its endpoint inline.

use std::{collections::HashMap, net::IpAddr};

use envoy_types::{
    pb::{
        envoy::{
            config::{
                cluster::v3::{
                    CircuitBreakers, Cluster,
                    circuit_breakers::Thresholds,
                    cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily},
                },
                core::v3::{
                    Address, Http1ProtocolOptions, SocketAddress, address,
                    socket_address::PortSpecifier,
                },
                endpoint::v3::{
                    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
                    lb_endpoint::HostIdentifier,
                },
            },
            extensions::upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions,
                    explicit_http_config::ProtocolConfig,
                },
            },
        },
        google::protobuf::{Duration, UInt32Value},
    },
    util::pack_any,
};

use crate::Route;

const CONNECT_TIMEOUT_S: i64 = 5;
const MAX_CONNECTIONS: u32 = 1024;
const MAX_REQUESTS: u32 = 4096;

/// The name of a route's cluster.
pub(crate) fn name(route: &Route) -> String {
    format!("writ.route.{}", route.name)
}

pub(crate) fn build(route: &Route) -> Cluster {
    // IPv6 addresses may be written in brackets, as in a URL.
    let host = route
        .upstream_host
        .trim_start_matches('[')
        .trim_end_matches(']');
    let discovery = if host.parse::<IpAddr>().is_ok() {
        DiscoveryType::Static
    } else {
        DiscoveryType::StrictDns
    };
    Cluster {
        name: name(route),
        connect_timeout: Some(Duration {
            seconds: CONNECT_TIMEOUT_S,
            nanos: 0,
        }),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery.into())),
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name(route),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint(host, route.upstream_port)],
                ..Default::default()
            }],
            ..Default::default()
        }),
        circuit_breakers: Some(limits()),
        typed_extension_protocol_options: http1(),
        ..Default::default()
    }
}

pub(crate) fn socket(host: &str, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

fn endpoint(host: &str, port: u16) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket(host, port)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// One attempt for each request: a retry would spend one token twice.
fn limits() -> CircuitBreakers {
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: Some(UInt32Value {
                value: MAX_CONNECTIONS,
            }),
            max_pending_requests: Some(UInt32Value {
                value: MAX_REQUESTS,
            }),
            max_requests: Some(UInt32Value {
                value: MAX_REQUESTS,
            }),
            max_retries: Some(UInt32Value { value: 0 }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn http1() -> HashMap<String, envoy_types::pb::google::protobuf::Any> {
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::HttpProtocolOptions(
                    Http1ProtocolOptions::default(),
                )),
            },
        )),
        ..Default::default()
    };
    // One key: a map's order would make the version differ.
    HashMap::from([(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
        pack_any(options),
    )])
}
