//! A small load generator: prepared HTTP/1.1 requests over keep-alive
//! connections, as fast as they are answered.

use std::net::Ipv4Addr;
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
    /// From each request's first byte to the end of its answer.
    pub latencies: Vec<Duration>,
}

impl Volley {
    /// The latency that so many of a thousand requests stayed within, in milliseconds.
    pub fn within_ms(&self, of_a_thousand: usize) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort();
        let last = sorted.len().saturating_sub(1);
        let at = last.saturating_mul(of_a_thousand) / 1_000;
        sorted.get(at).map_or(f64::NAN, Duration::as_secs_f64) * 1_000.0
    }
}

/// Sends every request once, dealt out over `connections`, each connection one
/// at a time, and reads every answer.
pub async fn fire(
    port: u16,
    requests: &Arc<Vec<Vec<u8>>>,
    connections: usize,
) -> Result<Volley, Error> {
    let streams = connect(port, connections).await?;
    let start = Instant::now();
    let mut tasks = Vec::new();
    for (first, stream) in streams.into_iter().enumerate() {
        let requests = Arc::clone(requests);
        tasks.push(tokio::spawn(async move {
            let mine = requests.iter().skip(first).step_by(connections);
            one_connection(stream, mine).await.map_err(failed(port))
        }));
    }
    let mut volley = Volley::default();
    for task in tasks {
        let part = task
            .await
            .map_err(|problem| Error::Unexpected(problem.to_string()))??;
        volley.ok += part.ok;
        volley.latencies.extend(part.latencies);
        volley.refused += part.refused;
        if part.refused > 0 {
            volley.example = part.example;
        }
    }
    volley.elapsed = start.elapsed();
    Ok(volley)
}

/// So many connections that nothing has been sent on.
pub async fn connect(port: u16, connections: usize) -> Result<Vec<TcpStream>, Error> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        let stream = stream.map_err(failed(port))?;
        stream.set_nodelay(true).map_err(failed(port))?;
        streams.push(stream);
    }
    Ok(streams)
}

/// Sends one request on each connection; its status, where the answer is waited for.
pub async fn each(
    port: u16,
    streams: &mut [TcpStream],
    requests: &[Vec<u8>],
    wait: bool,
) -> Result<Vec<u16>, Error> {
    let mut statuses = Vec::new();
    for (stream, request) in streams.iter_mut().zip(requests) {
        stream.write_all(request).await.map_err(failed(port))?;
        if wait {
            let status = answer(stream, &mut Vec::new()).await;
            statuses.push(status.map_err(failed(port))?);
        }
    }
    Ok(statuses)
}

fn failed(port: u16) -> impl FnOnce(std::io::Error) -> Error {
    move |problem| Error::http(&format!("127.0.0.1:{port}"))(problem)
}

async fn one_connection<'a>(
    mut stream: TcpStream,
    requests: impl Iterator<Item = &'a Vec<u8>>,
) -> Result<Volley, std::io::Error> {
    let mut volley = Volley::default();
    let mut buffer = Vec::with_capacity(4096);
    for request in requests {
        let start = Instant::now();
        stream.write_all(request).await?;
        let status = answer(&mut stream, &mut buffer).await?;
        volley.latencies.push(start.elapsed());
        if status == 200 {
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
        let volley = fire(port, &requests, 4).await.unwrap();
        assert_eq!((volley.ok, volley.refused), (20, 1));
        assert_eq!(upstream.arrived(), 21);
        assert_eq!(volley.latencies.len(), 21);
        assert!(volley.within_ms(500) <= volley.within_ms(990));

        let mut streams = connect(port, 3).await.unwrap();
        let statuses = each(port, &mut streams, &requests, true).await.unwrap();
        assert_eq!(statuses, [200; 3]);
    }

    #[test]
    fn a_share_of_the_latencies_is_within() {
        let volley = Volley {
            latencies: (0..=100).rev().map(Duration::from_millis).collect(),
            ..Volley::default()
        };
        assert!((volley.within_ms(500) - 50.0).abs() < 1e-9);
        assert!((volley.within_ms(990) - 99.0).abs() < 1e-9);
        assert!(Volley::default().within_ms(500).is_nan());
    }
}
