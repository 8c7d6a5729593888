# make run    start a server on http://127.0.0.1:8008 with its data in ./chatd-data
# make test   all tests, real Matrix clients and Synapse included
# make lint   formatting and clippy, warnings as errors
# make bench  the measurements behind the figures in README.md
#
# Debian packages that are missing are installed, with sudo unless this is root.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run build test lint bench packages clients synapse

CHATD := target/release/chatd
DATA_DIR ?= chatd-data

help:
	@sed -n 's/^# \(make .*\)/  \1/p' Makefile

run: build
	@echo
	@echo "  chatd will answer on http://127.0.0.1:8008; its data is in ./$(DATA_DIR)."
	@echo "  To create a user, run in another terminal:"
	@echo
	@echo "      $(CHATD) register-user -u alice --data-dir $(DATA_DIR)"
	@echo
	@exec $(CHATD) run --data-dir $(DATA_DIR)

build: packages
	cargo build --release --locked

# The generated proxy configurations are tried with the proxies themselves, fleets with a real Redis.
test: programs = nginx haproxy caddy redis-server
test: packages clients synapse
	@if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --workspace --locked; \
	else \
		cargo test --workspace --locked; \
	fi

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

bench: packages
	cargo bench --bench figures --locked

# What the programs and the embedded database need: a C compiler, and PostgreSQL's programs.
packages:
	@command -v cargo >/dev/null || { \
		echo "there is no Rust toolchain; install one as https://rustup.rs says" >&2; exit 1; }
	@missing=(); \
	command -v cc >/dev/null || missing+=(build-essential); \
	compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null \
		|| missing+=(postgresql); \
	for program in $(programs); do \
		PATH="$$PATH:/usr/sbin" command -v $$program >/dev/null || missing+=($$program); \
	done; \
	if [ $${#missing[@]} != 0 ]; then \
		echo "installing Debian packages: $${missing[*]}"; \
		as_root() { if [ "$$(id -u)" = 0 ]; then "$$@"; else sudo "$$@"; fi; }; \
		command -v apt-get >/dev/null || { echo "install them by other means: there is no apt-get" >&2; \
			exit 1; }; \
		as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends \
			"$${missing[@]}" >/dev/null; \
	fi

# matrix-nio and matrix-js-sdk, which talk to the server in the tests.
clients:
	@tests/clients/install.sh

# Synapse, which the federation tests compare with.
synapse:
	@tests/synapse/install.sh
