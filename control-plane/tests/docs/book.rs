//! Reading Markdown: files, tables, fenced blocks.

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// A file of the repository.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A source file, with what stands behind each opening parenthesis pulled up to
/// it, so that it doesn't matter how a call is broken into lines.
pub fn code(path: &str) -> String {
    let mut text = String::new();
    let mut behind_paren = false;
    for c in read(path).chars() {
        if behind_paren && c.is_whitespace() {
            continue;
        }
        behind_paren = c == '(';
        text.push(c);
    }
    text
}

/// Every Markdown file at the root and under docs/, by its path from the root.
pub fn pages() -> Vec<String> {
    fn walk(dir: &Path, deep: bool, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && deep {
                walk(&path, deep, found);
            } else if path.extension().is_some_and(|ext| ext == "md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), false, &mut found);
    walk(&root().join("docs"), true, &mut found);
    let short = |path: PathBuf| {
        path.strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    let mut pages: Vec<String> = found.into_iter().map(short).collect();
    pages.sort();
    assert!(pages.len() > 10, "the walk found only {pages:?}");
    pages
}

/// The rows of every table whose heading has exactly these columns.
pub fn rows(text: &str, columns: &[&str]) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
        inner
            .replace("\\|", "\u{1}")
            .split('|')
            .map(|cell| cell.trim().replace('\u{1}', "|"))
            .collect()
    };
    let mut rows = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if !line.starts_with('|') {
            inside = false;
        } else if cells(line) == columns {
            inside = true;
        } else if inside && !line.starts_with("|---") {
            let row = cells(line);
            assert_eq!(row.len(), columns.len(), "{line}");
            rows.push(row);
        }
    }
    rows
}

/// The fenced blocks of this language.
pub fn fenced(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<(bool, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), block.take()) {
            (Some(_), Some((wanted, found))) => {
                if wanted {
                    blocks.push(found);
                }
            }
            (Some(name), None) => block = Some((name == language, String::new())),
            (None, Some((wanted, found))) => block = Some((wanted, found + line + "\n")),
            (None, None) => {}
        }
    }
    assert!(block.is_none(), "a fence is not closed");
    blocks
}

/// What stands in the cell's backticks, each.
pub fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// A number as people write it: `1,024`, `32 KiB`, `15 min`. Times come in ms.
pub fn number(text: &str) -> u64 {
    let (digits, unit) = text.split_once(' ').unwrap_or((text, ""));
    let digits: u64 = digits
        .replace(',', "")
        .parse()
        .unwrap_or_else(|_| panic!("`{text}` is no number"));
    let scale = match unit {
        "" | "ms" => 1,
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        other => panic!("`{other}` is no unit"),
    };
    digits * scale
}
