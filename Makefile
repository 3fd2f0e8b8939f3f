# Every target works from a fresh clone: it first sets up what is missing.

TOOLS := .tools/.complete
RATELIMIT := .tools/bin/ratelimit
KUBERNETES := .tools/bin/kubernetes
PROMETHEUS := .tools/bin/prometheus
CHROMIUM := .tools/bin/chromium
FUNC_E := .tools/bin/func-e
SQLITE := .tools/bin/sqlite3
WEB_SERVERS := .tools/bin/php-cgi
WRK = @command -v wrk >/dev/null || { [ "$$(id -u)" -ne 0 ] || { apt-get update -q && apt-get install -qy wrk; } >/dev/null; }
# npm writes this file last, so it shows that the installation is complete.
NODE_MODULES := $(patsubst %/package-lock.json,%/node_modules/.package-lock.json,$(wildcard book/*/package-lock.json demo/*/package-lock.json wasm-test/*/package-lock.json))

.PHONY: help run test build docs image bench hostile soak scale versions fuzz sanitize reproducible lint setup prerequisites clean

help: ## print this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18

# The tests that run again with the native module. The others are about files, documents and the wasm module.
OF_ONE_MODULE := both_modules console cost documents documents_reference image kubernetes operations settings_token web_servers
OF_BOTH_MODULES := $(filter-out $(OF_ONE_MODULE),$(basename $(notdir $(wildcard wasm-test/tests/*.rs))))

run: setup build ## start the gateway on 127.0.0.1:10000 with two demo connectors, until Ctrl-C (MODULE=native: with the native module)
	@MODULE='$(MODULE)' exec .tools/bin/python demo/run.py

test: setup build $(RATELIMIT) $(KUBERNETES) $(PROMETHEUS) $(FUNC_E) $(WEB_SERVERS) $(CHROMIUM) $(SQLITE) ## run all tests: unit, property, and end to end in real Envoy
	@scripts/prerequisites test
	cargo test --workspace --locked
	scripts/with-postgres cargo test --locked --package apexmcp-settings
	MODULE=native cargo test --locked --package wasm-test $(addprefix --test ,$(OF_BOTH_MODULES))

build: prerequisites ## build the modules, dist/apexmcp_auth.wasm and dist/libapexmcp_auth.so, and the Settings program, dist/apexmcp
	scripts/wasm build
	scripts/native
	cargo build --profile native --locked --package apexmcp-settings
	@install -m 755 target/native/apexmcp dist/.apexmcp.new && mv dist/.apexmcp.new dist/apexmcp

docs: setup ## build the book, dist/docs/index.html
	cargo run --quiet --locked --package apexmcp-book -- dist/docs

image: build ## build the OCI images of the modules, their bills of materials and checksums in dist/
	scripts/image

bench: setup build $(RATELIMIT) ## measure the cost of requests, and Settings; write target/bench.json, target/serve.json (AGAINST=OLD.wasm: compare modules)
	$(WRK)
	@.tools/bin/python bench/bench.py $(if $(AGAINST),--rounds 2 --against $(AGAINST))
	@$(if $(AGAINST),:,.tools/bin/python bench/serve.py)

hostile: setup build $(RATELIMIT) ## check the cost of the most expensive requests; write target/hostile.json
	$(WRK)
	@.tools/bin/python bench/hostile.py

soak: setup build ## check that 10 million different requests do not grow memory; write target/soak.json, docs/security/memory.svg
	$(WRK)
	@.tools/bin/python bench/soak.py

scale: setup build ## measure a million keys and 4,000 gateways, and kill programs in the middle of changes; write target/scale.json
	$(WRK)
	@.tools/bin/python bench/scale.py

versions: setup build $(RATELIMIT) $(FUNC_E) ## run the core scenarios in Envoy 1.36 to 1.40; print a table of the results
	@scripts/versions

fuzz: prerequisites ## run one fuzz target: TARGET=jws MINUTES=60
	@scripts/fuzz "$(TARGET)" "$(MINUTES)"

sanitize: prerequisites ## run the tests of the native module under AddressSanitizer and Miri
	@scripts/sanitize

reproducible: prerequisites ## build the module in two clean clones and compare them
	scripts/reproducible

lint: setup ## format and lint Rust (native and wasm), Python and shell; audit the dependencies
	cargo fmt --all --check
	.tools/bin/ruff format --check --quiet
	.tools/bin/ruff check --quiet
	scripts/shellcheck
	cargo clippy --workspace --all-targets --locked -- -D warnings
	scripts/wasm clippy
	scripts/audit

setup: $(TOOLS) $(NODE_MODULES) ## install Envoy, Node and Python packages below .tools

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

$(SQLITE): scripts/sqlite3 $(TOOLS)
	scripts/sqlite3

$(FUNC_E): scripts/func-e scripts/go scripts/go.txt $(TOOLS)
	scripts/func-e

$(NODE_MODULES): %/node_modules/.package-lock.json: %/package-lock.json $(TOOLS)
	.tools/bin/npm ci --prefix $* --no-audit --no-fund
	@touch $@

clean: ## remove built files; .tools stays
	rm -rf target dist
