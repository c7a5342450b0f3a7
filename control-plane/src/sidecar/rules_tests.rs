use super::*;
use http::Request;

fn targets(texts: &[&str]) -> Vec<Target> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn targets_are_origins_with_or_without_a_base_and_a_name() {
    for good in [
        "https://a.example",
        "https://a.example/",
        "http://127.0.0.1:8400/base",
        "tools=https://a.example/x=y",
    ] {
        assert!(good.parse::<Target>().is_ok(), "{good}");
    }
    for (bad, why) in [
        ("a.example", "no URL"),
        ("ftp://a.example", "neither"),
        ("https://u:p@a.example", "password"),
        ("https://a.example?x", "query"),
        ("https://a.example/#x", "fragment"),
        ("https://A.example", "normal form"),
        ("https://a.example/b/../c", "normal form"),
        ("https://a.example:443", "normal form"),
        ("=https://a.example", "no name"),
        ("a b=https://a.example", "no name"),
    ] {
        let said = bad.parse::<Target>().unwrap_err();
        assert!(said.contains(why), "{bad}: {said}");
    }
}

#[test]
fn a_request_is_for_one_url_exactly() {
    let all = targets(&["https://a.example/base", "tools=http://127.0.0.1:1"]);
    let rows: [(&str, Option<&str>); 14] = [
        ("/", Some("https://a.example/base/")),
        ("/x?y=1&z=%20", Some("https://a.example/base/x?y=1&z=%20")),
        ("/x?", Some("https://a.example/base/x?")),
        ("/tools", Some("http://127.0.0.1:1/")),
        ("/tools/x?y", Some("http://127.0.0.1:1/x?y")),
        ("/tools?y", Some("http://127.0.0.1:1/?y")),
        ("/toolsx", Some("https://a.example/base/toolsx")),
        ("http://localhost:1/x", Some("https://a.example/base/x")),
        ("/tools/../x", None),
        ("/%2e%2e/x", None),
        ("/a/./b", None),
        ("/a|b?{c}", Some("https://a.example/base/a|b?{c}")),
        ("/a\"b", None),
        ("*", None),
    ];
    for (wanted, url) in rows {
        let Ok(uri) = wanted.parse::<Uri>() else {
            assert_eq!(url, None, "{wanted}");
            continue;
        };
        assert_eq!(url_for(&all, &uri).ok().as_deref(), url, "{wanted}");
    }
    let named = targets(&["tools=http://127.0.0.1:1"]);
    let none = url_for(&named, &"/x".parse().unwrap()).unwrap_err();
    assert_eq!(none.reply().status(), 404);
}

fn said(uri: &str, method: &str, headers: &[(&str, &str)]) -> String {
    let hosts = Hosts::new(
        "127.0.0.1:8401".parse().unwrap(),
        &["Tools.Internal".into()],
    );
    let mut request = Request::builder().uri(uri).method(method);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let checked = hosts.check(&parts).and_then(|()| check_kind(&parts));
    checked.map_or_else(|problem| problem.reason().to_owned(), |()| "taken".into())
}

#[test]
fn what_was_meant_for_another_host_or_sent_by_a_page_is_refused() {
    let own = ("host", "127.0.0.1:8401");
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
    let rows: [Row; 21] = [
        ("/", &[own], "taken"),
        ("/", &[("host", "LOCALHOST:8401")], "taken"),
        ("/", &[("host", "[::1]:8401")], "taken"),
        ("/", &[("host", "tools.internal")], "taken"),
        ("/", &[("host", "127.0.0.1")], "host_refused"),
        ("/", &[("host", "127.0.0.1:8402")], "host_refused"),
        ("/", &[("host", "evil.example:8401")], "host_refused"),
        (
            "/",
            &[("host", "localhost.evil.example:8401")],
            "host_refused",
        ),
        ("/", &[], "host_refused"),
        ("/", &[own, own], "host_refused"),
        ("http://127.0.0.1:8401/", &[own], "taken"),
        ("https://127.0.0.1:8401/", &[own], "host_refused"),
        ("http://evil.example/", &[own], "host_refused"),
        ("/", &[own, ("origin", "http://127.0.0.1:8401")], "taken"),
        ("/", &[own, ("origin", "null")], "host_refused"),
        (
            "/",
            &[own, ("origin", "http://evil.example")],
            "host_refused",
        ),
        ("/", &[own, ("sec-fetch-site", "none")], "taken"),
        ("/", &[own, ("sec-fetch-site", "same-site")], "host_refused"),
        (
            "/",
            &[own, ("sec-fetch-site", "cross-site")],
            "host_refused",
        ),
        ("/", &[own, ("upgrade", "h2c")], "taken"),
        ("/", &[own, ("upgrade", "websocket")], "request_refused"),
    ];
    for (uri, headers, reason) in rows {
        assert_eq!(said(uri, "GET", headers), reason, "{uri} {headers:?}");
    }
    assert_eq!(said("127.0.0.1:8401", "CONNECT", &[own]), "host_refused");
    assert_eq!(said("/", "CONNECT", &[own]), "request_refused");
}

#[test]
fn headers_that_speak_for_the_agent_or_of_the_way_are_dropped() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("authorization", "Bearer x"),
        ("dpop", "x"),
        ("x-writ-agent", "x"),
        ("x-envoy-retry-on", "x"),
        ("x-forwarded-for", "x"),
        ("forwarded", "x"),
        ("connection", "close, X-Secret"),
        ("x-secret", "x"),
        ("te", "trailers"),
        ("host", "x"),
        ("content-length", "5"),
        ("proxy-authorization", "x"),
        ("accept", "a/b"),
        ("cookie", "a"),
        ("x-api-key", "k"),
    ] {
        headers.append(HeaderName::from_static(name), value.parse().unwrap());
    }
    headers.append("accept", "c/d".parse().unwrap());
    let kept = forwarded(&headers);
    let names: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["accept", "accept", "cookie", "x-api-key"]);
    let back = returned(&headers);
    assert!(back.contains_key("content-length") && !back.contains_key("x-secret"));
    assert!(!back.contains_key("te") && back.contains_key("authorization"));
}
