//! The rules, the dashboard and their documents against a real daemon, as Prometheus itself understands them.
//!
//! Needs `promtool` and `prometheus` (Debian package prometheus, see tests/deps). Prometheus listens on loopback only.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::{Daemon, eventually, shell};
use thaw_client::types::ExecutionRequest;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Words that look like a metric's name.
fn names(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c: char| !is_word(c))
        .filter(|word| word.starts_with("thawd_") && !word.ends_with('_') && !word.contains(|c: char| c.is_uppercase()))
        .map(str::to_owned)
        .collect()
}

/// The families that the daemon describes, each with all names that its samples have.
struct Families(Vec<(String, Vec<String>)>);

impl Families {
    fn of(metrics: &str) -> Self {
        let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        Self(
            types
                .map(|(name, kind)| {
                    let suffixes: &[&str] = match kind {
                        "counter" => &["_total"],
                        "histogram" => &["_bucket", "_sum", "_count"],
                        _ => &[""],
                    };
                    (name.to_owned(), suffixes.iter().map(|suffix| format!("{name}{suffix}")).collect())
                })
                .collect(),
        )
    }

    fn has_sample(&self, name: &str) -> bool {
        self.0.iter().any(|(_, samples)| samples.iter().any(|sample| sample == name))
    }

    /// Documents name a histogram without the suffixes of its samples.
    fn has(&self, name: &str) -> bool {
        self.has_sample(name) || self.0.iter().any(|(family, samples)| family == name && samples.len() == 3)
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// A daemon in which everything has happened that makes a series: warm and cold claims, a queue, a refusal, an
/// execution that runs.
async fn busy_daemon(listen: SocketAddr) -> (Daemon, String) {
    let daemon = Daemon::start(|setup| {
        setup.pool(1).set("metrics.listen", listen.to_string()).set("container.max", 3).set("queue.timeout_ms", 100)
    })
    .await;
    daemon.settled().await;
    daemon.sh("echo hello; exit 3").await.exited(3);
    let image = ExecutionRequest { provider: String::new(), image: Some("test".to_owned()), ..shell("echo hello") };
    daemon.run(&image).await.exited(0);
    daemon.settled().await;
    let running = daemon.client.create(&shell("while :; do sleep 0.01; done")).await.unwrap().id;
    for _ in 0..2 {
        daemon.client.create(&shell("sleep 1000")).await.unwrap();
    }
    daemon.client.create(&shell("sleep 1000")).await.unwrap_err();
    (daemon, running)
}

fn run(program: &str, arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make deps` installs it"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), text)
}

fn rules_file() -> String {
    repository("monitoring/prometheus/thawd.rules.yml").to_str().unwrap().to_owned()
}

/// Names of the alerts, in order.
fn alerts() -> Vec<String> {
    let rules = read("monitoring/prometheus/thawd.rules.yml");
    let alerts: Vec<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned)).collect();
    assert!(alerts.len() >= 15, "{alerts:?}");
    alerts
}

/// Every expression of the dashboard, with its panel's title, for one host and all providers.
fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read("monitoring/grafana/thawd.json")).unwrap();
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let expression =
                expression.replace("$instance", ".*").replace("$provider", ".*").replace("$__rate_interval", "1m");
            assert!(!expression.contains('$'), "unknown variable: {expression}");
            expressions.push((panel["title"].as_str().unwrap().to_owned(), expression));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["query"]["query"].as_str() {
            expressions.push((variable["name"].as_str().unwrap().to_owned(), query.to_owned()));
        }
    }
    assert!(expressions.len() > 40, "{}", expressions.len());
    expressions
}

#[test]
fn the_rules_do_what_their_tests_say() {
    let (good, text) = run("promtool", &["check", "rules", &rules_file()], "");
    assert!(good, "{text}");
    let tests = repository("monitoring/prometheus/thawd.rules.test.yml");
    let (good, text) = run("promtool", &["test", "rules", tests.to_str().unwrap()], "");
    assert!(good && text.contains("SUCCESS"), "{text}");
    let scrape = repository("monitoring/prometheus/thawd.scrape.yml");
    let (good, text) = run("promtool", &["check", "config", "--syntax-only", scrape.to_str().unwrap()], "");
    assert!(good, "{text}");
}

#[test]
fn each_alert_is_tested_firing_and_not_and_has_its_page() {
    let tests = read("monitoring/prometheus/thawd.rules.test.yml");
    let rules = read("monitoring/prometheus/thawd.rules.yml");
    // One part for each test: its alert, and whether it expects one.
    let parts: Vec<&str> = tests.split("alertname: ").skip(1).collect();
    for alert in alerts() {
        let of_alert: Vec<_> = parts.iter().filter(|part| part.lines().next() == Some(&alert)).collect();
        let quiet = of_alert.iter().filter(|part| part.contains("exp_alerts: []")).count();
        assert!(quiet >= 1 && of_alert.len() > quiet, "{alert}: {quiet} of {} tests are quiet", of_alert.len());
        let page = format!("docs/runbooks/{alert}.md");
        assert!(rules.contains(&format!("runbook_url: https://github.com/thawd/thawd/blob/main/{page}")), "{alert}");
        let text = read(&page);
        assert!(text.starts_with(&format!("# {alert}\n")), "{page}");
        for section in ["## What it means", "## What to look at", "## How to fix it"] {
            assert!(text.contains(section), "{page} lacks {section:?}");
        }
        assert!(text.contains("```sh\n"), "{page} has no command");
    }
    let mut pages: Vec<_> = fs::read_dir(repository("docs/runbooks"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "README.md")
        .map(|name| name.trim_end_matches(".md").to_owned())
        .collect();
    pages.sort();
    let mut alerts = alerts();
    alerts.sort();
    assert_eq!(pages, alerts, "one page for each alert");
}

#[test]
fn commands_in_runbooks_exist() {
    let mut verbs = BTreeSet::new();
    for alert in alerts() {
        let page = read(&format!("docs/runbooks/{alert}.md"));
        let commands = page.lines().filter_map(|line| line.strip_prefix("thawctl "));
        verbs.extend(commands.map(|rest| rest.split(' ').next().unwrap().to_owned()));
    }
    assert!(!verbs.is_empty());
    for verb in verbs {
        let (good, text) = run(&support::programs::thawctl(), &[&verb, "--help"], "");
        assert!(good, "thawctl {verb}: {text}");
    }
}

#[tokio::test]
async fn every_metric_that_is_named_exists_and_every_metric_is_described() {
    let (daemon, _) = busy_daemon(free_address()).await;
    let metrics = daemon.client.metrics().await.unwrap();
    let families = Families::of(&metrics);
    for (title, expression) in panels() {
        for name in names(&expression) {
            assert!(families.has_sample(&name), "{title}: {name} does not exist: {expression}\n{metrics}");
        }
    }
    let rules = read("monitoring/prometheus/thawd.rules.yml");
    for name in names(&rules) {
        assert!(families.has_sample(&name), "thawd.rules.yml: {name} does not exist");
    }
    let mut documents: Vec<_> = fs::read_dir(repository("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    documents.extend(fs::read_dir(repository("docs/runbooks")).unwrap().map(|entry| entry.unwrap().path()));
    for document in documents.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        for name in names(&fs::read_to_string(document).unwrap()) {
            assert!(families.has(&name), "{}: {name} does not exist", document.display());
        }
    }
    let described = names(&read("docs/metrics.md"));
    for (family, samples) in &families.0 {
        let as_named = if samples.len() == 1 { &samples[0] } else { family };
        assert!(described.contains(as_named), "docs/metrics.md lacks {as_named}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn promtool_finds_nothing_wrong_with_the_metrics() {
    let (daemon, _) = busy_daemon(free_address()).await;
    let answer = daemon.http("GET /metrics", &[("accept", "text/plain")], b"").await;
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let (good, text) = run("promtool", &["check", "metrics"], &answer.text());
    assert!(good && text.trim().is_empty(), "{text}");
    daemon.stop().await;
}

/// A client for plain HTTP; it wants its TLS set up all the same.
fn http() -> reqwest::Client {
    let tls = thaw_client::tls::client_config().unwrap();
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap()
}

/// Prometheus itself, ended when dropped.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    http: reqwest::Client,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = free_address();
        // The daemon's own example, with another target, the rules of this tree, and less patience.
        let configuration = read("monitoring/prometheus/thawd.scrape.yml")
            .replace("127.0.0.1:9477", &target.to_string())
            .replace("scrape_interval: 15s", "scrape_interval: 1s\n    scrape_timeout: 1s")
            .replace("/usr/share/thawd/monitoring/prometheus/thawd.rules.yml", &rules_file());
        let file = directory.path().join("prometheus.yml");
        fs::write(&file, format!("global:\n  evaluation_interval: 1s\n{configuration}")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { child, address, http: http(), _directory: directory }
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let url = reqwest::Url::parse_with_params(&format!("http://{}{path}", self.address), query).unwrap();
        self.http.get(url).send().await.ok()?.json().await.ok()
    }

    async fn query(&self, expression: &str) -> Vec<Value> {
        let answer = self.get("/api/v1/query", &[("query", expression)]).await.unwrap();
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_prometheus_scrapes_the_daemon_and_understands_rules_and_dashboard() {
    let listen = free_address();
    let (daemon, running) = busy_daemon(listen).await;
    let prometheus = Prometheus::start(listen);
    // Two scrapes, so that there are rates.
    let seen = format!("count_over_time(thawd_execution_cpu_seconds_total{{execution=\"{running}\"}}[1m]) >= 3");
    eventually("Prometheus has scraped", || async {
        let answer = prometheus.get("/api/v1/query", &[("query", &seen)]).await?;
        (!answer["data"]["result"].as_array()?.is_empty()).then_some(())
    })
    .await;
    assert_eq!(prometheus.query("up{job=\"thawd\"} == 1").await.len(), 1);
    for (title, expression) in panels() {
        if expression.starts_with("label_values") {
            continue;
        }
        let result = prometheus.query(&expression).await;
        // A sum over nothing has no series: that would be a misspelt label.
        assert!(!result.is_empty(), "{title} shows nothing: {expression}");
    }
    let rules = prometheus.get("/api/v1/rules", &[]).await.unwrap();
    let groups = rules["data"]["groups"].as_array().unwrap();
    let rules: Vec<_> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert_eq!(rules.len(), alerts().len());
    for rule in rules {
        assert!(rule["health"] != "err", "{rule}");
    }
    drop(prometheus);
    // Nothing but the metrics is to be had there.
    let http = http();
    let metrics = http.get(format!("http://{listen}/metrics")).send().await.unwrap();
    assert!(metrics.status().is_success());
    for path in ["/v1/executions", "/v1/containers", "/openapi.json", "/healthz"] {
        assert_eq!(http.get(format!("http://{listen}{path}")).send().await.unwrap().status(), 404, "{path}");
    }
    let post = http.post(format!("http://{listen}/v1/executions")).body("{}").send().await.unwrap();
    assert_eq!(post.status(), 404);
    daemon.stop().await;
}

#[tokio::test]
async fn executions_can_be_left_out() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("metrics.per_execution", false)).await;
    let running = daemon.client.create(&shell("sleep 1000")).await.unwrap().id;
    let metrics = daemon.client.metrics().await.unwrap();
    assert!(!metrics.contains(&running) && !metrics.contains("thawd_execution_memory_bytes"), "{metrics}");
    daemon.stop().await;
}
