//! Images in a request, as the three APIs carry them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// An image that a CLI sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    pub media_type: String,
    pub bytes: usize,
    pub sha256: String,
}

/// All images of a request, in their order: Anthropic's `source`, Google's `inlineData`, and URLs with the data in them,
/// which OpenAI has.
pub fn images(body: &Value) -> Vec<Image> {
    let mut found = Vec::new();
    look(body, &mut found);
    found
}

fn look(value: &Value, found: &mut Vec<Image>) {
    match value {
        Value::Object(fields) => {
            let text = |name: &str| fields.get(name).and_then(Value::as_str);
            let media_type = text("media_type").or(text("mimeType")).or(text("mime_type"));
            match (media_type, text("data"), text("image_url").and_then(|url| url.strip_prefix("data:"))) {
                (Some(kind), Some(data), _) if kind.starts_with("image/") => found.extend(image(kind, data)),
                (_, _, Some(url)) => {
                    found.extend(url.split_once(";base64,").and_then(|(kind, data)| image(kind, data)))
                }
                _ => fields.values().for_each(|value| look(value, found)),
            }
        }
        Value::Array(values) => values.iter().for_each(|value| look(value, found)),
        _ => {}
    }
}

fn image(media_type: &str, data: &str) -> Option<Image> {
    let bytes = STANDARD.decode(data).ok()?;
    let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Image { media_type: media_type.to_owned(), bytes: bytes.len(), sha256 })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::images;

    #[test]
    fn images_are_found_in_each_apis_form() {
        let body = json!([
            {"content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAEC"}}]},
            {"output": [{"type": "input_image", "image_url": "data:image/jpeg;base64,AA=="}]},
            {"parts": [{"inlineData": {"mimeType": "image/gif", "data": "AAAA"}}]},
            {"parts": [{"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}}]},
            {"type": "input_image", "image_url": "https://example.test/x.png"},
        ]);
        let found: Vec<_> = images(&body).into_iter().map(|one| (one.media_type, one.bytes)).collect();
        let expected = [("image/png", 3), ("image/jpeg", 1), ("image/gif", 3)];
        assert_eq!(found, expected.map(|(kind, bytes)| (kind.to_owned(), bytes)));
    }
}
