//! `[keys]`.

use super::Config;
use super::reader::{Reader, Table};
use super::types::Keys;

/// The longest time between two rotations that the schedule takes, in days.
const ROTATE_MAX_DAYS: u64 = 3_650;

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
