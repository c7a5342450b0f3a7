//! `writ sidecar`.

use super::{fail, log_to_stderr};
use crate::sidecar::ahead::{AHEAD_MAX, Ahead};
use crate::sidecar::forward::Issuer;
use crate::sidecar::rules::Target;
use crate::sidecar::{self, Settings};
use clap::Args;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// A proxy on this machine that acts as this process's workload.
#[derive(Args)]
pub struct Sidecar {
    /// Where it listens: an address of this machine alone; port 0 is any free one
    #[arg(long, value_name = "ADDRESS", required_unless_present = "listen_unix")]
    listen: Option<SocketAddr>,
    /// A Unix socket on which it listens
    #[arg(long, value_name = "SOCKET")]
    listen_unix: Option<PathBuf>,
    /// The guarded origin, with or without a path; NAME=URL is for requests that begin with /NAME. May be repeated
    #[arg(long = "target", value_name = "[NAME=]URL", required = true)]
    targets: Vec<Target>,
    /// A user whose processes may use it; without any, only its own user's may. May be repeated
    #[arg(long = "allow-uid", value_name = "UID")]
    uids: Vec<u32>,
    /// A Host by which it may be called, beside its own address and localhost, with the port. May be repeated
    #[arg(long = "allow-host", value_name = "HOST")]
    hosts: Vec<String>,
    /// How long a request that is held waits for a person, in seconds; 0: not past the proxy's hold
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=86_400))]
    wait: u64,
    /// For how many actions that are read again and again the next token is fetched while an answer is on its way; 0: for none
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=AHEAD_MAX as u64))]
    prefetch: u64,
    /// Write where it listens into FILE, one URL a line, once it does
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
    #[command(flatten)]
    from: super::call::Issued,
}

impl Sidecar {
    /// Serves until a signal, and prints where once it listens.
    pub async fn run(self) -> ExitCode {
        log_to_stderr(self.log_json);
        match self.serve().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => fail(&problem),
        }
    }

    async fn serve(self) -> Result<(), String> {
        let stop = crate::serve::signals::stop_on_signal();
        let proves = self.from.proves();
        let issuer = Issuer::new(
            self.from.issuer,
            proves,
            Ahead::new(usize::try_from(self.prefetch).unwrap_or_default()),
        );
        let mut uids = self.uids;
        if uids.is_empty() {
            uids.push(rustix::process::geteuid().as_raw());
        }
        let settings = Settings {
            listen: self.listen,
            listen_unix: self.listen_unix,
            targets: self.targets,
            issuer: issuer.map_err(|error| error.to_string())?,
            uids,
            hosts: self.hosts,
            wait: Duration::from_secs(self.wait),
        };
        let sidecar = sidecar::Sidecar::bind(settings, stop).await;
        let sidecar = sidecar.map_err(|error| error.to_string())?;
        let places = sidecar.places().join("\n");
        if let Some(path) = &self.ready_file {
            write(path, &places)
                .map_err(|error| format!("can't write `{}`: {error}", path.display()))?;
        }
        println!("{places}");
        sidecar.run().await;
        Ok(())
    }
}

/// Whole or not at all: whoever waits for the file reads it at once.
fn write(path: &Path, places: &str) -> std::io::Result<()> {
    let mut half = path.as_os_str().to_owned();
    half.push(".new");
    std::fs::write(&half, format!("{places}\n"))?;
    std::fs::rename(&half, path)
}
