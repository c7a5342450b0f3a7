//! A trust domain in a temporary directory, served.

#![expect(dead_code, reason = "each test file uses a part of it")]

use std::{path::PathBuf, sync::Arc, time::Duration};

use identity::{BuiltIn, SpiffeId, TrustDomainSettings, WorkloadEntry};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

pub const NAME: &str = "writ.example";
pub const TIMEOUT: Duration = Duration::from_secs(10);

pub fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://{NAME}/{path}")).unwrap()
}

pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap().as_millis()).unwrap()
}

pub struct Domain {
    pub dir: TempDir,
    pub settings: TrustDomainSettings,
    pub built_in: BuiltIn,
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
}

pub fn settings(dir: &TempDir) -> TrustDomainSettings {
    TrustDomainSettings {
        name: NAME.to_owned(),
        dir: dir.path().join("trust"),
        socket: dir.path().join("workload.sock"),
        self_id: id("control-plane"),
        entries: Vec::new(),
        hosts: std::collections::BTreeMap::new(),
        x509_ttl: Duration::from_secs(3600),
        jwt_ttl: Duration::from_secs(300),
        clock: Arc::new(now_ms),
    }
}

impl Domain {
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut TrustDomainSettings)) -> Self {
        let dir = TempDir::new().unwrap();
        let mut settings = settings(&dir);
        change(&mut settings);
        let built_in = BuiltIn::open(settings.clone()).unwrap();
        let stop = CancellationToken::new();
        let task = built_in.serve(stop.clone()).unwrap();
        Self {
            dir,
            settings,
            built_in,
            stop,
            task,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.settings.socket.clone()
    }

    pub async fn source(&self) -> identity::Source {
        identity::Source::connect(&self.socket(), TIMEOUT)
            .await
            .unwrap()
    }

    pub async fn channel(&self) -> Channel {
        let socket = self.socket();
        Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move {
                    let stream = tokio::net::UnixStream::connect(socket).await?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                }
            }))
            .await
            .unwrap()
    }
}

pub fn entry(path: &str, uid: Option<u32>, executable: Option<PathBuf>) -> WorkloadEntry {
    WorkloadEntry {
        spiffe_id: id(path),
        uid,
        executable,
    }
}
