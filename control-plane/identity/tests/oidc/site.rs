//! A web server as an issuer has one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A web server whose pages can be changed, and what was asked of it.
#[derive(Clone, Default)]
pub struct Site {
    pages: Arc<Mutex<BTreeMap<String, String>>>,
    pub asked: Arc<Mutex<Vec<String>>>,
    /// Handshakes that came to nothing.
    pub left: Arc<Mutex<usize>>,
}

impl Site {
    pub async fn start() -> (Self, String) {
        let (site, place) = Self::listen(None).await;
        (site, format!("http://{place}"))
    }

    /// The same over TLS.
    pub async fn secure(config: rustls::ServerConfig) -> (Self, String) {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (site, place) = Self::listen(Some(acceptor)).await;
        (site, format!("https://{place}"))
    }

    async fn listen(acceptor: Option<TlsAcceptor>) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = listener.local_addr().unwrap();
        let site = Self::default();
        let own = site.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (own, acceptor) = (own.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => own.serve(stream).await,
                        // Who does not believe our certificate leaves here.
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => own.serve(stream).await,
                            Err(_) => *own.left.lock().unwrap() += 1,
                        },
                    }
                });
            }
        });
        (site, place)
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let request = String::from_utf8(request).unwrap();
        let path = request.split(' ').nth(1).unwrap().to_owned();
        let page = self.pages.lock().unwrap().get(&path).cloned();
        self.asked.lock().unwrap().push(request);
        let answer = page.unwrap_or_else(|| {
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into()
        });
        stream.write_all(answer.as_bytes()).await.unwrap();
        let _ = stream.shutdown().await;
    }

    pub fn answer(&self, path: &str, answer: &str) {
        let mut pages = self.pages.lock().unwrap();
        pages.insert(path.to_owned(), answer.to_owned());
    }

    pub fn page(&self, path: &str, content: &Value) {
        let content = content.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            content.len()
        );
        self.answer(path, &format!("{head}{content}"));
    }

    pub fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}
