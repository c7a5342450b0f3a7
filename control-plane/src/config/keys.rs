//! `[keys]`.

use super::Config;
use super::reader::{Reader, Table};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Bytes of a PIN, with the end of its line.
const PIN_MAX: usize = 256;
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
    /// Where the user's PIN is.
    pub pin_from: PinFrom,
}

/// Where a PIN is; never the PIN itself.
#[derive(Clone, Debug)]
pub enum PinFrom {
    /// A file.
    File(PathBuf),
    /// A variable of this process's environment.
    Env(String),
}

impl std::fmt::Display for PinFrom {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(out, "the file `{}`", path.display()),
            Self::Env(name) => write!(out, "the variable `{name}`"),
        }
    }
}

impl PinFrom {
    /// `None`: it is neither.
    fn parse(text: &str) -> Option<Self> {
        if text.starts_with('/') {
            return Some(Self::File(text.into()));
        }
        let name = text.strip_prefix("env:")?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        (!name.is_empty() && name.bytes().all(plain)).then(|| Self::Env(name.to_owned()))
    }

    fn read(&self) -> Result<Zeroizing<String>, String> {
        let path = match self {
            Self::File(path) => path,
            Self::Env(name) => {
                let value = std::env::var(name);
                // Its error has the value, where that is no text.
                return value
                    .map(Zeroizing::new)
                    .map_err(|_| format!("{self} is not set"));
            }
        };
        let io = |error: std::io::Error| format!("can't read {self}, for the PIN: {error}");
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(format!(
                "{self} has the PIN and may be read by others (mode {mode:o}); make it 0600, and change the PIN if somebody may have seen it"
            ));
        }
        let mut text = Zeroizing::new(String::with_capacity(PIN_MAX + 1));
        let most = u64::try_from(PIN_MAX).unwrap_or(0).saturating_add(1);
        file.take(most).read_to_string(&mut text).map_err(io)?;
        Ok(text)
    }
}

impl Pkcs11 {
    /// The PIN: what the file or the variable says, without the end of its line.
    ///
    /// # Errors
    /// When it can't be read, others may read it, or it is no PIN.
    pub fn pin(&self) -> Result<Zeroizing<String>, String> {
        let text = self.pin_from.read()?;
        let pin = text.trim_end_matches(['\r', '\n']);
        if pin.is_empty() || text.len() > PIN_MAX {
            return Err(format!(
                "{}, for the PIN, is empty or longer than {PIN_MAX} bytes",
                self.pin_from
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
    let pin_from = table.text("pin_from");
    let pin_from = PinFrom::parse(&pin_from).unwrap_or_else(|| {
        if !pin_from.is_empty() {
            // What is there may be the PIN, and is not said again.
            let message = "this is neither a file's absolute path nor `env:` and a variable's name; the PIN itself is nothing for this file";
            table.error("pin_from", message.to_owned());
        }
        PinFrom::File(PathBuf::new())
    });
    let token = Pkcs11 {
        module: table.path("module"),
        token: table.text("token"),
        pin_from,
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
        if let Err(message) = token.pin() {
            reader.error_at("keys.pkcs11.pin_from", message);
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
