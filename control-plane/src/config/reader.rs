//! TOML values with their positions, and the list of what is wrong with them.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// One problem, with its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

impl ConfigError {
    /// A problem with a file as a whole.
    #[must_use]
    pub fn file(file: &Path, message: String) -> Self {
        Self {
            file: file.to_owned(),
            line: 0,
            message,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(out, "{}: {}", self.file.display(), self.message)
        } else {
            write!(
                out,
                "{}:{}: {}",
                self.file.display(),
                self.line,
                self.message
            )
        }
    }
}

/// Reads a whole file and gathers its problems.
pub(super) struct Reader<'t> {
    path: &'t Path,
    text: &'t str,
    errors: RefCell<Vec<ConfigError>>,
    /// Where each key that was read stands.
    places: RefCell<BTreeMap<String, usize>>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(path: &'t Path, text: &'t str) -> Self {
        Self {
            path,
            text,
            errors: RefCell::default(),
            places: RefCell::default(),
        }
    }

    /// The root table; its lifetime is the text's.
    pub(super) fn root(&self) -> Result<Table<'_>, Vec<ConfigError>> {
        let (table, problems) = DeTable::parse_recoverable(self.text);
        for problem in &problems {
            let offset = problem.span().map_or(0, |span| span.start);
            self.error(self.line(offset), problem.message().to_owned());
        }
        if problems.is_empty() {
            let span = table.span();
            Ok(Table {
                reader: self,
                name: String::new(),
                offset: span.start,
                table: Cow::Owned(table.into_inner()),
                used: RefCell::default(),
            })
        } else {
            Err(self.errors.borrow().clone())
        }
    }

    pub(super) fn result<T>(self, value: T) -> Result<T, Vec<ConfigError>> {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|error| (error.file != self.path, error.line));
        errors.dedup();
        if errors.is_empty() {
            Ok(value)
        } else {
            Err(errors)
        }
    }

    fn line(&self, offset: usize) -> usize {
        1 + self
            .text
            .bytes()
            .take(offset)
            .filter(|byte| *byte == b'\n')
            .count()
    }

    pub(super) fn error(&self, line: usize, message: String) {
        self.errors.borrow_mut().push(ConfigError {
            file: self.path.to_owned(),
            line,
            message,
        });
    }

    /// Files on this machine that keys of a table name: each has to be there, and
    /// `judge` says of a key and its file's bytes what is wrong with them.
    pub(super) fn check_files(
        &self,
        line: usize,
        table: &str,
        files: &[(&str, Option<&PathBuf>)],
        judge: impl Fn(&str, &[u8]) -> Option<String>,
    ) {
        for (key, path) in files {
            let Some(path) = path.filter(|it| it.is_absolute()) else {
                continue;
            };
            let shown = path.display();
            let wrong = match std::fs::read(path) {
                Err(error) => Some(format!("can't read `{shown}`: {error}")),
                Ok(bytes) => judge(key, &bytes).map(|what| format!("`{shown}` {what}")),
            };
            if let Some(wrong) = wrong {
                self.error(line, format!("{table}.{key}: {wrong}"));
            }
        }
    }

    /// A problem of a key that was found to be wrong only together with others;
    /// where the key was left out, its table is shown.
    pub(super) fn error_at(&self, key: &str, message: String) {
        let places = self.places.borrow();
        let parent = key.rsplit_once('.').map_or("", |(parent, _)| parent);
        let offset = places
            .get(key)
            .or_else(|| places.get(parent))
            .copied()
            .unwrap_or(0);
        self.error(self.line(offset), format!("{key}: {message}"));
    }
}

/// One table, which knows which of its keys were asked for.
pub(super) struct Table<'r> {
    reader: &'r Reader<'r>,
    name: String,
    offset: usize,
    table: Cow<'r, DeTable<'r>>,
    used: RefCell<BTreeSet<String>>,
}

impl<'r> Table<'r> {
    fn child(&self, key: &str, offset: usize, table: DeTable<'r>) -> Table<'r> {
        let name = if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        };
        Table {
            reader: self.reader,
            name,
            offset,
            table: Cow::Owned(table),
            used: RefCell::default(),
        }
    }

    fn full(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    fn get(&self, key: &str) -> Option<(usize, DeValue<'r>)> {
        self.used.borrow_mut().insert(key.to_owned());
        let value = self.table.get(key)?;
        let offset = value.span().start;
        self.reader
            .places
            .borrow_mut()
            .entry(self.full(key))
            .or_insert(offset);
        Some((offset, value.get_ref().clone()))
    }

    pub(super) fn error(&self, key: &str, message: String) {
        let offset = self
            .table
            .get(key)
            .map_or(self.offset, |value| value.span().start);
        self.reader.error(
            self.reader.line(offset),
            format!("{}: {message}", self.full(key)),
        );
    }

    /// Problems of another file, which this one names.
    pub(super) fn foreign(&self, errors: Vec<ConfigError>) {
        self.reader.errors.borrow_mut().extend(errors);
    }

    /// The line that a key stands on, or else its table.
    pub(super) fn line_of(&self, key: &str) -> usize {
        let offset = self.table.get(key).map(|value| value.span().start);
        self.reader.line(offset.unwrap_or(self.offset))
    }

    /// Whether the key is there, whatever it says.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    /// A table whose keys are names that the file chooses.
    pub(super) fn by_name(&self, key: &str) -> Table<'r> {
        self.table_or_empty(key)
    }

    /// Its keys, whatever they say.
    pub(super) fn keys(&self) -> Vec<String> {
        let keys = self.table.iter();
        keys.map(|(key, _)| key.get_ref().to_string()).collect()
    }

    /// Complains of the keys that nobody asked for: a misspelt limit is not a default.
    pub(super) fn finish(&self) {
        for (key, _) in self.table.iter() {
            if !self.used.borrow().contains(key.get_ref().as_ref()) {
                let line = self.reader.line(key.span().start);
                self.reader
                    .error(line, format!("{}: no such key", self.full(key.get_ref())));
            }
        }
    }

    pub(super) fn table(&self, key: &str) -> Table<'r> {
        if self.table.get(key).is_none() {
            self.error(key, format!("the table [{}] is missing", self.full(key)));
        }
        self.table_or_empty(key)
    }

    pub(super) fn table_or_empty(&self, key: &str) -> Table<'r> {
        match self.get(key) {
            Some((offset, DeValue::Table(table))) => self.child(key, offset, table),
            Some((offset, other)) => {
                self.error(
                    key,
                    format!("this is a {}, a table is wanted", other.type_str()),
                );
                self.child(key, offset, DeTable::new())
            }
            None => self.child(key, self.offset, DeTable::new()),
        }
    }

    pub(super) fn tables(&self, key: &str) -> Vec<Table<'r>> {
        match self.get(key) {
            None => Vec::new(),
            Some((_, DeValue::Array(items))) => items
                .into_iter()
                .filter_map(|item| {
                    let offset = item.span().start;
                    match item.into_inner() {
                        DeValue::Table(table) => Some(self.child(key, offset, table)),
                        other => {
                            self.error(
                                key,
                                format!("this holds a {}, tables are wanted", other.type_str()),
                            );
                            None
                        }
                    }
                })
                .collect(),
            Some((_, other)) => {
                self.error(
                    key,
                    format!(
                        "this is a {}; write [[{}]]",
                        other.type_str(),
                        self.full(key)
                    ),
                );
                Vec::new()
            }
        }
    }

    pub(super) fn optional_text(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            (_, DeValue::String(text)) => Some(text.into_owned()),
            (_, other) => {
                self.error(
                    key,
                    format!("this is a {}, a string is wanted", other.type_str()),
                );
                None
            }
        }
    }

    pub(super) fn text(&self, key: &str) -> String {
        let text = self.optional_text(key);
        if self.table.get(key).is_none() {
            self.error(key, "this is missing".into());
        } else if text.as_deref() == Some("") {
            self.error(key, "this is empty".into());
        }
        text.unwrap_or_default()
    }

    pub(super) fn text_or(&self, key: &str, default: &str) -> String {
        self.optional_text(key)
            .unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn texts(&self, key: &str) -> Vec<String> {
        match self.get(key) {
            None => Vec::new(),
            Some((_, DeValue::Array(items))) => items
                .into_iter()
                .filter_map(|item| match item.into_inner() {
                    DeValue::String(text) => Some(text.into_owned()),
                    other => {
                        self.error(
                            key,
                            format!("this holds a {}, strings are wanted", other.type_str()),
                        );
                        None
                    }
                })
                .collect(),
            Some((_, other)) => {
                self.error(
                    key,
                    format!(
                        "this is a {}, a list of strings is wanted",
                        other.type_str()
                    ),
                );
                Vec::new()
            }
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> bool {
        match self.get(key) {
            None => default,
            Some((_, DeValue::Boolean(flag))) => flag,
            Some((_, other)) => {
                self.error(
                    key,
                    format!("this is a {}, true or false is wanted", other.type_str()),
                );
                default
            }
        }
    }

    pub(super) fn number(&self, key: &str, default: u64, least: u64, most: u64) -> u64 {
        self.optional_number(key, least, most).unwrap_or(default)
    }

    pub(super) fn optional_number(&self, key: &str, least: u64, most: u64) -> Option<u64> {
        let (_, value) = self.get(key)?;
        let Some(number) = value.as_integer() else {
            self.error(
                key,
                format!("this is a {}, a whole number is wanted", value.type_str()),
            );
            return None;
        };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                self.error(
                    key,
                    format!("{} is out of bounds: {least} to {most}", number.as_str()),
                );
                None
            }
        }
    }

    pub(super) fn optional_path(&self, key: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.optional_text(key)?);
        if !path.is_absolute() {
            self.error(key, format!("`{}` is not an absolute path", path.display()));
        }
        Some(path)
    }

    pub(super) fn path(&self, key: &str) -> PathBuf {
        if self.table.get(key).is_none() {
            self.error(key, "this is missing".into());
        }
        self.optional_path(key).unwrap_or_default()
    }

    /// An address with a port; port 0 when there is none that could be used.
    pub(super) fn address(&self, key: &str) -> SocketAddr {
        let text = self.text(key);
        let parsed = text.parse::<SocketAddr>().ok();
        let usable = parsed.is_some_and(|address| address.port() != 0);
        if !usable && !text.is_empty() {
            self.error(
                key,
                format!("`{text}` is not an address and a port like 127.0.0.1:8480"),
            );
        }
        parsed.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    pub(super) fn optional_address(&self, key: &str) -> Option<SocketAddr> {
        self.has(key).then(|| self.address(key))
    }

    pub(super) fn host_port(&self, key: &str) -> String {
        let text = self.text(key);
        let well_formed = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !text.is_empty() && !well_formed {
            self.error(key, format!("`{text}` is not like files.internal:9000"));
        }
        text
    }

    /// `http[s]://authority`, without path, query or a slash at the end.
    pub(super) fn optional_origin(&self, key: &str) -> Option<String> {
        self.has(key).then(|| self.origin(key))
    }

    pub(super) fn origin(&self, key: &str) -> String {
        let text = self.text(key);
        let rest = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"));
        let well_formed = rest.is_some_and(|authority| {
            !authority.is_empty()
                && authority.bytes().all(|byte| {
                    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte)
                })
        });
        if !text.is_empty() && !well_formed {
            self.error(key, format!("`{text}` is not like https://writ.example: scheme and authority in lower case, nothing after"));
        }
        text
    }

    pub(super) fn spiffe_id(&self, key: &str) -> String {
        let text = self.text(key);
        if !text.is_empty() && identity::SpiffeId::parse(&text).is_err() {
            self.error(
                key,
                format!("`{text}` is not a SPIFFE ID like spiffe://writ.example/agent/demo"),
            );
        }
        text
    }

    /// A list of SPIFFE IDs, each once and `most` of them.
    pub(super) fn spiffe_ids(&self, key: &str, most: usize) -> Vec<String> {
        let all = self.texts(key);
        let unlike = |text: &&String| identity::SpiffeId::parse(text).is_err();
        if let Some(text) = all.iter().find(unlike) {
            self.error(
                key,
                format!("`{text}` is not a SPIFFE ID like spiffe://writ.example/agent/demo"),
            );
        }
        if all.iter().collect::<BTreeSet<_>>().len() < all.len() {
            self.error(key, "one is named twice".into());
        }
        if all.len() > most {
            self.error(key, format!("more than {most}"));
        }
        all
    }
}
