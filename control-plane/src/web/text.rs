//! What others wrote, made safe to look at: nothing hidden, nothing reordered,
//! nothing cut, and the parts of a URL told apart.

use crate::hidden::hiding;
use askama::Template;
use ledger::model::Millis;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// A stretch of text, or one character that would not show and is named instead.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    text: String,
    named: bool,
}

/// Text from outside, with every character visible. Escaped by its template.
#[derive(Clone, Debug, PartialEq, Eq, Template)]
#[template(path = "shown.html")]
pub(super) struct Shown {
    pieces: Vec<Piece>,
}

// Its template escapes already; a second time would show the entities.
impl askama::filters::HtmlSafe for Shown {}

impl Shown {
    /// Characters that don't show, or that move others, are named by code point.
    pub(super) fn text(text: &str) -> Self {
        Self::by(text, hiding())
    }

    /// As [`Shown::text`]; in a URL nothing beyond printable ASCII looks like
    /// what it is.
    pub(super) fn url(text: &str) -> Self {
        Self::by(text, |c| !matches!(c, '!'..='~'))
    }

    fn by(text: &str, mut name: impl FnMut(char) -> bool) -> Self {
        let mut pieces: Vec<Piece> = Vec::new();
        for c in text.chars() {
            if name(c) {
                pieces.push(Piece {
                    text: format!("U+{:04X}", u32::from(c)),
                    named: true,
                });
            } else if let Some(last) = pieces.last_mut().filter(|last| !last.named) {
                last.text.push(c);
            } else {
                pieces.push(Piece {
                    text: c.into(),
                    named: false,
                });
            }
        }
        Self { pieces }
    }

    /// Nothing to show.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// A URL in its parts, which put together again are the URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UrlParts<'a> {
    /// Scheme and authority.
    pub(super) origin: &'a str,
    /// From the first slash.
    pub(super) path: &'a str,
    /// With its question mark; empty when there is none.
    pub(super) query: &'a str,
}

/// Splits where the parts meet, and decides nothing.
pub(super) fn split_url(url: &str) -> UrlParts<'_> {
    let after_scheme = url.find("://").map_or(0, |at| at.saturating_add(3));
    let rest = url.get(after_scheme..).unwrap_or_default();
    let authority_len = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (origin, rest) = url
        .split_at_checked(after_scheme.saturating_add(authority_len))
        .unwrap_or(("", url));
    let (path, query) = rest
        .split_at_checked(rest.find('?').unwrap_or(rest.len()))
        .unwrap_or((rest, ""));
    UrlParts {
        origin,
        path,
        query,
    }
}

/// What percent-encoded text stands for, when it is valid and differs.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let (high, low) = (
                char::from(rest.next()?).to_digit(16)?,
                char::from(rest.next()?).to_digit(16)?,
            );
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|decoded| decoded != text)
}

const PAGE: &[BorrowedFormatItem<'_>] = format_description!(
    "[day padding:none] [month repr:short] [year], [hour]:[minute]:[second] UTC"
);
const RFC_3339: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// A time as people read it, in UTC.
pub(super) fn time_for_people(ms: Millis) -> String {
    format(ms, PAGE)
}

/// A time as programs read it: RFC 3339, UTC, milliseconds.
pub(crate) fn time_for_programs(ms: Millis) -> String {
    format(ms, RFC_3339)
}

fn format(ms: Millis, description: &[BorrowedFormatItem<'_>]) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(description).ok())
        .unwrap_or_else(|| format!("{ms} ms"))
}

/// How long, roughly: `45 s`, `12 min`, `3 h 5 min`.
pub(super) fn span(ms: Millis) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(shown: &Shown) -> String {
        shown
            .pieces
            .iter()
            .map(|p| {
                if p.named {
                    format!("[{}]", p.text)
                } else {
                    p.text.clone()
                }
            })
            .collect()
    }

    #[test]
    fn what_does_not_show_is_named() {
        for (text, expected) in [
            ("plain text, é and 日本", "plain text, é and 日本"),
            ("invoice\u{202e}fdp.exe", "invoice[U+202E]fdp.exe"),
            ("a\u{200b}b\u{feff}c", "a[U+200B]b[U+FEFF]c"),
            (
                "a\0b\r\nc\u{1b}[31m",
                "a[U+0000]b[U+000D][U+000A]c[U+001B][31m",
            ),
            ("\u{e0041}\u{3164}", "[U+E0041][U+3164]"),
            (
                "e\u{301}e\u{301}\u{302}\u{303}",
                "e\u{301}e\u{301}\u{302}[U+0303]",
            ),
        ] {
            assert_eq!(flat(&Shown::text(text)), expected);
        }
        assert_eq!(
            flat(&Shown::url("/p\u{430}y pal")),
            "/p[U+0430]y[U+0020]pal"
        );
    }

    #[test]
    fn markup_is_escaped() {
        let html = Shown::text("<img src=x onerror=alert(1)>&\"'").to_string();
        assert!(
            !html.contains('<') && !html.contains('"') && !html.contains('\''),
            "{html}"
        );
        let html = Shown::text("a\u{202e}<b>").to_string();
        assert_eq!(
            html.matches('<').count(),
            2,
            "the mark's own tag alone: {html}"
        );
    }

    #[test]
    fn a_url_falls_into_parts_that_make_it_again() {
        let parts = split_url("https://files.example:8400/a//b%2f?x=1&y=/?#f");
        assert_eq!(parts.origin, "https://files.example:8400");
        assert_eq!(parts.path, "/a//b%2f");
        assert_eq!(parts.query, "?x=1&y=/?#f");
        for url in [
            "",
            "/",
            "x",
            "://",
            "http://",
            "http://h",
            "http://h?q",
            "a?b://c/d",
            "é://é/é?é",
            "http://h#/x?y",
        ] {
            let parts = split_url(url);
            assert_eq!(
                format!("{}{}{}", parts.origin, parts.path, parts.query),
                url
            );
        }
    }

    #[test]
    fn decoding_says_only_what_is_valid_and_new() {
        assert_eq!(decoded("a%20b%C3%A9").as_deref(), Some("a bé"));
        assert_eq!(decoded("plain"), None);
        for broken in ["%", "%4", "%zz", "%ff", "%+1"] {
            assert_eq!(decoded(broken), None, "{broken}");
        }
    }

    #[test]
    fn times_read_well() {
        assert_eq!(
            time_for_people(1_795_348_805_250),
            "22 Nov 2026, 12:00:05 UTC"
        );
        assert_eq!(
            time_for_programs(1_795_348_805_250),
            "2026-11-22T12:00:05.250Z"
        );
        assert_eq!(time_for_people(Millis::MAX), format!("{} ms", Millis::MAX));
        assert_eq!(
            [span(900), span(99_000), span(125_000), span(7_500_000)],
            ["0 s", "99 s", "2 min", "2 h 5 min"]
        );
    }
}
