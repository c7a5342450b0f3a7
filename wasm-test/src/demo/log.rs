//! The stops of the tour at the audit log.

use std::path::Path;

use serde_json::Value;

use super::Tour;
use crate::Error;

/// The log that the tour wrote is whole.
pub fn verified(tour: &mut Tour) -> Result<(), Error> {
    tour.begin("The log of all that is whole");
    let dir = tour.system.audit_dir();
    let verdict = verify(tour, &dir)?;
    if !verdict.whole || verdict.exit != Some(0) {
        return Err(Error::Unexpected(format!(
            "`writ audit verify` found the untouched log damaged: {}",
            verdict.text
        )));
    }
    let entries = verdict.json.get("entries").and_then(Value::as_u64);
    println!(
        "   writ audit verify: whole, {} entries",
        entries.unwrap_or(0)
    );
    Ok(())
}

/// One changed letter in a copy of the log is found.
pub fn tampering_found(tour: &mut Tour) -> Result<(), Error> {
    tour.begin("One changed letter in a copy of the log is found");
    let copy = tour.system.state_dir().join("tampered");
    copy_dir(&tour.system.audit_dir(), &copy)?;
    let intact = verify(tour, &copy)?;
    if !intact.whole {
        return Err(Error::Unexpected(format!(
            "the untouched copy of the log does not verify: {}",
            intact.text
        )));
    }
    change_one_letter(&copy)?;
    let verdict = verify(tour, &copy)?;
    if verdict.whole || verdict.exit != Some(1) {
        return Err(Error::Unexpected(format!(
            "`writ audit verify` did not find the change: {}",
            verdict.text
        )));
    }
    let member = |name| verdict.json.get(name).cloned().unwrap_or(Value::Null);
    let (problem, index) = (member("problem"), member("index"));
    println!("   writ audit verify: damaged at entry {index}: {problem}");
    Ok(())
}

struct Verdict {
    exit: Option<i32>,
    whole: bool,
    json: Value,
    text: String,
}

fn verify(tour: &Tour, dir: &Path) -> Result<Verdict, Error> {
    let output = tour
        .system
        .writ()
        .args(["audit", "verify", "--json"])
        .arg(dir)
        .output()
        .map_err(Error::file("start", &tour.system.tools().writ))?;
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(Verdict {
        exit: output.status.code(),
        whole: json.get("whole").and_then(Value::as_bool) == Some(true),
        json,
        text,
    })
}

/// Turns the first `report.txt` of the log into `Report.txt`, in place.
fn change_one_letter(dir: &Path) -> Result<(), Error> {
    const WORD: &[u8] = b"report.txt";
    for entry in std::fs::read_dir(dir).map_err(Error::file("read", dir))? {
        let path = entry.map_err(Error::file("read", dir))?.path();
        if !path.is_file() {
            continue;
        }
        let mut bytes = std::fs::read(&path).map_err(Error::file("read", &path))?;
        let found = bytes.windows(WORD.len()).position(|window| window == WORD);
        if let Some(letter) = found.and_then(|at| bytes.get_mut(at)) {
            *letter = letter.to_ascii_uppercase();
            return std::fs::write(&path, bytes).map_err(Error::file("write", &path));
        }
    }
    Err(Error::Unexpected(format!(
        "no file in {} names what was asked for",
        dir.display()
    )))
}

fn copy_dir(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(to).map_err(Error::file("create", to))?;
    for entry in std::fs::read_dir(from).map_err(Error::file("read", from))? {
        let path = entry.map_err(Error::file("read", from))?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        if path.is_dir() {
            copy_dir(&path, &to.join(name))?;
        } else {
            std::fs::copy(&path, to.join(name)).map_err(Error::file("copy", &path))?;
        }
    }
    Ok(())
}
