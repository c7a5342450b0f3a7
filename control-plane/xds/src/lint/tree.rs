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
            (Kind::Map(_), Some(key)) if key == "<<" => {
                return Err("a merge key (<<), which readers take for different things");
            }
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
        self.get(name).map(|at| at.elements()).unwrap_or_default()
    }

    fn elements(&self) -> Vec<Self> {
        match &self.node.kind {
            Kind::List(list) => list
                .iter()
                .enumerate()
                .map(|(place, node)| Self {
                    node,
                    file: self.file,
                    path: format!("{}[{place}]", self.path),
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

    /// Whether a member is plainly true, for what is good when it is.
    pub(super) fn truth(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "True" | "TRUE")
    }

    /// Whether a member could be true, for what is bad when it is. Envoy takes `yes`,
    /// `On`, `"1"` and more for true: all that is not plainly false.
    pub(super) fn may_be_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|at| !at.is_false())
    }

    /// Whether this value is false in every reader's eyes.
    pub(super) fn is_false(&self) -> bool {
        let no = ["false", "no", "n", "off", "f", "0"];
        self.as_text()
            .is_some_and(|text| no.iter().any(|no| text.eq_ignore_ascii_case(no)))
    }

    /// A member as a whole number; none when it is absent, or written as no reader
    /// has to understand it. Who asks takes none for the worst.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        whole(self.get(name)?.as_text()?)
    }

    /// Whether a member is this word of an enumeration, or its number.
    pub(super) fn is_word(&self, name: &str, word: &str, number: u64) -> bool {
        self.text(name).eq_ignore_ascii_case(word) || self.number(name) == Some(number)
    }

    /// Whether a member is absent, or one of these words or numbers: what is unknown
    /// is none of them.
    pub(super) fn is_absent_or(&self, name: &str, words: &[(&str, u64)]) -> bool {
        let one_of = |(word, number): &(&str, u64)| self.is_word(name, word, *number);
        self.get(name).is_none() || words.iter().any(one_of)
    }

    /// All members of this name, at any depth.
    pub(super) fn everywhere(&self, name: &str) -> Vec<Self> {
        let mut found = Vec::new();
        self.visit(&mut |key, at| {
            if key.is_some_and(|key| same_field(key, name)) && !at.is_null() {
                found.push(at.clone());
            }
        });
        found
    }

    /// All texts, at any depth.
    pub(super) fn texts(&self) -> Vec<&'a str> {
        let mut found = Vec::new();
        self.visit(&mut |_, at| found.extend(at.as_text()));
        found
    }

    /// Shows everything below, with its key when it is a member. As deep as a file
    /// may nest.
    fn visit(&self, show: &mut impl FnMut(Option<&'a str>, &Self)) {
        for (key, at) in self.entries() {
            show(Some(key), &at);
            at.visit(show);
        }
        for at in self.elements() {
            show(None, &at);
            at.visit(show);
        }
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

/// The name of a type, from its URL.
pub(super) fn last(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

/// A whole number as Envoy's readers take one: decimal, `0x3`, `3.0`, `30e-1`. One
/// that begins with a zero is octal to some, and none here.
fn whole(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (before, behind) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if before.len() > 1 && before.starts_with('0') {
        return None;
    }
    let digits: u64 = format!("{before}{behind}").parse().ok()?;
    let moved = i64::try_from(behind.len()).ok()?;
    let exponent = exponent.parse::<i64>().ok()?.checked_sub(moved)?;
    let factor = 10_u64.checked_pow(u32::try_from(exponent.unsigned_abs()).ok()?)?;
    if exponent >= 0 {
        digits.checked_mul(factor)
    } else {
        Some(digits / factor).filter(|_| digits.is_multiple_of(factor))
    }
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
    fn numbers_are_read_as_envoy_reads_them_or_not_at_all() {
        for (text, number) in [
            ("3", Some(3)),
            ("0", Some(0)),
            ("0x3", Some(3)),
            ("0XfF", Some(255)),
            ("3e0", Some(3)),
            ("3.0", Some(3)),
            ("30e-1", Some(3)),
            ("0.3E+1", Some(3)),
            ("1e2", Some(100)),
            ("0.0", Some(0)),
            ("0e9", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("1e99", None),
            ("1e99999999999999999999", None),
            ("35e-1", None),
            ("03", None),
            ("0o3", None),
            ("-1", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(whole(text), number, "{text}");
        }
    }

    #[test]
    fn what_is_not_plainly_false_may_be_true() {
        let text = "a: yes\nb: 'yes'\nc: !!bool yes\nd: On\ne: '1'\nf: true\ng: what\nh: {}\ni: ''\nj: no\nk: OFF\nl: '0'\nm: False\nn: ~\no: n\n";
        let node = parse(text).unwrap();
        let root = At::root("f", &node);
        for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i"] {
            assert!(root.may_be_true(name), "{name}");
            assert_eq!(root.truth(name), name == "f", "{name}");
        }
        for name in ["j", "k", "l", "m", "n", "o", "p"] {
            assert!(!root.may_be_true(name), "{name}");
            assert!(!root.truth(name), "{name}");
        }
    }

    #[test]
    fn what_two_readers_would_read_differently_is_refused() {
        assert_eq!(why("{\"a\": 1, \"a\": 2}").1, "a name twice in one object");
        assert_eq!(
            why("path_prefix: a\npathPrefix: b").1,
            "a name twice in one object"
        );
        assert_eq!(why("a: 1\n---\nb: 2").1, "a second document");
        assert_eq!(
            why("a: &x {b: 1}\nc:\n  <<: *x").1,
            "a merge key (<<), which readers take for different things"
        );
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
