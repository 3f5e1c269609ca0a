//! `Accept`: which of the forms that an answer has the client wants (RFC 9110, section 12.5.1).

use axum::http::{HeaderMap, StatusCode, header};

use super::ApiError;

/// How well something that is offered fits: its quality, and by how exact a range.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
struct Fit {
    quality: f32,
    /// 3 for the type itself, 2 for `type/*`, 1 for `*/*`, 0 for none.
    exactness: u8,
}

/// The one of `offers` that the client likes best. `default` is for those who do not say, or take it as well as others
/// without naming any; of types that a client names and likes equally the first offer is taken.
///
/// # Errors
/// 406 when it accepts none, 400 when the header cannot be read.
pub fn choose<'a>(headers: &HeaderMap, offers: &[&'a str], default: &'a str) -> Result<&'a str, ApiError> {
    let mut ranges = Vec::new();
    for value in headers.get_all(header::ACCEPT) {
        let text = value.to_str().map_err(|_| unreadable("it is not ASCII"))?;
        for range in text.split(',').map(str::trim).filter(|range| !range.is_empty()) {
            ranges.push(parse(range)?);
        }
    }
    if ranges.is_empty() {
        return Ok(default);
    }
    let mut best = (Fit::default(), default);
    for &offer in offers {
        let fit = fit(&ranges, offer);
        if fit > best.0 || fit == best.0 && fit.exactness < 3 && offer == default {
            best = (fit, offer);
        }
    }
    if best.0.quality > 0.0 {
        return Ok(best.1);
    }
    let detail = format!("`Accept` leaves none of what there is: {}", offers.join(", "));
    Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail))
}

/// A media range in lower case, and its quality.
type Range = (String, f32);

fn parse(range: &str) -> Result<Range, ApiError> {
    let mut parts = range.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
    let token = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if !kind.split_once('/').is_some_and(|(main, sub)| token(main) && token(sub) && (main != "*" || sub == "*")) {
        return Err(unreadable("a media range is written type/subtype, type/* or */*"));
    }
    for parameter in parts {
        let Some((name, value)) = parameter.split_once('=') else { continue };
        if name.trim().eq_ignore_ascii_case("q") {
            let quality = value.trim().parse::<f32>().ok().filter(|quality| (0.0..=1.0).contains(quality));
            return Ok((kind, quality.ok_or_else(|| unreadable("q is a number from 0 to 1"))?));
        }
    }
    Ok((kind, 1.0))
}

/// By the most exact range that takes it; of equally exact ones the best (their parameters, such as versions, are not
/// looked at).
fn fit(ranges: &[Range], offer: &str) -> Fit {
    let main = offer.split('/').next().unwrap_or_default();
    let mut best = Fit::default();
    for (range, quality) in ranges {
        let exactness = match range.as_str() {
            "*/*" => 1,
            range if range == offer => 3,
            range if range.strip_suffix("/*") == Some(main) => 2,
            _ => continue,
        };
        if exactness > best.exactness || exactness == best.exactness && *quality > best.quality {
            best = Fit { quality: *quality, exactness };
        }
    }
    best
}

fn unreadable(reason: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_accept", format!("`Accept` cannot be read: {reason}"))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const OFFERS: [&str; 3] = ["text/event-stream", "application/octet-stream", "application/json"];

    fn chosen(values: &[&str]) -> Result<&'static str, u16> {
        let headers = values.iter().map(|value| (header::ACCEPT, HeaderValue::from_str(value).unwrap())).collect();
        choose(&headers, &OFFERS, OFFERS[2]).map_err(|error| error.problem().status)
    }

    #[test]
    fn what_is_liked_best_is_chosen() {
        let [events, raw, json] = OFFERS;
        let table: &[(&[&str], Result<&str, u16>)] = &[
            (&[], Ok(json)),
            (&[""], Ok(json)),
            (&["*/*"], Ok(json)),
            (&["application/*"], Ok(json)),
            (&["text/*"], Ok(events)),
            (&["application/json"], Ok(json)),
            (&["APPLICATION/JSON"], Ok(json)),
            (&["text/event-stream"], Ok(events)),
            (&["Text/Event-Stream"], Ok(events)),
            (&["text/event-stream; charset=utf-8"], Ok(events)),
            (&["application/octet-stream"], Ok(raw)),
            (&["application/json, text/event-stream"], Ok(events)),
            (&["text/event-stream, application/json"], Ok(events)),
            (&["application/json", "text/event-stream"], Ok(events)),
            (&["text/event-stream, */*;q=0.1"], Ok(events)),
            (&["*/*, text/event-stream"], Ok(events)),
            (&["text/event-stream;q=0"], Err(406)),
            (&["text/event-stream;q=0, */*"], Ok(json)),
            (&["text/event-stream;q=0.0, application/json"], Ok(json)),
            (&["text/event-stream;Q=0.000,application/json;q=0.1"], Ok(json)),
            (&["text/event-stream;q=0.4, application/json;q=0.5"], Ok(json)),
            (&["text/event-stream;q=0.5, application/octet-stream;q=0.6"], Ok(raw)),
            (&["*/*;q=0"], Err(406)),
            (&["*/*;q=0, text/event-stream;q=0.1"], Ok(events)),
            (&["application/*;q=0, */*"], Ok(events)),
            (&["application/*;q=0.5, application/json;q=0, */*;q=0.1"], Ok(raw)),
            (&["text/html"], Err(406)),
            (&["text/html, */*;q=0.8"], Ok(json)),
            (&["application/jsonx"], Err(406)),
            (&["xtext/event-stream"], Err(406)),
            (&["text/event-stream;q=2"], Err(400)),
            (&["text/event-stream;q=-1"], Err(400)),
            (&["text/event-stream;q=x"], Err(400)),
            (&["text/event-stream;q=NaN"], Err(400)),
            (&["text"], Err(400)),
            (&["*/json"], Err(400)),
            (&["text/event stream"], Err(400)),
        ];
        for (values, expected) in table {
            assert_eq!(chosen(values), *expected, "{values:?}");
        }
    }
}
