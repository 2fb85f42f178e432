//! What the agent asks of the machine itself, so that tests can ask another one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::{Clock, SystemClock};
use crate::lock::{Access, Locksmith};
use crate::notices::{PseudoTerminals, Terminals};

/// The machine that the agent runs on.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The program that brings sshd's drop-in up to date; where it is not installed, nothing is called.
    pub sshd_dropin: PathBuf,
    /// Whether an address is one of this machine's.
    pub is_own: fn(IpAddr) -> bool,
    /// The default gateways.
    pub gateways: fn() -> Vec<IpAddr>,
    /// The clocks that countdowns run on.
    pub clock: Arc<dyn Clock>,
    /// What ends an account's access.
    pub access: Arc<dyn Access>,
    /// Where clients are told of their end.
    pub terminals: Arc<dyn Terminals>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            sshd_dropin: PathBuf::from("/usr/lib/orion-agentd/sshd-dropin"),
            is_own: orion_daemon::is_own_address,
            gateways,
            clock: Arc::new(SystemClock),
            access: Arc::new(Locksmith::default()),
            terminals: Arc::new(PseudoTerminals::default()),
        }
    }
}

fn gateways() -> Vec<IpAddr> {
    // Without the file the protocol is not there, and has no gateway.
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let v4 = read("/proc/net/route");
    let v6 = read("/proc/net/ipv6_route");
    let v4 = v4.lines().filter_map(gateway_v4).map(IpAddr::V4);
    v4.chain(v6.lines().filter_map(gateway_v6).map(IpAddr::V6))
        .collect()
}

/// Of a line `iface destination gateway flags refcnt use metric mask ...`, numbers in the machine's byte order.
fn gateway_v4(line: &str) -> Option<Ipv4Addr> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (destination, gateway) = (words.next()?, words.next()?);
    let mask = words.nth(4)?;
    let gateway = u32::from_str_radix(gateway, 16).ok()?;
    let is_default = destination == "00000000" && mask == "00000000" && gateway != 0;
    is_default.then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
}

/// Of a line `destination prefix source prefix nexthop ...`, addresses as 32 digits.
fn gateway_v6(line: &str) -> Option<Ipv6Addr> {
    let mut words = line.split_ascii_whitespace();
    let (destination, prefix) = (words.next()?, words.next()?);
    let next_hop = u128::from_str_radix(words.nth(2)?, 16).ok()?;
    let is_default = destination.bytes().all(|digit| digit == b'0') && prefix == "00";
    (is_default && next_hop != 0).then(|| Ipv6Addr::from(next_hop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn default_gateways_are_found_among_routes() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            eth1\t0000000A\t0100000A\t0003\t0\t0\t0\t000000FF\t0\t0\t0\n\
            tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n";
        let found: Vec<Ipv4Addr> = routes.lines().filter_map(gateway_v4).collect();
        assert_eq!(found, [Ipv4Addr::new(172, 17, 0, 1)]);
    }

    #[test]
    fn ipv6_default_gateways_are_found_among_routes() {
        let none = "0".repeat(32);
        let hop = "fe800000000000000000000000000001";
        let routes = [
            format!("{none} 00 {none} 00 {hop} 00000400 00000001 00000000 00000003 eth0"),
            format!("{none} 00 {none} 00 {none} ffffffff 00000001 00000000 00200200 lo"),
            format!("fd000000000000000000000000000000 40 {none} 00 {hop} 00000400 1 0 3 eth0"),
        ];
        let found: Vec<Ipv6Addr> = routes.iter().filter_map(|line| gateway_v6(line)).collect();
        assert_eq!(found, ["fe80::1".parse::<Ipv6Addr>().expect("good")]);
    }
}
