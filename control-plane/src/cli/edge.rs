//! `writ edge check`: judges an Envoy configuration.

use super::{REFUSED, fail, plain};
use crate::config::Config;
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xds::lint::{Finding, Lint, Names, Report};

/// What Envoy runs on.
#[derive(Subcommand)]
pub enum Edge {
    /// Look whether a guarded route could be reached unguarded, or twice; every finding is printed
    #[command(
        after_help = "Examples:\n  writ edge check envoy.yaml\n  curl -s http://127.0.0.1:9901/config_dump | writ edge check -\n\nExit codes: 0 nothing found, 1 findings, 2 a file can't be read."
    )]
    Check(Check),
}

/// `writ edge check`.
#[derive(Args)]
pub struct Check {
    /// Bootstraps in YAML or JSON, answers of /config_dump, or single resources; - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Take the names of what may be unguarded from this config file of the control plane
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// With --config: of a proxy of this group, which may have an [edge] of its own
    #[arg(long, value_name = "NAME", requires = "config")]
    group: Option<String>,
    /// A listener, virtual host or route that may be without the filter
    #[arg(long, value_name = "NAME")]
    unguarded: Vec<String>,
    /// One of those that may lead to the upstream of a guarded route
    #[arg(long, value_name = "NAME")]
    shared: Vec<String>,
    /// The name of Writ's filter in the chain
    #[arg(long, value_name = "NAME", default_value = xds::FILTER_NAME)]
    filter: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Edge {
    /// Judges and prints.
    pub fn run(self) -> ExitCode {
        let Self::Check(check) = self;
        match check.judge() {
            Ok(report) => check.print(&report),
            Err(error) => fail(&error),
        }
    }
}

impl Check {
    fn judge(&self) -> Result<Report, String> {
        let mut lint = Lint::new(self.names()?);
        for file in &self.files {
            let name = file.display().to_string();
            let text = text(file).map_err(|error| format!("can't read `{name}`: {error}"))?;
            lint.add(&name, &text).map_err(|error| error.to_string())?;
        }
        Ok(lint.report())
    }

    fn names(&self) -> Result<Names, String> {
        let mut names = Names {
            filter: self.filter.clone(),
            unguarded: self.unguarded.iter().chain(&self.shared).cloned().collect(),
            shared: self.shared.iter().cloned().collect(),
        };
        if let Some(path) = &self.config {
            let config = Config::read(path).map_err(|errors| {
                let lines: String = errors.iter().map(|error| format!("\n  {error}")).collect();
                format!("the config is not usable:{lines}")
            })?;
            let edge = match &self.group {
                None => &config.edge,
                Some(name) => {
                    let mut groups = config.edge.groups.iter();
                    let group = groups.find(|group| group.name == *name);
                    let group = group.ok_or_else(|| {
                        format!("`{name}` is no [[edge.group]] of `{}`", path.display())
                    })?;
                    group.config.as_ref().unwrap_or(&config.edge)
                }
            };
            edge.name_exemptions(&mut names);
        }
        Ok(names)
    }

    fn print(&self, report: &Report) -> ExitCode {
        if self.json {
            println!("{}", told(report));
        } else {
            for found in &report.findings {
                println!("{}", plain(&found.to_string()));
            }
            for note in &report.notes {
                eprintln!("writ: note: {}", plain(note));
            }
            let count = report.findings.len();
            let s = if count == 1 { "" } else { "s" };
            eprintln!(
                "writ: {count} finding{s}; {} guarded routes",
                report.guarded_routes
            );
        }
        match report.findings.as_slice() {
            [] => ExitCode::SUCCESS,
            _ => ExitCode::from(REFUSED),
        }
    }
}

fn told(report: &Report) -> serde_json::Value {
    let one = |found: &Finding| {
        json!({
            "rule": found.rule.as_str(),
            "file": found.file,
            "line": found.line,
            "path": found.path,
            "message": found.message,
        })
    };
    json!({
        "clean": report.findings.is_empty(),
        "guarded_routes": report.guarded_routes,
        "findings": report.findings.iter().map(one).collect::<Vec<_>>(),
        "notes": report.notes,
    })
}

fn text(file: &Path) -> std::io::Result<String> {
    if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file)
}
