//! docs/reference/cli.md against clap's tree, and every `writ …` in the book
//! against clap's parser.

use super::book::{pages, quoted, read, rows};
use clap::error::ErrorKind;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: &str = "docs/reference/cli.md";

/// What one command takes: option or argument, variable, default.
type Takes = BTreeSet<(String, String, String)>;

fn tree(command: &clap::Command, name: &str, found: &mut BTreeMap<String, Takes>) {
    let subcommands: Vec<_> = command
        .get_subcommands()
        // What is hidden is for `writ serve` itself.
        .filter(|sub| sub.get_name() != "help" && !sub.is_hide_set())
        .collect();
    for sub in &subcommands {
        tree(sub, &format!("{name} {}", sub.get_name()), found);
    }
    if subcommands.is_empty() {
        found.insert(
            name.to_owned(),
            command.get_arguments().filter_map(takes).collect(),
        );
    }
}

fn takes(argument: &clap::Arg) -> Option<(String, String, String)> {
    if matches!(argument.get_id().as_str(), "help" | "version") {
        return None;
    }
    let value = argument
        .get_value_names()
        .filter(|_| argument.get_action().takes_values());
    let value = value
        .and_then(|names| names.first())
        .map(ToString::to_string);
    let name = match (argument.get_long(), value) {
        (Some(long), Some(value)) => format!("--{long} {value}"),
        (Some(long), None) => format!("--{long}"),
        (None, value) => value.unwrap_or_else(|| argument.get_id().as_str().to_uppercase()),
    };
    let name = argument
        .get_short()
        .map_or(name.clone(), |short| format!("-{short}, {name}"));
    let variable = argument
        .get_env()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let default = argument
        .get_default_values()
        .first()
        .and_then(|value| value.to_str());
    // A flag's default is that it is not there.
    let default = default
        .filter(|_| argument.get_action().takes_values())
        .unwrap_or_default();
    Some((name, variable.to_owned(), default.to_owned()))
}

#[test]
fn every_command_and_option_is_on_the_page_and_no_other() {
    let mut coded = BTreeMap::new();
    let mut command = control_plane::cli::command();
    command.build();
    tree(&command, "writ", &mut coded);
    let text = read(PAGE);
    let mut listed = BTreeMap::new();
    for section in text.split("\n## `").skip(1) {
        let (name, body) = section.split_once('`').unwrap();
        let body = body.split("\n## ").next().unwrap();
        let takes = rows(body, &["option", "variable", "default", ""])
            .into_iter()
            .map(|row| {
                let of = |cell: &str| quoted(cell).join(", ");
                (of(&row[0]), of(&row[1]), of(&row[2]))
            });
        listed.insert(name.to_owned(), takes.collect::<Takes>());
    }
    for (name, takes) in &coded {
        assert_eq!(listed.get(name), Some(takes), "{name}");
    }
    assert!(
        listed.keys().eq(coded.keys()),
        "the page has other commands"
    );
}

/// A line of a shell in words: quotes, and no more than the first command.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '|' | ';' | '&' | '>' | '#') => break,
            (None, ' ') => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The commands of all fenced blocks.
fn commands(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if inside {
            let line = line.trim_start().trim_start_matches("$ ");
            // `writ: …` is what it says, not what it is told.
            if line.starts_with("writ ") {
                found.push(line.to_owned());
            }
        }
    }
    found
}

#[test]
fn commands_in_the_book_parse() {
    let mut seen = 0;
    let mut problems = Vec::new();
    for page in pages() {
        for line in commands(&read(&page)) {
            seen += 1;
            if let Err(error) = control_plane::cli::command().try_get_matches_from(words(&line))
                && !matches!(
                    error.kind(),
                    ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
                )
            {
                problems.push(format!("{page}: {line}: {error}"));
            }
        }
    }
    assert!(seen > 15, "only {seen} commands were found");
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// Ids in base64url may begin with a hyphen.
#[test]
fn ids_that_begin_with_a_hyphen_are_taken() {
    for line in [
        "writ keys revoke -7abc --config x.toml",
        "writ keys revoke --config x.toml --abc",
        "writ revoke --key -7abc --json",
        "writ revoke --user https://idp.example --subject -7abc",
    ] {
        let words = line.split(' ');
        let parsed = control_plane::cli::command().try_get_matches_from(words);
        assert!(parsed.is_ok(), "{line}: {parsed:?}");
    }
    let unknown = ["writ", "keys", "rotate", "--conf"];
    assert!(
        control_plane::cli::command()
            .try_get_matches_from(unknown)
            .is_err()
    );
}

#[test]
fn variables_in_the_book_are_read_somewhere() {
    let mut coded: BTreeSet<String> = BTreeSet::from(["WRIT_LOG".to_owned()]);
    let mut command = control_plane::cli::command();
    command.build();
    let mut found = BTreeMap::new();
    tree(&command, "writ", &mut found);
    coded.extend(
        found
            .values()
            .flatten()
            .map(|(_, variable, _)| variable.clone()),
    );
    assert!(read("control-plane/src/cli/mod.rs").contains("\"WRIT_LOG\""));
    for page in [
        "docs/reference/cli.md",
        "docs/tutorial.md",
        "docs/operate.md",
    ] {
        for rest in read(page).split("WRIT_").skip(1) {
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_uppercase() || *c == '_')
                .collect();
            assert!(
                coded.contains(&format!("WRIT_{name}")),
                "{page}: WRIT_{name}"
            );
        }
    }
}
