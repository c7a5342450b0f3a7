//! TLS at the listener: who the proxy is and whom it lets in, both by SDS from
//! the Workload API on the proxy's own machine. A private key is never sent here.

use envoy_types::{
    pb::{
        envoy::{
            config::core::v3::{
                ApiConfigSource, ApiVersion, ConfigSource, GrpcService, TransportSocket,
                api_config_source::ApiType,
                config_source::ConfigSourceSpecifier,
                grpc_service::{EnvoyGrpc, TargetSpecifier},
                transport_socket,
            },
            extensions::transport_sockets::tls::v3::{
                CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, TlsParameters,
                common_tls_context::ValidationContextType,
                downstream_tls_context::SessionTicketKeysType, tls_parameters::TlsProtocol,
            },
        },
        google::protobuf::Duration,
    },
    util::pack_any,
};

use crate::{WORKLOAD_API_CLUSTER, listener::truth};

/// The proxy's own X.509-SVID, as SPIRE's agent names it too.
const OWN_CERTIFICATE: &str = "default";
/// The trust domain's bundle, as SPIRE's agent names it too.
const TRUST_BUNDLE: &str = "ROOTCA";
/// A connection is drained after this time, so that nobody stays who could not
/// come in any more: the bundle is asked when a connection begins.
pub(crate) const CONNECTION_MS: u64 = 600_000;

/// A client certificate of the trust domain is demanded of everybody.
pub(crate) fn downstream() -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
                ..Default::default()
            }),
            alpn_protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
            tls_certificate_sds_secret_configs: vec![secret(OWN_CERTIFICATE)],
            validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(
                secret(TRUST_BUNDLE),
            )),
            ..Default::default()
        }),
        require_client_certificate: truth(true),
        // A resumed session would skip the check against today's bundle.
        disable_stateful_session_resumption: true,
        session_ticket_keys_type: Some(SessionTicketKeysType::DisableStatelessSessionResumption(
            true,
        )),
        ..Default::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack_any(context))),
    }
}

fn secret(name: &str) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            // Zero waits for ever: without its certificate the listener is not opened.
            initial_fetch_timeout: Some(Duration::default()),
            resource_api_version: ApiVersion::V3.into(),
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(
                ApiConfigSource {
                    api_type: ApiType::Grpc.into(),
                    transport_api_version: ApiVersion::V3.into(),
                    set_node_on_first_message_only: true,
                    grpc_services: vec![GrpcService {
                        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                            cluster_name: WORKLOAD_API_CLUSTER.to_owned(),
                            ..Default::default()
                        })),
                        ..Default::default()
                    }],
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
    }
}
