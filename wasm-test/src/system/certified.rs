//! A system whose proxy demands client certificates.

use std::path::PathBuf;

use super::{AGENT, System};
use crate::certificates::Authority;
use crate::{Error, client};

impl System {
    /// Where this control plane answers those who show a certificate.
    pub fn mtls_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.mtls_port)
    }

    /// The built-in trust domain's authority, with its key.
    ///
    /// # Errors
    /// When the control plane has never been started.
    pub fn authority(&self) -> Result<Authority, Error> {
        Authority::open(&self.data_dir().join("trust"))
    }

    /// The control plane's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.data()
    }

    /// A client for its proxy: where that demands a certificate, it shows the
    /// agent's.
    pub(super) fn prober(&self) -> Result<reqwest::Client, Error> {
        if !self.options.client_certificates {
            return Ok(client::http_client());
        }
        let authority = self.authority()?;
        authority.client(Some(&authority.svid(AGENT)?))
    }
}
