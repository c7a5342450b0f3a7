//! The normaliser: the published `htu` table, and what is refused.

#[expect(dead_code, reason = "each test file uses its own part")]
mod common;

use capability::action::{Action, ActionError};
use capability::b64;
use capability::url::{Origin, Target, UrlError, is_read_alike};
use serde_json::{Value, json};

/// Every row by the RFC's rule. Where the strict rule takes the request at
/// all, it has to agree; what it doesn't take is refused, and listed here.
#[test]
fn the_published_htu_table() {
    let Some(table) = common::vector_json("rfc/htu_normalisation.json") else {
        return;
    };
    let cases = table["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 34);
    let mut refused = Vec::new();
    for case in cases {
        let (htu, request) = (
            case["htu"].as_str().unwrap(),
            case["request"].as_str().unwrap(),
        );
        let by_rfc = Target::htu(request).unwrap().is_htu(htu);
        // The one open row: an IPv6 address has one spelling here.
        assert_eq!(by_rfc, case["match"].as_bool().unwrap_or(true), "{case}");
        match Target::location(request) {
            Ok(request) => assert_eq!(request.is_htu(htu), by_rfc, "{case}"),
            Err(_) => refused.push(request),
        }
    }
    assert_eq!(refused, ["https://a.example/a%2Fb"]);
}

#[test]
fn locations_have_one_normal_form() {
    for (text, normal) in [
        ("https://a.example", "https://a.example/"),
        (
            "HTTPS://A.Example:443/%7eu?%7e=%2f",
            "https://a.example/~u?~=%2F",
        ),
        ("http://a.example:80/", "http://a.example/"),
        ("http://a.example:443/", "http://a.example:443/"),
        (
            "http://127.0.0.1:8400/files/a.txt",
            "http://127.0.0.1:8400/files/a.txt",
        ),
        ("https://[2001:DB8:0::1]:443/", "https://[2001:db8::1]/"),
        ("https://a.example?x=1", "https://a.example/?x=1"),
        ("https://a.example/?", "https://a.example/?"),
        (
            "https://a.example/caf%c3%a9/a%20b/",
            "https://a.example/caf%C3%A9/a%20b/",
        ),
        (
            "https://a_b.example/x@y:z,(1)=$&'!+",
            "https://a_b.example/x@y:z,(1)=$&'!+",
        ),
        ("https://a.example/?a", "https://a.example/?a"),
        (
            "https://a.example/?a%5B%5D=1&a=2;b=//x?y",
            "https://a.example/?a%5B%5D=1&a=2;b=//x?y",
        ),
    ] {
        let target = Target::location(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(target.to_string(), normal);
        assert_eq!(Target::location(normal).unwrap(), target);
    }
}

#[test]
fn ambiguous_locations_are_refused() {
    use UrlError::{
        Authority, Character, Encoded, Fragment, Path, PercentEncoding, Scheme, Segment, Userinfo,
    };
    for (text, error) in [
        ("", Scheme),
        ("/p", Scheme),
        ("a.example/p", Scheme),
        ("//a.example/p", Scheme),
        ("ftp://a.example/", Scheme),
        ("javascript://a.example/", Scheme),
        (" https://a.example/", Scheme),
        ("https:/a.example/", Scheme),
        ("https:\\\\a.example\\", Scheme),
        ("https://", Authority),
        ("https:///p", Authority),
        ("https://u@a.example/", Userinfo),
        ("https://u:p@a.example/", Userinfo),
        ("https://a.example./", Authority),
        ("https://a..example/", Authority),
        ("https://.a.example/", Authority),
        ("https://a.example:/", Authority),
        ("https://a.example:0/", Authority),
        ("https://a.example:0443/", Authority),
        ("https://a.example:65536/", Authority),
        ("https://a.example:+80/", Authority),
        ("https://a.example:80:80/", Authority),
        ("https://a%2eexample/", Authority),
        ("https://a\\b.example/", Authority),
        ("https://\u{e9}.example/", Authority),
        ("https://*.example/", Authority),
        ("https://a.example,b.example/", Authority),
        ("https://a b/", Authority),
        ("https://[::1/", Authority),
        ("https://[::1]x/", Authority),
        ("https://[fe80::1%25eth0]/", Authority),
        ("https://[127.0.0.1]/", Authority),
        ("https://::1/", Authority),
        ("https://a.example/#", Fragment),
        ("https://a.example#f", Fragment),
        ("https://a.example/?q#f", Fragment),
        ("https://a.example//", Segment),
        ("https://a.example//b", Segment),
        ("https://a.example/a//b", Segment),
        ("https://a.example/.", Segment),
        ("https://a.example/a/..", Segment),
        ("https://a.example/%2e%2E/a", Segment),
        ("https://a.example/a%2Fb", Encoded),
        ("https://a.example/a%5cb", Encoded),
        ("https://a.example/%00", Encoded),
        ("https://a.example/%0d%0a", Encoded),
        ("https://a.example/%7f", Encoded),
        ("https://a.example/%c2%85", Encoded),
        ("https://a.example/%25%37%30", Encoded),
        ("https://a.example/%252e", Encoded),
        ("https://a.example/a%3bb", Encoded),
        ("https://a.example/%2a", Encoded),
        ("https://a.example/%7bx%7d", Encoded),
        ("https://a.example/%23", Encoded),
        ("https://a.example/%3f", Encoded),
        ("https://a.example/a%20", Encoded),
        ("https://a.example/%20/a", Encoded),
        ("https://a.example/%c0%ae", Encoded),
        ("https://a.example/%ff", Encoded),
        ("https://a.example/?%00", Encoded),
        ("https://a.example/?a=%0D%0A", Encoded),
        ("https://a.example/%", PercentEncoding),
        ("https://a.example/%2", PercentEncoding),
        ("https://a.example/%u002e", PercentEncoding),
        ("https://a.example/%+1", PercentEncoding),
        ("https://a.example/?%zz", PercentEncoding),
        ("https://a.example/a;b", Character),
        ("https://a.example/*", Character),
        ("https://a.example/{x}", Character),
        ("https://a.example/a b", Character),
        ("https://a.example/a\\b", Character),
        ("https://a.example/a\0", Character),
        ("https://a.example/a\r\n", Character),
        ("https://a.example/\u{e9}", Character),
        ("https://a.example/?\u{e9}", Character),
        ("https://a.example/?a b", Character),
        ("https://a.example/?a\"", Character),
        ("https://a.example/?{x}", Character),
    ] {
        assert_eq!(Target::location(text), Err(error), "{text:?}");
    }
    let origin = Origin::parse("https://a.example").unwrap();
    for (path, error) in [
        ("", Path),
        ("*", Path),
        ("a", Path),
        ("?a", Path),
        ("https://a.example/", Path),
        ("//b.example/p", Segment),
        ("/%7Eu", UrlError::NotNormal),
        ("/caf%c3%a9", UrlError::NotNormal),
    ] {
        assert_eq!(
            Target::request(&origin, path.as_bytes()),
            Err(error),
            "{path:?}"
        );
    }
}

#[test]
fn an_origin_is_scheme_and_authority_alone() {
    let origin = Origin::parse("HTTP://Tools.Example:80/").unwrap();
    assert_eq!(origin.as_str(), "http://tools.example");
    assert_eq!(origin.authority(), "tools.example");
    assert!(Origin::parse("http://tools.example/x").is_err());
    assert!(Origin::parse("http://tools.example?x").is_err());
    assert!(Origin::parse("http://tools.example#").is_err());
    for (authority, same) in [
        (&b"tools.example"[..], true),
        (b"TOOLS.example:80", true),
        (b"tools.example:443", false),
        (b"tools.example:080", false),
        (b"tools.example.", false),
        (b"tools.example\xff", false),
        (b"", false),
    ] {
        assert_eq!(origin.is_authority(authority), same);
    }
}

#[test]
fn one_method_and_one_location_are_an_action() {
    let good = json!({"type": "http_request", "actions": ["GET"], "locations": ["https://A.example:443/p?x=1"]});
    let action = Action::from_authorization_details(&json!([good])).unwrap();
    assert_eq!(
        (action.method(), action.origin()),
        ("GET", "https://a.example")
    );
    assert_eq!(action.location(), "https://a.example/p?x=1");
    assert_eq!(action.path_and_query(), "/p?x=1");
    assert_eq!(Action::from_details(&action.to_details()), Ok(action));

    let mut bound = good.clone();
    bound["content_digest"] = json!(b64::encode(&[7; 32]));
    let action = Action::from_details(&bound).unwrap();
    assert_eq!(action.content_digest(), Some([7; 32]));
    assert_eq!(
        action.to_details()["content_digest"],
        bound["content_digest"]
    );
    assert_eq!(Action::from_details(&action.to_details()), Ok(action));

    let with = |name: &str, value: Value| {
        let mut element = good.clone();
        element[name] = value;
        Action::from_details(&element).unwrap_err()
    };
    use ActionError as E;
    for (error, expected) in [
        (with("type", json!("file_request")), E::Type),
        (with("type", json!("mcp_request")), E::RpcMethod),
        (with("type", json!(1)), E::Malformed),
        (with("content_digest", json!("x")), E::ContentDigest),
        (with("content_digest", Value::Null), E::ContentDigest),
        (with("content_digest", json!(1)), E::ContentDigest),
        (
            with("content_digest", json!(b64::encode(&[0; 31]))),
            E::ContentDigest,
        ),
        (with("identifier", json!("x")), E::UnknownMember),
        (with("actions", json!("GET")), E::Method),
        (with("actions", json!([])), E::Method),
        (with("actions", json!(["GET", "GET"])), E::Method),
        (with("actions", json!(["get"])), E::Method),
        (with("actions", json!(["CONNECT"])), E::Method),
        (with("actions", json!([1])), E::Method),
        (with("actions", json!(["*"])), E::Wildcard),
        (with("locations", json!([])), E::Location),
        (with("locations", json!("https://a.example/")), E::Location),
        (
            with(
                "locations",
                json!(["https://a.example/", "https://a.example/"]),
            ),
            E::Location,
        ),
        (
            with("locations", json!(["https://a.example/*"])),
            E::Wildcard,
        ),
        (
            with("locations", json!(["https://*.example/"])),
            E::Wildcard,
        ),
        (
            with("locations", json!(["https://a.example/{id}"])),
            E::Wildcard,
        ),
        (
            with("locations", json!(["https://a.example/../x"])),
            E::Url(UrlError::Segment),
        ),
    ] {
        assert_eq!(error, expected);
    }
    for array in [json!([]), json!([good, good]), good.clone(), Value::Null] {
        assert_eq!(Action::from_authorization_details(&array), Err(E::NotOne));
    }
}

#[test]
fn a_path_is_read_alike_when_a_request_may_have_it() {
    for path in [
        "/",
        "/echo/x",
        "/echo/a%20b/",
        "/caf%C3%A9",
        "/echo?q=%2F..;&x=a|b",
    ] {
        assert!(is_read_alike(path.as_bytes()), "{path}");
    }
    for path in [
        "",
        "?x",
        "echo",
        "*",
        "http://a.example/echo",
        "/echo/..;/files/x",
        "/echo/;x",
        "/echo/../x",
        "/echo//x",
        "/echo/%2e%2e/x",
        "/echo/%252e%252e/x",
        "/echo/%2Fx",
        "/echo/%5C..%5Cx",
        "/echo/%00",
        "/echo/%C0%AE",
        "/echo/a|b",
        "/echo/%zz",
        "/echo/#?x",
    ] {
        assert!(!is_read_alike(path.as_bytes()), "{path}");
    }
    assert!(!is_read_alike(b"/echo/\xff"));
}
