//! Where a worker may be: parsed, never guessed, and no address that belongs to nobody in particular.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The host as it is stored: an IP address in its one written form, or one of `names`. The error is a sentence for the
/// agent.
///
/// # Errors
/// For anything else, and for addresses that can't be one machine's.
pub fn parse_host(text: &str, names: &[String]) -> Result<String, String> {
    if names.iter().any(|name| name.eq_ignore_ascii_case(text)) {
        return Ok(text.to_ascii_lowercase());
    }
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(
            "must be an IP address, or a name that registration.contact_names lists".to_owned(),
        );
    };
    // ::ffff:127.0.0.1 is 127.0.0.1 in disguise.
    let address = address.to_canonical();
    match nobodys(address) {
        Some(kind) => Err(format!("must be one machine's address, not {kind}")),
        None => Ok(address.to_string()),
    }
}

fn nobodys(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => nobodys_v4(address),
        IpAddr::V6(address) => nobodys_v6(address),
    }
}

fn nobodys_v4(address: Ipv4Addr) -> Option<&'static str> {
    let first = address.octets().first().copied().unwrap_or(0);
    if address.is_unspecified() || first == 0 {
        Some("the unspecified one")
    } else if address.is_multicast() {
        Some("a multicast one")
    } else if address.is_broadcast() || first >= 240 {
        Some("a broadcast or reserved one")
    } else if address.is_link_local() {
        Some("a link-local one")
    } else {
        None
    }
}

fn nobodys_v6(address: Ipv6Addr) -> Option<&'static str> {
    let first = address.segments().first().copied().unwrap_or(0);
    if address.is_unspecified() {
        Some("the unspecified one")
    } else if address.is_multicast() {
        Some("a multicast one")
    } else if first & 0xffc0 == 0xfe80 {
        Some("a link-local one")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Result<String, String> {
        parse_host(text, &["host.docker.internal".to_owned()])
    }

    #[test]
    fn addresses_are_stored_in_one_form() {
        assert_eq!(host("192.168.0.10").unwrap(), "192.168.0.10");
        assert_eq!(host("2001:DB8:0::1").unwrap(), "2001:db8::1");
        assert_eq!(host("::ffff:10.0.0.1").unwrap(), "10.0.0.1");
        assert_eq!(host("127.0.0.1").unwrap(), "127.0.0.1");
        assert_eq!(
            host("Host.Docker.Internal").unwrap(),
            "host.docker.internal"
        );
    }

    #[test]
    fn addresses_that_are_no_machine_s_are_refused() {
        for bad in [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "169.254.169.254",
            "::",
            "ff02::1",
            "fe80::1",
            "febf::1",
            "::ffff:0.0.0.0",
            "::ffff:169.254.169.254",
        ] {
            assert!(
                host(bad).unwrap_err().starts_with("must be one machine's"),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            "localhost",
            "worker1",
            "1.2.3",
            "010.0.0.1",
            "1.2.3.4:22",
            "10.0.0.1 ",
            "[::1]",
            "fe80::1%eth0",
            "-oProxyCommand=x",
            "{{ 1 }}",
            "evil.host.docker.internal",
        ] {
            assert!(
                host(bad).unwrap_err().starts_with("must be an IP address"),
                "{bad}"
            );
        }
    }
}
