//! The rules, by the words that scripts may rely on.

use std::fmt;

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// One rule. Its word is in docs/reference/edge-check.md.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Rule { $($(#[$doc])* $name,)* }

        impl Rule {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

rules! {
    /// The admin interface is reachable from other machines.
    AdminOpen = "admin_open",
    /// A listener forwards connections without looking at requests.
    NotHttp = "not_http",
    /// Requests pass without the filter.
    NoFilter = "no_filter",
    /// The filter is switched off, or may be missing.
    FilterOff = "filter_off",
    /// Something else may stand in the filter's place.
    FilterReplaced = "filter_replaced",
    /// The filter or its resource is not in what was given.
    FilterUnseen = "filter_unseen",
    /// A filter stands between Writ's and the upstream.
    FilterAfter = "filter_after",
    /// A filter before Writ's answers from what it kept.
    CacheBefore = "cache_before",
    /// The module is fetched by Envoy.
    RemoteModule = "remote_module",
    /// A filter that fails lets requests through.
    FailsOpen = "fails_open",
    /// Until the filter is there, something lets requests through.
    DefaultConfig = "default_config",
    /// Paths are not brought into one form before they are compared.
    PathNotNormal = "path_not_normal",
    /// Header names that upstreams read as others are let through.
    Underscores = "underscores",
    /// What clients say of themselves is believed.
    ClientsTrusted = "clients_trusted",
    /// Headers that steer Envoy, or that upstreams believe, come from clients.
    HeadersNotStripped = "headers_not_stripped",
    /// A client's word for its certificate is passed on.
    CertificateHeader = "certificate_header",
    /// A connection is handed over whole after one check.
    Upgrade = "upgrade",
    /// Routes are not in what was given.
    RoutesUnseen = "routes_unseen",
    /// What is matched on can change behind the filter, or is the client's to say.
    MatchesOn = "matches_on",
    /// An unguarded route takes a guarded one's paths.
    Shadowed = "shadowed",
    /// The filter is switched off or changed for a route or virtual host.
    RouteOverride = "route_override",
    /// A request may be sent again.
    Retried = "retried",
    /// A request is sent to a second place.
    Mirrored = "mirrored",
    /// A request is sent twice at a time.
    Hedged = "hedged",
    /// Envoy itself follows a redirect.
    InternalRedirect = "internal_redirect",
    /// The path that is forwarded is not the one that was checked.
    RewritesPath = "rewrites_path",
    /// The host that is forwarded is not the one that was checked.
    RewritesHost = "rewrites_host",
    /// A header that the filter vouches for, or removes, is set behind it.
    SetsHeaders = "sets_headers",
    /// The upstream is chosen by what the client says.
    UpstreamChosen = "upstream_chosen",
    /// An unguarded route hands tokens or proofs to its upstream.
    CredentialsForwarded = "credentials_forwarded",
    /// A guarded route's upstream can be reached by something unguarded.
    SharedUpstream = "shared_upstream",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
