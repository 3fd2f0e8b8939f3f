# Every target works from a fresh clone: it sets up what is missing first.

TOOLS := .tools/.complete
RATELIMIT := .tools/bin/ratelimit
KUBERNETES := .tools/bin/kubernetes
PROMETHEUS := .tools/bin/prometheus
CHROMIUM := .tools/bin/chromium
FUNC_E := .tools/bin/func-e
WEB_SERVERS := .tools/bin/php-cgi
WRK = @command -v wrk >/dev/null || { [ "$$(id -u)" -ne 0 ] || { apt-get update -q && apt-get install -qy wrk; } >/dev/null; }
# npm writes this file last.
NODE_MODULES := $(patsubst %/package-lock.json,%/node_modules/.package-lock.json,$(wildcard demo/*/package-lock.json wasm-test/*/package-lock.json))

.PHONY: help run test build image bench hostile soak versions fuzz reproducible lint setup prerequisites clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

run: setup build ## the gateway on 127.0.0.1:10000 with two demo connectors, until Ctrl-C
	@exec .tools/bin/python demo/run.py

test: setup build $(RATELIMIT) $(KUBERNETES) $(PROMETHEUS) $(FUNC_E) $(WEB_SERVERS) $(CHROMIUM) ## every test: unit, property, end to end in real Envoy
	@scripts/prerequisites test
	cargo test --workspace --locked

build: prerequisites ## dist/apexmcp_auth.wasm, and Settings: dist/apexmcp
	scripts/wasm build
	cargo build --profile native --locked --package apexmcp-settings
	@install -m 755 target/native/apexmcp dist/.apexmcp.new && mv dist/.apexmcp.new dist/apexmcp

image: build ## dist/apexmcp-auth.oci.tar for Istio and Envoy Gateway, its bill of materials and checksums
	scripts/image

bench: setup build $(RATELIMIT) ## what it costs; prints a table and writes target/bench.json (AGAINST=OLD.wasm: beside an earlier module)
	$(WRK)
	@.tools/bin/python bench/bench.py $(if $(AGAINST),--rounds 2 --against $(AGAINST))

hostile: setup build $(RATELIMIT) ## what the costliest requests cost, and whether that is too much; prints a table and writes target/hostile.json
	$(WRK)
	@.tools/bin/python bench/hostile.py

soak: setup build ## whether memory stays flat, under 10 million requests that differ; writes target/soak.json, docs/memory.svg
	$(WRK)
	@.tools/bin/python bench/soak.py

versions: setup build $(RATELIMIT) $(FUNC_E) ## the core scenarios in Envoy 1.36 to 1.40; prints what works where
	@scripts/versions

fuzz: prerequisites ## one fuzz target for long: TARGET=jws MINUTES=60
	@scripts/fuzz "$(TARGET)" "$(MINUTES)"

reproducible: prerequisites ## builds the module in two clean clones and compares them
	scripts/reproducible

lint: setup ## format and lint Rust (native and wasm), Python and shell; audit the dependencies
	cargo fmt --all --check
	.tools/bin/ruff format --check --quiet
	.tools/bin/ruff check --quiet
	scripts/shellcheck
	cargo clippy --workspace --all-targets --locked -- -D warnings
	scripts/wasm clippy
	scripts/audit

setup: $(TOOLS) $(NODE_MODULES) ## Envoy, Node and Python packages, below .tools

prerequisites:
	@scripts/prerequisites

$(TOOLS): requirements.txt scripts/tools | prerequisites
	@mkdir -p $(@D)
	scripts/tools
	@touch $@

$(RATELIMIT): scripts/ratelimit scripts/go scripts/go.txt $(TOOLS)
	scripts/ratelimit

$(KUBERNETES): scripts/kubernetes scripts/go scripts/go.txt $(wildcard wasm-test/kubernetes/*) $(TOOLS)
	scripts/kubernetes

$(PROMETHEUS): scripts/prometheus $(TOOLS)
	scripts/prometheus

$(WEB_SERVERS): scripts/web-servers $(TOOLS)
	scripts/web-servers

$(CHROMIUM): scripts/chromium $(TOOLS)
	scripts/chromium

$(FUNC_E): scripts/func-e scripts/go scripts/go.txt $(TOOLS)
	scripts/func-e

$(NODE_MODULES): %/node_modules/.package-lock.json: %/package-lock.json $(TOOLS)
	.tools/bin/npm ci --prefix $* --no-audit --no-fund
	@touch $@

clean: ## removes what was built (what was set up stays in .tools)
	rm -rf target dist
