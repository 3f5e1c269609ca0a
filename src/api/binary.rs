//! Bodies that are bytes, as the API's description has them: those who generate clients from it take them for what they are.

/// The bytes of a file, or for a command.
#[derive(Debug, utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "read by utoipa only")]
pub struct RawBytes(Vec<u8>);

/// A tar archive, which may be compressed with gzip.
#[derive(Debug, utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "read by utoipa only")]
pub struct Tar(Vec<u8>);
