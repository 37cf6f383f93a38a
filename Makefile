# Two targets do everything: "make run" and "make test". "make" alone lists all.

SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT     := mvdan.cc/gofumpt@v0.12.0
MODULES     := . e2e e2e/deploy

# What a machine must have.
GO   := Go 1.26.8 or newer
NODE := Node 20 or newer, or, where no e2e is run, set CODEX_BIN to a Codex CLI

# The Codex CLI is fetched once, unless CODEX_BIN names one.
FETCHED := configs/codex/node_modules/.package-lock.json
ifdef CODEX_BIN
override CODEX_BIN := $(if $(findstring /,$(CODEX_BIN)),$(shell realpath -ms -- '$(subst ','\'',$(CODEX_BIN))'),$(CODEX_BIN))
export CODEX_BIN
endif
CLI     := $(if $(CODEX_BIN),,$(FETCHED))

# git does not read a checkout of another user, and then Go cannot note the commit.
ifneq ($(shell git rev-parse HEAD 2>&1 >/dev/null),)
export GOFLAGS := $(shell go env GOFLAGS 2>/dev/null) -buildvcs=false
endif

# The OpenAI clients that e2e drives.
CLIENTS := e2e/clients/node_modules/.package-lock.json

# lint has vetted everything, which go test would do once more.
TESTS := -vet=off -timeout 30m

# The race detector needs a C compiler; without one the tests run without it.
RACE := $(if $(shell command -v $$(go env CC)),-race,)

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

run: build ## serve with the dev profile; CTRL-C stops
	@exec ./bin/codexpool serve --env-file configs/profiles/dev.env

build: bin/codexpool $(CLI) ## build bin/codexpool and fetch the Codex CLI

.PHONY: bin/codexpool
bin/codexpool: need-go
	@echo "building bin/codexpool"
	@go build -o $@ ./cmd/codexpool

codex: $(CLI) ## fetch the pinned Codex CLI with npm (400 MB)

$(FETCHED): configs/codex/package-lock.json configs/codex/package.json | need-npm
	@echo "fetching the Codex CLI (400 MB, once) ..."
	@cd configs/codex && npm ci

clients: $(CLIENTS) ## fetch the pinned OpenAI clients that e2e drives with npm (580 MB)

$(CLIENTS): e2e/clients/package-lock.json e2e/clients/package.json | need-npm
	@echo "fetching OpenAI clients (580 MB, once) ..."
	@cd e2e/clients && npm ci

need-go:
	@command -v go >/dev/null || { echo "go is missing: install $(GO)" >&2; exit 1; }
	@out=$$(go list -m 2>&1) || { echo "$$out"; echo "go is too old ($$(GOTOOLCHAIN=local go version)), and fetched no newer one: install $(GO)"; exit 1; } >&2

need-npm:
	@for program in node npm; do command -v $$program >/dev/null || { echo "$$program is missing: install $(NODE)" >&2; exit 1; }; done
	@major=$$(node --version | sed -E 's/^v([0-9]+).*/\1/'); [ "$$major" -ge 20 ] || { echo "node is too old ($$(node --version)): install $(NODE)" >&2; exit 1; }

test: lint unit e2e ## everything that CI runs

unit: need-go $(CLI) ## each package, with the race detector
	go test $(RACE) $(TESTS) -shuffle=on -parallel 4 ./...

# What the tests of e2e list that were skipped, because a program is missing.
MISSING := bin/missing

e2e: need-go $(CLI) $(CLIENTS) ## the built binary from outside, and what operators deploy
	@mkdir -p bin && : > $(MISSING)
	cd e2e && CODEXPOOL_E2E_MISSING="$$PWD/../$(MISSING)" go test $(TESTS) -count=1 -parallel 3 ./...
	cd e2e/deploy && go test $(TESTS) -count=1 .
	@[ ! -s $(MISSING) ] || { echo "skipped, because a program is missing:"; sort -u $(MISSING); }

ops: need-go $(CLI) ## the alerts, and the files for Prometheus and Alertmanager (make test has it too)
	cd e2e && go test $(TESTS) -count=1 -run TestOps .

mutants: need-go ## one mistake after the other in the alerts, each of which a case must notice (minutes)
	cd e2e && MUTANTS=1 go test $(TESTS) -count=1 -parallel 2 -v -run TestMutants . | grep -E '^ *(--- FAIL|FAIL|ok|mutants_test.go)'

drill: need-go $(CLI) ## troubles of the runbooks, brought about under Prometheus and Alertmanager: alert, page, cause, cure
	cd e2e && DRILL=1 go test $(TESTS) -count=1 -parallel 4 -v -run TestDrill . | grep -E '^ *(---|ok|FAIL|PASS|[a-z]+_test.go)'

mystery: need-go $(CLI) ## an exercise for whoever is on call: one of those troubles, chosen by SEED=n, of which you see the alert alone
	@cd e2e && go test -c -vet=off -o ../bin/mystery . && SEED=$(SEED) MYSTERY=1 exec ../bin/mystery -test.run '^TestMystery$$' -test.timeout 40m

rolling: need-go $(CLI) ## daemons restarted in turn behind HAProxy and Caddy, 500 requests each; replicas restarted twice, and one killed
	cd e2e && ROLLING=500 go test $(TESTS) -count=1 -v -run "TestRollingRestart|TestReplicas" . | grep -E '^ *(---|ok|FAIL|rolling|replicas)'

capacity: need-go $(CLI) ## waits beside a simulation, throughput, memory: writes the figures of runbooks/Capacity.md (12 minutes, on a quiet machine)
	cd e2e && CAPACITY=1 go test -vet=off -timeout 15m -count=1 -v -run 'TestCapacity(Sheet|Names)' . | grep -vE 'level=|"level":|^=== '

SOAK ?= 5m
soak: need-go $(CLI) ## load with faults, and 10,000 leases, in SOAK=5m; the same again with SEED=n
	cd e2e && SOAK=$(SOAK) SEED=$(SEED) go test -count=1 -timeout 0 -v -run 'TestSoak|TestManyLeases' .

ATTACK ?= 5m
attack: need-go $(CLI) ## hostile clients, answers and faults for ATTACK=5m, the same again with SEED=n
	cd e2e && ATTACK=$(ATTACK) SEED=$(SEED) go test -count=1 -timeout 0 -v -run TestAttack . | grep -v level=

export TOKENS KB
ifdef BASE
export BASE
bench: need-go $(CLI) ## times and their ratios, side by side; BASE=COMMIT compares with that commit's daemon (TOKENS=500 KB=1400)
	@e2e/bench-base -bench AgainstBase -benchtime 5x -timeout 15m
else
bench: need-go $(CLI)
	cd e2e && go test -run - -bench 'FirstToken|FarProvider|Start' -benchtime 100x . | grep -v level=
	cd e2e && go test -run - -bench 'Recovery|LongAnswer|LargeRequest' -benchtime 10x . | grep -v level=
	cd e2e && go test -run - -bench Throughput -benchtime 3x . | grep -v level=
endif

N ?= 50
scale: need-go $(CLI) ## what N=50 children cost: time, CPU, memory, descriptors; BASE=COMMIT compares
ifdef BASE
	@SCALE=$(N) e2e/bench-base -bench Scale -benchtime 1x -timeout 30m
else
	@cd e2e && SCALE=$(N) go test -run - -bench Scale -benchtime 1x -timeout 15m . | { grep -v -e level= -e '^Benchmark' -e '^PASS' || true; }
endif

PICTURES ?= 2m
pictures: need-go $(CLI) ## the pictures of README.md, from PICTURES=2m of traffic (needs Debian's prometheus and chromium-headless-shell)
	cd e2e && PICTURES=$(PICTURES) go test $(TESTS) -count=1 -run TestPictures .

fuzz: need-go ## each fuzz target for a minute
	go test -run - -fuzz FuzzLines -fuzztime 1m ./codex
	go test -run - -fuzz FuzzDecode -fuzztime 1m ./api
	go test -run - -fuzz FuzzUnmarshal -fuzztime 1m ./api
	go test -run - -fuzz FuzzStream -fuzztime 1m ./api
	go test -run - -fuzz FuzzStop -fuzztime 1m ./api
	go test -run - -fuzz FuzzAnswer -fuzztime 1m ./upstream

cover: need-go $(CLI) ## coverage of the packages by their tests, in cover.out
	go test -coverpkg=./... -coverprofile=cover.out ./...
	go tool cover -func=cover.out | tail -1

lint: need-go ## formatting, vet, staticcheck, tidy modules
	@for dir in $(MODULES); do ( cd $$dir && echo "lint $$dir" \
	  && bad=$$(go run $(GOFUMPT) -l . ) && { [ -z "$$bad" ] || { echo "run make fmt: $$bad" >&2; exit 1; }; } \
	  && go vet ./... && go run $(STATICCHECK) ./... && go mod tidy -diff ) || exit 1; done

fmt: need-go ## format the code
	go run $(GOFUMPT) -w .

image: ## build the container image codexpool, tagged latest and with its version (needs docker)
	version=$$(git describe --always --dirty) && docker build -t codexpool -t codexpool:$$version --build-arg VERSION=$$version --build-arg COMMIT=$$(git rev-parse HEAD) .

# The newest in CHANGELOG.md.
VERSION ?= v$(shell sed -nE 's/^## ([0-9.]+) - .*/\1/p' CHANGELOG.md | head -1)
release: need-go need-npm ## archives and Debian packages for linux, in bin/release (VERSION=v0.1.0)
	@configs/release/build "$(VERSION)" bin/release

test-deploy: release $(CLI) ## a release, built twice, installed and removed in an empty Debian; the chart; back to the commit before
	cd e2e/deploy && go test $(TESTS) -count=1 ./release ./kubernetes
	cd e2e && ROLLBACK=1 go test $(TESTS) -count=1 -v -run TestReleaseGoes .

clean: ## remove what was built and fetched
	rm -rf bin configs/codex/node_modules e2e/clients/node_modules cover.out

.PHONY: help run build codex clients need-go need-npm test unit e2e ops mutants drill mystery rolling soak attack bench scale capacity pictures fuzz cover lint fmt image release test-deploy clean
