//! ADS over a real connection, with a client that is no Envoy: it says exactly
//! what each test wants.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use envoy_types::pb::{
    envoy::r#type::v3::SemanticVersion,
    envoy::{
        config::core::v3::{BuildVersion, Node, node::UserAgentVersionType},
        service::discovery::v3::{
            DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc::Status,
};
use identity::{SpiffeId, mtls};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};
use xds::{
    AccessLog, Ads, Exempt, FILTER_NAME, Group, Kind, Listener, Module, Nack, NoObserver, Observer,
    ROUTES_NAME, Route, Settings, SettingsError, Snapshot, default_stream_idle_ms,
};

const QUIET: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(10);

fn module(content: &str) -> Module {
    // One custom section without content, whose name is the argument.
    let mut bytes = b"\0asm\x01\0\0\0\0".to_vec();
    let name = u8::try_from(content.len()).unwrap();
    bytes.extend([name + 1, name]);
    bytes.extend(content.as_bytes());
    Module::new(bytes).unwrap()
}

fn route(name: &str, prefix: &str) -> Route {
    Route {
        name: name.to_owned(),
        path_prefix: prefix.to_owned(),
        upstream_host: "127.0.0.1".to_owned(),
        upstream_port: 9000,
        reads_bodies: None,
        site: None,
    }
}

fn settings() -> Settings {
    Settings {
        listener: Listener {
            address: "127.0.0.1".parse().unwrap(),
            port: 8400,
            client_certificates: false,
        },
        authority: "127.0.0.1:8400".to_owned(),
        sites: Vec::new(),
        exempt: Exempt::default(),
        routes: vec![route("files", "/files"), route("all", "/")],
        module: module("one"),
        plugin_config: serde_json::json!({ "b": 1, "a": [true] }),
        bodies_config: None,
        start: 1,
        hold_ms: 25_000,
        stream_idle_ms: default_stream_idle_ms(25_000),
        max_request_headers_kib: 32,
        access_log: AccessLog::Stdout,
    }
}

struct Server {
    ads: Ads,
    channel: Channel,
}

impl Server {
    async fn start() -> Self {
        Self::observed(Arc::new(NoObserver)).await
    }

    async fn observed(observer: Arc<dyn Observer>) -> Self {
        Self::grouped(observer, Vec::new()).await
    }

    async fn grouped(observer: Arc<dyn Observer>, groups: Vec<(Group, Settings)>) -> Self {
        let ads = Ads::with_groups(&settings(), groups, observer).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = SpiffeId::parse("spiffe://writ.example/proxy").unwrap();
        let incoming = mtls::plaintext_incoming(listener, proxy).unwrap();
        let server = tonic::transport::Server::builder().add_service(ads.service());
        tokio::spawn(server.serve_with_incoming(incoming));
        let channel = Channel::from_shared(format!("http://{address}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        Self { ads, channel }
    }

    async fn stream(&self) -> Stream {
        let (requests, receiver) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel.clone())
            .max_decoding_message_size(usize::MAX);
        let responses = client
            .stream_aggregated_resources(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Stream {
            requests,
            responses,
        }
    }

    fn version(&self, kind: Kind) -> String {
        self.ads.snapshot().resources(kind).version().to_owned()
    }
}

struct Stream {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

fn names(kind: Kind) -> Vec<String> {
    match kind {
        Kind::Filter => vec![FILTER_NAME.to_owned()],
        Kind::Routes => vec![ROUTES_NAME.to_owned()],
        _ => Vec::new(),
    }
}

fn request(kind: Kind, nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: kind.type_url(),
        resource_names: names(kind),
        response_nonce: nonce.to_owned(),
        node: Some(Node {
            id: "node-1".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn refusal(kind: Kind, nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        error_detail: Some(Status {
            code: 13,
            message: "no such thing".to_owned(),
            details: Vec::new(),
        }),
        ..request(kind, nonce)
    }
}

impl Stream {
    async fn say(&self, request: DiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> DiscoveryResponse {
        let next = tokio::time::timeout(TIMEOUT, self.responses.message());
        next.await.unwrap().unwrap().unwrap()
    }

    async fn silent(&mut self) {
        let next = tokio::time::timeout(QUIET, self.responses.message()).await;
        assert!(next.is_err(), "an answer that nothing asked for: {next:?}");
    }

    /// Subscribes and takes what comes.
    async fn subscribe(&mut self, kind: Kind) -> DiscoveryResponse {
        self.say(request(kind, "")).await;
        let response = self.next().await;
        assert_eq!(response.type_url, kind.type_url());
        self.say(request(kind, &response.nonce)).await;
        response
    }
}

#[tokio::test]
async fn every_kind_is_answered_once() {
    let server = Server::start().await;
    let mut stream = server.stream().await;
    for (kind, count) in [
        (Kind::Clusters, 2),
        (Kind::Listeners, 1),
        (Kind::Filter, 1),
        (Kind::Routes, 1),
    ] {
        let response = stream.subscribe(kind).await;
        assert_eq!(response.resources.len(), count, "{kind:?}");
        assert_eq!(response.version_info, server.version(kind));
    }
    stream.silent().await;
    // The last word again, and an old nonce with other names: still nothing.
    stream.say(request(Kind::Filter, "3")).await;
    stream.say(request(Kind::Filter, "1")).await;
    stream.silent().await;

    let status = server.ads.status();
    assert_eq!(status.len(), 1);
    let proxy = status.first().unwrap();
    assert_eq!((proxy.node_id.as_str(), proxy.connected), ("node-1", true));
    assert_eq!(proxy.peer.as_str(), "spiffe://writ.example/proxy");
    assert_eq!(proxy.types.len(), 4);
    for one in &proxy.types {
        assert_eq!(one.acked.as_ref(), Some(&server.version(one.kind)));
        assert_eq!((one.nacks, one.nack.is_none()), (0, true));
    }
}

/// A group of this identity's, for the node that the tests' requests name.
fn group(name: &str, identity: &str) -> Group {
    Group {
        name: name.to_owned(),
        proxies: vec![SpiffeId::parse(identity).unwrap()],
        nodes: vec!["node-1".to_owned()],
        clusters: Vec::new(),
        localities: Vec::new(),
    }
}

fn with_module(content: &str) -> Settings {
    Settings {
        module: module(content),
        ..settings()
    }
}

#[tokio::test]
async fn the_certificate_decides_what_a_node_may_have() {
    // The other identity's group names this very node: it gets nothing of it.
    let groups = vec![
        (
            group("others", "spiffe://writ.example/other"),
            with_module("theirs"),
        ),
        (
            group("own", "spiffe://writ.example/proxy"),
            with_module("own"),
        ),
    ];
    let server = Server::grouped(Arc::new(NoObserver), groups).await;
    let mut stream = server.stream().await;
    let version = |content: &str| {
        let snapshot = Snapshot::build(&with_module(content)).unwrap();
        snapshot.resources(Kind::Filter).version().to_owned()
    };
    let response = stream.subscribe(Kind::Filter).await;
    assert_eq!(response.version_info, version("own"));
    assert_eq!(server.ads.status()[0].group.as_deref(), Some("own"));

    // What is for others changes, and this one hears nothing of it.
    assert!(server.ads.update(&with_module("new")).unwrap());
    let theirs = with_module("new theirs");
    assert!(server.ads.update_group(Some("others"), &theirs).unwrap());
    assert!(!server.ads.update_group(Some("nobody"), &theirs).unwrap());
    stream.silent().await;
    let own = with_module("new own");
    assert!(server.ads.update_group(Some("own"), &own).unwrap());
    let response = stream.next().await;
    assert_eq!(response.version_info, version("new own"));
    // Refused: it keeps what it had, and is not told the same again.
    stream.say(refusal(Kind::Filter, &response.nonce)).await;
    assert!(
        server
            .ads
            .update_group(Some("own"), &with_module("own"))
            .unwrap()
    );
    let back = stream.next().await;
    assert_eq!(back.version_info, version("own"));

    // Another node of the same identity is of no group.
    let mut other = server.stream().await;
    let mut asked = request(Kind::Filter, "");
    asked.node.as_mut().unwrap().id = "node-2".to_owned();
    other.say(asked).await;
    assert_eq!(other.next().await.version_info, version("new"));
}

#[tokio::test]
async fn an_update_sends_what_changed_and_nothing_else() {
    let server = Server::start().await;
    let mut stream = server.stream().await;
    for kind in Kind::ALL {
        stream.subscribe(kind).await;
    }
    assert!(!server.ads.update(&settings()).unwrap(), "the same again");
    stream.silent().await;

    let mut new = settings();
    new.module = module("two");
    assert!(server.ads.update(&new).unwrap());
    let response = stream.next().await;
    assert_eq!(response.type_url, Kind::Filter.type_url());
    assert_eq!(response.version_info, server.version(Kind::Filter));
    stream.silent().await;

    // Clusters before the routes that lead to them.
    stream.say(request(Kind::Filter, &response.nonce)).await;
    new.routes.push(route("more", "/more"));
    server.ads.update(&new).unwrap();
    for kind in [Kind::Clusters, Kind::Routes] {
        assert_eq!(stream.next().await.type_url, kind.type_url());
    }
    stream.silent().await;
}

#[tokio::test]
async fn a_refused_version_is_kept_away_until_it_changes() {
    let server = Server::start().await;
    let mut stream = server.stream().await;
    let good = stream.subscribe(Kind::Filter).await;
    let mut bad = settings();
    bad.module = module("bad");
    server.ads.update(&bad).unwrap();
    let response = stream.next().await;
    stream.say(refusal(Kind::Filter, &response.nonce)).await;
    stream.silent().await;

    let status = server.ads.status();
    let filter = status.iter().flat_map(|proxy| &proxy.types).next().unwrap();
    assert_eq!(filter.acked.as_ref(), Some(&good.version_info));
    let nack = filter.nack.as_ref().unwrap();
    assert_eq!(
        (nack.version.as_str(), nack.error.as_str()),
        (response.version_info.as_str(), "no such thing")
    );
    assert_eq!(filter.nacks, 1);

    // A new stream of that proxy gets the last good one, another proxy gets
    // what is current.
    drop(stream);
    let mut again = server.stream().await;
    assert_eq!(
        again.subscribe(Kind::Filter).await.version_info,
        good.version_info
    );
    let mut other = server.stream().await;
    let mut first = request(Kind::Filter, "");
    first.node = Some(Node {
        id: "node-2".to_owned(),
        ..Default::default()
    });
    other.say(first).await;
    assert_eq!(other.next().await.version_info, response.version_info);
    again.silent().await;

    // Something new is tried, and a return to the old as well.
    let mut new = settings();
    new.module = module("new");
    server.ads.update(&new).unwrap();
    assert_eq!(
        again.next().await.version_info,
        server.version(Kind::Filter)
    );
}

#[tokio::test]
async fn a_late_word_on_an_older_version_counts() {
    let server = Server::start().await;
    let mut stream = server.stream().await;
    stream.say(request(Kind::Filter, "")).await;
    let first = stream.next().await;
    let mut new = settings();
    new.module = module("two");
    server.ads.update(&new).unwrap();
    let second = stream.next().await;
    let acked = || {
        let status = server.ads.status();
        let mut types = status.iter().flat_map(|proxy| &proxy.types);
        types.next().unwrap().acked.clone()
    };
    assert_eq!(acked(), None);
    stream.say(request(Kind::Filter, &first.nonce)).await;
    stream.silent().await;
    assert_eq!(acked(), Some(first.version_info));
    stream.say(request(Kind::Filter, &second.nonce)).await;
    stream.silent().await;
    assert_eq!(acked(), Some(second.version_info));
}

#[tokio::test]
async fn a_listener_refused_for_its_filter_gets_one_more_attempt() {
    let server = Server::start().await;
    let mut stream = server.stream().await;
    stream.say(request(Kind::Listeners, "")).await;
    let listeners = stream.next().await;
    stream.say(refusal(Kind::Listeners, &listeners.nonce)).await;
    stream.silent().await;
    stream.subscribe(Kind::Filter).await;
    let retried = stream.next().await;
    assert_eq!(retried.type_url, Kind::Listeners.type_url());
    assert_eq!(retried.version_info, listeners.version_info);
    stream.say(refusal(Kind::Listeners, &retried.nonce)).await;
    stream.silent().await;
}

/// What an observer was told.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Observer for Told {
    fn runs(&self, _: &SpiffeId, node: &str, envoy: &str) {
        self.0.lock().unwrap().push(format!("{node} runs {envoy}"));
    }

    fn acked(&self, _: &SpiffeId, _: &str, _: Kind, _: &str) {
        self.0.lock().unwrap().push("taken".to_owned());
    }

    fn nacked(&self, _: &SpiffeId, _: &str, _: Kind, nack: &Nack) {
        self.0.lock().unwrap().push(nack.error.clone());
    }
}

#[tokio::test]
async fn a_proxy_that_repeats_itself_is_told_of_once() {
    let told = Arc::new(Told::default());
    let server = Server::observed(told.clone()).await;
    let mut stream = server.stream().await;
    stream.say(request(Kind::Filter, "")).await;
    let nonce = stream.next().await.nonce;
    let refused = |error: &str| {
        let mut refusal = refusal(Kind::Filter, &nonce);
        refusal.error_detail.as_mut().unwrap().message = error.to_owned();
        refusal
    };
    for _ in 0..40 {
        stream.say(refused("one")).await;
    }
    stream.silent().await;
    assert_eq!(*told.0.lock().unwrap(), ["one"]);
    // Another error is news, and so is a change of mind, within reason.
    for round in 0..40 {
        stream.say(refused(&format!("error {round}"))).await;
        stream.say(request(Kind::Filter, &nonce)).await;
    }
    stream.silent().await;
    assert_eq!(told.0.lock().unwrap().len(), 8);
    let status = server.ads.status();
    let filter = status.iter().flat_map(|proxy| &proxy.types).next().unwrap();
    assert_eq!(filter.nacks, 80);

    let mut new = settings();
    new.module = module("two");
    server.ads.update(&new).unwrap();
    let nonce = stream.next().await.nonce;
    stream.say(refusal(Kind::Filter, &nonce)).await;
    stream.silent().await;
    assert_eq!(told.0.lock().unwrap().last().unwrap(), "no such thing");
}

#[tokio::test]
async fn which_envoy_a_proxy_is_is_told_of() {
    let told = Arc::new(Told::default());
    let server = Server::observed(told.clone()).await;
    let mut stream = server.stream().await;
    let mut first = request(Kind::Filter, "");
    let version = SemanticVersion {
        major_number: 1,
        minor_number: 38,
        patch: 2,
    };
    let build = BuildVersion {
        version: Some(version),
        ..Default::default()
    };
    first.node.as_mut().unwrap().user_agent_version_type =
        Some(UserAgentVersionType::UserAgentBuildVersion(build));
    stream.say(first).await;
    stream.next().await;
    assert_eq!(*told.0.lock().unwrap(), ["node-1 runs 1.38.2"]);
}

#[tokio::test]
async fn what_is_not_served_is_said() {
    let server = Server::start().await;
    let mut stream = server.stream().await;
    let mut unknown = request(Kind::Clusters, "");
    unknown.type_url = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment".into();
    stream.say(unknown).await;
    stream.silent().await;
    let mut greedy = request(Kind::Routes, "");
    greedy.resource_names = vec!["a".to_owned(); 65];
    stream.say(greedy).await;
    let refused = stream.responses.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);

    let mut client = AggregatedDiscoveryServiceClient::new(server.channel.clone());
    let delta = client
        .delta_aggregated_resources(tokio_stream::iter([DeltaDiscoveryRequest::default()]))
        .await;
    assert_eq!(delta.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn closing_ends_every_stream() {
    let server = Server::start().await;
    let mut stream = server.stream().await;
    stream.subscribe(Kind::Clusters).await;
    server.ads.close();
    let end = tokio::time::timeout(TIMEOUT, stream.responses.message()).await;
    assert!(matches!(end, Ok(Ok(None))), "{end:?}");
}

#[tokio::test]
async fn a_connection_without_an_identity_is_refused() {
    let ads = Ads::new(&settings(), Arc::new(NoObserver)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(ads.service());
    tokio::spawn(server.serve_with_incoming(incoming));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel.connect().await.unwrap());
    let refused = client
        .stream_aggregated_resources(tokio_stream::iter([request(Kind::Clusters, "")]))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
}

#[test]
fn equal_settings_have_equal_versions() {
    let first = Snapshot::build(&settings()).unwrap();
    for _ in 0..20 {
        assert_eq!(Snapshot::build(&settings()).unwrap(), first);
    }
}

#[test]
fn another_start_has_another_filter_and_nothing_else_that_is_new() {
    let [first, second] = [1, 2].map(|start| {
        let settings = Settings {
            start,
            ..settings()
        };
        Snapshot::build(&settings).unwrap()
    });
    for kind in Kind::ALL {
        let same = first.resources(kind).version() == second.resources(kind).version();
        assert_eq!(same, kind != Kind::Filter, "{kind:?}");
    }
}

#[test]
fn wrong_settings_are_refused() {
    let refused = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        Snapshot::build(&settings).is_err()
    };
    for prefix in [
        "", "files", "/a?b", "/a#b", "/a%2Fb", "//a", "/a//b", "/a/../b", "/.", "/a b", "/a\\b",
        "/\u{e4}",
    ] {
        assert!(
            refused(&|settings| settings.routes = vec![route("a", prefix)]),
            "{prefix:?}"
        );
    }
    assert!(refused(
        &|settings| settings.routes = vec![route("a", "/"), route("b", "/")]
    ));
    assert!(refused(
        &|settings| settings.routes = vec![route("a", "/"), route("a", "/b")]
    ));
    assert!(refused(
        &|settings| settings.routes = vec![route("a b", "/")]
    ));
    assert!(refused(&|settings| settings.listener.port = 0));
    assert!(refused(
        &|settings| settings.authority = "http://a".to_owned()
    ));
    assert!(refused(&|settings| settings.hold_ms = 55_001));
    assert!(refused(
        &|settings| settings.stream_idle_ms = settings.hold_ms
    ));
    assert!(refused(&|settings| settings.max_request_headers_kib = 65));
    assert!(!refused(&|_| {}));
    assert_eq!(Module::new(&b"not wasm!"[..]), Err(SettingsError::NotWasm));
    assert_eq!(
        Module::new(&b"\0asm\x01\0\0\0\0\x04\x01aA"[..]),
        Err(SettingsError::Damaged(8))
    );
    assert!(Module::new(&b""[..]).is_err());
}
