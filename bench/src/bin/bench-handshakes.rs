//! The bare cryptography of SSH logins as orion-schedd makes them, with the libraries that it makes them with.
//!
//! `bench-handshakes COUNT`: prints the CPU milliseconds of that many times what the client computes for one login with
//! `curve25519-sha256` and ed25519 keys: an x25519 key pair, an x25519 shared secret, the verification of the host's
//! signature over the exchange hash, the signature that logs in. Hashes and ciphers of the few packets are not in it.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a fault in a benchmark ends it"
)]

use curve25519_dalek::montgomery::MontgomeryPoint;
use russh::keys::signature::{Signer, Verifier};
use russh::keys::ssh_key::Signature;
use russh::keys::ssh_key::private::{Ed25519Keypair, PrivateKey};
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::time::Duration;

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("a time")
}

fn main() {
    let count = std::env::args().nth(1).and_then(|count| count.parse().ok());
    let count: u32 = count.expect("how many logins");
    let pool = PrivateKey::from(Ed25519Keypair::from_seed(&[1; 32]));
    let host = PrivateKey::from(Ed25519Keypair::from_seed(&[2; 32]));
    let theirs = MontgomeryPoint::mul_base_clamped([3; 32]);
    // As long as an exchange hash, and as what is signed for a login with an ed25519 key.
    let (hash, login) = ([4; 32], [5; 150]);
    let shown: Signature = host.try_sign(&hash).expect("a signature");
    let start = cpu();
    for number in 0..count {
        let mut secret = [6; 32];
        secret
            .iter_mut()
            .zip(number.to_be_bytes())
            .for_each(|(byte, new)| *byte = new);
        black_box(MontgomeryPoint::mul_base_clamped(black_box(secret)));
        black_box(theirs.mul_clamped(black_box(secret)));
        let verified = Verifier::verify(host.public_key(), black_box(&hash), &shown);
        verified.expect("the host's signature");
        let signed: Signature = pool.try_sign(black_box(&login)).expect("a signature");
        black_box(signed);
    }
    println!("{}", (cpu() - start).as_millis());
}
