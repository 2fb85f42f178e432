//! Who is calling: passwords, tokens, and the rights that come from them.

pub mod agent;
pub mod password;
pub mod principal;
pub mod token;
