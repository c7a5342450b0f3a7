//! Following a journal: entry after entry, also while it is being written.
//!
//! Read-only, with `std::fs`. What has been written in part only is not there
//! yet; what was whole once stays.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    chain::Hash,
    group::{self, Group, GroupError, HEADER_LEN, Header, Scan, Sketch, is_unfinished},
    line::{Line, MAX_LINE},
    segment,
    verify::LOOKS,
};

/// One entry as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The line's bytes, without the newline: canonical JSON, so UTF-8.
    pub text: String,
    /// What they say.
    pub line: Line,
    /// The line's leaf hash.
    pub leaf: Hash,
    /// The evidence beside the line, without its salt, in the line's order.
    pub evidence: Vec<Vec<u8>>,
}

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system refused.
    #[error("cannot read {path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        #[source]
        error: io::Error,
    },
    /// What was read is no journal, or a damaged one: verify it for more.
    #[error("the journal is damaged at entry {index}: {what}")]
    Damaged {
        /// The first entry that cannot be read.
        index: u64,
        /// What was found.
        what: String,
    },
}

/// The segments of a directory, in order.
///
/// # Errors
/// When the directory cannot be read.
pub fn segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(number) = entry.file_name().to_str().and_then(segment::number_of) {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A place between two groups, which may be kept and come back to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The index of the next entry.
    pub next: u64,
    /// The leaf hash of the one before it.
    pub head: Hash,
    segment: u64,
    offset: u64,
}

impl Position {
    /// The start of the last segment that begins at or before entry `index`, so
    /// that what is older need not be read. What stands there is judged when it is
    /// read.
    ///
    /// # Errors
    /// When the directory or a segment cannot be read.
    pub fn before(dir: &Path, index: u64) -> Result<Self, ReadError> {
        let wrong = |path: &Path, error| ReadError::Io {
            path: path.to_owned(),
            error,
        };
        let files = segments(dir).map_err(|error| wrong(dir, error))?;
        let mut found = Self::default();
        let (mut low, mut high) = (0, files.len());
        while low < high {
            let middle = low.midpoint(high);
            let Some((number, path)) = files.get(middle) else {
                break;
            };
            let start = Self::start_of(*number, path).map_err(|error| wrong(path, error))?;
            match start.filter(|start| start.next <= index) {
                Some(start) => {
                    found = start;
                    low = middle.saturating_add(1);
                }
                None => high = middle,
            }
        }
        Ok(found)
    }

    /// Where a segment begins; `None` while it is empty.
    fn start_of(segment: u64, path: &Path) -> io::Result<Option<Self>> {
        let most = u64::try_from(HEADER_LEN.saturating_add(MAX_LINE)).unwrap_or(u64::MAX);
        let mut bytes = Vec::new();
        File::open(path)?.take(most).read_to_end(&mut bytes)?;
        let lines = bytes.get(HEADER_LEN..).unwrap_or_default();
        let first = lines.split(|b| *b == b'\n').next().unwrap_or_default();
        Ok(Header::decode(&bytes)
            .ok()
            .zip(Sketch::decode(first).ok())
            .map(|(header, line)| Self {
                next: header.first,
                head: line.prev,
                segment,
                offset: 0,
            }))
    }
}

/// Reads a journal from a position on.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    position: Position,
    // The position's segment, while it is open.
    file: Option<File>,
    // What is read at a time, kept: a new one as long as a group costs more than the
    // reading, for the kernel clears each page of it.
    buffer: Vec<u8>,
}

impl Reader {
    /// Starts before the first entry of the journal in `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self::at(dir, Position::default())
    }

    /// Goes on where another reader of the same journal was.
    #[must_use]
    pub fn at(dir: &Path, position: Position) -> Self {
        Self {
            dir: dir.to_owned(),
            position,
            file: None,
            buffer: Vec::new(),
        }
    }

    /// Where the next entry is expected.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// The entries of the next whole group; `None` when there is none yet.
    ///
    /// # Errors
    /// A [`ReadError`]; the position stays.
    pub fn next_group(&mut self) -> Result<Option<Vec<Entry>>, ReadError> {
        self.next(|bytes| {
            let group = Group::decode(bytes)?;
            let len = group.len();
            Ok((len, group.entries.into_iter().map(Placed::whole).collect()))
        })
    }

    /// What `look` makes of each line of the next whole group, which is read as far as
    /// its place in the journal goes: for who needs no more, at a fraction of the work.
    ///
    /// # Errors
    /// A [`ReadError`]; the position stays.
    pub fn next_sketches<T>(
        &mut self,
        look: impl Fn(&Sketch<'_>) -> T,
    ) -> Result<Option<Vec<T>>, ReadError> {
        self.next(|bytes| {
            let scan = Scan::decode(bytes)?;
            let placed = |line: &Sketch<'_>| Placed {
                index: line.index,
                prev: line.prev,
                leaf: line.leaf,
                what: look(line),
            };
            Ok((scan.len(), scan.lines.iter().map(placed).collect()))
        })
    }

    fn next<T>(
        &mut self,
        decode: impl Fn(&[u8]) -> Result<Decoded<T>, GroupError>,
    ) -> Result<Option<Vec<T>>, ReadError> {
        let mut reopened = false;
        loop {
            // Looked for before reading: once the next segment is there, this one is final.
            let next_exists = self.path(self.position.segment.saturating_add(1)).exists();
            if self.file.is_none() {
                match File::open(self.path(self.position.segment)) {
                    Ok(file) => {
                        self.file = Some(file);
                        reopened = true;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound && !next_exists => {
                        return Ok(None);
                    }
                    Err(error) => return Err(self.io(error)),
                }
            }
            if let Some(decoded) = self.read_group(&decode)? {
                return self.take(decoded).map(Some);
            }
            // Recovery puts the last segment anew in place, and what was open is
            // then the old file: every end is looked at again in what is there now.
            self.file = None;
            if !next_exists {
                return Ok(None);
            }
            if reopened {
                self.position.segment = self.position.segment.saturating_add(1);
                self.position.offset = 0;
                reopened = false;
            }
        }
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.dir.join(segment::file_name(segment))
    }

    fn io(&self, error: io::Error) -> ReadError {
        ReadError::Io {
            path: self.path(self.position.segment),
            error,
        }
    }

    fn damaged(&self, what: impl ToString) -> ReadError {
        ReadError::Damaged {
            index: self.position.next,
            what: what.to_string(),
        }
    }

    /// The group at the position, if a whole one stands there.
    fn read_group<T>(
        &mut self,
        decode: impl Fn(&[u8]) -> Result<Decoded<T>, GroupError>,
    ) -> Result<Option<Decoded<T>>, ReadError> {
        let head = Header::decode(self.read_at(HEADER_LEN)?);
        let decoded = match head {
            Ok(head) => {
                let total = usize::try_from(head.total_len).unwrap_or(usize::MAX);
                decode(self.read_at(total)?)
            }
            Err(error) => Err(error),
        };
        let error = match decoded {
            Ok(decoded) => return Ok(Some(decoded)),
            Err(error) => error,
        };
        // A group that is written meanwhile may be read with its beginning still
        // missing and its end there, which looks like damage, but not for long.
        for _ in 0..LOOKS {
            let rest = self.read_at(usize::MAX)?;
            match decode(rest) {
                Ok(decoded) => return Ok(Some(decoded)),
                Err(_) if is_unfinished(rest) => return Ok(None),
                Err(_) => {}
            }
        }
        Err(self.damaged(error))
    }

    /// As much of this as there is, at the position.
    fn read_at(&mut self, len: usize) -> Result<&[u8], ReadError> {
        let offset = self.position.offset;
        self.buffer.clear();
        let Some(file) = self.file.as_mut() else {
            return Ok(&self.buffer);
        };
        let limit = u64::try_from(len).unwrap_or(u64::MAX);
        let read = file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| file.take(limit).read_to_end(&mut self.buffer));
        match read {
            Ok(_) => Ok(&self.buffer),
            Err(error) => Err(self.io(error)),
        }
    }

    /// Moves the position behind a group that continues what was before it.
    fn take<T>(&mut self, (len, lines): Decoded<T>) -> Result<Vec<T>, ReadError> {
        let mut taken = Vec::with_capacity(lines.len());
        let (mut next, mut head) = (self.position.next, self.position.head);
        for line in lines {
            if line.index != next || line.prev != head {
                return Err(self.damaged("an entry that does not continue the one before"));
            }
            next = next.saturating_add(1);
            head = line.leaf;
            taken.push(line.what);
        }
        (self.position.next, self.position.head) = (next, head);
        self.position.offset = self
            .position
            .offset
            .saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        Ok(taken)
    }
}

/// A group's length in bytes, and its lines.
type Decoded<T> = (usize, Vec<Placed<T>>);

/// A line's place in the chain, and what was made of it.
struct Placed<T> {
    index: u64,
    prev: Hash,
    leaf: Hash,
    what: T,
}

impl Placed<Entry> {
    fn whole(entry: group::Entry<'_>) -> Self {
        let salt = crate::evidence::SALT_LEN;
        let unsalted = |bytes: &&[u8]| bytes.get(salt..).unwrap_or_default().to_vec();
        Self {
            index: entry.line.index,
            prev: entry.line.prev,
            leaf: entry.leaf,
            what: Entry {
                text: String::from_utf8_lossy(entry.bytes).into_owned(),
                line: entry.line,
                leaf: entry.leaf,
                evidence: entry.attached.iter().map(unsalted).collect(),
            },
        }
    }
}
