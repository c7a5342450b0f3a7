//! Names of headers that no client sends on to an upstream, for everybody who
//! takes them off: the filter on guarded routes, the proxy itself where the filter
//! is off, and the check of other people's configurations. One list for all: what
//! one of them forgot would be a way round the others.

/// What begins so is set by this side of the proxy alone.
pub const OURS: [&str; 2] = ["x-envoy-", "x-writ-"];

/// What proves who calls, and is for nobody behind the proxy.
pub const CREDENTIALS: [&str; 2] = ["authorization", "dpop"];

/// By these some servers take a request for another one than its method, path and
/// authority say, which is what was signed and approved, or exempt by name.
pub const REINTERPRETING: [&str; 19] = [
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-method",
    "x-forwarded-path",
    "x-forwarded-prefix",
    "x-forwarded-uri",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-method",
    "x-method-override",
    "x-original-host",
    "x-original-method",
    "x-original-path",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-uri",
    "x-rewrite-url",
];
