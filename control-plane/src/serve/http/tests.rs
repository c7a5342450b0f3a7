//! Who is served, for how long, and who is not.

use super::*;
use axum::response::sse::{Event, Sse};
use axum::routing::{get, post};
use identity::SpiffeId;
use identity::mtls::{MtlsStream, plaintext_incoming};
use std::convert::Infallible;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

const SOON: Duration = Duration::from_secs(5);

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

impl Server {
    async fn start(most: usize) -> Self {
        let patience = Patience {
            head: Duration::from_millis(300),
            body: Duration::from_millis(300),
            grace: Duration::from_millis(200),
            drain: Duration::from_millis(300),
        };
        Self::with(most, patience).await
    }

    async fn with(most: usize, patience: Patience) -> Self {
        let endless = || async {
            let ticks = futures::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Some((Ok::<_, Infallible>(Event::default().data("tick")), ()))
            });
            Sse::new(ticks)
        };
        let said = |body: Result<String, axum::extract::rejection::StringRejection>| async move {
            body.unwrap_or_else(|_| "no body".to_owned())
        };
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/events", get(endless))
            .route("/said", post(said));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve_most(listener, router, stop.clone(), most, patience));
        Self {
            address,
            stop,
            task,
        }
    }

    async fn open(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }
}

/// Everything until the server closes.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut text))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn silent_and_slow_connections_are_closed_and_make_room() {
    let server = Server::start(6).await;
    let idle = [
        server.open("").await,
        server.open("GET / HTTP/1.1\r\nhost: a\r\n").await,
    ];
    let asked = server.open("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    // Kept alive, until nothing more is asked.
    let answer = rest(asked).await;
    assert!(answer.ends_with("hello"), "{answer}");
    for stream in idle {
        assert!(!rest(stream).await.contains("200"));
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_refused_and_one_that_does_is_read() {
    let server = Server::start(8).await;
    let head = "POST /said HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nconnection: close\r\n\r\n";
    let whole = rest(server.open(&format!("{head}word")).await).await;
    assert!(whole.ends_with("word"), "{whole}");
    let mut slow = server.open(head).await;
    for _ in 0..2 {
        slow.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let slow = rest(slow).await;
    assert!(slow.ends_with("no body"), "{slow}");
}

#[tokio::test]
async fn streams_of_events_outlive_every_patience_but_the_stop() {
    let server = Server::start(8).await;
    let mut events = server.open("GET /events HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut text = String::new();
    while text.matches("tick").count() < 10 {
        let mut bytes = [0; 1024];
        let read = tokio::time::timeout(SOON, events.read(&mut bytes))
            .await
            .unwrap()
            .unwrap();
        assert_ne!(read, 0, "{text}");
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
    server.stop.cancel();
    tokio::time::timeout(SOON, server.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

/// Whoever sends nothing more, all that there may be, keeps nobody out.
#[tokio::test]
async fn who_only_holds_connections_makes_room_for_whoever_asks() {
    let patience = Patience {
        head: SOON,
        body: SOON,
        grace: SOON,
        drain: Duration::from_millis(300),
    };
    let server = Server::with(8, patience).await;
    let mut events = server.open("GET /events HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut bytes = [0; 1024];
    assert_ne!(events.read(&mut bytes).await.unwrap(), 0);
    let slow = "POST /said HTTP/1.1\r\nhost: a\r\ncontent-length: 30000\r\n\r\na";
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(server.open(slow).await);
        held.push(server.open("GET / HTTP/1.1\r\n").await);
    }
    let asks = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = tokio::time::timeout(SOON / 2, async { rest(server.open(asks).await).await });
    let answer = answer.await.unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
    // What is being answered goes on.
    let mut text = String::new();
    while text.matches("tick").count() < 3 {
        let read = tokio::time::timeout(SOON, events.read(&mut bytes)).await;
        let read = read.unwrap().unwrap();
        assert_ne!(read, 0, "{text}");
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
}

/// Everybody that comes to one listener is this workload.
async fn workload(name: &str, to: mpsc::Sender<io::Result<MtlsStream>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let id = SpiffeId::parse(name).unwrap();
    let mut incoming = plaintext_incoming(listener, id).unwrap();
    tokio::spawn(async move {
        while let Some(stream) = incoming.next().await {
            if to.send(stream).await.is_err() {
                break;
            }
        }
    });
    address
}

/// Sends this on a connection that stays, and reads until the answer has that.
async fn told(stream: &mut TcpStream, text: &str, word: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut said = String::new();
    while !said.contains(word) {
        let mut bytes = [0; 1024];
        let read = tokio::time::timeout(SOON / 2, stream.read(&mut bytes)).await;
        let read = read.expect(word).unwrap();
        assert_ne!(read, 0, "{said}");
        said.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
}

/// A workload that says nothing on all that it may have makes room itself.
#[tokio::test]
async fn a_workload_that_only_holds_connections_keeps_no_other_out() {
    let patience = Patience {
        head: SOON * 2,
        body: SOON * 2,
        grace: SOON * 2,
        drain: Duration::from_millis(300),
    };
    let (sender, receiver) = mpsc::channel(1);
    let (a, b) = ("spiffe://writ.example/a", "spiffe://writ.example/b");
    let at_a = workload(a, sender.clone()).await;
    let at_b = workload(b, sender).await;
    let who = |Extension(peer): Extension<identity::mtls::Peer>| async move { peer.id.to_string() };
    let router = Router::new().route("/", get(who));
    let stop = CancellationToken::new();
    let incoming = ReceiverStream::new(receiver);
    let served = serve_most_workloads(incoming, router, stop.clone(), 8, patience);
    let served = tokio::spawn(served);

    let asks = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut of_b = TcpStream::connect(at_b).await.unwrap();
    told(&mut of_b, asks, b).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(at_a).await.unwrap();
        // Those that were closed already take nothing more.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n").await;
        held.push(stream);
    }
    for (at, name) in [(at_a, a), (at_b, b)] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        told(&mut stream, asks, name).await;
    }
    // The other's has waited for longest, and is there yet.
    told(&mut of_b, asks, b).await;
    stop.cancel();
    tokio::time::timeout(SOON, served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_body_that_comes_drop_by_drop_is_refused_before_its_time() {
    let patience = Patience {
        head: SOON,
        body: SOON * 10,
        grace: Duration::from_millis(300),
        drain: Duration::from_millis(300),
    };
    let server = Server::with(8, patience).await;
    let head =
        "POST /said HTTP/1.1\r\nhost: a\r\ncontent-length: 3000\r\nconnection: close\r\n\r\n";
    let mut slow = server.open(head).await;
    let (mut theirs, mut ours) = slow.split();
    let drops = async {
        while ours.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut text = Vec::new();
    tokio::select! {
        () = drops => {}
        read = tokio::time::timeout(SOON, theirs.read_to_end(&mut text)) => {
            read.unwrap().unwrap();
        }
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.ends_with("no body"), "{text}");
    // One that takes longer than that, and comes, is read.
    let mut steady = server.open(head).await;
    for _ in 0..10 {
        steady.write_all(&[b'x'; 300]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let text = rest(steady).await;
    assert!(text.ends_with("xxx"), "{text}");
}

#[test]
fn half_of_the_files_are_left() {
    assert_eq!(connections(Some(1024)), 512);
    assert_eq!(connections(Some(1)), 1);
    assert_eq!(connections(Some(1 << 20)), MAX_CONNECTIONS);
    assert_eq!(connections(None), MAX_CONNECTIONS);
}
