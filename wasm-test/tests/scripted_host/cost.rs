//! What a request costs the host. Each call crosses the sandbox's border, and
//! they are paid for every request.

use super::fixtures::Headers;
use super::vm::{Vm, allow};

/// Host calls from one point to the next.
fn calls(vm: &mut Vm, act: impl FnOnce(&mut Vm)) -> usize {
    let before = vm.host_calls();
    act(vm);
    vm.host_calls() - before
}

#[test]
fn a_good_request_takes_few_host_calls() {
    let mut vm = Vm::ready();
    // Another question is in flight, as on any busy worker.
    vm.request(&Headers::good("/files/b", "jti-0"));
    vm.asked();
    let headers = Headers::good("/files/a", "jti-1");
    let mut context = 0;
    let asking = calls(&mut vm, |vm| context = vm.request(&headers));
    let ask = vm.asked();
    let deciding = calls(&mut vm, |vm| vm.answer(&ask, allow()));
    let ending = calls(&mut vm, |vm| vm.respond(context, 200));
    assert_eq!(vm.resumed(context), 1);
    // Headers, time, two signatures, source, root context, question.
    let spent = (asking, deciding, ending);
    assert!(asking <= 7, "{spent:?}");
    // Root context (by the SDK), message, time, how long it took, the request's
    // context, two credentials off, two facts on, three for the access log, go on.
    assert!(deciding <= 13, "{spent:?}");
    // How the response came, its headers; its size, and how it ended.
    assert!(ending <= 4, "{spent:?}");
}
