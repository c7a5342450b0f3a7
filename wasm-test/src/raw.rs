//! Bytes on a socket: HTTP/1 and HTTP/2 that nothing repairs.

mod http1;
mod http2;

use std::time::Duration;

use tokio::net::TcpStream;

use crate::Error;
pub use http1::Http1;
pub use http2::{End, Http2, Stream};

/// How long an answer may take: longer than any hold or deadline.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One header, whatever its bytes.
pub type Field = (String, Vec<u8>);

/// A header.
pub fn field(name: &str, value: impl Into<Vec<u8>>) -> Field {
    (name.to_owned(), value.into())
}

/// The bytes of an HTTP/1 request with these headers and no others.
pub fn message(method: &str, path: &str, headers: &[Field]) -> Vec<u8> {
    message_of(method.as_bytes(), path.as_bytes(), headers)
}

/// As [`message`], with a method and a target that may be any bytes.
pub fn message_of(method: &[u8], target: &[u8], headers: &[Field]) -> Vec<u8> {
    let mut bytes = [method, b" ", target, b" HTTP/1.1\r\n"].concat();
    for (name, value) in headers {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

async fn connect(authority: &str) -> Result<TcpStream, Error> {
    let stream = TcpStream::connect(authority)
        .await
        .map_err(Error::http(authority))?;
    stream.set_nodelay(true).map_err(Error::http(authority))?;
    Ok(stream)
}

fn broken(what: &str) -> Error {
    Error::Unexpected(format!("the answer can't be read: {what}"))
}
