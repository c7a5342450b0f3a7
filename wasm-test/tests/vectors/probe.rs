//! The module with `capability` in it, and the same code beside it.

use std::cell::RefCell;

use probe::guest::Guest;
use serde_json::Value;

/// What a probe says of an input, here and in the module alike.
pub fn both(name: &str, input: &[u8]) -> String {
    thread_local! {
        static GUEST: RefCell<Guest> = RefCell::new(Guest::from_env().unwrap());
    }
    let place = probe::place(name).expect(name);
    let here = probe::run(name, input).unwrap();
    let there = GUEST.with_borrow_mut(|guest| guest.verdict(place, input));
    let shown = input.escape_ascii();
    assert_eq!(there.as_deref(), Ok(here.as_str()), "{name} of {shown}");
    assert!(!here.contains("can't read its input"), "{here}");
    here
}

/// As [`both`], of an input that is composed.
pub fn both_of(name: &str, input: &Value) -> String {
    both(name, input.to_string().as_bytes())
}
