//! `[keys]`.

use super::Config;
use super::reader::{Reader, Table};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Bytes of a PIN file.
const PIN_MAX: u64 = 256;
/// Bytes of a token's label.
const LABEL_MAX: usize = 32;

/// The longest time between two rotations that the schedule takes, in days.
const ROTATE_MAX_DAYS: u64 = 3_650;

/// The keys that sign tokens.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Another key after so many days; 0: only on demand.
    pub rotate_every_days: u64,
    /// Whether all replicas have the same directory of keys.
    pub shared: bool,
    /// `[keys.pkcs11]`: the token that makes and holds them; without it they are
    /// files.
    pub pkcs11: Option<Pkcs11>,
}

/// A PKCS#11 token.
#[derive(Clone, Debug)]
pub struct Pkcs11 {
    /// Its maker's module, a shared library that is loaded into this process.
    pub module: PathBuf,
    /// Its label.
    pub token: String,
    /// The file with the user's PIN.
    pub pin_file: PathBuf,
}

impl Pkcs11 {
    /// The PIN: what the file says, without the end of its line.
    ///
    /// # Errors
    /// When it can't be read, others may read it, or it is no PIN.
    pub fn pin(&self) -> Result<Zeroizing<String>, String> {
        let shown = self.pin_file.display();
        let io = |error: std::io::Error| format!("can't read the PIN file `{shown}`: {error}");
        let file = File::open(&self.pin_file).map_err(io)?;
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(format!(
                "the PIN file `{shown}` may be read by others (mode {mode:o}); make it 0600, and change the PIN if somebody may have seen it"
            ));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(PIN_MAX + 1)
            .read_to_string(&mut text)
            .map_err(io)?;
        let pin = text.trim_end_matches(['\r', '\n']);
        if pin.is_empty() || text.len() > usize::try_from(PIN_MAX).unwrap_or(0) {
            return Err(format!(
                "the PIN file `{shown}` is empty or longer than {PIN_MAX} bytes"
            ));
        }
        Ok(Zeroizing::new(pin.to_owned()))
    }
}

impl Keys {
    /// Replicas that make keys on their own would make several.
    #[must_use]
    pub fn may_rotate_with_a_database(&self) -> bool {
        self.rotate_every_days == 0 || self.shared
    }
}

pub(super) fn read(table: &Table<'_>) -> Keys {
    let keys = Keys {
        rotate_every_days: table.number("rotate_every_days", 0, 0, ROTATE_MAX_DAYS),
        shared: table.flag("shared", false),
        pkcs11: table.has("pkcs11").then(|| pkcs11(&table.table("pkcs11"))),
    };
    table.finish();
    keys
}

fn pkcs11(table: &Table<'_>) -> Pkcs11 {
    let token = Pkcs11 {
        module: table.path("module"),
        token: table.text("token"),
        pin_file: table.path("pin_file"),
    };
    if token.token.len() > LABEL_MAX || token.token.trim_end() != token.token {
        let message = format!("a label has at most {LABEL_MAX} bytes, and no space at its end");
        table.error("token", message);
    }
    table.finish();
    token
}

impl Config {
    /// What a start needs of the token's files.
    pub(super) fn check_token_files(&self, reader: &Reader<'_>) {
        let Some(token) = &self.keys.pkcs11 else {
            return;
        };
        if token.module.is_absolute() && !token.module.is_file() {
            reader.error_at(
                "keys.pkcs11.module",
                format!("there is no file `{}`", token.module.display()),
            );
        }
        if token.pin_file.is_absolute()
            && let Err(message) = token.pin()
        {
            reader.error_at("keys.pkcs11.pin_file", message);
        }
    }

    pub(super) fn check_keys(&self, reader: &Reader<'_>) {
        if self.ledger.store.url.is_some() && !self.keys.may_rotate_with_a_database() {
            reader.error_at(
                "keys.rotate_every_days",
                "several replicas may share ledger.store, and each would make keys that the others don't know; say keys.shared = true where all of them have the same `keys` directory, else leave it out and rotate with `writ keys rotate`".into(),
            );
        }
    }
}
