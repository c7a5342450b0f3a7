//! Free loopback ports.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use crate::Error;

// Below the range that kernels take outgoing ports from, so that no client
// connection of a busy test can take one between our look and the bind.
const LOWEST: u16 = 18_000;
const HIGHEST: u16 = 31_999;

// What was given out in this process, whether somebody listens there by now or not:
// systems start side by side, and an Envoy binds its port seconds after it was found
// free. Two of them on one port would even share it.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// The loopback ports of one system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Envoy's guarded listener.
    pub proxy: u16,
    /// The token endpoint and the pages.
    pub http: u16,
    /// ADS and decisions.
    pub grpc: u16,
    /// Envoy's admin interface.
    pub admin: u16,
    /// The demo upstream.
    pub upstream: u16,
}

/// Where `up` listens when nothing else does.
pub const USUAL: Ports = Ports {
    proxy: 8400,
    http: 8480,
    grpc: 8481,
    admin: 9901,
    upstream: 8490,
};

/// Ports that are free now: `wanted` where it can be had, else any.
///
/// # Errors
/// When no port is left in the range.
pub fn free(wanted: Option<Ports>) -> Result<Ports, Error> {
    // Every probe stays bound until all are found, so that no two are the same.
    let mut held = Vec::new();
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut next = |wanted: Option<u16>| -> Result<u16, Error> {
        if let Some(port) = wanted
            && let Some(listener) = probe(port)
        {
            held.push(listener);
            return Ok(port);
        }
        for _ in 0..2_000 {
            let port = LOWEST + rand::random_range(0..=(HIGHEST - LOWEST));
            if !given.contains(&port)
                && let Some(listener) = probe(port)
            {
                held.push(listener);
                given.insert(port);
                return Ok(port);
            }
        }
        Err(Error::Setup(format!(
            "no free port between {LOWEST} and {HIGHEST} on 127.0.0.1: stop something that listens there"
        )))
    };
    Ok(Ports {
        proxy: next(wanted.map(|p| p.proxy))?,
        http: next(wanted.map(|p| p.http))?,
        grpc: next(wanted.map(|p| p.grpc))?,
        admin: next(wanted.map(|p| p.admin))?,
        upstream: next(wanted.map(|p| p.upstream))?,
    })
}

/// One free port.
///
/// # Errors
/// As [`free`].
pub fn one() -> Result<u16, Error> {
    free(None).map(|ports| ports.proxy)
}

fn probe(port: u16) -> Option<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_replaced_and_a_free_one_kept() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken_port = taken.local_addr().unwrap().port();
        let some = free(None).unwrap();
        let wanted = Ports {
            proxy: taken_port,
            ..some
        };
        let got = free(Some(wanted)).unwrap();
        assert_ne!(got.proxy, taken_port);
        assert_eq!(got.http, some.http);
        assert_eq!(got.upstream, some.upstream);
    }

    #[test]
    fn what_was_given_out_is_not_given_out_again() {
        let mut seen = BTreeSet::new();
        for _ in 0..200 {
            assert!(seen.insert(one().unwrap()));
        }
    }

    #[test]
    fn the_five_are_different() {
        let got = free(None).unwrap();
        let mut all = [got.proxy, got.http, got.grpc, got.admin, got.upstream];
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
