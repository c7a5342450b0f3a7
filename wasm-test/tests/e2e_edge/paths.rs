//! Paths and hosts that two readers read in two ways: refused, or exactly the
//! action that the token names.

use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::headers::only;
use super::raw::Http2;
use super::rig::{Rig, field, message};

/// Paths that one reader takes for `REPORT` or for something else than the next.
const PATHS: &[&str] = &[
    "/files%2Freport.txt",
    "/files%2freport.txt",
    "/files%5Creport.txt",
    "/files\\report.txt",
    "//files/report.txt",
    "/files//report.txt",
    "/./files/report.txt",
    "/files/./report.txt",
    "/files/x/../report.txt",
    "/files/../admin/keys.txt",
    "/files/report.txt/../../admin/keys.txt",
    "/../files/report.txt",
    "/files/%2e%2e/admin/keys.txt",
    "/files/%2E%2E/files/report.txt",
    "/files/%252e%252e/admin/keys.txt",
    "/files/..;/admin/keys.txt",
    "/files/..%3b/admin/keys.txt",
    "/files/report.txt;x=1",
    "/files;x/report.txt",
    "/files/report.txt%00",
    "/files/report.txt%00.html",
    "/files/report.txt%0d%0ax-writ-agent:%20x",
    "/files/report.txt%20",
    "/files/report.txt%23",
    "/files/report.txt%3Fall=1",
    "/files/report.txt#frag",
    "/files/report.txt?#frag",
    "/files/report.txt/",
    "/files/report%2etxt",
    "/files/%72eport.txt",
    "/files/rep%u006frt.txt",
    "/files/rep%6",
    "/files/rep%zzort.txt",
    "/FILES/report.txt",
    "/files/Report.txt",
    "/files/r\u{e9}port.txt",
    "/files/*",
    "/files/{x}",
    "/%c0%afadmin/keys.txt",
    "*",
    "files/report.txt",
    "http:/files/report.txt",
    "http://other.example/files/report.txt",
    "//other.example/files/report.txt",
    "/\t/files/report.txt",
];

/// Refused, or exactly what the token names reaches the upstream.
fn exact(rig: &Rig, what: &str, before: usize, status: u16) {
    let records = rig.records().split_off(before);
    match status {
        200 => assert_eq!(only(&records).path, REPORT, "{what}"),
        _ => assert!(records.is_empty(), "{what}: {status} {records:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_other_spelling_of_a_path_is_another_action() {
    let rig = Rig::start(Options::default()).await;
    let authority = rig.authority();
    let mut served = Vec::new();
    for path in PATHS {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        // A proof for what is sent, and one for what the token names.
        for proof_for in [*path, REPORT] {
            let mut headers = rig.credentials("GET", proof_for, &token);
            headers.insert(0, field("host", authority.as_str()));
            let before = rig.records().len();
            let mut connection = rig.connect().await;
            connection.send(&message("GET", path, &headers)).await;
            let status = connection.answer().await.map_or(0, |answer| answer.status);
            exact(&rig, path, before, status);
            assert!(
                status == 200 || status == 0 || (400..500).contains(&status),
                "{path}: {status}"
            );
            if status == 200 {
                served.push(*path);
            }
        }
        // HTTP/2 has no request line that could be split elsewhere.
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let before = rig.records().len();
        let answer = over_http_2(&rig, path, &authority, &token).await;
        exact(&rig, path, before, answer);
        rig.good_request().await;
    }
    // Envoy normalises these before anybody looks, so they are the action.
    let normal = [
        "//files/report.txt",
        "/files//report.txt",
        "/./files/report.txt",
        "/files/./report.txt",
        "/files/x/../report.txt",
        "/../files/report.txt",
        "/files/%2E%2E/files/report.txt",
        "/files\\report.txt",
        "/files/%72eport.txt",
        "/files/report%2etxt",
    ];
    served.retain(|path| !normal.contains(path));
    assert!(served.is_empty(), "served in another spelling: {served:?}");
    rig.finish().await;
}

async fn over_http_2(rig: &Rig, path: &str, authority: &str, token: &str) -> u16 {
    let proof = rig.proof("GET", REPORT, token);
    let authorization = format!("DPoP {token}");
    let mut connection = Http2::connect(&rig.authority()).await;
    let (id, bytes) = connection.request(&[
        (":method", b"GET"),
        (":scheme", b"http"),
        (":authority", authority.as_bytes()),
        (":path", path.as_bytes()),
        ("authorization", authorization.as_bytes()),
        ("dpop", proof.as_bytes()),
    ]);
    connection.send(&bytes).await;
    connection.answers(&[id]).await[&id].status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_is_the_configured_one() {
    let rig = Rig::start(Options::default()).await;
    let own = rig.authority();
    let port = own.rsplit(':').next().unwrap().to_owned();
    let hosts: Vec<Vec<String>> = vec![
        vec![],
        vec![String::new()],
        vec![format!("{own}/files/report.txt?x=")],
        vec![format!("{own}?x=")],
        vec![format!("user@{own}")],
        vec![format!("127.0.0.1.:{port}")],
        vec![format!("127.0.0.1:0{port}")],
        vec!["127.0.0.1".to_owned()],
        vec![format!("localhost:{port}")],
        vec!["other.example".to_owned()],
        vec![format!("{own}, other.example")],
        vec![format!("{own} other.example")],
        vec![own.clone(), "other.example".to_owned()],
        vec!["other.example".to_owned(), own.clone()],
        vec![own.clone(), own.clone()],
    ];
    for hosts in &hosts {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let mut headers = rig.credentials("GET", REPORT, &token);
        headers.extend(hosts.iter().map(|host| field("host", host.as_str())));
        let before = rig.arrived();
        let mut connection = rig.connect().await;
        connection.send(&message("GET", REPORT, &headers)).await;
        let status = connection.answer().await.map_or(0, |answer| answer.status);
        assert!(
            status == 0 || (400..500).contains(&status),
            "{hosts:?}: {status}"
        );
        assert_eq!(rig.arrived(), before, "{hosts:?}");
        rig.good_request().await;
    }
    for authority in [
        "other.example",
        "",
        &format!("user@{own}"),
        &format!("{own}/files"),
    ] {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let before = rig.arrived();
        let status = over_http_2(&rig, REPORT, authority, &token).await;
        assert_ne!(status, 200, "{authority:?}");
        assert_eq!(rig.arrived(), before, "{authority:?}");
        rig.good_request().await;
    }
    // The absolute form names the authority itself (RFC 9112, section 3.2.2).
    let token = rig.agent.token("GET", REPORT).await.unwrap();
    let before = rig.records().len();
    let absolute = format!("http://{own}{REPORT}");
    let mut headers = rig.credentials("GET", REPORT, &token);
    headers.push(field("host", "other.example"));
    let answer = rig.exchange_raw(&message("GET", &absolute, &headers)).await;
    exact(&rig, "absolute form", before, answer.status);
    rig.finish().await;
}
