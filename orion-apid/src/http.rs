//! HTTP: the route tables, what a request may hold, and what answers look like.

pub mod fields;
pub mod problem;
pub mod reply;
pub mod request;
pub mod route;
pub mod server;
