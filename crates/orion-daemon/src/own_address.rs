//! Which addresses are this machine's.

use std::net::{IpAddr, UdpSocket};

/// Whether the address is one of this machine's. A socket can be bound to such an address and, where nobody changed the
/// kernel's settings, to no other.
pub fn is_own_address(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machine_and_a_documentation_address_is_not() {
        assert!(is_own_address(IpAddr::from([127, 0, 0, 1])));
        assert!(is_own_address(IpAddr::from([127, 9, 9, 9])));
        assert!(!is_own_address(IpAddr::from([192, 0, 2, 1])));
    }
}
