//! What can be judged only from several keys, or by looking at this machine.

use super::reader::{Reader, Table};
use super::types::{Config, Route};
use capability::gates::TokenCheck;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

impl Route {
    /// The route as Envoy is told of it; none when `upstream` has no port.
    #[must_use]
    pub fn for_envoy(&self) -> Option<xds::Route> {
        let (host, port) = self.upstream.rsplit_once(':')?;
        Some(xds::Route {
            name: self.name.clone(),
            path_prefix: self.path_prefix.clone(),
            upstream_host: host.trim_matches(['[', ']']).to_owned(),
            upstream_port: port.parse().ok()?,
            reads_bodies: self.body.as_ref().map(|body| body.limit),
            site: self.site.clone(),
        })
    }
}

/// What Envoy could not be told; what is missing has been said by then.
pub(super) fn route(route: &Route) -> Option<xds::SettingsError> {
    let missing = route.name.is_empty() || route.path_prefix.is_empty();
    route
        .for_envoy()
        .filter(|_| !missing)
        .and_then(|route| route.check().err())
}

/// The key that such an error is about.
pub(super) fn route_key(error: &xds::SettingsError) -> &'static str {
    match error {
        xds::SettingsError::Prefix(_) => "path_prefix",
        xds::SettingsError::Text { what, .. } if what.contains("name") => "name",
        _ => "upstream",
    }
}

/// `edge.token_check`.
pub(super) fn token_check(edge: &Table<'_>) -> TokenCheck {
    match edge.text_or("token_check", "edge").as_str() {
        "edge" => TokenCheck::Edge,
        "record" => TokenCheck::Record,
        other => {
            let text = format!("`{other}` is neither \"edge\" nor \"record\"");
            edge.error("token_check", text);
            TokenCheck::Edge
        }
    }
}

impl Config {
    /// Addresses, sockets and names that must not be one another's.
    pub(super) fn check_places(&self, reader: &Reader) {
        let server = &self.server;
        let clash = |one: SocketAddr, other: SocketAddr| {
            let any = one.ip().is_unspecified() || other.ip().is_unspecified();
            one.port() != 0 && one.port() == other.port() && (any || one.ip() == other.ip())
        };
        if clash(server.grpc_listen, server.listen) {
            reader.error_at(
                "server.grpc_listen",
                "server.listen has this port already; take another".into(),
            );
        }
        let mtls = server.mtls_listen;
        if mtls.is_some_and(|mtls| clash(mtls, server.listen) || clash(mtls, server.grpc_listen)) {
            reader.error_at(
                "server.mtls_listen",
                "another listener has this port already; take another".into(),
            );
        }
        for other in [server.listen, server.grpc_listen] {
            if server.metrics_listen.is_some_and(|own| clash(own, other)) {
                reader.error_at(
                    "server.metrics_listen",
                    format!("{other} is taken by another listener; take another port"),
                );
            }
        }
        // Envoy may be on another machine, which has addresses of its own.
        let own = [Some(server.listen), Some(server.grpc_listen), mtls];
        for other in own.into_iter().flatten() {
            let mut edges = self.edges();
            let same = edges.any(|edge| edge.listen == other) && !other.ip().is_unspecified();
            if same && other.port() != 0 {
                reader.error_at(
                    "edge.listen",
                    format!("the control plane listens on {other} itself; take another port"),
                );
            }
        }
        let identity = &self.identity;
        if !server.admin_socket.as_os_str().is_empty()
            && server.admin_socket == identity.workload_api
        {
            reader.error_at(
                "server.admin_socket",
                "identity.workload_api is this same socket; give each its own".into(),
            );
        }
        let domain = &identity.trust_domain;
        let usable = identity::SpiffeId::parse(&format!("spiffe://{domain}/x")).is_ok();
        if !usable && !domain.is_empty() {
            reader.error_at(
                "identity.trust_domain",
                format!("`{domain}` is not a trust domain's name like writ.example"),
            );
        }
        let own = &identity.control_plane_id;
        if identity.built_in && usable && !own.is_empty() {
            let within = own.starts_with(&format!("spiffe://{domain}/"));
            if !within {
                reader.error_at(
                    "identity.control_plane_id",
                    format!("`{own}` is not in the trust domain `{domain}`"),
                );
            }
        }
    }

    /// What goes with client certificates at the edge and what does not.
    pub(super) fn check_certificates(&self, reader: &Reader) {
        for site in self.edge.all_sites() {
            if self.edge.client_certificates && site.origin.starts_with("http://") {
                reader.error_at(
                    "edge.client_certificates",
                    format!(
                        "TLS ends at the listener: `{}` has to be https",
                        site.origin
                    ),
                );
            }
        }
        let url = self.server.mtls_url.as_deref().unwrap_or_default();
        if url.starts_with("http://") {
            reader.error_at("server.mtls_url", "client certificates need https".into());
        }
    }

    /// The token endpoint for X.509-SVIDs, when it is to be served: its tokens are
    /// bound to certificates, which must not be shown where nobody looks.
    fn check_bound_tokens(&self, reader: &Reader) {
        let server = &self.server;
        if server.mtls_listen.is_some() && !self.edge.client_certificates {
            reader.error_at(
                "server.mtls_listen",
                "its tokens are bound to client certificates, and the edge's listener demands none: say edge.client_certificates = \"required\", or take this line out".into(),
            );
        }
        let missing = match (&server.mtls_listen, &server.mtls_url) {
            (Some(_), None) => Some(("server.mtls_listen", "server.mtls_url")),
            (None, Some(_)) => Some(("server.mtls_url", "server.mtls_listen")),
            _ => None,
        };
        if let Some((there, missing)) = missing {
            reader.error_at(there, format!("it goes with {missing}, which is missing"));
        }
    }

    /// The files and directories that a start needs, and what it can't keep; nothing
    /// is made.
    pub(super) fn check_machine(&self, reader: &Reader) {
        self.check_bound_tokens(reader);
        if self.ledger.head_copy.is_some() && self.ledger.store.url.is_some() {
            reader.error_at(
                "ledger.head_copy",
                "no head is kept of a log in a database (ledger.store); take this line out, and keep what `writ audit verify URL` prints".into(),
            );
        }
        let module = &self.edge.module;
        if module.is_absolute()
            && let Err(message) = self.edge.read_module()
        {
            reader.error_at("edge.module", message);
        }
        for group in &self.edge.groups {
            if let Some(path) = group.module.as_ref().filter(|it| it.is_absolute())
                && let Err(message) = super::types::Edge::module_at(path)
            {
                let message = format!("edge.group.module: {message}");
                reader.error(group.module_line, message);
            }
        }
        self.check_issuers_files(reader);
        self.check_token_files(reader);
        self.check_federated_files(reader);
        self.check_clients_files(reader);
        let dir = &self.server.data_dir;
        if dir.is_absolute()
            && let Some(message) = unusable(dir)
        {
            reader.error_at("server.data_dir", message);
        }
    }
}

impl super::types::Edge {
    /// Reads and checks the filter's module.
    ///
    /// # Errors
    /// What is wrong with the file, with its name.
    pub fn read_module(&self) -> Result<xds::Module, String> {
        Self::module_at(&self.module)
    }

    /// Reads and checks a module.
    ///
    /// # Errors
    /// As [`Edge::read_module`](Self::read_module).
    pub fn module_at(path: &Path) -> Result<xds::Module, String> {
        let shown = path.display();
        let bytes = std::fs::read(path).map_err(|error| {
            format!(
                "can't read the filter's module `{shown}`: {error}; build it or correct the path"
            )
        })?;
        xds::Module::new(bytes).map_err(|error| format!("the filter's module `{shown}`: {error}"))
    }
}

/// Why the data directory could not be used, as far as that shows from outside.
fn unusable(dir: &Path) -> Option<String> {
    use rustix::fs::{Access, access};
    if let Ok(found) = std::fs::metadata(dir) {
        let mode = found.permissions().mode() & 0o777;
        return if !found.is_dir() {
            Some(format!("`{}` is not a directory", dir.display()))
        } else if mode & 0o077 != 0 {
            Some(format!(
                "others may enter the data directory `{}` (mode {mode:o}), which holds keys; make it 0700",
                dir.display()
            ))
        } else {
            None
        };
    }
    let above = dir.ancestors().skip(1).find(|above| above.exists())?;
    let why = if !above.is_dir() {
        "is not a directory"
    } else if access(above, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        "is not writable for this user"
    } else {
        return None;
    };
    Some(format!(
        "can't make the directory `{}`: `{}` {why}; make it writable or name another",
        dir.display(),
        above.display()
    ))
}
