//! How many connections the process and each client address may have. The shards share one count, without a lock.
//!
//! Connections by address are counted in a table of counters that addresses are hashed into, twice: a client is refused
//! when both of its counters say that it has too many. So the memory is fixed, whoever connects, and no address ever gets
//! more than it may. Two addresses that share both counters would count as one; with 65,536 counters in each half and a
//! hash that nobody outside knows, a hundred clients at their limit leave everybody else a chance of 1 in 400,000 for that.
//!
//! A client beyond a limit is told by a GOAWAY and closed. No SETTINGS go before it, so no client counts the connection as
//! made: libraries then wait longer from try to try, while a handshake that succeeds would set their back-off to nothing and
//! make them come back in a tight loop.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Counters in each half of the table: 256 KiB a half, there only when addresses are limited.
const COUNTERS: usize = 1 << 16;

/// The limits and what is counted towards them, for all shards of a process.
#[derive(Debug)]
pub struct ConnectionLimits {
    connections_max: u64,
    per_address_max: u32,
    open: AtomicU64,
    halves: Option<[Half; 2]>,
}

#[derive(Debug)]
struct Half {
    key: RandomState,
    counters: Box<[AtomicU32]>,
}

impl Half {
    fn new() -> Half {
        Half { key: RandomState::new(), counters: (0..COUNTERS).map(|_| AtomicU32::new(0)).collect() }
    }

    fn slot(&self, address: IpAddr) -> u16 {
        self.key.hash_one(address) as u16
    }

    fn counter(&self, slot: u16) -> &AtomicU32 {
        &self.counters[usize::from(slot)]
    }
}

/// Why a client is not served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OverLimit {
    Connections,
    Address,
    /// There is no memory for it.
    Memory,
}

impl OverLimit {
    pub fn text(self) -> &'static str {
        match self {
            OverLimit::Connections => "tarsier: too many connections",
            OverLimit::Address => "tarsier: too many connections from this address",
            OverLimit::Memory => "tarsier: no memory for a further connection",
        }
    }

    /// The GOAWAY frame (RFC 9113, section 6.8) that says so: no stream was served, ENHANCE_YOUR_CALM.
    pub fn goaway(self) -> Vec<u8> {
        let text = self.text().as_bytes();
        let [_, length @ ..] = (text.len() as u32 + 8).to_be_bytes();
        [&length[..], &[7, 0, 0, 0, 0, 0], &[0, 0, 0, 0], &[0, 0, 0, 0xb], text].concat()
    }
}

impl ConnectionLimits {
    /// `None` is no limit.
    pub fn new(connections_max: Option<u64>, per_address_max: Option<u32>) -> Arc<ConnectionLimits> {
        Arc::new(ConnectionLimits {
            connections_max: connections_max.unwrap_or(u64::MAX),
            per_address_max: per_address_max.unwrap_or(u32::MAX),
            open: AtomicU64::new(0),
            halves: per_address_max.map(|_| [Half::new(), Half::new()]),
        })
    }

    /// Counts a connection, or says which limit it would pass.
    ///
    /// # Errors
    /// When a limit is reached.
    pub fn admit(self: &Arc<Self>, peer: IpAddr) -> Result<Admitted, OverLimit> {
        // From here on the connection is counted, and a refusal takes it out by the drop.
        let slots = self.halves.as_ref().map(|halves| halves.each_ref().map(|half| half.slot(network(peer))));
        let admitted = Admitted { limits: self.clone(), slots };
        let others = self.open.fetch_add(1, Ordering::Relaxed);
        let from_address = self.counters(slots).map(|counter| counter.fetch_add(1, Ordering::Relaxed)).min();
        if from_address.is_some_and(|others| others >= self.per_address_max) {
            return Err(OverLimit::Address);
        }
        if others >= self.connections_max {
            return Err(OverLimit::Connections);
        }
        Ok(admitted)
    }

    fn counters(&self, slots: Option<[u16; 2]>) -> impl Iterator<Item = &AtomicU32> {
        let halves = self.halves.iter().flatten();
        halves.zip(slots.into_iter().flatten()).map(|(half, slot)| half.counter(slot))
    }
}

/// Whom an address stands for: whoever has one IPv6 address has the 2^64 of its network.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
    }
}

/// A connection that counts, until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    limits: Arc<ConnectionLimits>,
    slots: Option<[u16; 2]>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.limits.open.fetch_sub(1, Ordering::Relaxed);
        self.limits.counters(self.slots).for_each(|counter| {
            counter.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    #[test]
    fn an_address_gets_what_it_may_have_and_gets_it_again_when_a_connection_ends() {
        let limits = ConnectionLimits::new(None, Some(3));
        let mut held: Vec<Admitted> = (0..3).map(|_| limits.admit(address(1)).unwrap()).collect();
        for _ in 0..10 {
            assert_eq!(limits.admit(address(1)).unwrap_err(), OverLimit::Address);
        }
        let others: Vec<Admitted> = (2..100).map(|number| limits.admit(address(number)).unwrap()).collect();
        held.pop();
        held.push(limits.admit(address(1)).unwrap());
        assert_eq!(limits.admit(address(1)).unwrap_err(), OverLimit::Address);
        drop((held, others));
        assert_eq!(limits.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_process_gets_what_it_may_have_over_all_addresses() {
        let limits = ConnectionLimits::new(Some(2), None);
        let held = (limits.admit(address(1)).unwrap(), limits.admit(address(2)).unwrap());
        assert_eq!(limits.admit(address(3)).unwrap_err(), OverLimit::Connections);
        drop(held.0);
        assert!(limits.admit(address(3)).is_ok());
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_count_together() {
        let limits = ConnectionLimits::new(None, Some(1));
        let _held = limits.admit("2001:db8::1".parse().unwrap()).unwrap();
        assert_eq!(limits.admit("2001:db8::ffff:2".parse().unwrap()).unwrap_err(), OverLimit::Address);
        assert!(limits.admit("2001:db8:0:1::1".parse().unwrap()).is_ok());
    }

    #[test]
    fn threads_that_admit_at_once_never_pass_a_limit() {
        let limits = ConnectionLimits::new(Some(50), Some(50));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let limits = limits.clone();
                std::thread::spawn(move || {
                    for _ in 0..10_000 {
                        let held: Vec<_> = (0..20).map_while(|_| limits.admit(address(1)).ok()).collect();
                        drop(held);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(limits.open.load(Ordering::Relaxed), 0);
        let held: Vec<_> = (0..100).map_while(|_| limits.admit(address(1)).ok()).collect();
        assert_eq!(held.len(), 50);
    }
}
