//! All modes in turn, several times, each in a process of its own; medians.

use std::{collections::HashMap, path::Path, process::Command};

use serde_json::{Value, json};

use crate::Failure;

/// Runs of each mode; their medians are shown.
const RUNS: usize = 3;
/// The core that everything measured stays on.
const CORE: &str = "1";

/// One row: its name, and the options of its mode.
struct Row {
    name: &'static str,
    /// Whether it stays on one core.
    pinned: bool,
    options: Vec<(&'static str, String)>,
}

fn rows() -> Vec<Row> {
    let row = |name, mode: &str, options: &[(&'static str, &str)]| Row {
        name,
        pinned: !matches!(mode, "postgres" | "inserts"),
        options: [("", mode)]
            .iter()
            .chain(options)
            .map(|(option, value)| (*option, (*value).to_owned()))
            .collect(),
    };
    vec![
        row(
            "1 caller",
            "closed",
            &[("--callers", "1"), ("--count", "2000")],
        ),
        row(
            "16 callers",
            "closed",
            &[("--callers", "16"), ("--count", "30000")],
        ),
        row(
            "256 callers",
            "closed",
            &[("--callers", "256"), ("--count", "300000")],
        ),
        row(
            "open, 20,000/s",
            "open",
            &[("--rate", "20000"), ("--seconds", "8")],
        ),
        row(
            "floor, open",
            "open-floor",
            &[("--rate", "20000"), ("--seconds", "8")],
        ),
        row(
            "PostgreSQL, 16 connections",
            "postgres",
            &[
                ("--callers", "1024"),
                ("--connections", "16"),
                ("--count", "100000"),
            ],
        ),
        row(
            "PostgreSQL, 64 connections",
            "postgres",
            &[
                ("--callers", "1024"),
                ("--connections", "64"),
                ("--count", "100000"),
            ],
        ),
        row(
            "inserts, PostgreSQL, 32",
            "inserts",
            &[("--connections", "32"), ("--count", "60000")],
        ),
        row("inserts, SQLite", "sqlite", &[("--count", "5000")]),
    ]
}

/// Runs everything under `dir`, prints a table, and writes `json`.
///
/// # Errors
/// When a mode fails.
pub fn run(dir: &Path, json: Option<&Path>) -> Result<(), Failure> {
    let mut results: HashMap<&str, Vec<Value>> = HashMap::new();
    for run in 1..=RUNS {
        eprintln!("· run {run} of {RUNS}");
        for row in rows() {
            let result = one(dir, &row.options, row.pinned)?;
            if row.name == "256 callers" {
                // The floor writes groups of just this size.
                let group = result.get("group_entries").and_then(Value::as_u64);
                let bytes = result.get("entry_bytes").and_then(Value::as_u64);
                let floor = [
                    ("", "floor".to_owned()),
                    ("--count", "300000".to_owned()),
                    ("--group", group.unwrap_or(256).max(1).to_string()),
                    ("--entry", bytes.unwrap_or(1024).to_string()),
                ];
                results
                    .entry("floor")
                    .or_default()
                    .push(one(dir, &floor, true)?);
            }
            results.entry(row.name).or_default().push(result);
        }
    }
    let order = [
        "1 caller",
        "16 callers",
        "256 callers",
        "floor",
        "open, 20,000/s",
        "floor, open",
        "PostgreSQL, 16 connections",
        "PostgreSQL, 64 connections",
        "inserts, PostgreSQL, 32",
        "inserts, SQLite",
    ];
    let mut table = Vec::new();
    println!("\n| | per second | CPU each | p50 | p99 | p99.9 |\n|---|---|---|---|---|---|");
    for name in order {
        let runs = results.get(name).map(Vec::as_slice).unwrap_or_default();
        let middle = |at: &str| median(runs.iter().filter_map(|r| r.pointer(at)?.as_f64()));
        let (per_s, cpu) = (middle("/per_s"), middle("/cpu_us"));
        let (p50, p99) = (middle("/latency/p50_ms"), middle("/latency/p99_ms"));
        let p999 = middle("/latency/p999_ms");
        println!(
            "| {name} | {per_s:.0} | {cpu:.2} µs | {p50:.2} ms | {p99:.2} ms | {p999:.2} ms |"
        );
        table.push(json!({
            "name": name, "per_s": per_s, "cpu_us": cpu,
            "p50_ms": p50, "p99_ms": p99, "p999_ms": p999, "runs": runs,
        }));
    }
    let of = |name: &str, at: &str| {
        let row = table.iter().find(|row| row["name"] == name);
        row.and_then(|row| row.get(at)?.as_f64())
            .unwrap_or(f64::NAN)
    };
    let spends = of("256 callers", "per_s");
    let ratio = spends / of("floor", "per_s");
    println!("\n256 callers reach {:.0} % of the floor.", ratio * 100.0);
    if let Some(path) = json {
        let report = json!({
            "rows": table,
            "ratios": {"floor_256": ratio},
            "spends_per_s": spends,
            "cpu_us": of("256 callers", "cpu_us"),
        });
        std::fs::write(path, format!("{report:#}\n"))?;
    }
    Ok(())
}

fn one(dir: &Path, options: &[(&str, String)], pinned: bool) -> Result<Value, Failure> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    let mut command = Command::new(std::env::current_exe()?);
    for (name, value) in options {
        if !name.is_empty() {
            command.arg(name);
        }
        command.arg(value);
    }
    if pinned {
        command.args(["--core", CORE]);
    }
    command.arg("--dir").arg(dir);
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
