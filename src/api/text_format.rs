//! The older Prometheus text format (version 0.0.4), for what does not read OpenMetrics: `promtool check metrics`, the
//! textfile collector of the node exporter, and many scripts.

use axum::http::HeaderMap;

use super::accept;

/// Its media type.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a client with these headers wants it rather than OpenMetrics. Those who want neither get the latter: a scrape
/// is better answered than refused.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    const OPEN_METRICS: &str = "application/openmetrics-text";
    accept::choose(headers, &[OPEN_METRICS, "text/plain"], OPEN_METRICS).is_ok_and(|wanted| wanted == "text/plain")
}

/// What differs: a counter's samples have the suffix `_total` in both, but only here its description has it too; there
/// are no units, and no end mark.
pub fn from_open_metrics(text: &str) -> String {
    let mut converted = String::with_capacity(text.len() + 1024);
    let counters: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    for line in text.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|kind| Some((kind, line.strip_prefix(kind)?)));
        match described.and_then(|(kind, rest)| Some((kind, rest.split_once(' ')?))) {
            Some((kind, (name, rest))) if counters.contains(&name) => {
                converted.extend([kind, name, "_total ", rest]);
            }
            _ => converted.push_str(line),
        }
        converted.push('\n');
    }
    converted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_renamed_and_marks_left_out() {
        let open = "# HELP a_b Bytes.\n# TYPE a_b counter\n# UNIT a_b bytes\na_b_total{x=\"# EOF\"} 1\n# HELP c C.\n# TYPE c gauge\nc 2\n# EOF\n";
        let old = "# HELP a_b_total Bytes.\n# TYPE a_b_total counter\na_b_total{x=\"# EOF\"} 1\n# HELP c C.\n# TYPE c gauge\nc 2\n";
        assert_eq!(from_open_metrics(open), old);
    }

    #[test]
    fn open_metrics_goes_first() {
        let is_wanted = |value: &'static str| {
            let header = (axum::http::header::ACCEPT, axum::http::HeaderValue::from_static(value));
            is_wanted(&[header].into_iter().collect())
        };
        assert!(is_wanted("text/plain") && is_wanted("application/openmetrics-text;q=0, text/plain"));
        assert!(!is_wanted("*/*") && !is_wanted("") && !is_wanted("text/html") && !is_wanted("text/plain;q=0"));
        assert!(!is_wanted("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"));
    }
}
