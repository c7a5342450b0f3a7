//! `[keys]` and the token that may hold them.

use super::*;
use std::os::unix::fs::PermissionsExt as _;

const TOKEN: &str = r#"
[keys.pkcs11]
module = "/usr/lib/softhsm/libsofthsm2.so"
token = "writ"
pin_from = "/etc/writ/token-pin"
"#;

fn pkcs11(token: &str) -> Result<Pkcs11, Vec<ConfigError>> {
    parse(&format!("{GOOD}{token}")).map(|config| config.keys.pkcs11.unwrap())
}

#[test]
fn without_the_table_keys_are_files() {
    assert!(parse(GOOD).unwrap().keys.pkcs11.is_none());
}

#[test]
fn a_pin_is_in_a_file_or_a_variable() {
    let token = pkcs11(TOKEN).unwrap();
    assert_eq!(token.token, "writ");
    assert_eq!(token.pin_from.to_string(), "the file `/etc/writ/token-pin`");
    let token = pkcs11(&TOKEN.replace("/etc/writ/token-pin", "env:TOKEN_PIN")).unwrap();
    assert_eq!(token.pin_from.to_string(), "the variable `TOKEN_PIN`");
}

#[test]
fn what_is_wrong_with_a_token_is_said_with_its_line() {
    let cases = [
        (
            "pin_from = \"/etc/writ/token-pin\"",
            "pin_from = \"31415926\"",
            "the PIN itself is nothing for this file",
        ),
        (
            "pin_from = \"/etc/writ/token-pin\"",
            "pin_from = \"env:31 41\"",
            "the PIN itself is nothing for this file",
        ),
        (
            "pin_from = \"/etc/writ/token-pin\"",
            "pin_from = \"env:\"",
            "the PIN itself is nothing for this file",
        ),
        ("pin_from = \"/etc/writ/token-pin\"", "", "pin_from"),
        (
            "pin_from = \"/etc/writ/token-pin\"",
            "pin = \"31415926\"",
            "keys.pkcs11.pin: no such key",
        ),
        (
            "token = \"writ\"",
            "token = \"writ \"",
            "no space at its end",
        ),
        (
            "token = \"writ\"",
            "token = \"a label that is longer than a label\"",
            "at most 32 bytes",
        ),
        ("token = \"writ\"", "", "keys.pkcs11.token"),
        ("module = \"/usr", "module = \"usr", "not an absolute path"),
    ];
    for (from, to, message) in cases {
        let text = TOKEN.replacen(from, to, 1);
        assert_ne!(text, TOKEN, "{from}");
        let errors = pkcs11(&text).expect_err(message);
        let hit = said(&errors, message);
        assert!(hit.line > 0, "{hit}");
        // What was typed there may be the PIN.
        let all = format!("{errors:?}");
        assert!(!all.contains("31415926") && !all.contains("31 41"), "{all}");
    }
    let all = TOKEN
        .replace("\"/usr", "\"usr")
        .replace("\"writ\"", "\"writ \"")
        .replace("\"/etc", "\"etc");
    assert_eq!(pkcs11(&all).unwrap_err().len(), 3);
}

#[test]
fn a_pin_is_read_from_its_place_and_nowhere_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pin");
    let place = path.display().to_string();
    let token = pkcs11(&TOKEN.replace("/etc/writ/token-pin", &place)).unwrap();
    let put = |text: &[u8], mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        token.pin()
    };
    for (text, pin) in [
        ("31415926", "31415926"),
        ("31415926\n", "31415926"),
        ("31415926\r\n", "31415926"),
        (" 3141 5926 \n", " 3141 5926 "),
    ] {
        assert_eq!(*put(text.as_bytes(), 0o600).unwrap(), pin);
        assert_eq!(*put(text.as_bytes(), 0o400).unwrap(), pin);
    }
    assert_eq!(put(&[b'1'; 256], 0o600).unwrap().len(), 256);
    for (text, mode, message) in [
        (&b"31415926"[..], 0o640, "may be read by others (mode 640)"),
        (b"31415926", 0o604, "may be read by others (mode 604)"),
        (b"", 0o600, "is empty"),
        (b"\n", 0o600, "is empty"),
        (&[b'1'; 257], 0o600, "longer than 256 bytes"),
        (b"3141\xff5926", 0o600, "can't read"),
    ] {
        let why = put(text, mode).unwrap_err();
        assert!(why.contains(message) && why.contains(&place), "{why}");
        assert!(!why.contains("3141"), "{why}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(token.pin().unwrap_err().contains("can't read"));
    let unset = "env:WRIT_TEST_NO_SUCH_VARIABLE";
    let token = pkcs11(&TOKEN.replace("/etc/writ/token-pin", unset)).unwrap();
    let why = token.pin().unwrap_err();
    assert_eq!(why, "the variable `WRIT_TEST_NO_SUCH_VARIABLE` is not set");
    assert!(!format!("{token:?}").contains("31415926"));
}
