//! A small load generator: prepared HTTP/1.1 requests over keep-alive
//! connections, as fast as they are answered or at a rate.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Error;

const HEAD_MAX: usize = 64 * 1024;

/// What a volley came to.
#[derive(Clone, Debug, Default)]
pub struct Volley {
    /// Answers with status 200.
    pub ok: u64,
    /// Other answers.
    pub refused: u64,
    /// One of those others, whole.
    pub example: String,
    /// From the first byte sent to the last answer.
    pub elapsed: Duration,
}

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// On each connection the next one when the one before is answered.
    Saturate,
    /// So many a second over all connections, whenever they are answered; one
    /// whose connection still waits goes late.
    PerSecond(u32),
}

impl Pace {
    /// When the request of this number is due.
    fn due(self, number: usize) -> Duration {
        match self {
            Pace::Saturate => Duration::ZERO,
            Pace::PerSecond(rate) => {
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                Duration::from_secs_f64(f64::from(number) / f64::from(rate.max(1)))
            }
        }
    }
}

/// Sends every request once, dealt out over `connections`, each connection one
/// at a time, and reads every answer.
pub async fn fire(
    port: u16,
    requests: &Arc<Vec<Vec<u8>>>,
    connections: usize,
    pace: Pace,
) -> Result<Volley, Error> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(address)
            .await
            .map_err(Error::http(&address.to_string()))?;
        stream
            .set_nodelay(true)
            .map_err(Error::http(&address.to_string()))?;
        streams.push(stream);
    }
    let start = Instant::now();
    let mut tasks = Vec::new();
    for (first, stream) in streams.into_iter().enumerate() {
        let requests = Arc::clone(requests);
        tasks.push(tokio::spawn(async move {
            let mine = requests.iter().enumerate();
            let mine = mine.skip(first).step_by(connections);
            let mine = mine.map(|(number, request)| (start + pace.due(number), request));
            one_connection(stream, mine)
                .await
                .map_err(Error::http(&address.to_string()))
        }));
    }
    let mut volley = Volley::default();
    for task in tasks {
        let part = task
            .await
            .map_err(|problem| Error::Unexpected(problem.to_string()))??;
        volley.ok += part.ok;
        volley.refused += part.refused;
        if part.refused > 0 {
            volley.example = part.example;
        }
    }
    volley.elapsed = start.elapsed();
    Ok(volley)
}

async fn one_connection<'a>(
    mut stream: TcpStream,
    requests: impl Iterator<Item = (Instant, &'a Vec<u8>)>,
) -> Result<Volley, std::io::Error> {
    let mut volley = Volley::default();
    let mut buffer = Vec::with_capacity(4096);
    for (due, request) in requests {
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        stream.write_all(request).await?;
        if answer(&mut stream, &mut buffer).await? == 200 {
            volley.ok += 1;
        } else {
            volley.refused += 1;
            volley.example = String::from_utf8_lossy(&buffer).into_owned();
        }
    }
    Ok(volley)
}

/// Reads one answer into `buffer` and returns its status.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<u16, std::io::Error> {
    buffer.clear();
    let head = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if buffer.len() > HEAD_MAX || stream.read_buf(buffer).await? == 0 {
            return Err(bad("the answer breaks off in its headers"));
        }
    };
    let text = String::from_utf8_lossy(buffer.get(..head).unwrap_or_default()).into_owned();
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| bad("the answer has no status line"))?;
    let length: usize = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| bad("the answer has no content-length"))?;
    while buffer.len() < head + length {
        if stream.read_buf(buffer).await? == 0 {
            return Err(bad("the answer breaks off in its body"));
        }
    }
    Ok(status)
}

fn bad(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Upstream;

    #[tokio::test]
    async fn every_request_is_sent_once_and_every_answer_read() {
        let upstream = Upstream::start(0, None).unwrap();
        let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes();
        let mut requests = vec![request(crate::upstream::REPORT); 20];
        requests.push(request("/nowhere"));
        let (port, requests) = (upstream.address().port(), Arc::new(requests));
        let volley = fire(port, &requests, 4, Pace::Saturate).await.unwrap();
        assert_eq!((volley.ok, volley.refused), (20, 1));
        assert_eq!(upstream.arrived(), 21);

        let volley = fire(port, &requests, 4, Pace::PerSecond(200))
            .await
            .unwrap();
        assert_eq!((volley.ok, volley.refused), (20, 1));
        assert!(volley.elapsed >= Duration::from_millis(100));
    }
}
