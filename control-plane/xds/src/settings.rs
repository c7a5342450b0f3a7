//! What a proxy's configuration is made from, and what is refused in it.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, sync::Arc};

use sha2::{Digest, Sha256};

use crate::{Exempt, routes, sections};

/// The most routes of one listener: the filter reads lists of so many.
const MAX_ROUTES: usize = 128;
/// The most further authorities of one listener.
const MAX_SITES: usize = 64;
/// The longest route name, path prefix, host or authority, in bytes.
const MAX_TEXT_BYTES: usize = 253;
/// The largest filter module, in bytes.
const MAX_MODULE_BYTES: usize = 32 * 1024 * 1024;
/// The longest hold, in milliseconds.
const MAX_HOLD_MS: u64 = 55_000;
/// The least time between the end of a hold and Envoy's own idle timeout.
const IDLE_MARGIN_MS: u64 = 1_000;
/// The longest body that is read, in bytes.
const MAX_BODY_BYTES: u64 = 1024 * 1024;
/// The largest header block, in KiB.
const MAX_HEADERS_KIB: u32 = 64;

/// Everything that one proxy is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where agents connect.
    pub listener: Listener,
    /// The authority that clients use, `HOST` or `HOST:PORT`. Requests with
    /// another one match no route.
    pub authority: String,
    /// Further authorities, each with routes of its own.
    pub sites: Vec<Site>,
    /// Where guarded requests go. The longest prefix of an authority's wins.
    pub routes: Vec<Route>,
    /// What passes without the filter, by name.
    pub exempt: Exempt,
    /// The filter.
    pub module: Module,
    /// The filter's configuration, passed to it as JSON text.
    pub plugin_config: serde_json::Value,
    /// The configuration of a second instance of the filter, which stands before
    /// the first on routes that read bodies; there when there are such routes.
    pub bodies_config: Option<serde_json::Value>,
    /// Which start of the control plane this is, different each time. Envoy
    /// accepts unseen a filter that it has refused when it gets the same bytes
    /// again; a start that remembers no refusal must not hand it the same bytes.
    pub start: u64,
    /// How long the filter holds a request, in milliseconds; 55 s at most.
    pub hold_ms: u64,
    /// After how long without a byte a request is ended, in milliseconds;
    /// above the hold. [`default_stream_idle_ms`] has a good value.
    pub stream_idle_ms: u64,
    /// The largest header block, in KiB; 64 at most.
    pub max_request_headers_kib: u32,
    /// Where requests are logged.
    pub access_log: AccessLog,
}

/// A little above the hold, so that a request whose filter died ends soon.
pub fn default_stream_idle_ms(hold_ms: u64) -> u64 {
    hold_ms.saturating_add(5_000)
}

/// Where a listener binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

/// One guarded route: a path prefix, and nothing else, selects an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// A name for logs and metrics, unique: letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// `/` and whole segments: `/files` means `/files` and `/files/…`.
    pub path_prefix: String,
    /// An IP address, or a name that Envoy resolves.
    pub upstream_host: String,
    /// The upstream's port.
    pub upstream_port: u16,
    /// The longest body that is read, in bytes, where bodies are read; 1 MiB at most.
    pub reads_bodies: Option<usize>,
    /// The name of the site that it belongs to; none is [`Settings::authority`].
    pub site: Option<String>,
}

/// A further authority on the same listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// A name, unique: letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// The authority that clients use, `HOST` or `HOST:PORT`.
    pub authority: String,
}

/// The filter's module.
#[derive(Clone, PartialEq, Eq)]
pub struct Module {
    bytes: Arc<[u8]>,
    sha256: [u8; 32],
}

/// Where requests are logged, as JSON lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// To Envoy's standard output.
    Stdout,
    /// Appended to a file that Envoy opens.
    File(PathBuf),
    /// Nowhere.
    Off,
}

/// What is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A text is empty, too long or has letters that it can't have.
    #[error(
        "{what} {value:?} is empty, longer than 253 bytes or has letters that don't belong there"
    )]
    Text {
        /// Which one.
        what: &'static str,
        /// What was configured.
        value: String,
    },
    /// A prefix can't match what Envoy forwards.
    #[error(
        "path prefix {0:?} must start with a slash and have no query, fragment, escape, dot segment or double slash"
    )]
    Prefix(String),
    /// Two routes have one name or one prefix.
    #[error("two routes have the name or path prefix {0:?}")]
    Duplicate(String),
    /// Two authorities are one to a request, or have one name.
    #[error("two sites have the name or an authority {0:?}")]
    SameAuthority(String),
    /// A route names a site that isn't there.
    #[error("no site has the name {0:?}")]
    NoSite(String),
    /// An exemption would exempt more than its name says.
    #[error("{0}")]
    Exempt(String),
    /// A number is out of its range.
    #[error("{what} is {value}: it must be from {least} to {most}")]
    Range {
        /// Which one.
        what: &'static str,
        /// What was configured.
        value: u64,
        /// The least that is allowed.
        least: u64,
        /// The most that is allowed.
        most: u64,
    },
    /// The module is no wasm module.
    #[error("the filter module is not a wasm binary: build it, or check the configured path")]
    NotWasm,
    /// The module begins like one and does not go on like one.
    #[error("the filter module is damaged at byte {0}: put a whole one in place")]
    Damaged(usize),
    /// A route reads bodies and no filter does, or the other way round.
    #[error("routes that read bodies and a filter that does belong together")]
    Bodies,
    /// The access log's path is not UTF-8.
    #[error("the access log's path is not UTF-8: choose another")]
    LogPath,
}

impl Module {
    /// Takes a module's bytes and notes their digest.
    ///
    /// # Errors
    /// When they are no wasm binary, its sections don't add up to the whole
    /// file, or they are more than 32 MiB. What is in the sections is for Envoy
    /// to judge.
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Result<Self, SettingsError> {
        let bytes: Arc<[u8]> = bytes.into();
        in_range(
            "the filter module's size",
            wide(bytes.len()),
            8,
            wide(MAX_MODULE_BYTES),
        )?;
        if !bytes.starts_with(b"\0asm\x01\0\0\0") {
            return Err(SettingsError::NotWasm);
        }
        sections::check(&bytes).map_err(SettingsError::Damaged)?;
        Ok(Self {
            sha256: Sha256::digest(&bytes).into(),
            bytes,
        })
    }

    /// The module itself.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the module.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// SHA-256 of the module, in lower-case hexadecimal.
    pub fn sha256_hex(&self) -> String {
        hex::encode(self.sha256)
    }
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Module({} bytes, {})",
            self.bytes.len(),
            self.sha256_hex()
        )
    }
}

impl Settings {
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        self.check_sites()?;
        port("the edge's port", self.listener.port)?;
        in_range("the hold in ms", self.hold_ms, 0, MAX_HOLD_MS)?;
        in_range(
            "the stream idle timeout in ms",
            self.stream_idle_ms,
            self.hold_ms + IDLE_MARGIN_MS,
            3_600_000,
        )?;
        in_range(
            "the header limit in KiB",
            self.max_request_headers_kib.into(),
            1,
            MAX_HEADERS_KIB.into(),
        )?;
        in_range(
            "the number of routes",
            wide(self.routes.len()),
            0,
            wide(MAX_ROUTES),
        )?;
        let reads = self.routes.iter().any(|route| route.reads_bodies.is_some());
        if reads != self.bodies_config.is_some() {
            return Err(SettingsError::Bodies);
        }
        let (mut names, mut prefixes) = (BTreeSet::new(), BTreeSet::new());
        for route in &self.routes {
            route.check()?;
            self.site(route.site.as_deref())?;
            if !names.insert(&route.name) {
                return Err(SettingsError::Duplicate(route.name.clone()));
            }
            if !prefixes.insert((&route.site, &route.path_prefix)) {
                return Err(SettingsError::Duplicate(route.path_prefix.clone()));
            }
        }
        self.check_exempt()
    }

    fn check_exempt(&self) -> Result<(), SettingsError> {
        for unguarded in &self.exempt.unguarded {
            let route = &unguarded.route;
            self.site(route.site.as_deref())?;
        }
        for document in &self.exempt.metadata {
            self.site(document.site.as_deref())?;
        }
        let problems = self.exempt.problems(&self.routes);
        problems
            .into_iter()
            .next()
            .map_or(Ok(()), |(_, error)| Err(error))
    }

    /// What Envoy would refuse of the authorities: a domain twice.
    fn check_sites(&self) -> Result<(), SettingsError> {
        in_range(
            "the number of sites",
            wide(self.sites.len()),
            0,
            wide(MAX_SITES),
        )?;
        let (mut names, mut domains) = (BTreeSet::new(), BTreeSet::new());
        let first = std::iter::once(("", &self.authority));
        let further = self
            .sites
            .iter()
            .map(|site| (site.name.as_str(), &site.authority));
        for (name, authority) in first.chain(further) {
            if !name.is_empty() {
                text("the site's name", name, is_host_byte)?;
            }
            text("the edge's authority", authority, |byte| {
                is_host_byte(byte) || matches!(byte, b':' | b'[' | b']')
            })?;
            if !names.insert(name) {
                return Err(SettingsError::SameAuthority(name.to_owned()));
            }
            for domain in routes::domains(&authority.to_ascii_lowercase()) {
                if !domains.insert(domain) {
                    return Err(SettingsError::SameAuthority(authority.clone()));
                }
            }
        }
        Ok(())
    }

    /// The authority of a site by its name; [`Settings::authority`] without one.
    fn site(&self, name: Option<&str>) -> Result<&str, SettingsError> {
        let Some(name) = name else {
            return Ok(&self.authority);
        };
        let found = self.sites.iter().find(|site| site.name == name);
        found
            .map(|site| site.authority.as_str())
            .ok_or_else(|| SettingsError::NoSite(name.to_owned()))
    }
}

impl Route {
    /// Checks what one route says by itself.
    ///
    /// # Errors
    /// The first thing that Envoy could not be told.
    pub fn check(&self) -> Result<(), SettingsError> {
        text("the route name", &self.name, is_host_byte)?;
        text("the upstream host", &self.upstream_host, |byte| {
            is_host_byte(byte) || byte == b':'
        })?;
        port("the upstream port", self.upstream_port)?;
        let limit = self.reads_bodies.unwrap_or(1);
        in_range("the body limit", wide(limit), 1, MAX_BODY_BYTES)?;
        let prefix = &self.path_prefix;
        let plain = prefix
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'%' | b'\\'));
        let segments = prefix
            .strip_prefix('/')
            .is_some_and(|rest| !rest.split('/').any(|part| matches!(part, "." | "..")));
        if !plain || !segments || prefix.contains("//") || prefix.len() > MAX_TEXT_BYTES {
            return Err(SettingsError::Prefix(prefix.clone()));
        }
        Ok(())
    }
}

/// Checks a name of ours for logs and metrics.
pub(crate) fn name(value: &str) -> Result<(), SettingsError> {
    text("the name", value, is_host_byte)
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

fn text(what: &'static str, value: &str, fits: impl Fn(u8) -> bool) -> Result<(), SettingsError> {
    if value.is_empty() || value.len() > MAX_TEXT_BYTES || !value.bytes().all(fits) {
        return Err(SettingsError::Text {
            what,
            value: value.to_owned(),
        });
    }
    Ok(())
}

fn port(what: &'static str, value: u16) -> Result<(), SettingsError> {
    in_range(what, value.into(), 1, u16::MAX.into())
}

fn in_range(what: &'static str, value: u64, least: u64, most: u64) -> Result<(), SettingsError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(SettingsError::Range {
        what,
        value,
        least,
        most,
    })
}

fn wide(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}
