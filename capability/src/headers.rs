//! Names of headers that no client sends on to an upstream, for everybody who
//! takes them off: the filter on guarded routes, the proxy itself where the filter
//! is off, and the check of other people's configurations. One list for all: what
//! one of them forgot would be a way round the others. They have small letters.

/// What begins so is set by this side of the proxy alone.
pub const OURS: [&str; 2] = ["x-envoy-", "x-writ-"];

/// The reason of a refusal that is the proxy's own. An upstream's answer comes without it,
/// whatever its body says.
pub const REASON: &str = "x-writ-reason";

/// The approver's session: an upstream that gets one decides in a person's name.
/// Over https it has the first name, else the second.
pub const SESSION_COOKIES: [&str; 2] = ["__Host-writ_session", "writ_session"];

/// What proves who calls, and is for nobody behind the proxy.
pub const CREDENTIALS: [&str; 2] = ["authorization", "dpop"];

/// By these some servers take a request for another one than its method, path and
/// authority say, which is what was signed and approved, or exempt by name; or for
/// one about a second resource as well.
pub const REINTERPRETING: [&str; 42] = [
    "destination",
    "forwarded",
    "request-uri",
    "x-accel-mapping",
    "x-amz-copy-source",
    "x-bce-copy-source",
    "x-copy-from",
    "x-cos-copy-source",
    "x-forwarded-host",
    "x-forwarded-method",
    "x-forwarded-path",
    "x-forwarded-prefix",
    "x-forwarded-uri",
    "x-goog-copy-source",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-http-methodoverride",
    "x-invoke-path",
    "x-method",
    "x-method-override",
    "x-middleware-rewrite",
    "x-middleware-subrequest",
    "x-ms-copy-source",
    "x-ms-rename-source",
    "x-obs-copy-source",
    "x-original-host",
    "x-original-method",
    "x-original-path",
    "x-original-uri",
    "x-original-url",
    "x-oss-copy-source",
    "x-override-url",
    "x-restli-method",
    "x-rewrite-uri",
    "x-rewrite-url",
    "x-script-name",
    "x-sendfile-type",
    "x-tos-copy-source",
    "x-tunneled-method",
    "x-waws-unencoded-url",
];

/// Whether an upstream may read this name as one of [`OURS`], in any spelling.
#[must_use]
pub fn is_ours(name: &[u8]) -> bool {
    OURS.iter().any(|prefix| {
        let beginning = name.get(..prefix.len());
        beginning.is_some_and(|beginning| is_alike(beginning, prefix))
    })
}

/// Whether an upstream may read this name as one that no client sends on to it:
/// one of [`OURS`] or of [`REINTERPRETING`], in any spelling.
#[must_use]
pub fn is_untrusted(name: &[u8]) -> bool {
    // Most names end here.
    matches!(
        name.first(),
        Some(b'd' | b'f' | b'r' | b'x' | b'D' | b'F' | b'R' | b'X')
    ) && (is_ours(name) || REINTERPRETING.iter().any(|listed| is_alike(name, listed)))
}

/// Whether a server may read this name as the listed one. A name may have any of
/// ``!#$%&'*+-.^_`|~`` besides letters and digits (RFC 9110, section 5.6.2), and
/// where CGI's variables are made of it they are all the same `_`.
#[must_use]
pub fn is_alike(name: &[u8], listed: &str) -> bool {
    name.len() == listed.len()
        && name
            .iter()
            .zip(listed.bytes())
            .all(|(a, b)| letter(*a) == b)
}

fn letter(byte: u8) -> u8 {
    match byte {
        b'a'..=b'z' | b'0'..=b'9' => byte,
        b'A'..=b'Z' => byte.to_ascii_lowercase(),
        _ => b'-',
    }
}

/// Whether this pair of a `cookie` header is an approver's session.
#[must_use]
pub fn is_session_cookie(pair: &[u8]) -> bool {
    let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
    let name = name.trim_ascii();
    SESSION_COOKIES.iter().any(|it| it.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a name may have besides letters and digits.
    const OTHERS: &[u8] = b"!#$%&'*+-.^_`|~";

    #[test]
    fn a_name_is_known_in_every_spelling() {
        let names = REINTERPRETING.iter().copied();
        let ours = ["x-writ-agent", "x-writ-", "x-envoy-retry-on"];
        for name in names.chain(ours) {
            for other in OTHERS {
                let spelt = name.replace('-', &char::from(*other).to_string());
                assert!(is_untrusted(spelt.as_bytes()), "{spelt}");
                let upper = spelt.to_ascii_uppercase();
                assert!(is_untrusted(upper.as_bytes()), "{upper}");
            }
            // One of several is enough, and no byte is past it.
            let mixed = name.replacen('-', "\u{1}", 1);
            assert!(is_untrusted(mixed.as_bytes()), "{mixed:?}");
        }
        assert!(is_untrusted(b"x\xffwrit\xffagent"));
        for (name, ours) in [("X.Writ.User", true), ("x~original~url", false)] {
            assert_eq!(is_ours(name.as_bytes()), ours, "{name}");
        }
    }

    #[test]
    fn other_names_are_left() {
        for name in [
            "",
            "x",
            "x-writ",
            "xwritagent",
            "x-writing",
            "xx-writ-agent",
            "x--original-url",
            "x-original-url-",
            "x-original-urls",
            "x.http.methods",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x.own",
            "destinations",
            "referer",
            "from",
        ] {
            assert!(!is_untrusted(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_session_is_known_among_cookies() {
        for (pair, is_one) in [
            ("writ_session=a", true),
            (" __Host-writ_session = a=b", true),
            ("writ_session", true),
            ("writ_sessions=a", false),
            ("x=writ_session", false),
            ("writ-session=a", false),
            ("=writ_session", false),
            ("", false),
        ] {
            assert_eq!(is_session_cookie(pair.as_bytes()), is_one, "{pair}");
        }
    }
}
