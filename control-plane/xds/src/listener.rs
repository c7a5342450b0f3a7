//! LDS: one listener with the filter by ECDS and the router; and the filter itself.

use envoy_types::{
    pb::{
        envoy::{
            config::{
                core::v3::{
                    AggregatedConfigSource, ApiVersion, AsyncDataSource, BackoffStrategy,
                    CidrRange, ConfigSource, DataSource, ExtensionConfigSource,
                    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions,
                    TypedExtensionConfig, async_data_source, config_source::ConfigSourceSpecifier,
                    data_source, http_protocol_options::HeadersWithUnderscoresAction,
                },
                listener::v3::{Filter, FilterChain, Listener, filter},
            },
            extensions::{
                filters::{
                    http::{router::v3::Router, wasm::v3::Wasm},
                    network::http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter, Rds,
                        http_connection_manager::{
                            CodecType, ForwardClientCertDetails, InternalAddressConfig,
                            PathWithEscapedSlashesAction, RouteSpecifier,
                        },
                        http_filter,
                    },
                },
                wasm::v3::{FailurePolicy, PluginConfig, ReloadConfig, VmConfig, plugin_config},
            },
        },
        google::protobuf::{BoolValue, Duration, StringValue, UInt32Value},
    },
    util::pack_any,
};
use prost::Name;
use sha2::{Digest, Sha256};

use crate::{
    BODIES_FILTER_NAME, FILTER_NAME, LISTENER_NAME, ROUTES_NAME, Settings, SettingsError,
    access_log, cluster, stripping, tls,
};

/// What one connection may buffer before back-pressure, in bytes.
const BUFFER_BYTES: u32 = 128 * 1024;
const MAX_HEADERS: u32 = 100;
const MAX_CONCURRENT_STREAMS: u32 = 100;
/// HTTP/2 windows: small enough that held uploads fill no memory.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
const HEADERS_TIMEOUT_MS: u64 = 10_000;
const CONNECTION_IDLE_MS: u64 = 300_000;
/// How long a client's connection that Envoy ends waits for the client to have read
/// all: an answer that is cut off looks open for as long.
const DELAYED_CLOSE_MS: u64 = 500;
/// What a request may take to arrive, besides the hold.
const REQUEST_MARGIN_MS: u64 = 60_000;

pub(crate) fn build(settings: &Settings) -> Result<Listener, SettingsError> {
    let manager = connection_manager(settings)?;
    let demands = settings.listener.client_certificates;
    Ok(Listener {
        name: LISTENER_NAME.to_owned(),
        address: Some(cluster::socket(
            &settings.listener.address.to_string(),
            settings.listener.port,
        )),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "envoy.filters.network.http_connection_manager".to_owned(),
                config_type: Some(filter::ConfigType::TypedConfig(pack_any(manager))),
            }],
            transport_socket: demands.then(tls::downstream),
            ..Default::default()
        }],
        per_connection_buffer_limit_bytes: number(BUFFER_BYTES),
        ..Default::default()
    })
}

fn connection_manager(settings: &Settings) -> Result<HttpConnectionManager, SettingsError> {
    Ok(HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        stat_prefix: "writ".to_owned(),
        http_filters: filter_chain(settings),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: ads(),
            route_config_name: ROUTES_NAME.to_owned(),
        })),

        // What is compared must be what is forwarded.
        normalize_path: truth(true),
        merge_slashes: true,
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::RejectRequest.into(),
        common_http_protocol_options: Some(HttpProtocolOptions {
            headers_with_underscores_action: HeadersWithUnderscoresAction::RejectRequest.into(),
            max_headers_count: number(MAX_HEADERS),
            idle_timeout: milliseconds(CONNECTION_IDLE_MS),
            max_connection_duration: settings
                .listener
                .client_certificates
                .then(|| milliseconds(tls::CONNECTION_MS))
                .flatten(),
            ..Default::default()
        }),
        http_protocol_options: Some(Http1ProtocolOptions::default()),
        http2_protocol_options: Some(Http2ProtocolOptions {
            max_concurrent_streams: number(MAX_CONCURRENT_STREAMS),
            initial_stream_window_size: number(STREAM_WINDOW_BYTES),
            initial_connection_window_size: number(CONNECTION_WINDOW_BYTES),
            ..Default::default()
        }),
        max_request_headers_kb: number(settings.max_request_headers_kib),

        // Nobody is internal, loopback neither: Envoy obeys retry, timeout
        // and hedge headers of internal clients.
        use_remote_address: truth(true),
        internal_address_config: Some(InternalAddressConfig {
            unix_sockets: false,
            // No range at all would mean Envoy's own. From this address no
            // connection comes.
            cidr_ranges: vec![CidrRange {
                address_prefix: "0.0.0.0".to_owned(),
                prefix_len: number(32),
            }],
        }),
        early_header_mutation_extensions: vec![stripping::early()],
        forward_client_cert_details: ForwardClientCertDetails::Sanitize.into(),
        generate_request_id: truth(true),
        preserve_external_request_id: false,
        always_set_request_id_in_response: true,
        server_name: "writ".to_owned(),

        stream_idle_timeout: milliseconds(settings.stream_idle_ms),
        request_headers_timeout: milliseconds(HEADERS_TIMEOUT_MS),
        request_timeout: milliseconds(settings.hold_ms + REQUEST_MARGIN_MS),
        delayed_close_timeout: milliseconds(DELAYED_CLOSE_MS),
        access_log: access_log::build(&settings.access_log)?,
        ..Default::default()
    })
}

/// The filter, which only an exemption by name turns off, right before the router; and before it,
/// where routes read bodies, the instance that does. That one is off but on those
/// routes; it can be off anywhere without anything passing.
fn filter_chain(settings: &Settings) -> Vec<HttpFilter> {
    let reader = settings.bodies_config.as_ref().map(|_| HttpFilter {
        disabled: true,
        ..guard(BODIES_FILTER_NAME)
    });
    let mut chain: Vec<HttpFilter> = reader.into_iter().collect();
    chain.extend([guard(FILTER_NAME), router()]);
    chain
}

/// The filter's place. There is no default: without the filter nothing is served.
fn guard(name: &str) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::ConfigDiscovery(
            ExtensionConfigSource {
                config_source: ads(),
                default_config: None,
                apply_default_config_without_warming: false,
                type_urls: vec![Wasm::type_url()],
            },
        )),
        ..Default::default()
    }
}

fn router() -> HttpFilter {
    HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(Router {
            suppress_envoy_headers: true,
            ..Default::default()
        }))),
        ..Default::default()
    }
}

/// ECDS: the filter's instances.
pub(crate) fn filters(settings: &Settings) -> Vec<TypedExtensionConfig> {
    let own = filter(settings, FILTER_NAME, &settings.plugin_config);
    let reader = settings.bodies_config.as_ref();
    let reader = reader.map(|config| filter(settings, BODIES_FILTER_NAME, config));
    [own].into_iter().chain(reader).collect()
}

/// An instance with its module inline. `code.remote` lets requests through while
/// it fetches. The one that reads bodies pauses at the headers and still gets the
/// body; with that, a late decision on a large upload would get 413.
fn filter(
    settings: &Settings,
    name: &str,
    plugin_config: &serde_json::Value,
) -> TypedExtensionConfig {
    let configuration = plugin_config.to_string();
    // VMs with one id and one code share their fate when one crashes, and
    // their shared data: another module or configuration is another VM.
    let mut identity = Sha256::new();
    identity.update(settings.module.sha256());
    identity.update(&configuration);
    let vm_id = format!("writ-{}", hex::encode(identity.finalize()));
    let reads_bodies = name == BODIES_FILTER_NAME;
    let plugin = PluginConfig {
        name: name.to_owned(),
        root_id: name.to_owned(),
        configuration: Some(pack_any(StringValue {
            value: configuration,
        })),
        failure_policy: FailurePolicy::FailReload.into(),
        reload_config: Some(reload(settings.start)),
        allow_on_headers_stop_iteration: reads_bodies.then_some(BoolValue { value: true }),
        vm: Some(plugin_config::Vm::VmConfig(VmConfig {
            vm_id,
            runtime: "envoy.wasm.runtime.v8".to_owned(),
            code: Some(AsyncDataSource {
                specifier: Some(async_data_source::Specifier::Local(DataSource {
                    specifier: Some(data_source::Specifier::InlineBytes(
                        settings.module.bytes().to_vec(),
                    )),
                    ..Default::default()
                })),
            }),
            ..Default::default()
        })),
        ..Default::default()
    };
    TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(pack_any(Wasm {
            config: Some(plugin),
        })),
    }
}

/// How long a filter that crashed is away: Envoy's own second, and ten at most.
/// Below the milliseconds that count, the start: other bytes for each, so that
/// Envoy judges the filter anew, in a place that is no part of what tells VMs
/// apart, so that one that runs goes on running.
fn reload(start: u64) -> ReloadConfig {
    const PART: u64 = 1_000_000;
    let nanos = |value: u64| i32::try_from(value % PART).unwrap_or_default();
    let duration = |seconds, nanos| Some(Duration { seconds, nanos });
    ReloadConfig {
        backoff: Some(BackoffStrategy {
            base_interval: duration(1, nanos(start)),
            max_interval: duration(10, nanos(start / PART)),
        }),
    }
}

fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        // Zero waits for ever: no listener opens before its filter has come. One that
        // comes and that Envoy refuses opens it, and Envoy answers 500 in its place.
        initial_fetch_timeout: milliseconds(0),
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    })
}

pub(crate) fn truth(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn milliseconds(value: u64) -> Option<Duration> {
    Some(Duration {
        seconds: i64::try_from(value / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(value % 1000).unwrap_or_default() * 1_000_000,
    })
}
