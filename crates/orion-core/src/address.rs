//! Where a worker may be. One rule for whoever takes an address and for whoever dials it.

use crate::HostName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The networks and names that a configuration allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressRules {
    /// Workers live in these networks.
    pub networks: Vec<IpNet>,
    /// Host names that may stand for an address. Whoever lists one answers for where it leads.
    pub names: Vec<HostName>,
}

/// Addresses that are nobody's own to the outside: RFC 1918, RFC 6598 and RFC 4193.
const PRIVATE: [&str; 5] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "fc00::/7",
];

impl Default for AddressRules {
    fn default() -> Self {
        Self {
            networks: PRIVATE.iter().filter_map(|net| net.parse().ok()).collect(),
            names: HostName::parse("host.docker.internal")
                .into_iter()
                .collect(),
        }
    }
}

/// A worker's host that the rules allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address inside the networks.
    Address(IpAddr),
    /// A listed name.
    Name(HostName),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl AddressRules {
    /// Reads a host as a worker gave it, or as the database kept it. The error is a sentence for the worker.
    ///
    /// # Errors
    /// For whatever is neither a listed name nor an address that [`allows`](Self::allows) lets pass.
    pub fn parse(&self, text: &str) -> Result<Host, String> {
        // The parser of the standard library knows one spelling: no octal, no hexadecimal, no short form, no zone. It comes
        // first, so that no listed name makes an address good.
        if let Ok(address) = text.parse::<IpAddr>() {
            self.allows(address)?;
            return Ok(Host::Address(address));
        }
        let listed = |name: &&HostName| text.eq_ignore_ascii_case(name.as_str());
        match self.names.iter().find(listed) {
            Some(name) => Ok(Host::Name(name.clone())),
            None => Err("must be an IP address, or a name that the configuration lists".to_owned()),
        }
    }

    /// Whether one machine of the configured networks can have this address. Addresses of the asking machine itself are
    /// for the caller to refuse.
    ///
    /// # Errors
    /// A sentence for the worker.
    pub fn allows(&self, address: IpAddr) -> Result<(), String> {
        let special = match address {
            IpAddr::V4(address) => special_v4(address),
            IpAddr::V6(address) => special_v6(address),
        };
        if let Some(kind) = special {
            return Err(format!("must be one machine's address, not {kind}"));
        }
        if !self
            .networks
            .iter()
            .any(|network| network.contains(&address))
        {
            return Err("must lie inside the networks that the configuration lists".to_owned());
        }
        // A network's own address and its broadcast address belong to no machine.
        let edge = self.networks.iter().any(|network| match network {
            IpNet::V4(network) if network.prefix_len() < 31 => {
                IpAddr::V4(network.network()) == address
                    || IpAddr::V4(network.broadcast()) == address
            }
            IpNet::V4(_) | IpNet::V6(_) => false,
        });
        if edge {
            return Err(
                "must be one machine's address, not a network's own or its broadcast one"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// The rules, with the addresses that no worker can have whatever the rules say: this machine's own and the database's.
/// Asked when an address is told, and again before each dial.
#[derive(Clone, Debug)]
pub struct AddressGuard {
    rules: AddressRules,
    database: Vec<IpAddr>,
    is_own: fn(IpAddr) -> bool,
}

impl AddressGuard {
    /// `database` holds the database's addresses where it is reached over TCP; `is_own` tells this machine's.
    pub fn new(rules: AddressRules, database: Vec<IpAddr>, is_own: fn(IpAddr) -> bool) -> Self {
        Self {
            rules,
            database,
            is_own,
        }
    }

    /// Reads a worker's host. A listed name is not looked up: whoever lists it answers for where it leads.
    ///
    /// # Errors
    /// A sentence that says what it must be.
    pub fn check(&self, text: &str) -> Result<Host, String> {
        let host = self.rules.parse(text)?;
        if let Host::Address(address) = host {
            if self.database.contains(&address) {
                return Err("must be a worker's address, not the database's".to_owned());
            }
            if (self.is_own)(address) {
                return Err("must be a worker's address, not the control plane's own".to_owned());
            }
        }
        Ok(host)
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [first, ..] = address.octets();
    if first == 0 {
        Some("an unspecified one")
    } else if address.is_loopback() {
        Some("a loopback one")
    } else if address.is_link_local() {
        Some("a link-local one")
    } else if address.is_multicast() {
        Some("a multicast one")
    } else if first >= 240 {
        Some("a broadcast or reserved one")
    } else {
        None
    }
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    let [first, second, ..] = segments;
    if address.is_unspecified() {
        Some("an unspecified one")
    } else if address.is_loopback() {
        Some("a loopback one")
    } else if address.is_multicast() {
        Some("a multicast one")
    } else if first & 0xffc0 == 0xfe80 {
        Some("a link-local one")
    } else if is_v4_in_disguise(segments) || (first, second) == (0x2001, 0) || first == 0x2002 {
        Some("an IPv4 address in disguise")
    } else {
        None
    }
}

/// ::a.b.c.d, ::ffff:a.b.c.d and 64:ff9b::/32: RFC 4291 and RFC 6052. Teredo and 6to4 are prefixes of their own.
fn is_v4_in_disguise(segments: [u16; 8]) -> bool {
    let [a, b, c, d, e, f, ..] = segments;
    let upper_is_zero = [a, b, c, d, e] == [0; 5] && (f == 0 || f == 0xffff);
    // ::ffff:0:a.b.c.d of RFC 2765 as well.
    let translated = [a, b, c, d] == [0; 4] && e == 0xffff && f == 0;
    upper_is_zero || translated || (a, b) == (0x64, 0xff9b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everywhere() -> AddressRules {
        AddressRules {
            networks: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            ..AddressRules::default()
        }
    }

    #[test]
    fn addresses_and_listed_names_have_one_written_form() {
        let rules = AddressRules::default();
        for (text, kept) in [
            ("192.168.0.10", "192.168.0.10"),
            ("FD00:0::1", "fd00::1"),
            ("Host.Docker.Internal", "host.docker.internal"),
        ] {
            assert_eq!(rules.parse(text).unwrap().to_string(), kept);
        }
    }

    #[test]
    fn no_network_however_wide_makes_a_special_address_good() {
        for bad in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.0.9",
            "169.254.169.254",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "0:0:0:0:0:0:0:1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:7f00:1",
            "::ffff:0:10.0.0.1",
            "::10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:0a00:0001::1",
            "2001:0:1::1",
        ] {
            let said = everywhere().parse(bad).unwrap_err();
            assert!(said.starts_with("must be one machine's"), "{bad}: {said}");
        }
    }

    #[test]
    fn only_the_listed_networks_are_inside() {
        let rules = AddressRules {
            networks: vec!["10.1.0.0/16".parse().unwrap()],
            names: Vec::new(),
        };
        assert!(rules.parse("10.1.2.3").is_ok());
        for outside in ["10.2.0.1", "8.8.8.8", "fd00::1"] {
            assert!(
                rules.parse(outside).unwrap_err().contains("networks"),
                "{outside}"
            );
        }
        for edge in ["10.1.0.0", "10.1.255.255"] {
            assert!(
                rules.parse(edge).unwrap_err().contains("broadcast"),
                "{edge}"
            );
        }
        assert!(rules.parse("host.docker.internal").is_err());
    }

    #[test]
    fn the_databases_and_the_control_planes_own_addresses_are_no_workers() {
        let own = |address: IpAddr| address == IpAddr::from([10, 0, 0, 2]);
        let guard = AddressGuard::new(AddressRules::default(), vec![[10, 0, 0, 3].into()], own);
        assert!(guard.check("10.0.0.2").unwrap_err().contains("own"));
        assert!(guard.check("10.0.0.3").unwrap_err().contains("database"));
        assert!(guard.check("10.0.0.4").is_ok());
        assert!(guard.check("host.docker.internal").is_ok());
    }

    #[test]
    fn a_listed_name_that_looks_like_an_address_makes_none_good() {
        let rules = AddressRules {
            names: vec![HostName::parse("127.0.0.1").unwrap()],
            ..everywhere()
        };
        assert!(rules.parse("127.0.0.1").unwrap_err().contains("loopback"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            "localhost",
            "worker1",
            "1.2.3",
            "010.0.0.1",
            "0x0a.0.0.1",
            "167772161",
            "10.1",
            "1.2.3.4:22",
            "10.0.0.1 ",
            " 10.0.0.1",
            "10.0.0.1\n",
            "[::1]",
            "fe80::1%eth0",
            "-oProxyCommand=x",
            "{{ 1 }}",
            "10.0.0.1;id",
            "10.0.0.1\0",
            "evil.host.docker.internal",
            "１０.0.0.1",
        ] {
            let said = everywhere().parse(bad).unwrap_err();
            assert!(said.starts_with("must be an IP address"), "{bad:?}: {said}");
        }
    }
}
