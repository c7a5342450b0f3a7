//! manual run (temporary)
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "manual run")]
use std::{path::PathBuf, sync::Arc, time::Duration};
use identity::{BuiltIn, Source, SpiffeId, TrustDomainSettings, WorkloadEntry, mtls};
use tokio_util::sync::CancellationToken;
use xds::*;
#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_env_filter("debug,h2=info,hyper=info,tower=info").init();
    let args: Vec<String> = std::env::args().collect();
    let dir = PathBuf::from(&args[1]);
    let envoy = PathBuf::from(&args[2]);
    let module = std::fs::read(&args[3]).unwrap();
    let upstream: u16 = args[4].parse().unwrap();
    let ttl: u64 = args[5].parse().unwrap();
    let id = |p: &str| SpiffeId::parse(&format!("spiffe://writ.example/{p}")).unwrap();
    let socket = dir.join("workload.sock");
    let uid = 0;
    let td = BuiltIn::open(TrustDomainSettings {
        name: "writ.example".into(), dir: dir.join("trust"), socket: socket.clone(),
        self_id: id("control-plane"),
        entries: vec![
            WorkloadEntry { spiffe_id: id("agent/demo"), uid: Some(uid), executable: None },
            WorkloadEntry { spiffe_id: id("proxy"), uid: Some(uid), executable: Some(envoy) },
        ],
        x509_ttl: Duration::from_secs(ttl), jwt_ttl: Duration::from_secs(300),
        clock: Arc::new(|| u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()).unwrap()),
    }).unwrap();
    let stop = CancellationToken::new();
    let task = td.serve(stop.clone()).unwrap();
    let source = Source::connect(&socket, Duration::from_secs(5)).await.unwrap();
    println!("own {}", source.own_id().unwrap());
    let mut settings = Settings {
        listener: Listener { address: "127.0.0.1".parse().unwrap(), port: 18400 },
        authority: "127.0.0.1:18400".into(),
        routes: vec![Route { name: "files".into(), path_prefix: "/".into(), upstream_host: "127.0.0.1".into(), upstream_port: upstream }],
        module: Module::new(module).unwrap(),
        plugin_config: serde_json::json!({}), hold_ms: 25000, stream_idle_ms: default_stream_idle_ms(25000),
        max_request_headers_kib: 32, access_log: AccessLog::Stdout, allow_on_headers_stop_iteration: false,
    };
    let ads = Ads::new(&settings, Arc::new(NoObserver)).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:18481").await.unwrap();
    let proxy = id("proxy");
    let incoming = mtls::serve_incoming(listener, source, Arc::new(move |peer| *peer == proxy));
    let server = tonic::transport::Server::builder().add_service(ads.service()).serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let server = tokio::spawn(server);
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "status" => println!("{:#?}", ads.status()),
            "config" => { settings.plugin_config = serde_json::json!({"changed": true}); println!("{:?}", ads.update(&settings)); }
            "bad" => { let mut s = settings.clone(); s.module = Module::new(&b"\0asm\x01\0\0\0junk"[..]).unwrap(); println!("{:?}", ads.update(&s)); }
            "good" => { println!("{:?}", ads.update(&settings)); }
            "badport" => { let mut s = settings.clone(); s.listener.port = 18481; println!("{:?}", ads.update(&s)); }
            "quit" => break,
            _ => {}
        }
    }
    ads.close(); stop.cancel();
    println!("server {:?}", tokio::time::timeout(Duration::from_secs(5), server).await);
    println!("task {:?}", tokio::time::timeout(Duration::from_secs(5), task).await);
}
