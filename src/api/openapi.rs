//! The API's description, `/openapi.json`; `docs/openapi.json` is the committed copy that a test compares with.

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::{OpenApi, RefOr};
use utoipa::{Modify, OpenApi as _};

use super::{credentials, executions, files, image_use, lists, metrics, output, pools, problem, status};
use thaw_client::types;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "thawd", description = "Container supervisor: executions in frozen warm containers."),
    paths(
        executions::create,
        executions::list,
        executions::get,
        executions::events,
        executions::cancel,
        output::stdout,
        output::stderr,
        files::files,
        files::archive,
        pools::list,
        pools::get,
        pools::change,
        lists::containers,
        lists::providers,
        lists::images,
        credentials::list,
        credentials::remove_all,
        credentials::get,
        credentials::put,
        credentials::remove,
        credentials::rotate_user_key,
        credentials::status,
        credentials::rotate_master_key,
        image_use::use_image,
        status::healthz,
        status::readyz,
        metrics::metrics,
    ),
    components(schemas(types::Event)),
    modifiers(&Problems)
)]
struct Document;

/// Gives errors the media type that they are sent with.
struct Problems;

impl Modify for Problems {
    fn modify(&self, document: &mut OpenApi) {
        for path in document.paths.paths.values_mut() {
            let operations = [&mut path.get, &mut path.put, &mut path.post, &mut path.delete, &mut path.patch];
            for (status, response) in operations.into_iter().flatten().flat_map(|one| &mut one.responses.responses) {
                let RefOr::T(response) = response else { continue };
                if status.starts_with(['4', '5'])
                    && let Some(content) = response.content.shift_remove("application/json")
                {
                    response.content.insert(problem::MEDIA_TYPE.to_owned(), content);
                }
            }
        }
    }
}

/// The description.
pub fn described() -> OpenApi {
    Document::openapi()
}

/// The description as pretty-printed JSON with a final newline.
///
/// # Errors
/// None in practice: the document is plain data.
pub fn document() -> Result<String, serde_json::Error> {
    described().to_pretty_json().map(|json| json + "\n")
}

/// `GET /openapi.json`
pub async fn serve() -> Result<impl IntoResponse, super::ApiError> {
    let json = document().map_err(|error| {
        super::ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "openapi", error.to_string())
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_description_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let current = super::document().unwrap();
        if std::env::var_os("THAWD_UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == current,
            "run: THAWD_UPDATE_GOLDEN=1 cargo test --lib openapi, and review docs/openapi.json"
        );
    }
}
