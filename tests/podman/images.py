#!/usr/bin/env python3
"""Makes images by different tools, or in the shape that other tools give them, for the comparison with podman.

    images.py FOLDER TEST_LAYOUT     writes them into FOLDER, and FOLDER/list.json with what is to be run
"""
import gzip, hashlib, io, json, os, shutil, subprocess, sys, tarfile

folder, debian = sys.argv[1], sys.argv[2]
here = os.path.dirname(os.path.abspath(__file__))
made = []


def sh(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def at(*parts):
    return os.path.join(folder, *parts)


def add(name, transport, path, reference="", command=()):
    """An image to compare: where it is, for podman and for thawd, and the arguments that it is run with."""
    made.append({"name": name, "podman": f"{transport}:{path}" + (f":{reference}" if reference else ""), "path": path,
                 "reference": reference, "command": list(command)})


# The program in all of them: static, as ko, Go and Rust make them, and dynamic with musl, as in Alpine.
source = os.path.join(here, "probe.c")
sh("musl-gcc", "-static", "-Os", "-s", "-o", at("probe"), source)
sh("musl-gcc", "-Os", "-s", "-o", at("probe-dynamic"), source)
probe = open(at("probe"), "rb").read()
busybox = open("/bin/busybox", "rb").read()
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\nbare:x:1500:1500\n"
GROUP = "root:x:0:\napp:x:1000:\naudio:x:29:app\nvideo:x:44:app,root\nstaff:x:50:\n"

# ---- buildah ----
BUILDAH = ["buildah", "--root", at("storage/root"), "--runroot", at("storage/run"), "--storage-driver", "vfs"]


def built(name, files, config, base="scratch", kind="oci", push=None, remove=()):
    container = sh(*BUILDAH, "from", base)
    mount = sh(*BUILDAH, "mount", container)
    for path, content in files.items():
        to = os.path.join(mount, path)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        with open(to, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        os.chmod(to, 0o755 if isinstance(content, bytes) else 0o644)
    for path in remove:
        os.remove(os.path.join(mount, path))
    sh(*BUILDAH, "config", *config, container)
    image = f"localhost/{name}:1"
    sh(*BUILDAH, "commit", "-q", "--format", kind, container, image)
    sh(*BUILDAH, "rm", container)
    if push is None:
        add(name, "oci", at(name), "1")
        push = f"oci:{at(name)}:1"
    if push:
        sh(*BUILDAH, "push", "-q", image, push)
    return image


own = {"probe": probe}
accounts = {"etc/passwd": PASSWD, "etc/group": GROUP}
entry = ["--entrypoint", '["/probe"]', "--cmd", ""]
plain = built("scratch", own, entry)
built("entrypoint-and-cmd", own, ["--entrypoint", '["/probe","first arg"]', "--cmd", "second third"])
built("cmd-alone", own, ["--cmd", "/probe a b"])
built("by-path", {"usr/local/bin/probe": probe}, ["--cmd", "probe found"])
built("path-of-its-own", {"opt/x/probe": probe}, ["--env", "PATH=/opt/x", "--entrypoint", '["probe"]', "--cmd", ""])
named = built("user-by-name", {**own, **accounts}, entry + ["--user", "app"])
built("user-by-number", {**own, **accounts}, entry + ["--user", "1000"])
built("user-and-group", {**own, **accounts}, entry + ["--user", "app:staff"])
built("user-and-number", {**own, **accounts}, entry + ["--user", "1000:29"])
built("user-without-home", {**own, **accounts}, entry + ["--user", "bare"])
built("user-unknown", {**own, **accounts}, entry + ["--user", "4242"])
built("user-root-in-groups", {**own, **accounts}, entry + ["--user", "root"])
built("no-passwd", own, entry + ["--user", "1234:77"])
built("home-of-its-own", {**own, **accounts}, entry + ["--user", "app", "--env", "HOME=/tmp/h"])
built("home-empty", {**own, **accounts}, entry + ["--user", "app", "--env", "HOME="])
built("workdir", {**own, "srv/data/x": "x"}, entry + ["--workingdir", "/srv/data"])
built("workdir-missing", {**own, **accounts}, entry + ["--workingdir", "/made/for/it", "--user", "app"])
built("env-odd", own, entry + ["--env", "spring.datasource.url=x y", "--env", "my-key=a=b", "--env", "EMPTY=",
                               "--env", "QUOTED='\"$HOME\""])
built("exit-code", own, entry + ["--env", "PROBE_EXIT=7"])
built("labels-and-volumes", own, entry + ["--label", "a=b", "--volume", "/probe-data", "--port", "80/tcp",
                                          "--stop-signal", "SIGINT"])
two = built("two-layers", {"changed": "new", "added": "x"}, entry + ["--cmd", "/gone /changed /added"],
            base=built("base", {**own, "gone": "g", "changed": "old"}, entry, push=""), remove=["gone"])
built("docker-format", {**own, **accounts}, entry + ["--user", "app"], kind="docker",
      push=f"docker-archive:{at('docker-format.tar')}:localhost/docker-format:1")
add("docker-format", "docker-archive", at("docker-format.tar"))

# ---- skopeo ----
for name, to, transport, path, more in [
    ("oci-archive", f"oci-archive:{at('copy.oci')}:localhost/copy:1", "oci-archive", at("copy.oci"), []),
    ("docker-archive", f"docker-archive:{at('copy.docker')}:localhost/copy:1", "docker-archive", at("copy.docker"), []),
    ("zstd", f"oci:{at('zstd')}:1", "oci", at("zstd"), ["--dest-compress-format", "zstd"]),
]:
    sh("skopeo", "copy", "-q", *more, f"oci:{at('user-by-name')}:1", to)
    add(name, transport, path, "1" if transport == "oci" else "")

# ---- umoci ----
layout = at("umoci")
sh("umoci", "init", "--layout", layout)
sh("umoci", "new", "--image", f"{layout}:1")
sh("umoci", "insert", "--image", f"{layout}:1", at("probe"), "/bin/probe")
os.makedirs(at("tree/a/b"))
open(at("tree/a/b/c"), "w").write("content")
sh("umoci", "insert", "--image", f"{layout}:1", at("tree"), "/tree")
sh("umoci", "insert", "--image", f"{layout}:1", "--whiteout", "/tree/a/b")
sh("umoci", "config", "--image", f"{layout}:1", "--config.entrypoint", "/bin/probe", "--config.cmd", "/tree/a/b/c",
   "--config.user", "7:8", "--config.workingdir", "/tree/a")
add("umoci", "oci", layout, "1")


# ---- shapes of other tools ----
def tar(entries):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, what, *more in entries:
            info = tarfile.TarInfo(path)
            info.mtime, info.mode = 1, more[0] if more else 0o755
            if len(more) > 1:
                info.uid = info.gid = more[1]
            if what is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(what, tuple):
                info.type, info.linkname = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}[what[0]], what[1]
            else:
                what = what.encode() if isinstance(what, str) else what
                info.size = len(what)
            archive.addfile(info, io.BytesIO(what) if isinstance(what, bytes) else None)
    return data.getvalue()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def configuration(layers, run, **more):
    return json.dumps({"architecture": "amd64", "os": "linux", "config": run,
                       "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest(layer) for layer in layers]},
                       **more}).encode()


def oci(name, layers, run, pack=gzip.compress, kind="tar+gzip", names=("1",), **more):
    blobs = at(name, "blobs/sha256")
    os.makedirs(blobs)

    def blob(data, media):
        open(os.path.join(blobs, digest(data)), "wb").write(data)
        return {"mediaType": media, "digest": "sha256:" + digest(data), "size": len(data)}

    manifest = blob(json.dumps({
        "schemaVersion": 2,
        "config": blob(configuration(layers, run, **more), "application/vnd.oci.image.config.v1+json"),
        "layers": [blob(pack(layer), f"application/vnd.oci.image.layer.v1.{kind}") for layer in layers],
    }).encode(), "application/vnd.oci.image.manifest.v1+json")
    entries = [{**manifest, "annotations": {"org.opencontainers.image.ref.name": name}} for name in names]
    open(at(name, "index.json"), "w").write(json.dumps({"schemaVersion": 2, "manifests": entries}))
    open(at(name, "oci-layout"), "w").write('{"imageLayoutVersion": "1.0.0"}')
    add(name, "oci", at(name), names[0])


def docker(name, layers, run, pack=gzip.compress):
    """As kaniko writes a tarball."""
    config = configuration(layers, run)
    packed = [pack(layer) for layer in layers]
    names = [f"{digest(layer)}.tar.gz" for layer in packed]
    manifest = [{"Config": "sha256:" + digest(config), "RepoTags": [f"localhost/{name}:1"], "Layers": names}]
    entries = [("sha256:" + digest(config), config), *zip(names, packed), ("manifest.json", json.dumps(manifest))]
    open(at(name + ".tar"), "wb").write(tar([(path, data, 0o644) for path, data in entries]))
    add(name, "docker-archive", at(name + ".tar"))


accounts_in = [("etc", None), ("etc/passwd", PASSWD, 0o644), ("etc/group", GROUP, 0o644)]
run = {"Entrypoint": ["/probe"]}
docker("kaniko", [tar([("/", None), ("/probe", probe), ("/app/", None), ("/app/run", "run", 0o644)]),
                  tar([("/", None), ("/app/", None), ("/app/.wh.run", ""), ("/app/new", "new", 0o640, 12)])],
       {**run, "Cmd": ["/app/run", "/app/new", "/app", "/"], "WorkingDir": "/app"})
oci("buildpacks", [tar([*accounts_in, ("probe", probe), ("home/app", None, 0o755, 1000)]),
                   tar([("/cnb", None), ("/cnb/process", None), ("/cnb/process/web", ("link", "/probe"))]),
                   tar([("/workspace", None, 0o755, 1000), ("/workspace/app.jar", "jar", 0o644, 1000)])],
    {"Entrypoint": ["/cnb/process/web"], "Cmd": ["/workspace/app.jar"], "User": "1000:1000", "WorkingDir": "/workspace",
     "Env": ["CNB_LAYERS_DIR=/layers", "CNB_APP_DIR=/workspace", "PATH=/cnb/process:/usr/bin"]})
store = "nix/store/0c0c0c-hello-1.0"
oci("nix", [tar([("./", None), ("./nix", None), ("./nix/store", None, 0o555), (f"./{store}", None, 0o555),
                 (f"./{store}/bin/hello", probe, 0o555), (f"./{store}/etc/passwd", PASSWD, 0o444),
                 (f"./{store}/etc/group", GROUP, 0o444)]),
            tar([("./bin", None), ("./bin/hello", ("link", f"/{store}/bin/hello")), ("./etc", None),
                 ("./etc/passwd", ("link", f"/{store}/etc/passwd")), ("./etc/group", ("link", f"/{store}/etc/group"))])],
    {"Cmd": ["/bin/hello", f"/{store}/bin"], "User": "app"}, history=None)
oci("ko", [tar([("ko-app/probe", probe, 0o555), ("var/run/ko/x", "data", 0o444)])],
    {"Entrypoint": ["/ko-app/probe"], "Cmd": ["/var/run/ko/x", "/var/run"], "User": "65532", "Env": ["PATH=/ko-app"]})
oci("plain-layers", [tar([("probe", probe)])], run, pack=lambda layer: layer, kind="tar")
oci("estargz", [tar([("probe", probe), ("x", "x", 0o644)])], {**run, "Cmd": ["/x"]},
    pack=lambda layer: gzip.compress(layer[:4096]) + gzip.compress(layer[4096:]) + gzip.compress(b""))
oci("links", [tar([("usr/lib", None), ("lib", ("link", "usr/lib")), ("probe", probe), ("usr/lib/one", "one", 0o640, 9),
                   ("lib/hard", ("hard", "usr/lib/one"), 0o640, 9)]),
              tar([("lib/two", "two", 0o600, 3), ("up", ("link", "../../etc"))])],
    {**run, "Cmd": ["/usr/lib/two", "/lib/hard", "/usr/lib", "/up"]})
oci("long-names", [tar([("probe", probe), ("d" * 120 + "/" + "f" * 150, "deep", 0o644)])],
    {**run, "Cmd": ["/" + "d" * 120 + "/" + "f" * 150]})
oci("two-names", [tar([("probe", probe)])], run, names=("a:1", "a:2"))
oci("nulls", [tar([("probe", probe)])], {**run, "Cmd": None, "Env": None, "Volumes": None, "Labels": None, "OnBuild": None},
    history=None, created=None)
oci("root-0711", [tar([("./", None, 0o711), ("probe", probe)])], {**run, "User": "1000"})
loader = os.path.realpath("/lib/ld-musl-x86_64.so.1")
oci("musl", [tar([("lib", None), ("lib/ld-musl-x86_64.so.1", open(loader, "rb").read()), *accounts_in,
                  ("bin", None), ("bin/busybox", busybox), ("bin/sh", ("link", "busybox")),
                  ("bin/probe", open(at("probe-dynamic"), "rb").read())])],
    {"Cmd": ["/bin/sh", "-c", "exec probe \"$0\" $(id -un)", "x"], "User": "app"})
# A system of Debian packages, as mmdebstrap puts it together.
shutil.copytree(debian, at("debian"))
add("debian", "oci", at("debian"), "test", ["sh", "-c", "id; pwd; echo $HOME; ls -ld /tmp /usr /bin; exit 3"])

json.dump(made, open(at("list.json"), "w"))
shutil.rmtree(at("storage"), ignore_errors=True)
