# thawd: everything that is built, tried and installed starts here. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# rustup's place, which root's PATH often lacks.
export PATH := $(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

CARGO ?= cargo
# Tests build like `cargo build` does, quickly and with checks; "make test TEST_PROFILE=release" tests what is shipped.
TEST_PROFILE ?= test
# The integration tests that also run on a pure cgroup v2 kernel: tests/NAME.rs.
V2_TESTS ?= container processes execution pool queue scaling isolation limits api leaks egress warm starvation survival accounting \
	options neighbours sandbox identities
# Seconds for each of them, and arguments for them (such as the name of one test).
V2_TIMEOUT ?= 900
V2_ARGS ?=

# The tests of time limits that last for minutes, hours and a day, which run in virtual time.
HOURS_TESTS ?= hours

# Debian releases that the systemd scenarios run on: systemd 252 and 257. Names of scenarios, if only some are to run.
SUITES ?= bookworm trixie
SCENARIOS ?=
# What runs on Debian's own kernel under QEMU, besides installation and purge. Emulation is slow: the main job is enough.
QEMU_SCENARIOS ?= 10-ready 20-delegation 25-execution

# The folders of images/ that "make images" builds.
IMAGES ?= openai anthropic google openai-slim anthropic-slim google-slim anthropic-node anthropic-node-slim workspace unified

# What "make bench" measures (all, or names separated by commas), samples of each contender, and more arguments:
# cargo bench --bench thawd -- --help.
ONLY ?=
N ?= 50
BENCH_ARGS ?=

PREFIX ?= /usr/local
DATADIR ?= /usr/share
SYSCONFDIR ?= /etc
UNITDIR ?= /usr/lib/systemd/system
SYSUSERSDIR ?= /usr/lib/sysusers.d
TMPFILESDIR ?= /usr/lib/tmpfiles.d

# Where "make audit" finds a clone of RustSec's database instead of fetching it; "required" fails where it cannot be had.
ADVISORIES ?=

# Examples that "make schemathesis" makes for each operation.
EXAMPLES ?= 200
# Seconds for each fuzz target.
FUZZ_SECONDS ?= 600
# What "make bench-unpack" measures: folders of images/, and rounds of each.
UNPACK_IMAGES ?= openai anthropic google
UNPACK_ROUNDS ?= 50
# minisign's secret key that archives of images are signed with; none are signed without.
MINISIGN_KEY ?=
define NEWLINE


endef
# Where the static programs that go into images are built.
STATIC_DIR ?= target/static

SCRIPTS = tests/deps tests/leftovers tests/audit tests/bed/uml-run tests/bed/uml-kernel tests/bed/uml-build tests/bed/test-v2 \
	tests/bed/uml-systemd tests/bed/qemu-systemd tests/bed/stock-kernel tests/bed/debian-apt tests/bed/rootfs \
	tests/bed/guest-process tests/bed/guest/init tests/bed/guest/stage2 tests/bed/guest/initrd tests/bed/guest/payload tests/systemd/run tests/systemd/guest tests/systemd/lib $(wildcard tests/systemd/scenarios/*) \
	tests/clients/tools systemd/debian/tool $(wildcard systemd/debian/p*) benches/peers fuzz/run images/crun images/twice images/fresh .ci/run \
	$(wildcard tests/demo/*.sh)

.PHONY: test-runtimes test-systemd-real images-archive help deps toolchain build deb schemathesis bench bench-parts bench-unpack fuzz images-crun images-twice fresh demo test test-suites \
	test-unit test-native test-v2 neighbours test-hours test-systemd test-qemu kernel images unified lint audit clean install need-root

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

deps: toolchain ## Install the Debian packages that are missing (as root)
	@tests/deps

toolchain:
	@command -v $(CARGO) > /dev/null || { \
		echo "cargo is missing: install Rust from https://rustup.rs (Debian's own is too old), then try again" >&2; exit 1; }
	@need=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml); have=$$(rustc --version | cut -d ' ' -f 2); \
	if [ "$$(printf '%s\n' "$$need" "$$have" | sort -V | head -n 1)" != "$$need" ]; then \
		echo "Rust $$need or newer is needed, this is $$have: run rustup update" >&2; exit 1; fi

build: toolchain ## Build the release binaries, their man pages and completions
	THAWD_COMMIT=$$(git rev-parse HEAD 2> /dev/null || true) $(CARGO) build --release --locked --workspace
	rm -rf target/release/paper
	for program in thawd thawctl; do target/release/$$program paper target/release/paper; done

demo: need-root deps build unified ## Run the three clients in frozen warm containers against an offline upstream (as root)
	$(CARGO) build --release --locked --example offline-upstream
	tests/demo/demo.sh

test: need-root deps ## Everything: lint, this kernel, cgroup v2, virtual time, systemd, Debian's kernel, nothing left (as root)
	tests/leftovers --around $(MAKE) test-suites

# In this order: what fails fast comes first.
test-suites:
	$(MAKE) lint
	$(MAKE) test-native
	$(MAKE) test-v2
	$(MAKE) test-hours
	$(MAKE) test-systemd
	$(MAKE) test-qemu

schemathesis: need-root toolchain ## Try the API with what nobody thought of, for longer than `make test` does (as root; EXAMPLES=200)
	THAWD_SCHEMATHESIS_EXAMPLES=$(EXAMPLES) $(CARGO) test --locked --profile $(TEST_PROFILE) --test generated_clients -- schemathesis

test-unit: toolchain ## The tests beside the code; no root, no containers
	$(CARGO) test --locked --profile $(TEST_PROFILE) --workspace --lib --bin thawd

test-native: need-root toolchain unified ## All tests on the running kernel (as root)
	$(CARGO) test --locked --profile $(TEST_PROFILE) --workspace

test-v2: need-root toolchain kernel ## The integration tests in V2_TESTS on a pure cgroup v2 kernel (as root)
	TEST_PROFILE=$(TEST_PROFILE) V2_TIMEOUT=$(V2_TIMEOUT) V2_ARGS='$(V2_ARGS)' tests/bed/test-v2 $(V2_TESTS)

test-systemd: need-root toolchain kernel unified ## The Debian package and its units under real systemd (as root; SUITES=trixie SCENARIOS=50-watchdog)
	TEST_PROFILE=$(TEST_PROFILE) SUITES="$(SUITES)" tests/systemd/run $(SCENARIOS)

test-systemd-real: need-root deps build kernel unified ## From the package to an answer of each real CLI, on Debian 12 and 13 (as root; SUITES=trixie)
	rm -rf target/real-archives && mkdir -p target/real-archives
	for image in openai anthropic google; do \
		target/release/thawctl image build images/$$image --output target/real-archives/$$image > /dev/null; \
		tar -C target/real-archives/$$image -cf target/real-archives/$$image.tar . && rm -r target/real-archives/$$image; \
	done
	TEST_PROFILE=$(TEST_PROFILE) SUITES="$(SUITES)" ARCHIVES=target/real-archives tests/systemd/run 07-clis

test-hours: need-root toolchain kernel ## The time limits in HOURS_TESTS at their full length, in virtual time (as root)
	TEST_PROFILE=$(TEST_PROFILE) V2_TIMEOUT=$(V2_TIMEOUT) V2_ARGS='--ignored $(V2_ARGS)' V2_VIRTUAL=1 tests/bed/test-v2 $(HOURS_TESTS)

neighbours: need-root toolchain ## What one container takes from its neighbours: each of some ninety kinds (as root, on a quiet machine)
	$(CARGO) test --locked --profile $(TEST_PROFILE) --test neighbours -- --ignored --nocapture --test-threads 1

test-qemu: need-root toolchain unified ## The Debian package at work on Debian's own kernel, emulated by QEMU (as root)
	TEST_PROFILE=$(TEST_PROFILE) BED=qemu SUITES=trixie tests/systemd/run $(QEMU_SCENARIOS)

kernel: ## Find the test bed's kernel, or build it once (6 minutes)
	@tests/bed/uml-kernel --find > /dev/null 2>&1 || tests/deps
	@tests/bed/uml-kernel

deb: build unified ## Make a Debian package of the release binaries in target/debian
	tool=$$(systemd/debian/tool); "$$tool" deb --no-build --strip

bench: need-root deps build ## Compare thawd with its peers on this machine (as root; ONLY=claim,cold N=50)
	@benches/peers
	$(CARGO) build --release --locked --example offline-upstream
	$(CARGO) bench --locked --bench thawd -- $(if $(ONLY),--only $(ONLY)) --n $(N) $(BENCH_ARGS)

bench-parts: need-root toolchain ## Measure the parts of a claim one by one (as root)
	$(CARGO) bench --locked --bench parts

# Static, so that its image holds nothing else; with paths that say nothing of this machine, so that the same source
# gives the same bytes. A target directory of its own keeps the flags away from other builds.
unified: toolchain ## Build the program of the image "unified", static and small
	host=$$(rustc -vV | sed -n 's/^host: //p'); \
	RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo --remap-path-prefix=$(CURDIR)=/thawd" \
		$(CARGO) build --locked --profile unified --package thaw-unified --target $$host --target-dir $(STATIC_DIR); \
	install -m 755 $(STATIC_DIR)/$$host/unified/thaw-unified $(STATIC_DIR)/thaw-unified

images: need-root deps build unified ## Build the images of the three clients, with tools and slim, and the one of API clients
	for image in $(IMAGES); do target/release/thawctl image build images/$$image; done

test-runtimes: export MORE := go golang-go$(NEWLINE)java default-jre-headless$(NEWLINE)
test-runtimes: need-root deps toolchain ## What Go and Java make of a container's limits; installs both (as root)
	$(CARGO) test --locked --profile $(TEST_PROFILE) --test programs -- --ignored

# minisign asks for the key's password.
images-archive: images ## Write an archive of each image to target/images, signed if MINISIGN_KEY names a key (as root)
	mkdir -p target/images
	for image in $(IMAGES); do \
		tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C /var/lib/thawd/layouts/$$image -cf target/images/$$image.tar .; \
		[ -z "$(MINISIGN_KEY)" ] || minisign -S -s '$(MINISIGN_KEY)' -t "$$image" -m target/images/$$image.tar; \
	done

fresh: need-root deps build unified ## Pin the newest packages, build the images, try the real clients, tell what changed (as root; weekly)
	images/fresh

images-twice: need-root deps build ## Build the images twice from empty caches and compare their digests and sizes
	images/twice $(IMAGES)

images-crun: need-root deps build unified kernel ## Start a container of each image with crun on cgroup v2 (as root)
	images/crun

bench-unpack: need-root deps ## Unpack the images beside umoci and tar (as root; UNPACK_IMAGES=google UNPACK_ROUNDS=50)
	$(CARGO) bench --locked --bench unpack -- $(UNPACK_ROUNDS) $(UNPACK_IMAGES)

fuzz: need-root toolchain ## Fuzz the readers of layers, manifests, accounts and control messages (as root; FUZZ_SECONDS=600 for each)
	fuzz/run $(FUZZ_SECONDS)

lint: toolchain ## Formatting, clippy, which room imports which, the API's description, and shellcheck and promtool if they are installed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) test --locked --profile $(TEST_PROFILE) --quiet --test direction
	$$(tests/clients/tools python)/python/bin/openapi-spec-validator docs/openapi.json
	@if command -v shellcheck > /dev/null; then shellcheck $(SCRIPTS); else echo "lint: shellcheck is not installed, scripts not checked"; fi
	@if command -v promtool > /dev/null; then promtool check rules monitoring/prometheus/thawd.rules.yml; promtool test rules monitoring/prometheus/thawd.rules.test.yml; else echo "lint: promtool is not installed, alert rules not checked"; fi

audit: toolchain ## Licences, sources and known vulnerabilities of all dependencies (ADVISORIES=a clone of RustSec's database)
	@ADVISORIES='$(ADVISORIES)' tests/audit

clean: ## Remove what was built (the cache of kernel and images stays)
	$(CARGO) clean

# The sample never replaces a configuration: it has a name of its own.
install: ## Install binaries, man pages, completions, manifests, units and a sample configuration (DESTDIR, PREFIX)
	@for built in thawd thawctl thaw-init paper; do \
		[ -x target/release/$$built ] || { echo "target/release/$$built is missing: run make build first" >&2; exit 1; }; done
	install -D -t $(DESTDIR)$(PREFIX)/bin target/release/thawd target/release/thawctl target/release/thaw-init
	for chapter in 1 5 8; do \
		install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man$$chapter target/release/paper/man/man$$chapter/*; done
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/bash-completion/completions target/release/paper/bash/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/zsh/site-functions target/release/paper/zsh/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d target/release/paper/fish/*
	install -D -m 644 -t $(DESTDIR)$(DATADIR)/thawd/providers providers/*.toml
	install -D -m 644 -t $(DESTDIR)$(DATADIR)/thawd/monitoring/prometheus monitoring/prometheus/*.yml
	install -D -m 644 -t $(DESTDIR)$(DATADIR)/thawd/monitoring/grafana monitoring/grafana/*.json
	install -d $(DESTDIR)$(UNITDIR)
	for unit in systemd/*.service systemd/*.socket; do \
		sed 's,/usr/bin/thawd,$(PREFIX)/bin/thawd,' $$unit > $(DESTDIR)$(UNITDIR)/$${unit##*/}; done
	install -D -m 644 systemd/thawd.sysusers $(DESTDIR)$(SYSUSERSDIR)/thawd.conf
	install -D -m 644 systemd/thawd.tmpfiles $(DESTDIR)$(TMPFILESDIR)/thawd.conf
	install -D -m 644 docs/thawd.toml $(DESTDIR)$(SYSCONFDIR)/thawd/thawd.toml.sample
	@[ -n "$(DESTDIR)" ] || echo "now: systemd-sysusers; systemd-tmpfiles --create; systemctl daemon-reload; systemctl enable --now thawd"

need-root:
	@[ "$$(id -u)" = 0 ] || { echo "this target makes real containers: run it as root" >&2; exit 1; }
