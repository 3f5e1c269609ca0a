//! Fingerprint of what a warm container was created from. A daemon adopts only containers that it would create itself.

use std::fs::File;
use std::io;
use std::path::Path;

use super::Template;

/// Fingerprint that is equal for interchangeable containers: for templates that differ only in what is set at a claim.
pub fn fingerprint(settings: &super::Settings, template: &Template) -> String {
    // All fields by name, so that each new one has to be decided about: what is left out is set at the claim, or makes no
    // difference to who gets the container.
    let Template {
        provider,
        root,
        layer: _,
        hold: _,
        home,
        user,
        group,
        credentials,
        workspace,
        idle,
        run,
        pids,
        egress: _,
        prestarted,
        reclaim,
    } = template;
    let super::Settings {
        made_by, ephemeral_bytes, ephemeral_inodes, open_files, limit_visible_cpus, proxy_port, ..
    } = settings;
    // What runs in it already, and how that is spoken with.
    let prestarted = prestarted.as_ref().map(|prestarted| (&prestarted.plan, prestarted.command.digest()));
    // What it is told of memory and processors.
    let (memory, cpu, burst) = (run.memory_bytes, run.cpu, run.cpu_burst);
    let made_from = format!(
        "{made_by} {provider:?} {root:?} {home:?} {user} {group} {credentials:?} {workspace} {idle:?} {pids} {reclaim:?} \
         {ephemeral_bytes} {ephemeral_inodes} {open_files} {proxy_port} {memory} {cpu} {burst:?} {limit_visible_cpus} {prestarted:?}"
    );
    blake3::hash(made_from.as_bytes()).to_hex().to_string()
}

/// Hash of the programs that make containers: this program, which contains mounts, capabilities and filter, and `init`,
/// their PID 1. An upgrade of either changes the hash, so no container keeps the confinement of an older version.
///
/// # Errors
/// One of the programs cannot be read.
pub fn made_by(init: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    // Not by path: another version may be installed there by now.
    for program in [Path::new("/proc/self/exe"), init] {
        hasher.update_reader(File::open(program)?)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::containers::tests::settings;
    use super::super::{Settings, Template};
    use super::{fingerprint, made_by};
    use crate::egress::Policy;
    use thaw_os::cgroup::{CPU_PERIOD_US, Limits, Reclaim};
    use thaw_os::spawner::Root;

    fn root(image: &str) -> Root {
        Root { image: image.into(), ..Root::default() }
    }

    fn template() -> Template {
        let limits = Limits { memory_bytes: 1, cpu: 1.0, cpu_burst: None, cpu_period_us: CPU_PERIOD_US };
        Template {
            provider: "p".to_owned(),
            root: root("/images/a"),
            layer: None,
            hold: None,
            home: None,
            user: 1,
            group: 1,
            credentials: None,
            workspace: false,
            idle: limits,
            run: limits,
            pids: 1,
            egress: Arc::new(Policy::new(&[] as &[&str], Default::default(), Vec::new()).unwrap()),
            prestarted: None,
            reclaim: Reclaim::Nothing,
        }
    }

    #[test]
    fn containers_are_the_same_only_if_the_same_programs_made_them_of_the_same() {
        let first = fingerprint(&settings(), &template());
        assert_eq!(fingerprint(&settings(), &template()), first);
        let egress = Arc::new(Policy::new(&["a.example:443"], Default::default(), Vec::new()).unwrap());
        assert_eq!(fingerprint(&settings(), &Template { egress, ..template() }), first, "that is set at the claim");
        assert_ne!(fingerprint(&settings(), &Template { root: root("/images/b"), ..template() }), first);
        let upgraded = Settings { made_by: "another".to_owned(), ..settings() };
        assert_ne!(fingerprint(&upgraded, &template()), first);
    }

    #[test]
    fn another_init_is_another_maker() {
        let directory = tempfile::tempdir().unwrap();
        let init = directory.path().join("thaw-init");
        std::fs::write(&init, "one").unwrap();
        let first = made_by(&init).unwrap();
        assert_eq!(made_by(&init).unwrap(), first);
        std::fs::write(&init, "two").unwrap();
        assert_ne!(made_by(&init).unwrap(), first);
        assert!(made_by(&directory.path().join("none")).is_err());
    }
}
