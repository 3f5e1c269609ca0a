//! Environment of a command: what the daemon sets, and how it completes what image and request set.

use std::collections::BTreeMap;

/// Search path if the image sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names that must not go through the proxy: the container's own loopback. The form in brackets is how Node's `fetch`
/// compares IPv6 addresses. The container's host name is appended when the command is submitted.
const OWN: [&str; 4] = ["localhost", "127.0.0.1", "::1", "[::1]"];

/// Both spellings of the variable: curl reads the second, Go prefers the first.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Options in `NODE_OPTIONS` that set V8's heap, in the spellings that V8 and Node accept.
const HEAP_OPTIONS: [&str; 3] = ["--max-old-space-size", "--max_old_space_size", "--max-heap-size"];

/// Smallest memory outside of V8's old generation that is left to a process of Node's: its code, stacks, buffers and
/// young generation (30 MiB of them anonymous in an idle Node 22).
const BESIDE_HEAP_BYTES: u64 = 128 << 20;

/// Whether a provider's CLI finds its own files, its way out or its libraries by this variable, so that another value
/// breaks it in a way that nobody understands.
pub fn is_the_clis(name: &str) -> bool {
    let is_proxy = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"].iter().any(|proxy| proxy.eq_ignore_ascii_case(name));
    is_proxy || matches!(name, "HOME" | "PATH" | "NODE_USE_ENV_PROXY") || name.starts_with("LD_")
}

/// What a command of any image starts from: its variables, and a search path.
pub fn of_image(image: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
    env.extend(image);
    env
}

/// Environment of every process of a provider: the image's variables, home directory, user and locale.
pub fn of_provider(image: &[(String, String)], home: &str) -> BTreeMap<String, String> {
    let mut env = of_image(image.iter().cloned());
    for (name, value) in [("HOME", home), ("LANG", "C.UTF-8"), ("TMPDIR", "/tmp")] {
        env.insert(name.to_owned(), value.to_owned());
    }
    // Default; the image's own name for the user is added when the image is unpacked.
    env.entry("USER".to_owned()).or_insert_with(|| "runtime".to_owned());
    env
}

/// Sets the address of the egress proxy, in every form that programs look for.
pub fn set_proxy(port: u16, env: &mut BTreeMap<String, String>) {
    let proxy = format!("http://127.0.0.1:{port}");
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        env.insert(name.to_owned(), proxy.clone());
    }
    env.insert("NODE_USE_ENV_PROXY".to_owned(), "1".to_owned());
}

/// Completes the environment: the container's own addresses bypass the proxy, and Node's heap fits into `memory_bytes`.
/// Returns the variables to which the container's host name is to be appended.
pub fn complete(memory_bytes: u64, env: &mut BTreeMap<String, String>) -> Vec<&'static str> {
    size_heap(memory_bytes, env);
    // A soft limit: beyond it Go collects garbage more often, but still grows.
    env.entry("GOMEMLIMIT".to_owned()).or_insert_with(|| format!("{}MiB", ((memory_bytes / 10 * 9) >> 20).max(1)));
    let mut with_host_name = spare_own(env);
    if !env.contains_key("HOSTNAME") {
        env.insert("HOSTNAME".to_owned(), String::new());
        with_host_name.push("HOSTNAME");
    }
    with_host_name
}

/// Adds the container itself to `NO_PROXY`. Programs read one spelling or the other, so both say the same.
fn spare_own(env: &mut BTreeMap<String, String>) -> Vec<&'static str> {
    let mut entries: Vec<&str> = Vec::new();
    let given = NO_PROXY.iter().filter_map(|name| env.get(*name)).flat_map(|value| value.split(','));
    for entry in given.map(str::trim).chain(OWN) {
        if !entry.is_empty() && !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    // A lone `*` switches the proxy off; curl recognises it only when it stands alone.
    if entries.contains(&"*") {
        return Vec::new();
    }
    let value = entries.join(",") + ",";
    for name in NO_PROXY {
        env.insert(name.to_owned(), value.clone());
    }
    NO_PROXY.to_vec()
}

/// Sets V8's heap. By itself, V8 takes the size from the host's memory, and is killed at the limit instead of
/// collecting.
fn size_heap(memory_bytes: u64, env: &mut BTreeMap<String, String>) {
    let given = env.get("NODE_OPTIONS").map(String::as_str);
    // An empty value is a decision of whoever set it.
    if given == Some("") || given.is_some_and(|given| HEAP_OPTIONS.iter().any(|option| given.contains(option))) {
        return;
    }
    let beside = (memory_bytes / 4).max(BESIDE_HEAP_BYTES.min(memory_bytes / 2));
    let option = format!("--max-old-space-size={}", ((memory_bytes - beside) >> 20).max(1));
    let value = given.map_or_else(|| option.clone(), |given| format!("{given} {option}"));
    env.insert("NODE_OPTIONS".to_owned(), value);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::complete;
    use thaw_client::types::is_variable as is_name;

    fn completed(memory_mib: u64, given: &[(&str, &str)]) -> (BTreeMap<String, String>, Vec<&'static str>) {
        let mut env = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let with_host_name = complete(memory_mib << 20, &mut env);
        (env, with_host_name)
    }

    #[test]
    fn a_cli_is_broken_by_few_variables() {
        for name in ["HOME", "PATH", "https_proxy", "HTTP_PROXY", "all_proxy", "LD_PRELOAD", "LD_LIBRARY_PATH"] {
            assert!(super::is_the_clis(name), "{name}");
        }
        for name in ["NO_PROXY", "HOMEPAGE", "TERM", "NODE_OPTIONS", "LDAP"] {
            assert!(!super::is_the_clis(name), "{name}");
        }
    }

    #[test]
    fn names_are_what_kubernetes_and_docker_take() {
        for name in ["A", "spring.datasource.url", "my-key", "1", " ", "a b", "ünï", "(x)", "a\nb"] {
            assert!(is_name(name), "{name:?}");
        }
        for name in ["", "=", "A=B", "=A", "A\0"] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn the_container_itself_is_added_to_what_goes_past_the_proxy() {
        let own = "localhost,127.0.0.1,::1,[::1],";
        for (given, expected) in [
            (&[][..], own.to_owned()),
            (&[("NO_PROXY", "corp.test")], format!("corp.test,{own}")),
            (&[("no_proxy", " a , b,,")], format!("a,b,{own}")),
            (&[("NO_PROXY", "a,b"), ("no_proxy", "b,c")], format!("a,b,c,{own}")),
            (&[("NO_PROXY", "::1,x")], "::1,x,localhost,127.0.0.1,[::1],".to_owned()),
        ] {
            let (env, with_host_name) = completed(512, given);
            assert_eq!((&env["NO_PROXY"], &env["no_proxy"]), (&expected, &expected), "{given:?}");
            assert_eq!(with_host_name, ["NO_PROXY", "no_proxy", "HOSTNAME"]);
        }
        let (env, with_host_name) = completed(512, &[("NO_PROXY", "*"), ("HOSTNAME", "mine")]);
        assert_eq!((env["NO_PROXY"].as_str(), env.get("no_proxy"), env["HOSTNAME"].as_str()), ("*", None, "mine"));
        assert!(with_host_name.is_empty());
    }

    #[test]
    fn the_heap_of_node_leaves_room_in_every_container() {
        for (memory_mib, heap_mib) in [(1, 1), (64, 32), (256, 128), (512, 384), (1024, 768), (8192, 6144)] {
            let expected = format!("--max-old-space-size={heap_mib}");
            assert_eq!(completed(memory_mib, &[]).0["NODE_OPTIONS"], expected, "{memory_mib}");
            assert_eq!(completed(memory_mib, &[]).0["GOMEMLIMIT"], format!("{}MiB", (memory_mib * 9 / 10).max(1)));
        }
        for (given, expected) in [
            ("--enable-source-maps", "--enable-source-maps --max-old-space-size=384"),
            ("", ""),
            ("--max-old-space-size=99", "--max-old-space-size=99"),
            ("--x --max_old_space_size=99", "--x --max_old_space_size=99"),
            ("--max-old-space-size-percentage=50", "--max-old-space-size-percentage=50"),
        ] {
            assert_eq!(completed(512, &[("NODE_OPTIONS", given)]).0["NODE_OPTIONS"], expected);
        }
    }
}
