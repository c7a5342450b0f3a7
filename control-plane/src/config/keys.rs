//! `[keys]`.

use super::Config;
use super::reader::{Reader, Table};

/// The longest time between two rotations that the schedule takes, in days.
const ROTATE_MAX_DAYS: u64 = 3_650;

/// The keys that sign tokens.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Another key after so many days; 0: only on demand.
    pub rotate_every_days: u64,
    /// Whether all replicas have the same directory of keys.
    pub shared: bool,
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
    };
    table.finish();
    keys
}

impl Config {
    pub(super) fn check_keys(&self, reader: &Reader<'_>) {
        if self.ledger.store.url.is_some() && !self.keys.may_rotate_with_a_database() {
            reader.error_at(
                "keys.rotate_every_days",
                "several replicas may share ledger.store, and each would make keys that the others don't know; say keys.shared = true where all of them have the same `keys` directory, else leave it out and rotate with `writ keys rotate`".into(),
            );
        }
    }
}
