//! An Envoy without Writ: the same listener, normalisation and upstream.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Error;
use crate::child::Child;
use crate::ports;
use crate::tools::Tools;

const DEADLINE: Duration = Duration::from_secs(20);

/// The running Envoy and the port of its listener.
pub struct Bare {
    /// The process.
    pub child: Child,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
}

impl Bare {
    /// Starts one with a single worker before the upstream on `upstream_port`.
    pub async fn start(tools: &Tools, dir: &Path, upstream_port: u16) -> Result<Bare, Error> {
        let port = ports::one()?;
        let config = dir.join("bare.yaml");
        std::fs::write(&config, bootstrap(port, upstream_port))
            .map_err(Error::file("write", &config))?;
        let mut command = Command::new(&tools.envoy);
        command
            .arg("-c")
            .arg(&config)
            .args(["--concurrency", "1", "--disable-hot-restart"]);
        let mut child = Child::spawn("the bare Envoy", &mut command, &dir.join("bare.log"))?;
        let deadline = Instant::now() + DEADLINE;
        let url = format!("http://127.0.0.1:{port}{}", crate::upstream::REPORT);
        loop {
            child.still_running()?;
            if let Ok(answer) = reqwest::get(&url).await
                && answer.status() == 200
            {
                return Ok(Bare { child, port });
            }
            if Instant::now() > deadline {
                return Err(child.error("does not answer"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn bootstrap(port: u16, upstream_port: u16) -> String {
    format!(
        r#"
static_resources:
  listeners:
  - name: bare
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bare
          normalize_path: true
          merge_slashes: true
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            name: bare
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route: {{ cluster: upstream }}
  clusters:
  - name: upstream
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{ socket_address: {{ address: 127.0.0.1, port_value: {upstream_port} }} }}
"#
    )
}
