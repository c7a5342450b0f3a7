//! What `writ completion` prints, in the shells that it is for.

use std::process::Command;

fn script(shell: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_writ"))
        .args(["completion", shell])
        .output()
        .unwrap();
    assert!(output.status.success(), "{shell}");
    String::from_utf8(output.stdout).unwrap()
}

/// What bash offers for a line that ends in a word to be completed.
fn offered(line: &str) -> Vec<String> {
    let ask = r#"
        set -eu
        source "$1"
        read -ra COMP_WORDS <<< "$2"
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        set +e
        _writ writ "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        echo "${COMPREPLY[@]}"
    "#;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("writ.bash");
    std::fs::write(&file, script("bash")).unwrap();
    let output = Command::new("bash")
        .args(["--norc", "-c", ask, "bash"])
        .arg(&file)
        .arg(line)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{line}: {said}");
    let words = String::from_utf8(output.stdout).unwrap();
    words.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_options() {
    assert_eq!(offered("writ appr"), ["approvals"]);
    assert_eq!(offered("writ agents se"), ["set"]);
    assert_eq!(offered("writ completion z"), ["zsh"]);
    assert!(offered("writ call --no").contains(&"--no-wait".to_owned()));
    assert!(offered("writ nonsens").is_empty());
}

#[test]
fn the_others_are_in_their_shells_form() {
    let zsh = script("zsh");
    assert!(zsh.starts_with("#compdef writ"), "{zsh:.80}");
    let fish = script("fish");
    assert!(fish.contains("complete -c writ"), "{fish:.80}");
    for text in [zsh, fish] {
        assert!(text.contains("approvals") && text.contains("no-wait"));
    }
}
