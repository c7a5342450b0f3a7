//! `cargo xtask fuzz`: libFuzzer against every parser, for as long as it is told.
//!
//! The programs are instrumented by the compiler in use, so that no nightly one
//! is needed; cargo-fuzz, which needs one, runs the same programs with a
//! sanitizer.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::progress::Progress;
use crate::run::{cargo, loudly, quietly, root};
use crate::{build, setup};

/// The longest input, in bytes: twice the largest token.
const INPUT_MAX: u32 = 16 * 1024;
/// The slowest that one input may be, in seconds.
const INPUT_S: u32 = 10;
/// The most memory, in MiB.
const MEMORY_MIB: u32 = 2048;

/// Fuzzes all targets, or one, for so many minutes in all.
///
/// # Errors
/// When a build fails, a target is unknown, or an input breaks one.
pub fn run(progress: &Progress, minutes: u64, only: Option<&str>) -> Result<(), Error> {
    let known = targets(&root().join("fuzz/fuzz_targets"))?;
    let chosen: Vec<&String> = known
        .iter()
        .filter(|target| only.is_none_or(|only| only == *target))
        .collect();
    if chosen.is_empty() {
        let known = known.join(", ");
        return Err(Error::Machine(format!("there are these targets: {known}")));
    }
    let toolchain = setup::wasm::find(progress)?;
    progress.say("building the module that verdicts are compared with");
    let probe = setup::wasm::build(&toolchain)?.probe;
    progress.say("building the targets for libFuzzer (minutes, the first time)");
    let home = build::target_dir().join("fuzz");
    let programs = instrumented(&home, &chosen)?;
    let share = minutes.saturating_mul(60) / u64::try_from(chosen.len()).unwrap_or(1);
    for target in chosen {
        progress.say(&format!("{target}, for {share} s"));
        one(&home, &programs.join(target), target, share, &probe)?;
    }
    println!(
        "\nnothing was found; what was learnt is in {}/corpus",
        home.display()
    );
    Ok(())
}

/// The names of the programs.
fn targets(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = std::fs::read_dir(folder).map_err(Error::file("read", folder))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Builds the targets' programs, and returns where they are.
fn instrumented(home: &Path, targets: &[&String]) -> Result<PathBuf, Error> {
    let mut version = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let version = quietly("rustc", version.arg("-vV").current_dir(root()))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| Error::Machine("rustc does not name its host".to_owned()))?;
    let mut command = cargo();
    command
        .args(["build", "--package", "fuzz", "--features", "libfuzzer"])
        // A target of its own tells them from build scripts.
        .args(["--release", "--target", host, "--target-dir"])
        .arg(home)
        .env("RUSTC_WRAPPER", root().join("fuzz/instrument.sh"))
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    for target in targets {
        command.args(["--bin", target]);
    }
    loudly("building the targets", &mut command)?;
    Ok(home.join(host).join("release"))
}

/// Runs one target. What it says goes to a file, and its end is shown.
fn one(home: &Path, program: &Path, target: &str, share: u64, probe: &Path) -> Result<(), Error> {
    let learnt = home.join("corpus").join(target);
    std::fs::create_dir_all(&learnt).map_err(Error::file("create", &learnt))?;
    let found = home.join(format!("found-{target}-"));
    let path = home.join(format!("{target}.log"));
    let log = std::fs::File::create(&path).map_err(Error::file("create", &path))?;
    let mut command = Command::new(program);
    command
        .arg(&learnt)
        .arg(root().join("fuzz/corpus").join(target))
        .arg(format!("-max_total_time={share}"))
        .arg(format!("-max_len={INPUT_MAX}"))
        .arg(format!("-timeout={INPUT_S}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}", found.display()))
        .arg("-print_final_stats=1")
        .env("WRIT_PROBE_WASM", probe)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let status = command.status().map_err(Error::file("start", program))?;
    let said = std::fs::read(&path).map_err(Error::file("read", &path))?;
    let said = String::from_utf8_lossy(&said).into_owned();
    if status.success() {
        println!("{target}: {}", summary(&said));
        return Ok(());
    }
    let lines: Vec<&str> = said.lines().collect();
    let from = lines.len().saturating_sub(30);
    Err(Error::Program {
        what: format!(
            "the target {target}: an input breaks it. It is in {}*; once it is mended, put the input \
             into fuzz/corpus/{target}, where `cargo xtask test` tries it for ever",
            found.display()
        ),
        output: lines.get(from..).unwrap_or_default().join("\n"),
    })
}

/// How many inputs were run, and how many edges and features they reach.
fn summary(said: &str) -> String {
    let runs = said
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .unwrap_or("?")
        .trim();
    let last = said.lines().rfind(|line| line.contains(" cov: "));
    let word = |name: &str| {
        let mut words = last.unwrap_or_default().split_whitespace();
        words.find(|word| *word == name).and(words.next())
    };
    format!(
        "{runs} inputs, {} edges, {} features",
        word("cov:").unwrap_or("?"),
        word("ft:").unwrap_or("?")
    )
}

#[cfg(test)]
mod tests {
    use super::{summary, targets};

    #[test]
    fn the_targets_are_the_programs() {
        let folder = crate::run::root().join("fuzz/fuzz_targets");
        let names = targets(&folder).unwrap();
        assert!(
            names.contains(&"wasm".to_owned()) && names.len() > 10,
            "{names:?}"
        );
    }

    #[test]
    fn the_summary_reads_what_libfuzzer_says() {
        let said = "#2\tINITED cov: 90 ft: 91 corp: 1/1b\n#512\tpulse  cov: 99 ft: 140 corp: 9/98b\n\
                    #800\tDONE   cov: 101 ft: 150 corp: 9/98b\nstat::number_of_executed_units: 800\n";
        assert_eq!(summary(said), "800 inputs, 101 edges, 150 features");
        assert_eq!(summary(""), "? inputs, ? edges, ? features");
    }
}
