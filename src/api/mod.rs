//! The HTTP surface: verifies, converts, calls.
pub use crate::types;
