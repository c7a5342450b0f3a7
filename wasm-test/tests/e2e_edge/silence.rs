//! A control plane that says nothing though its streams are open: proxies refuse by
//! themselves, at once, and believe it again once it speaks.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wasm_test::cut::Mode;
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::rig::{Rig, eventually};

/// After so much silence a proxy refuses.
const SILENCE: Duration = Duration::from_secs(3);
/// Less than a question waits for its answer.
const AT_ONCE: Duration = Duration::from_millis(1_000);
const SILENCES: &str = "wasmcustom.writ.silences";
const UNHEARD: &str = "wasmcustom.writ.unheard";

/// Waits until a proxy has had enough of the silence, which takes as long as it must.
async fn refuses(rig: &Rig, since: Instant) {
    eventually("a proxy gives up its silent streams", async || {
        rig.stat(SILENCES).await > 0
    })
    .await;
    let took = since.elapsed();
    assert!(took > SILENCE - Duration::from_millis(1_200), "{took:?}");
    assert!(took < SILENCE * 2, "{took:?}");
}

/// Nothing is asked, so nothing is spent, and the answer is there at once.
async fn refused_unasked(rig: &Rig, token: &str) {
    let began = Instant::now();
    let answer = rig.exchange_raw(&rig.signed("GET", REPORT, token)).await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (503, "control_plane_unavailable")
    );
    assert_eq!(answer.header("retry-after"), Some("1"), "{}", answer.text());
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_stands_still_is_not_waited_for() {
    let rig = Rig::start(Options {
        token_lifetime_s: 120,
        ..Options::default()
    })
    .await;
    let token = rig.agent.token("GET", REPORT).await.unwrap();
    let before = rig.arrived();
    rig.freeze(true).await;
    refuses(&rig, Instant::now()).await;
    // Its connections are open all the while.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..8 {
        refused_unasked(&rig, &token).await;
    }
    assert_eq!(rig.arrived(), before);
    eventually("it is counted", async || rig.stat(UNHEARD).await == 8).await;
    rig.freeze(false).await;
    rig.recovers().await;
    let answer = rig.present(REPORT, &token).await;
    assert_eq!(answer.status, 200, "nothing was spent: {}", answer.text());
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_closes_nothing_is_noticed() {
    let rig = Rig::start(Options {
        cut: true,
        token_lifetime_s: 120,
        ..Options::default()
    })
    .await;
    let token = rig.agent.token("GET", REPORT).await.unwrap();
    // What it says is lost, and it hears all.
    rig.system.cut().unwrap().set(Mode::Deaf);
    refuses(&rig, Instant::now()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    refused_unasked(&rig, &token).await;
    rig.system.cut().unwrap().set(Mode::Pass);
    rig.recovers().await;
    let answer = rig.present(REPORT, &token).await;
    assert_eq!(answer.status, 200, "nothing was spent: {}", answer.text());
    rig.finish().await;
}

/// Its own timers came late, and what the control plane said meanwhile lies unread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_stood_still_takes_nobody_for_silent() {
    let rig = Rig::start(Options::default()).await;
    let pid = i32::try_from(rig.system.envoy_pid()).unwrap();
    let signal = |signal| kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    for _ in 0..2 {
        signal(Signal::STOP);
        tokio::time::sleep(SILENCE + Duration::from_millis(500)).await;
        signal(Signal::CONT);
        for _ in 0..4 {
            rig.good_request().await;
        }
    }
    assert_eq!(rig.stat(SILENCES).await, 0);
    rig.finish().await;
}
