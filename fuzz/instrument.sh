#!/bin/sh
# Stands before rustc in `cargo xtask fuzz`: the parsers, and what they parse
# with, tell libFuzzer of their edges and comparisons, and check their
# assertions. Signatures and the interpreter don't: they would be slow, and
# nothing is to be found in them here. Build scripts have no --target.
case " $* " in
*" --target "*) ;;
*) exec "$@" ;;
esac
case " $* " in
*" --crate-name capability "* | *" --crate-name probe "* | *" --crate-name audit "* | \
    *" --crate-name decision_api "* | *" --crate-name fuzz "* | *" --crate-name prost "* | \
    *" --crate-name serde_json "* | *" --crate-name base64ct "*)
    exec "$@" \
        -Cpasses=sancov-module \
        -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares \
        -Cdebug-assertions --cfg=fuzzing
    ;;
*) exec "$@" ;;
esac
