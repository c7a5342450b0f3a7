//! A configuration as a tree that knows its lines, from YAML or JSON: JSON is
//! YAML, and one reader for both leaves nothing that two would read differently.

use std::collections::BTreeSet;

use saphyr_parser::{Event, Parser, Span};

/// The largest file, in bytes: a dump has the filter's module in it.
pub(super) const MAX_BYTES: usize = 64 * 1024 * 1024;
/// The most nodes, aliases written out.
const MAX_NODES: usize = 1_000_000;
/// The deepest nesting.
const MAX_DEPTH: usize = 100;

/// A value and the line where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    line: usize,
    kind: Kind,
    /// How many nodes it is, itself among them.
    size: usize,
}

#[derive(Debug, Clone)]
enum Kind {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Reads a file's first document.
///
/// # Errors
/// Why it can't be read, with the line.
pub(super) fn parse(text: &str) -> Result<Node, (usize, String)> {
    if text.len() > MAX_BYTES {
        return Err((0, format!("more than {MAX_BYTES} bytes")));
    }
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| (error.marker().line(), error.info().to_owned()))?;
        builder
            .take(event, span)
            .map_err(|why| (span.start.line(), why.to_owned()))?;
    }
    builder.done.ok_or((0, "it is empty".to_owned()))
}

/// What is being built: open lists and maps, the innermost last.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: Vec<(usize, Node)>,
    nodes: usize,
    done: Option<Node>,
}

struct Open {
    node: Node,
    anchor: usize,
    key: Option<String>,
    seen: BTreeSet<String>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), &'static str> {
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == saphyr_parser::ScalarStyle::Plain && tag.is_none();
                let kind = match (plain, text.as_ref()) {
                    (true, "" | "~" | "null" | "Null" | "NULL") => Kind::Null,
                    _ => Kind::Scalar(text.into_owned()),
                };
                self.put(Node::new(line, kind), anchor)
            }
            Event::Alias(anchor) => {
                let found = self.anchors.iter().rev().find(|(id, _)| *id == anchor);
                let node = found.map(|(_, node)| node.clone());
                self.put(node.ok_or("an alias of something unfinished")?, 0)
            }
            Event::SequenceStart(anchor, _) => self.open(Kind::List(Vec::new()), line, anchor),
            Event::MappingStart(anchor, _) => self.open(Kind::Map(Vec::new()), line, anchor),
            Event::SequenceEnd | Event::MappingEnd => {
                let open = self.open.pop().ok_or("unbalanced")?;
                self.put(open.node, open.anchor)
            }
            Event::DocumentStart(_) if self.done.is_some() => Err("a second document"),
            _ => Ok(()),
        }
    }

    fn open(&mut self, kind: Kind, line: usize, anchor: usize) -> Result<(), &'static str> {
        if self.open.len() >= MAX_DEPTH {
            return Err("nested too deeply");
        }
        self.open.push(Open {
            node: Node::new(line, kind),
            anchor,
            key: None,
            seen: BTreeSet::new(),
        });
        Ok(())
    }

    fn put(&mut self, node: Node, anchor: usize) -> Result<(), &'static str> {
        self.nodes = self.nodes.saturating_add(node.size);
        if self.nodes > MAX_NODES {
            return Err("too many values");
        }
        if anchor != 0 {
            self.anchors.push((anchor, node.clone()));
        }
        let Some(open) = self.open.last_mut() else {
            self.done = Some(node);
            return Ok(());
        };
        open.add(node)
    }
}

impl Open {
    fn add(&mut self, node: Node) -> Result<(), &'static str> {
        self.node.size = self.node.size.saturating_add(node.size);
        match (&mut self.node.kind, self.key.take()) {
            (Kind::List(list), _) => list.push(node),
            (Kind::Map(map), Some(key)) => {
                // Which of two would count is for nobody to guess.
                if !self.seen.insert(field(&key)) {
                    return Err("a name twice in one object");
                }
                map.push((key, node));
            }
            (Kind::Map(_), None) => match node.kind {
                Kind::Scalar(text) => self.key = Some(text),
                Kind::Null => self.key = Some(String::new()),
                Kind::List(_) | Kind::Map(_) => return Err("a name that is no text"),
            },
            _ => return Err("unbalanced"),
        }
        Ok(())
    }
}

/// Protobuf's JSON has two spellings of a field, `path_prefix` and `pathPrefix`:
/// both as one. Keys of maps stay as they are.
fn field(name: &str) -> String {
    if name.contains(['.', '/', '@']) {
        name.to_owned()
    } else {
        camel(name)
    }
}

fn same_field(one: &str, other: &str) -> bool {
    one == other || field(one) == field(other)
}

fn camel(name: &str) -> String {
    let mut up = false;
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        if c == '_' {
            up = true;
        } else if up {
            up = false;
            out.push(c.to_ascii_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

impl Node {
    fn new(line: usize, kind: Kind) -> Self {
        Self {
            line,
            kind,
            size: 1,
        }
    }
}

/// A node, and where it is.
#[derive(Debug, Clone)]
pub(super) struct At<'a> {
    node: &'a Node,
    /// The file, by the name that the caller gave it.
    pub(super) file: &'a str,
    /// The way to it from the file's root, as in `a.b[0].c`.
    pub(super) path: String,
}

impl<'a> At<'a> {
    pub(super) fn root(file: &'a str, node: &'a Node) -> Self {
        Self {
            node,
            file,
            path: String::new(),
        }
    }

    pub(super) fn line(&self) -> usize {
        self.node.line
    }

    fn below(&self, key: &str, node: &'a Node) -> Self {
        let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let path = match (plain, self.path.is_empty()) {
            (true, true) => key.to_owned(),
            (true, false) => format!("{}.{key}", self.path),
            (false, _) => format!("{}[{key:?}]", self.path),
        };
        Self {
            node,
            file: self.file,
            path,
        }
    }

    /// A member that is there and not null, by either spelling.
    pub(super) fn get(&self, name: &str) -> Option<Self> {
        self.entries()
            .into_iter()
            .find(|(key, at)| same_field(key, name) && !at.is_null())
            .map(|(_, at)| at)
    }

    /// A member that is there and says something: no empty list, object or text.
    pub(super) fn said(&self, name: &str) -> Option<Self> {
        self.get(name).filter(|at| match &at.node.kind {
            Kind::Null => false,
            Kind::Scalar(text) => !text.is_empty(),
            Kind::List(list) => !list.is_empty(),
            Kind::Map(map) => !map.is_empty(),
        })
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.node.kind, Kind::Null)
    }

    /// All members of an object, under the names that stand there.
    pub(super) fn entries(&self) -> Vec<(&'a str, Self)> {
        match &self.node.kind {
            Kind::Map(map) => map
                .iter()
                .map(|(key, node)| (key.as_str(), self.below(key, node)))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The elements of a member that is a list.
    pub(super) fn list(&self, name: &str) -> Vec<Self> {
        let Some(at) = self.get(name) else {
            return Vec::new();
        };
        match &at.node.kind {
            Kind::List(list) => list
                .iter()
                .enumerate()
                .map(|(place, node)| Self {
                    node,
                    file: at.file,
                    path: format!("{}[{place}]", at.path),
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    /// This value as text: strings, numbers and truths alike.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        match &self.node.kind {
            Kind::Scalar(text) => Some(text),
            _ => None,
        }
    }

    /// A member as text; empty when it is none.
    pub(super) fn text(&self, name: &str) -> &'a str {
        self.get(name)
            .and_then(|at| at.as_text())
            .unwrap_or_default()
    }

    /// Whether a member is true.
    pub(super) fn truth(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "True" | "TRUE")
    }

    /// A member as a whole number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        let text = self.get(name)?.as_text()?;
        text.strip_suffix(".0").unwrap_or(text).parse().ok()
    }

    /// Whether a member is this word of an enumeration, or its number.
    pub(super) fn is_word(&self, name: &str, word: &str, number: u64) -> bool {
        self.text(name) == word || self.number(name) == Some(number)
    }

    /// A message of any type: the last part of its type's name, and the message,
    /// also where it is wrapped as untyped (`TypedStruct`).
    pub(super) fn any(&self) -> (&'a str, Self) {
        let kind = last(self.text("@type"));
        if matches!(kind, "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct") {
            let inner = self.get("value").unwrap_or_else(|| self.clone());
            return (last(self.text("type_url")), inner);
        }
        (kind, self.clone())
    }
}

fn last(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> (usize, String) {
        match parse(text) {
            Ok(_) => (0, "read".to_owned()),
            Err(error) => error,
        }
    }

    #[test]
    fn both_spellings_lines_and_aliases_are_read() {
        let text = "a: &x {pathPrefix: /a}\nb:\n- *x\n- path_prefix: '/b'\n";
        let node = parse(text).unwrap();
        let root = At::root("f", &node);
        let list = root.list("b");
        let found: Vec<_> = list
            .iter()
            .map(|at| (at.text("path_prefix"), at.line(), at.path.as_str()))
            .collect();
        assert_eq!(found, [("/a", 1, "b[0]"), ("/b", 4, "b[1]")]);
    }

    #[test]
    fn what_two_readers_would_read_differently_is_refused() {
        assert_eq!(why("{\"a\": 1, \"a\": 2}").1, "a name twice in one object");
        assert_eq!(
            why("path_prefix: a\npathPrefix: b").1,
            "a name twice in one object"
        );
        assert_eq!(why("a: 1\n---\nb: 2").1, "a second document");
        assert_eq!(why("").1, "it is empty");
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        assert_eq!(why(&deep).1, "nested too deeply");
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let inner = vec![format!("*a{}", n - 1); 10].join(", ");
            laughs.push_str(&format!("a{n}: &a{n} [{inner}]\n"));
        }
        assert_eq!(why(&laughs).1, "too many values");
        assert!(why("a: [1,\nb: {").0 > 0);
    }
}
