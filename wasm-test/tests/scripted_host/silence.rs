//! A peer that says nothing though its stream is open: what comes is refused at
//! once, and a stream that heals is believed again.

use super::fixtures::{Headers, configuration};
use super::vm::{PREFIX, Vm, allow, asks, hold};
use super::world::World;
use decision_api::Heartbeat;
use decision_api::from_control_plane::Message as FromServer;

fn beat() -> FromServer {
    FromServer::Heartbeat(Heartbeat::default())
}

fn assert_unheard(vm: &mut Vm, jti: &str) {
    let context = vm.request(&Headers::good("/files/a", jti));
    let reply = vm.assert_refused(context, 503, "control_plane_unavailable");
    assert!(
        reply.headers.contains_key("retry-after"),
        "nothing was asked"
    );
}

#[test]
fn after_three_seconds_of_silence_what_comes_is_refused() {
    let mut vm = Vm::ready();
    vm.pass_in_silence_ms(2_800);
    vm.assert_serves();
    // The answer was a word.
    vm.pass_in_silence_ms(2_800);
    vm.assert_serves();
    let silent = vm.newest_stream();
    vm.pass_in_silence_ms(3_000);
    assert!(!vm.world().streams[&silent].open, "it is reset");
    assert_unheard(&mut vm, "jti-1");
    assert_eq!(vm.metric("writ.silences"), 1);
    assert_eq!(vm.metric("writ.unheard"), 1);
    // Another is opened; until somebody speaks on it nothing is asked.
    vm.pass_in_silence_ms(500);
    assert_ne!(vm.newest_stream(), silent);
    assert_unheard(&mut vm, "jti-2");
    vm.say_on(silent, beat());
    assert_unheard(&mut vm, "jti-3");
    vm.welcome(PREFIX);
    vm.assert_serves();
    assert_eq!(vm.metric("writ.unheard"), 3);
}

#[test]
fn heartbeats_alone_keep_a_stream() {
    let mut vm = Vm::ready();
    let stream = vm.newest_stream();
    vm.pass_ms(20_000);
    assert!(vm.world().streams[&stream].open);
    vm.assert_serves();
    assert_eq!(vm.metric("writ.silences"), 0);
}

#[test]
fn what_was_asked_before_keeps_its_own_time() {
    let mut config = configuration();
    config["decision_deadline_ms"] = serde_json::json!(8_000);
    let mut vm = Vm::ready_with(World::default(), &config);
    let held = vm.request(&Headers::good("/files/a", "jti-1"));
    let first = vm.asked();
    vm.answer(&first, hold(25_000));
    let waiting = vm.request(&Headers::good("/files/b", "jti-2"));
    let second = vm.asked();
    vm.pass_in_silence_ms(3_500);
    vm.assert_paused(held);
    vm.assert_paused(waiting);
    // Both are asked again on the next stream, and its word counts.
    vm.welcome(PREFIX);
    let heard = vm.heard();
    assert_eq!(asks(&heard), [&first, &second]);
    for (context, ask) in [(held, first), (waiting, second)] {
        vm.answer(&ask, allow());
        assert_eq!(vm.resumed(context), 1);
    }
}

/// The machine slept, its clock was set, or the thread had too much to do: the tick
/// comes late, and what the peer said meanwhile has not been read yet.
#[test]
fn a_tick_that_comes_late_is_no_silence() {
    for jump_ms in [3_000, 60_000, 86_400_000] {
        let mut vm = Vm::ready();
        vm.pass_in_silence_ms(1_000);
        let before_ns = vm.world().now_ns;
        vm.world().now_ns += jump_ms * 1_000_000;
        vm.tick();
        vm.tick();
        vm.say(beat());
        // The token is still good.
        vm.world().now_ns = before_ns;
        vm.assert_serves();
        assert_eq!(vm.metric("writ.silences"), 0, "{jump_ms}");
    }
}

#[test]
fn neither_slow_ticks_nor_a_clock_that_goes_back_hide_a_silence() {
    // Each tick comes 200 ms after it was due.
    let mut vm = Vm::ready();
    for _ in 0..11 {
        vm.world().now_ns += 200_000_000;
        vm.tick();
    }
    assert_unheard(&mut vm, "jti-1");
    // And here the clock goes backwards all the time.
    let mut vm = Vm::ready();
    let before_ns = vm.world().now_ns;
    for _ in 0..31 {
        vm.world().now_ns -= 3_600_000_000_000;
        vm.tick();
    }
    vm.world().now_ns = before_ns;
    assert_unheard(&mut vm, "jti-2");
}
