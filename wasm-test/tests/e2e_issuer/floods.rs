//! Who asks and asks: what one caller may fill, and what stays with the others.

use std::io::{ErrorKind, Seek as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wasm_test::client::Operator;
use wasm_test::system::AGENT;

use crate::admins::{ANN, BOB, CAROL, Person, link, two};
use crate::grants::{CHILD, start};
use crate::judging::{Bench, issued, no, refused};
use crate::plane::{Plane, Prepared, run, text};
use crate::refreshing::{authenticating, refresh_of, refreshing, with_refresh};

/// Entries of this kind about this agent.
fn lines(bench: &Bench, kind: &str, agent: &str) -> usize {
    let entries = bench.plane.entries();
    let is_it = |it: &&Value| it["kind"] == kind && it["body"]["agent"] == agent;
    entries.iter().filter(is_it).count()
}

/// Asks often, and is told the same each time.
async fn asks(bench: &Bench, agent: &str, times: usize, reason: &'static str) {
    for at in 0..times {
        let answer = bench.send(bench.attempt_of(agent)).await;
        refused(
            &format!("{agent} {at}"),
            &answer,
            no("access_denied", reason),
        );
    }
}

/// It is seen in the log, and can't fill it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_may_do_nothing_has_few_lines_for_its_refusals() {
    let bench = start("").await;
    let link = bench.plane.login_link().to_owned();
    let person = Operator::login_at(&link, &bench.plane.issuer())
        .await
        .unwrap();
    let unknown = "spiffe://writ.example/agent/nobody";
    let stopped = person.stop(&json!({ "agent": CHILD })).await.unwrap();
    assert_eq!(stopped.status, 200, "{}", stopped.text());
    // Time brings one more each 20 seconds.
    let few = 3..=6;
    for (agent, reason) in [(unknown, "agent_inactive"), (CHILD, "token_revoked")] {
        asks(&bench, agent, 40, reason).await;
        let lines = lines(&bench, "exchange_refused", agent);
        assert!(few.contains(&lines), "{lines} lines of {agent}");
    }
    assert_eq!(lines(&bench, "discover", unknown), 1);
    // All of those together have as many as twenty.
    for n in 0..40 {
        asks(&bench, &format!("{unknown}/{n}"), 3, "agent_inactive").await;
    }
    let all = bench.plane.entries();
    let all = all.iter().filter(|it| it["kind"] == "exchange_refused");
    let all = all.count();
    assert!((60..=110).contains(&all), "{all} lines of all of them");
    // Whoever may act has its own.
    let mut denied = bench.attempt();
    denied.set(
        "authorization_details",
        bench.details("/secret").to_string(),
    );
    let answer = bench.send(denied).await;
    refused("denied", &answer, no("access_denied", "policy_denied"));
    assert_eq!(lines(&bench, "exchange_refused", AGENT), 1);
    issued("allowed", &bench.send(bench.attempt()).await);
}

/// Each family ends at once, however many there are; what waits is the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_replays_its_refresh_tokens_gets_no_further_ones_for_a_while() {
    let (_dir, key, bench) = refreshing().await;
    let spent = no("invalid_grant", "token_spent");
    let mut families = Vec::new();
    for _ in 0..45 {
        let first = issued("first", &bench.send(authenticating(&bench, &key)).await);
        let first = refresh_of(&first);
        let next = bench.send(with_refresh(&bench, &key, &first)).await;
        families.push((first, refresh_of(&issued("second", &next))));
    }
    for (first, second) in &families {
        refused(
            "reuse",
            &bench.send(with_refresh(&bench, &key, first)).await,
            spent,
        );
        refused(
            "its family",
            &bench.send(with_refresh(&bench, &key, second)).await,
            no("access_denied", "token_revoked"),
        );
    }
    let stops = |bench: &Bench| {
        let entries = bench.plane.entries();
        entries.iter().filter(|it| it["kind"] == "stop").count()
    };
    assert_eq!(stops(&bench), families.len(), "one for each family");
    // The token that was asked for is given, and nothing to go on with.
    let body = issued(
        "afterwards",
        &bench.send(authenticating(&bench, &key)).await,
    );
    assert_eq!(body.get("refresh_token"), None, "{body}");
    // The same again changes nothing.
    let (first, _) = &families[0];
    refused(
        "again",
        &bench.send(with_refresh(&bench, &key, first)).await,
        spent,
    );
    assert_eq!(stops(&bench), families.len());
}

/// An approver is no administrator, and signs none of them out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approver_who_makes_links_and_sessions_puts_out_nobody_else() {
    let plane = two().start().await;
    let (ann, carol) = (
        Person::of(&plane, ANN).await,
        Person::of(&plane, CAROL).await,
    );
    // Made, and not used yet.
    let (_, said) = link(&plane, BOB).await;
    let of_bob = said.trim().rsplit('#').next().unwrap().to_owned();
    let (_, said) = link(&plane, CAROL).await;
    let of_carol = said.trim().rsplit('#').next().unwrap().to_owned();
    for at in 0..300 {
        let made = carol.post("/api/v1/login-links", json!({})).await;
        assert_eq!(made.status, 201, "{at}: {}", made.text());
        if at % 3 > 0 {
            continue;
        }
        let url = made.json()["url"].as_str().unwrap().to_owned();
        let secret = url.rsplit('#').next().unwrap();
        let body = json!({ "secret": secret });
        let opened = carol.post("/api/v1/session", body).await;
        assert_eq!(opened.status, 201, "{at}: {}", opened.text());
    }
    for (who, person) in [
        ("the administrator", &ann),
        ("the one it began with", &carol),
    ] {
        let told = person
            .ask(reqwest::Method::GET, "/api/v1/session", None)
            .await;
        assert_eq!(told.status, 200, "{who}: {}", told.text());
    }
    for (who, secret) in [(BOB, of_bob), (CAROL, of_carol)] {
        let opened = ann
            .post("/api/v1/session", json!({ "secret": secret }))
            .await;
        assert_eq!(opened.json()["who"], who, "{}", opened.text());
    }
}

/// Files that the control plane may have open, so that it has half as many places, and one
/// address half of those.
const FILES: u32 = 400;
const PLACES: usize = 200;
const SHARE: usize = 100;

/// Connections from an address of this machine that begin a request and say no more.
async fn hold(plane: &Plane, from: [u8; 4], count: usize) -> Vec<std::net::TcpStream> {
    let to: std::net::SocketAddr = ([127, 0, 0, 1], plane.ports().http).into();
    let mut held = Vec::new();
    for _ in 0..count {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let mut stream = socket.connect(to).await.unwrap();
        // One that was closed already takes nothing.
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\n").await;
        held.push(stream.into_std().unwrap());
    }
    held
}

/// Whether the control plane has closed each of these; it said nothing on any.
fn closed(held: &[std::net::TcpStream]) -> Vec<bool> {
    let is_closed = |stream: &std::net::TcpStream| match stream.peek(&mut [0]) {
        Ok(0) => true,
        Ok(_) => panic!("who asked for nothing was answered"),
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    };
    held.iter().map(is_closed).collect()
}

/// So many of these are closed, soon, and they are those that were held for longest.
async fn first_closed(what: &str, held: &[std::net::TcpStream], wanted: usize) {
    let began = Instant::now();
    let count = || closed(held).iter().filter(|it| **it).count();
    while count() < wanted && began.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let closed = closed(held);
    let first = closed.iter().take_while(|it| **it).count();
    let all = closed.iter().filter(|it| **it).count();
    assert_eq!((first, all), (wanted, wanted), "{what}");
}

/// Asks, is answered at once, and stays.
async fn answered(stream: &mut tokio::net::TcpStream) {
    let asks = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(asks).await.unwrap();
    let mut said = String::new();
    while !said.ends_with("ok\n") {
        let mut bytes = [0; 1024];
        // Before any of those that are held would be given up by itself.
        let read = tokio::time::timeout(Duration::from_secs(4), stream.read(&mut bytes));
        let read = read.await.expect("nobody is kept waiting").unwrap();
        assert_ne!(read, 0, "closed: {said}");
        said.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
}

/// Who holds all connections that there may be keeps nobody out: those that were held for
/// longest are closed for whoever asks, and one address has no more than its share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_connections_make_room_for_whoever_asks() {
    let plane = Prepared::new().with_files(FILES).start().await;
    let mut held = hold(&plane, [127, 0, 0, 2], SHARE).await;
    held.extend(hold(&plane, [127, 0, 0, 3], PLACES - SHARE).await);
    first_closed("as many as there may be", &held, 0).await;
    let mut asking = Vec::new();
    for _ in 0..8 {
        let to = ("127.0.0.1", plane.ports().http);
        let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
        answered(&mut stream).await;
        asking.push(stream);
    }
    first_closed("for those who asked", &held, asking.len()).await;
    // Who comes from one address gets as far as its share, and then closes its own.
    let more = hold(&plane, [127, 0, 0, 4], SHARE + 30).await;
    first_closed("of the one that came last", &more, 30).await;
    first_closed("for its share", &held, asking.len() + SHARE).await;
    for stream in &mut asking {
        answered(stream).await;
    }
}

/// Nobody waits for long for the rest of a body, and stopping has a door of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies_are_given_up_and_a_person_stops_by_the_admin_socket_too() {
    let plane = two().start().await;
    let address = plane.issuer().replace("http://", "");
    let slow = "POST /oauth2/token HTTP/1.1\r\nhost: x\r\ndpop: a\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: 30000\r\n\r\na";
    let mut held = Vec::new();
    for _ in 0..200 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        stream.write_all(slow.as_bytes()).await.unwrap();
        held.push(stream);
    }
    let began = Instant::now();
    for stream in &mut held {
        // Refused, though it has 30 seconds to come: none of it comes any more.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
    }
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );

    let (_, link) = link(&plane, ANN).await;
    let socket = plane.path("admin.sock");
    let by_socket = |args: &[&str]| {
        let mut command = plane.writ();
        // Nobody answers there.
        command.env("WRIT_ISSUER", "http://127.0.0.1:9");
        command.args(args).arg("--admin-socket").arg(&socket);
        command
    };
    let mut file = tempfile::tempfile().unwrap();
    writeln!(file, "{link}").unwrap();
    file.rewind().unwrap();
    let mut login = by_socket(&["login"]);
    login.stdin(file);
    let login = run(login).await;
    assert!(login.status.success(), "{}", text(&login.stderr));
    let revoke = run(by_socket(&["revoke", "--everything"])).await;
    assert_eq!(
        text(&revoke.stdout),
        "everything: stopped\n",
        "{}",
        text(&revoke.stderr)
    );
    let entries = plane.entries();
    let stop = entries.iter().rfind(|it| it["kind"] == "stop").unwrap();
    assert_eq!(stop["body"]["by"], ANN);
    // A uid alone stops nothing, and nobody lifts anything here.
    let body = json!({ "target": { "everything": true } }).to_string();
    for (path, status, reason) in [
        ("/api/v1/stops", 401, "not_signed_in"),
        ("/api/v1/stops/lift", 403, "needs_a_human"),
    ] {
        let (got, answer) = crate::admin_socket::admin(&socket, "POST", path, &body).await;
        assert_eq!(
            (got, answer["reason"].as_str()),
            (status, Some(reason)),
            "{answer}"
        );
    }
}
