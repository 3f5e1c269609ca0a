//! OCI images: made from Debian and npm packages without Docker, verified, and unpacked once.
pub mod build;
mod digest;
pub mod progress;
