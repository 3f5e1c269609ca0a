//! Compares two configurations: which keys differ, and which of them a running daemon can take over.

use std::collections::BTreeSet;

use toml::{Table, Value};

use thaw_client::config::{self, Config};

/// Keys that differ, as written in the file (`pool.target`), sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys that the running daemon takes over.
    pub now: Vec<String>,
    /// Keys that take effect after a restart.
    pub after_restart: Vec<String>,
}

/// Compares two configurations.
pub fn changes(old: &Config, new: &Config) -> Changes {
    // A missing section has the same meaning as an empty one.
    let (mut full_old, mut full_new) = (old.clone(), new.clone());
    for name in old.provider.keys().chain(new.provider.keys()) {
        full_old.provider.entry(name.clone()).or_default();
        full_new.provider.entry(name.clone()).or_default();
    }
    let mut keys = Vec::new();
    compare("", &table(&full_old), &table(&full_new), &mut keys);
    keys.sort();
    let (now, after_restart) = keys.into_iter().partition(|key| is_reloadable(key, old, new));
    Changes { now, after_restart }
}

/// Updates `running`, the daemon's configuration, with the keys of `new` that the daemon has taken over. The other keys
/// still differ, and are reported again at the next comparison.
pub fn take_over(running: &mut Config, new: &Config, changes: &Changes) {
    let taken = |key: String| changes.now.contains(&key);
    running.log.filter.clone_from(&new.log.filter);
    let (output_bytes, retained_bytes) = (running.execution.output_bytes, running.execution.retained_bytes);
    running.execution = config::Execution { output_bytes, retained_bytes, ..new.execution.clone() };
    running.queue.clone_from(&new.queue);
    let (kept, given) = (&mut running.pool, &new.pool);
    (kept.target, kept.min, kept.max, kept.scaling) = (given.target, given.min, given.max, given.scaling);
    // Includes sections that were removed, which have the same meaning as empty ones.
    let names: BTreeSet<String> = running.provider.keys().chain(new.provider.keys()).cloned().collect();
    for name in names {
        let given = new.provider.get(&name).cloned().unwrap_or_default();
        let kept = running.provider.entry(name.clone()).or_default();
        (kept.pool_target, kept.pool_min, kept.pool_max) = (given.pool_target, given.pool_min, given.pool_max);
        if taken(format!("provider.{name}.prestarted")) {
            kept.prestarted = given.prestarted;
        }
        for (model, target) in given.prestarted_models {
            if taken(format!("provider.{name}.prestarted_models.{model}")) {
                kept.prestarted_models.insert(model, target);
            }
        }
    }
}

fn is_reloadable(key: &str, old: &Config, new: &Config) -> bool {
    match key.strip_prefix("provider.").and_then(|rest| rest.split_once('.')) {
        Some((_, "pool_target" | "pool_min" | "pool_max")) => true,
        // Pools of prestarted CLIs are created at the start only: a reload can change their targets, not their number.
        Some((name, rest)) if rest == "prestarted" || rest.starts_with("prestarted_models.") => {
            let pools = |config: &Config| config.provider.get(name).map(prestarted_pools).unwrap_or_default();
            let names = |config| pools(config).into_iter().map(|(model, _)| model).collect::<Vec<_>>();
            names(old) == names(new)
        }
        _ if key.starts_with("queue.") => true,
        // What is kept of the output was fitted to the memory of the unit at the start.
        _ if key.starts_with("execution.") => !matches!(key, "execution.output_bytes" | "execution.retained_bytes"),
        _ => matches!(key, "log.filter" | "pool.target" | "pool.min" | "pool.max" | "pool.scaling"),
    }
}

/// Pools of prestarted CLIs of a provider, in the daemon's order: model (`None` for the default) and target.
pub fn prestarted_pools(provider: &config::Provider) -> Vec<(Option<String>, usize)> {
    let of_default = (provider.prestarted > 0).then_some((None, provider.prestarted));
    let of_models = provider.prestarted_models.iter().map(|(model, target)| (Some(model.clone()), *target));
    of_default.into_iter().chain(of_models).collect()
}

/// The configuration as a table; every key has a TOML form, since the file is TOML.
fn table(config: &Config) -> Table {
    Table::try_from(config).expect("the configuration was read from TOML or is the default")
}

fn compare(prefix: &str, old: &Table, new: &Table, keys: &mut Vec<String>) {
    let empty = Table::new();
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match (old.get(name), new.get(name)) {
            (old, new) if old == new => {}
            // The names below this key are chosen by the operator, and are no configuration keys.
            _ if key == "egress.resolve" => keys.push(key),
            (Some(Value::Table(old)), Some(Value::Table(new))) => compare(&key, old, new, keys),
            (None, Some(Value::Table(new))) => compare(&key, &empty, new, keys),
            (Some(Value::Table(old)), None) => compare(&key, old, &empty, keys),
            _ => keys.push(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(old: &str, new: &str) -> (Vec<String>, Vec<String>) {
        let changes = changes(&toml::from_str(old).unwrap(), &toml::from_str(new).unwrap());
        (changes.now, changes.after_restart)
    }

    #[test]
    fn what_was_taken_over_is_not_told_again_and_the_rest_is() {
        let parse = |text: &str| toml::from_str::<Config>(text).unwrap();
        let mut running = parse(
            "[pool]\ntarget = 3\n[provider.a]\npool_target = 1\nprestarted = 2\n[provider.b]\npool_target = 2\negress = ['x:1']",
        );
        let new = parse("[log]\nfilter = 'debug'\n[provider.a]\nprestarted = 5");
        let first = changes(&running, &new);
        let now =
            ["log.filter", "pool.target", "provider.a.pool_target", "provider.a.prestarted", "provider.b.pool_target"];
        assert_eq!(
            (first.now.as_slice(), first.after_restart.as_slice()),
            (now.map(str::to_owned).as_slice(), ["provider.b.egress".to_owned()].as_slice())
        );
        take_over(&mut running, &new, &first);
        let second = changes(&running, &new);
        assert_eq!((second.now, second.after_restart), (vec![], vec!["provider.b.egress".to_owned()]));
    }

    #[test]
    fn a_default_written_out_is_no_change() {
        assert_eq!(between("", "[container]\nmax = 50\n[log]\nfilter = 'info'"), (vec![], vec![]));
    }

    #[test]
    fn targets_and_log_levels_are_taken_over_the_rest_is_not() {
        let (now, later) = between(
            "[pool]\ntarget = 3\nscaling = false\n[provider.a]\npool_target = 1",
            "[container]\nmax = 9\n[log]\nfilter = 'debug'\n[provider.b]\npool_target = 2\negress = ['x:1']",
        );
        assert_eq!(
            now,
            ["log.filter", "pool.scaling", "pool.target", "provider.a.pool_target", "provider.b.pool_target"]
        );
        assert_eq!(later, ["container.max", "provider.b.egress"]);
    }

    #[test]
    fn the_queue_and_limits_of_executions_are_taken_over_but_not_how_much_output_is_kept() {
        let text = "[queue]\nmax = 5\n[execution]\nmax_per_user = 3\nkill_grace_ms = 7\noutput_bytes = 65536";
        let (now, later) = between("", text);
        assert_eq!(now, ["execution.kill_grace_ms", "execution.max_per_user", "queue.max"]);
        assert_eq!(later, ["execution.output_bytes"]);
        let parse = |text: &str| toml::from_str::<Config>(text).unwrap();
        let (mut running, new) = (parse(""), parse(text));
        let first = changes(&running, &new);
        take_over(&mut running, &new, &first);
        let second = changes(&running, &new);
        assert_eq!((second.now, second.after_restart), (vec![], vec!["execution.output_bytes".to_owned()]));
    }

    #[test]
    fn a_pool_of_prestarted_clis_changes_its_size_but_neither_comes_nor_goes() {
        let with = |n: u32| format!("[provider.a]\nprestarted = {n}");
        assert_eq!(between(&with(1), &with(4)).0, ["provider.a.prestarted"]);
        assert_eq!(between(&with(0), &with(4)).1, ["provider.a.prestarted"]);
        assert_eq!(between(&with(4), &with(0)).1, ["provider.a.prestarted"]);
        let model = |n: u32| format!("[provider.a.prestarted_models]\nbig = {n}");
        assert_eq!(between(&model(1), &model(4)).0, ["provider.a.prestarted_models.big"]);
        assert!(between("", &model(4)).1.contains(&"provider.a.prestarted_models.big".to_owned()));
    }
}
