//! What a client may not say: headers that only a proxy sets, and other ways
//! past the filter.

use wasm_test::client::Answer;
use wasm_test::system::{AGENT, Options};
use wasm_test::upstream::{REPORT, Record};

use super::raw::Http2;
use super::rig::{Field, Rig, field, jti, message};

/// Sends `GET path` with a right token and proof and more headers; what came
/// back, and what reached the upstream.
async fn sent_with(rig: &Rig, path: &str, more: &[Field]) -> (Answer, Vec<Record>) {
    let token = rig.agent.token("GET", path).await.unwrap();
    let mut headers = rig.credentials("GET", path, &token);
    headers.extend_from_slice(more);
    let before = rig.records().len();
    let answer = rig.exchange_raw(&rig.request("GET", path, &headers)).await;
    (answer, rig.records().split_off(before))
}

pub fn only(records: &[Record]) -> &Record {
    assert_eq!(records.len(), 1, "{records:?}");
    &records[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_gets_verified_facts_and_no_credentials() {
    let rig = Rig::start(Options::default()).await;
    let token = rig.agent.token("GET", REPORT).await.unwrap();
    let mut headers = rig.credentials("GET", REPORT, &token);
    for name in [
        "x-writ-agent",
        "X-Writ-Agent",
        "X-WRIT-USER",
        "x-writ-token-id",
        "x-writ-decision",
        "x-writ-",
    ] {
        headers.push(field(name, "spiffe://writ.example/agent/admin"));
        headers.push(field(name, "twice"));
    }
    headers.push(field("X-Request-Id", "chosen-by-the-client"));
    headers.push(field("x-client-own", "stays"));
    let answer = rig
        .exchange_raw(&rig.request("GET", REPORT, &headers))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let records = rig.records();
    let record = records.last().unwrap();
    let ours: Vec<(&str, &str)> = record
        .headers
        .iter()
        .filter(|(name, _)| name.starts_with("x-writ"))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let id = jti(&token);
    let mut wanted = vec![("x-writ-agent", AGENT), ("x-writ-token-id", &id)];
    wanted.sort_unstable();
    let mut ours_sorted = ours.clone();
    ours_sorted.sort_unstable();
    assert_eq!(ours_sorted, wanted);
    for credential in ["authorization", "dpop"] {
        assert_eq!(record.header(credential), None);
    }
    assert!(!format!("{record:?}").contains(&token), "{record:?}");
    assert_eq!(record.header("x-client-own"), Some("stays"));
    // The id is Envoy's own, and the one that the log and the answer have.
    let request_id = record.header("x-request-id").unwrap();
    assert_ne!(request_id, "chosen-by-the-client");
    assert_eq!(answer.header("x-request-id"), Some(request_id));
    let allow = rig.entries_of("allow").pop().unwrap();
    assert_eq!(allow["body"]["request"]["request_id"], request_id);
    assert_eq!(allow["body"]["token"]["jti"], id.as_str());
    rig.finish().await;
}

/// A header with an underscore is one of ours to a CGI: refused whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_with_an_underscore_is_refused() {
    let rig = Rig::start(Options::default()).await;
    for name in [
        "x_writ_agent",
        "X_Writ_User",
        "x_envoy_retry_on",
        "dpop_",
        "any_thing",
    ] {
        let (answer, records) = sent_with(&rig, REPORT, &[field(name, "x")]).await;
        assert_eq!(answer.status, 400, "{name}");
        assert!(records.is_empty(), "{name}: {records:?}");
        rig.good_request().await;
    }
    rig.finish().await;
}

/// An upstream that obeys one of these does something else than was allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reinterprets_a_request_does_not_arrive() {
    let rig = Rig::start(Options::default()).await;
    let names = [
        "x-http-method-override",
        "X-HTTP-Method",
        "x-method-override",
        "x-original-url",
        "X-Rewrite-URL",
        "x-original-host",
        "x-forwarded-host",
        "x-forwarded-method",
        "x-forwarded-path",
        "x-forwarded-prefix",
        "x-forwarded-uri",
        "x-host",
        "x-http-host-override",
        "x-method",
        "x-original-method",
        "x-original-path",
        "x-original-uri",
        "x-rewrite-uri",
        "Forwarded",
        "Destination",
        "Request-URI",
        "x-amz-copy-source",
        "x-accel-mapping",
        "x-bce-copy-source",
        "x-copy-from",
        "x-cos-copy-source",
        "x-goog-copy-source",
        "x-ms-copy-source",
        "x-ms-rename-source",
        "x-obs-copy-source",
        "x-oss-copy-source",
        "x-script-name",
        "x-sendfile-type",
        "x-tos-copy-source",
        "X-HTTP-MethodOverride",
        "x-invoke-path",
        "x-middleware-rewrite",
        "x-middleware-subrequest",
        "X-Override-URL",
        "X-RestLi-Method",
        "X-Tunneled-Method",
        "x-waws-unencoded-url",
    ];
    let mut all: Vec<_> = names.iter().map(|name| field(name, "DELETE")).collect();
    all.push(field("x-harmless", "kept"));
    let (answer, records) = sent_with(&rig, REPORT, &all).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let record = only(&records);
    for name in names {
        assert_eq!(record.header(&name.to_lowercase()), None, "{name}");
    }
    assert_eq!(record.header("x-harmless"), Some("kept"));
    rig.finish().await;
}

/// Names that are ours, or that make another request of this one, where CGI's
/// variables are made of them: every character but `-`, which is how they are listed,
/// and `_`, which Envoy refuses.
pub fn other_spellings() -> Vec<String> {
    const NAMES: [&str; 6] = [
        "x-writ-agent",
        "x-writ-user",
        "x-envoy-retry-on",
        "x-original-url",
        "x-http-method-override",
        "request-uri",
    ];
    let others = ".!#$%&'*+^|~`".chars().map(String::from);
    others
        .flat_map(|other| NAMES.map(|name| name.replace('-', &other)))
        .collect()
}

/// Which of those a request has.
pub fn spelt_otherwise(record: &Record) -> Vec<&str> {
    let all = other_spellings();
    let names = record.headers.iter().map(|(name, _)| name.as_str());
    names
        .filter(|name| all.iter().any(|it| it == name))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ours_in_another_spelling_does_not_arrive() {
    let rig = Rig::start(Options::default()).await;
    let names = other_spellings();
    assert_eq!(names.len(), 78);
    let mut all: Vec<_> = names.iter().map(|name| field(name, "admin")).collect();
    all.push(field("X.Writ.Decision", "eyJ"));
    all.push(field("x.own", "kept"));
    let (answer, records) = sent_with(&rig, REPORT, &all).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let record = only(&records);
    assert_eq!(spelt_otherwise(record), Vec::<&str>::new());
    assert_eq!(record.header("x.writ.decision"), None);
    assert_eq!(record.header("x.own"), Some("kept"));
    assert_eq!(record.header("x-writ-agent"), Some(AGENT));

    // What an approval covers has one name.
    for name in ["Content.Encoding", "content~type"] {
        let (answer, records) = sent_with(&rig, REPORT, &[field(name, "gzip")]).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (403, "action_mismatch"),
            "{name}"
        );
        assert!(records.is_empty(), "{name}: {records:?}");
    }
    rig.finish().await;
}

/// A browser sends cookies to every port of a host (RFC 6265, section 8.5).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approvers_session_does_not_arrive() {
    let rig = Rig::start(Options::default()).await;
    let rows: [(&[&str], &[&str]); 7] = [
        (&["writ_session=secret"], &[]),
        (&["__Host-writ_session=secret"], &[]),
        (&["a=1; writ_session=secret; b=2"], &["a=1; b=2"]),
        (
            &["a=\"x;writ_session=secret;y\"", "c=3"],
            &["a=\"x; y\"; c=3"],
        ),
        (
            &[
                "a=1",
                "writ_session=secret; __Host-writ_session=secret",
                "b=2",
            ],
            &["a=1; b=2"],
        ),
        (
            &["writ_sessions=kept; x=writ_session"],
            &["writ_sessions=kept; x=writ_session"],
        ),
        (&["a=1;;b=2"], &["a=1;;b=2"]),
    ];
    for (sent, arrives) in rows {
        let more: Vec<Field> = sent.iter().map(|value| field("Cookie", *value)).collect();
        let (answer, records) = sent_with(&rig, REPORT, &more).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let record = only(&records);
        let cookies = record.headers.iter().filter(|(name, _)| name == "cookie");
        let cookies: Vec<&str> = cookies.map(|(_, value)| value.as_str()).collect();
        assert_eq!(cookies, arrives, "{sent:?}");
        assert!(!format!("{record:?}").contains("secret"), "{record:?}");
    }
    rig.finish().await;
}

/// Envoy obeys these from clients that it holds to be internal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_header_of_envoys_has_an_effect() {
    let rig = Rig::start(Options::default()).await;
    let internal = || {
        vec![
            field("x-envoy-internal", "true"),
            field("X-Forwarded-For", "127.0.0.1"),
            field("x-forwarded-proto", "https"),
        ]
    };
    let retry: &[(&str, &str)] = &[
        (
            "x-envoy-retry-on",
            "5xx,gateway-error,reset,connect-failure,retriable-4xx",
        ),
        ("x-envoy-retry-grpc-on", "unavailable"),
        ("X-Envoy-Max-Retries", "5"),
        ("x-envoy-retriable-status-codes", "503"),
        ("x-envoy-retriable-header-names", "content-type"),
    ];
    let hurry: &[(&str, &str)] = &[
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-upstream-rq-timeout-ms", "20"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", "10"),
        ("x-envoy-upstream-rq-timeout-alt-response", "1"),
        ("x-envoy-upstream-stream-duration-ms", "20"),
        ("x-envoy-expected-rq-timeout-ms", "20"),
        ("x-envoy-hedge-on-per-try-timeout", "true"),
    ];
    let elsewhere: &[(&str, &str)] = &[
        ("x-envoy-original-path", "/admin/keys.txt"),
        ("X-ENVOY-ORIGINAL-URL", "/admin/keys.txt"),
        ("x-envoy-original-dst-host", "127.0.0.1:1"),
        ("x-envoy-force-trace", "1"),
        ("x-envoy-decorator-operation", "x"),
        ("x-envoy-attempt-count", "7"),
        ("x-envoy-ip-tags", "x"),
        ("x-envoy-external-address", "10.0.0.1"),
    ];
    let rows = [
        ("/echo/fails?status=503", 503, retry),
        ("/echo/slow?ms=300", 200, hurry),
        (REPORT, 200, elsewhere),
    ];
    for (path, status, headers) in rows {
        let mut all = internal();
        all.extend(headers.iter().map(|(name, value)| field(name, *value)));
        let (answer, records) = sent_with(&rig, path, &all).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        let record = only(&records);
        assert_eq!(record.path, path);
        let envoys: Vec<_> = record
            .headers
            .iter()
            .filter(|(n, _)| n.starts_with("x-envoy-"))
            .collect();
        assert!(envoys.is_empty(), "{envoys:?}");
        assert_eq!(record.header("x-forwarded-proto"), Some("http"));
        let seen: Vec<_> = answer
            .headers
            .iter()
            .filter(|(n, _)| n.starts_with("x-envoy-"))
            .collect();
        assert!(seen.is_empty(), "{seen:?}");
    }
    assert_eq!(rig.uses().values().max(), Some(&1));
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tunnel_and_no_second_request_in_the_shadow_of_the_first() {
    let rig = Rig::start(Options::default()).await;
    let upgrades: [&[(&str, &str)]; 3] = [
        &[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ],
        &[
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
        ],
        &[("connection", "upgrade"), ("upgrade", "anything")],
    ];
    for upgrade in upgrades {
        let more: Vec<Field> = upgrade
            .iter()
            .map(|(name, value)| field(name, *value))
            .collect();
        let (answer, records) = sent_with(&rig, REPORT, &more).await;
        assert_ne!(answer.status, 101, "{upgrade:?}");
        // Refused, or served as the plain request that the token is for.
        match answer.status {
            200 => assert_eq!(only(&records).header("upgrade"), None, "{upgrade:?}"),
            status => {
                assert!((400..500).contains(&status), "{upgrade:?}: {status}");
                assert!(records.is_empty(), "{upgrade:?}: {records:?}");
            }
        }
        rig.good_request().await;
    }
    let own = rig.authority();
    for target in [own.as_str(), "other.example:443", "/files/report.txt"] {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let headers = rig.credentials("CONNECT", REPORT, &token);
        let before = rig.arrived();
        let mut connection = rig.connect().await;
        let mut all = vec![field("host", own.as_str())];
        all.extend(headers);
        connection.send(&message("CONNECT", target, &all)).await;
        let status = connection.answer().await.map_or(0, |answer| answer.status);
        assert!(
            status == 0 || (400..500).contains(&status),
            "CONNECT {target}: {status}"
        );
        assert_eq!(rig.arrived(), before, "CONNECT {target}");
    }
    for method in ["get", "FOO", "TRACE", "GET\u{1}", "PRI"] {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let before = rig.arrived();
        let mut connection = rig.connect().await;
        connection.send(&rig.signed(method, REPORT, &token)).await;
        let status = connection.answer().await.map_or(0, |answer| answer.status);
        assert!(
            status == 0 || (400..500).contains(&status),
            "{method}: {status}"
        );
        assert_eq!(rig.arrived(), before, "{method}");
    }
    rig.good_request().await;

    // Pipelined: what is true of the first request is not true of the second.
    let token = rig.agent.token("GET", REPORT).await.unwrap();
    let first = rig.signed("GET", REPORT, &token);
    let second = rig.request("GET", REPORT, &[]);
    let before = rig.arrived();
    let mut connection = rig.connect().await;
    connection.send(&[first, second].concat()).await;
    for (status, reason) in [(200, ""), (401, "missing_credentials")] {
        let answer = connection
            .answer()
            .await
            .expect("a pipelined request has no answer");
        assert_eq!((answer.status, answer.reason().as_str()), (status, reason));
    }
    connection.send(&rig.signed("GET", REPORT, &token)).await;
    let answer = connection
        .answer()
        .await
        .expect("the connection is good for more");
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (401, "token_spent")
    );
    assert_eq!(rig.arrived(), before + 1);

    // A second request hidden behind the first one's length.
    let smuggled = rig.request("GET", "/admin/keys.txt", &[]);
    for (name, framing) in [
        (
            "both lengths",
            vec![
                field("content-length", "0"),
                field("transfer-encoding", "chunked"),
            ],
        ),
        (
            "two lengths",
            vec![field("content-length", "0"), field("content-length", "40")],
        ),
        (
            "a strange coding",
            vec![field("transfer-encoding", "chunked, identity")],
        ),
        (
            "a coding with a space",
            vec![field("transfer-encoding ", "chunked")],
        ),
    ] {
        let path = "/echo/post";
        let token = rig.agent.token("POST", path).await.unwrap();
        let mut headers = rig.credentials("POST", path, &token);
        headers.extend(framing);
        let before = rig.records().len();
        let mut connection = rig.connect().await;
        let bytes = [
            rig.request("POST", path, &headers),
            b"0\r\n\r\n".to_vec(),
            smuggled.clone(),
        ];
        connection.try_send(&bytes.concat()).await;
        let first = connection.answer().await.map_or(0, |answer| answer.status);
        assert!(
            first == 200 || first == 0 || (400..502).contains(&first),
            "{name}: {first}"
        );
        let records = rig.records().split_off(before);
        let others = records.iter().filter(|record| record.path != path);
        assert_eq!(others.count(), 0, "{name}: {records:?}");
        assert!(records.len() <= 1, "{name}: {records:?}");
        rig.good_request().await;
    }
    rig.finish().await;
}

/// What HTTP/2 can say and HTTP/1 must not be told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_smuggled_from_http_2_to_http_1() {
    let rig = Rig::start(Options::default()).await;
    let own = rig.authority();
    let extra: [(&str, &[u8]); 8] = [
        ("x-a", b"b\r\nx-writ-agent: admin"),
        ("x-a", b"b\nGET /admin/keys.txt HTTP/1.1"),
        ("x-a", b"b\0c"),
        ("x-a: b\r\nx-writ-user", b"admin"),
        ("transfer-encoding", b"chunked"),
        ("connection", b"keep-alive"),
        ("X-Writ-Agent", b"admin"),
        (":path", b"/admin/keys.txt"),
    ];
    for (name, value) in extra {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let proof = rig.proof("GET", REPORT, &token);
        let authorization = format!("DPoP {token}");
        let before = rig.arrived();
        let mut connection = Http2::connect(&own).await;
        let (id, bytes) = connection.request(&[
            (":method", b"GET"),
            (":scheme", b"http"),
            (":authority", own.as_bytes()),
            (":path", REPORT.as_bytes()),
            ("authorization", authorization.as_bytes()),
            ("dpop", proof.as_bytes()),
            (name, value),
        ]);
        connection.send(&bytes).await;
        let answer = connection.answers(&[id]).await[&id].clone();
        assert_ne!(answer.status, 200, "{name:?}: {value:?}");
        assert_eq!(rig.arrived(), before, "{name:?}: {value:?}");
        rig.good_request().await;
    }
    rig.finish().await;
}
