use std::path::Path;

use super::{Config, LogFormat};

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("test.toml")).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_is_the_default() {
    let config = parse("").unwrap();
    assert_eq!((config.pool.target, config.container.max, config.api.max_body_bytes), (None, 50, 1 << 20));
}

#[test]
fn an_upstream_is_an_address_and_a_pool_fits_the_limit() {
    let upstream = |url: &str| parse(&format!("[provider.a]\nbase_url = {url:?}\n"));
    for good in ["http://upstream.test:8901", "https://proxy.example/v1"] {
        upstream(good).unwrap();
    }
    for (bad, word) in [
        ("upstream.test:8901", "http://"),
        ("ftp://upstream.test", "http://"),
        ("http://", "no address"),
        ("https://me:secret@upstream.test", "credentials"),
    ] {
        let error = upstream(bad).unwrap_err();
        let key = "test.toml: line 2: `provider.a.base_url`";
        assert!(error.starts_with(key) && error.contains(word) && !error.contains("secret"), "{error}");
    }
    assert!(parse("[pool]\ntarget = 51\n").unwrap_err().contains("`pool.target` must be at most `container.max`, 50"));
    let own = "[container]\nmax = 5\n[provider.a]\npool_target = 6\n";
    assert!(parse(own).unwrap_err().contains("line 4: `provider.a.pool_target`"));
}

#[test]
fn sizes_and_times_may_have_their_unit() {
    let text = "[api]\nmax_body_bytes = \"2 MiB\"\n[queue]\ntimeout_ms = \"30 s\"\n[execution]\nretention_seconds = \"10 m\"\n";
    let config = parse(text).unwrap();
    assert_eq!((config.api.max_body_bytes, config.queue.timeout_ms), (2 << 20, 30_000));
    assert_eq!(config.execution.retention_seconds, 600);
    let error = parse("[api]\n\nmax_body_bytes = \"2 parsecs\"\n").unwrap_err();
    assert_eq!(error, "test.toml: line 3: `api.max_body_bytes` is \"2 parsecs\", which is no size such as \"100 MiB\"");
}

#[test]
fn a_value_that_is_refused_is_named_with_its_line() {
    assert_eq!(parse("[container]\nmax = 0\n").unwrap_err(), "test.toml: line 2: `container.max` must be at least 1");
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    let error = parse("[pool]\ntargt = 3\n").unwrap_err();
    assert!(error.contains("did you mean `target`?") && error.contains("line 2"), "{error}");
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    assert!(parse("[container]\nmax = 0\n").unwrap_err().contains("`container.max` must be at least 1"));
    assert!(parse("[container]\nid_start = 1000\n").unwrap_err().contains("`container.id_start`"));
    assert!(parse("[container]\nmax = 100000\n").unwrap_err().contains("`container.id_start`"));
    assert!(parse("[execution]\nretained_bytes = 65536\n").unwrap_err().contains("`execution.retained_bytes`"));
    let forever = "[execution]\nretention_seconds = 9223372036854775807\n";
    assert!(parse(forever).unwrap_err().contains("must be at most a year"));
    assert!(parse("[cgroup]\nparent = \"/a/../b\"\n").unwrap_err().contains("`cgroup.parent`"));
    assert!(parse("[pool]\nmin = 9\nmax = 8\n").unwrap_err().contains("`pool.min` must be at most `max`, 8"));
    assert!(parse("[pool]\nmax = 51\n").unwrap_err().contains("`pool.max` must be at most `container.max`, 50"));
    let own = "[pool]\nmax = 20\n[provider.a]\npool_min = 21\n";
    assert!(parse(own).unwrap_err().contains("`provider.a.pool_min` must be at most `pool_max`, 20"));
    assert!(parse("[pool]\nscale_up_hit_percent = 101\n").unwrap_err().contains("from 0 to 100"));
    assert!(parse("[admission]\nmax_load_per_cpu = -1.0\n").unwrap_err().contains("0 or more"));
    assert!(parse("[queue]\ntimeout_ms = 60001\n").unwrap_err().contains("`queue.max_timeout_ms`, 60000"));
    assert!(parse("[execution]\nmax_per_user = 0\n").unwrap_err().contains("`execution.max_per_user`"));
    assert!(parse("[cgroup]\nname = \"../x\"\n").unwrap_err().contains("`cgroup.name`"));
}

#[test]
fn no_number_is_too_large_to_be_refused_by_name() {
    fn keys(prefix: &str, table: &toml::Table, all: &mut Vec<String>) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match value {
                toml::Value::Table(inner) => keys(&key, inner, all),
                toml::Value::Integer(_) => all.push(key),
                _ => {}
            }
        }
    }
    let mut all = vec!["provider.a.pool_target".to_owned(), "provider.a.prestarted".to_owned()];
    keys("", &toml::Table::try_from(with_optional_keys(parse("").unwrap())).unwrap(), &mut all);
    assert!(all.len() > 50, "{all:?}");
    for key in &all {
        let (section, name) = key.rsplit_once('.').unwrap();
        let error = parse(&format!("[{section}]\n{name} = {}\n", i64::MAX)).unwrap_err();
        assert!(error.contains(&format!("`{key}`")) || error.contains(name), "{key}: {error}");
    }
}

#[test]
fn a_target_is_fixed_unless_there_are_bounds_for_it() {
    let bounds = |text: &str| parse(text).unwrap().pool_bounds("a", 10);
    assert_eq!(bounds(""), (10, 5, 50, true), "what the manifest says is where scaling starts");
    assert_eq!(bounds("[pool]\nscaling = false\n"), (10, 5, 50, false));
    assert_eq!(bounds("[pool]\ntarget = 7\n"), (7, 5, 50, false));
    assert_eq!(bounds("[pool]\ntarget = 7\nmax = 9\n"), (7, 5, 9, true));
    assert_eq!(bounds("[provider.a]\npool_target = 2\n"), (2, 2, 50, false));
    assert_eq!(bounds("[pool]\nmin = 3\n[provider.a]\npool_target = 20\npool_max = 30\n"), (20, 3, 30, true));
    assert_eq!(bounds("[container]\nmax = 3\n"), (10, 3, 3, true));
    assert_eq!(parse("").unwrap().pool_bounds("b", 2), (2, 2, 50, true), "a small pool stays small when idle");
}

#[test]
fn the_sample_is_complete_and_valid() {
    let sample = include_str!("../../../../docs/thawd.toml");
    parse(sample).unwrap();
    // Every key is there, commented out with its default: uncommented, the file must say the same as nothing.
    let active: String = sample
        .lines()
        .map(|line| line.strip_prefix("#= ").unwrap_or(line))
        .fold(String::new(), |text, line| text + line + "\n");
    let config = parse(&active).unwrap();
    assert_eq!(format!("{config:?}"), format!("{:?}", with_optional_keys(parse("").unwrap())));
}

fn with_optional_keys(mut config: Config) -> Config {
    config.paths.layouts_dir = Some("/var/lib/thawd/layouts".into());
    config.paths.init_program = Some("/usr/bin/thaw-init".into());
    config.pool.target = Some(10);
    config.pool.min = Some(5);
    config.pool.max = Some(50);
    config.log.format = Some(LogFormat::Human);
    config.metrics.listen = "127.0.0.1:9477".parse().ok();
    config.store.url = Some("postgres:///thawd?host=/run/postgresql&user=thawd".to_owned());
    config.vault.key_file = Some("/etc/thawd/vault.key".into());
    config
}
