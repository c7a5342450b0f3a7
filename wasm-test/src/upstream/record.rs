//! One line per request that reached the upstream, written when it is over,
//! however it ends.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::http::request::Parts;
use serde::{Deserialize, Serialize};

use crate::Error;

/// A request that reached the upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When its headers arrived, in milliseconds since 1970.
    pub time_ms: u64,
    /// Its first line, as it came: escaped as [`u8::escape_ascii`] does.
    #[serde(default)]
    pub line: String,
    /// Its method.
    pub method: String,
    /// Its path with the query, as it came.
    pub path: String,
    /// Its headers in their order, names in lower case; bytes that are not
    /// UTF-8 are replaced.
    pub headers: Vec<(String, String)>,
    /// Its trailers, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trailers: Vec<(String, String)>,
    /// How many bytes of body arrived.
    pub body_bytes: u64,
    /// SHA-256 of the body, in hex; absent when it broke off.
    pub body_sha256: Option<String>,
    /// Whether the whole request arrived and was answered.
    pub complete: bool,
}

impl Record {
    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

/// The log that all connections share.
#[derive(Debug)]
pub struct Log {
    path: Option<PathBuf>,
    file: Option<Mutex<File>>,
    /// Requests whose headers have arrived.
    pub arrived: AtomicU64,
}

impl Log {
    /// Opens `path` for appending.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(path: Option<&Path>) -> Result<Log, Error> {
        let file = match path {
            None => None,
            Some(path) => Some(Mutex::new(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map_err(Error::file("open the upstream's log", path))?,
            )),
        };
        Ok(Log {
            path: path.map(Path::to_owned),
            file,
            arrived: AtomicU64::new(0),
        })
    }

    /// The file, when there is one.
    pub fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    /// How long it is now, in bytes.
    pub fn size(&self) -> u64 {
        let path = self.path.as_ref();
        path.and_then(|path| std::fs::metadata(path).ok())
            .map_or(0, |meta| meta.len())
    }

    /// Reads all lines back from a size that it had.
    ///
    /// # Errors
    /// When the file can't be read or a line isn't a record.
    pub fn records_since(&self, size: u64) -> Result<Vec<Record>, Error> {
        let Some(path) = &self.path else {
            return Ok(Vec::new());
        };
        let mut text = String::new();
        File::open(path)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(size))?;
                file.read_to_string(&mut text)
            })
            .map_err(Error::file("read", path))?;
        text.lines()
            .map(|line| {
                serde_json::from_str(line).map_err(|problem| {
                    Error::Unexpected(format!("a line of the upstream's log is bad: {problem}"))
                })
            })
            .collect()
    }

    fn append(&self, record: &Record) {
        let Some(file) = &self.file else { return };
        let Ok(mut line) = serde_json::to_vec(record) else {
            return;
        };
        line.push(b'\n');
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        // One write per line: readers see whole lines only.
        drop(file.write_all(&line));
    }
}

/// A request that has arrived and is not over. Dropped before it is complete,
/// it is logged as one that broke off.
#[derive(Debug)]
pub struct Pending {
    log: Arc<Log>,
    record: Option<Record>,
}

impl Pending {
    /// Counts the request and starts its record, when there is a log.
    pub fn arrived(log: &Arc<Log>, parts: &Parts, line: &[u8]) -> Pending {
        log.arrived.fetch_add(1, Ordering::SeqCst);
        let record = log.path.is_some().then(|| Record {
            time_ms: now_ms(),
            line: line.escape_ascii().to_string(),
            method: parts.method.to_string(),
            path: parts
                .uri
                .path_and_query()
                .map_or_else(|| parts.uri.path().to_owned(), ToString::to_string),
            headers: fields(&parts.headers),
            trailers: Vec::new(),
            body_bytes: 0,
            body_sha256: None,
            complete: false,
        });
        Pending {
            log: Arc::clone(log),
            record,
        }
    }

    /// Notes trailers.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(record) = &mut self.record {
            record.trailers.extend(fields(trailers));
        }
    }

    /// Counts bytes of body.
    pub fn more(&mut self, bytes: usize) {
        if let Some(record) = &mut self.record {
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            record.body_bytes = record.body_bytes.saturating_add(bytes);
        }
    }

    /// Logs the request as complete, before it is answered.
    pub fn complete(mut self, body_sha256: &str) -> Option<Record> {
        let mut record = self.record.take()?;
        record.complete = true;
        record.body_sha256 = Some(body_sha256.to_owned());
        self.log.append(&record);
        Some(record)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            self.log.append(&record);
        }
    }
}

fn fields(map: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    map.iter()
        .map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())))
        .collect()
}

/// Logs bytes that are no request to this server; to others they might be one.
pub fn garbage(log: &Log, line: &[u8]) {
    log.arrived.fetch_add(1, Ordering::SeqCst);
    log.append(&Record {
        time_ms: now_ms(),
        line: line.escape_ascii().to_string(),
        ..Record::default()
    });
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}
