VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -X main.version=$(VERSION)
FUZZTIME ?= 30s
SKIPPED  := $(CURDIR)/.skipped

.DEFAULT_GOAL := help
.PHONY: help build run dev test lint gen check chaos bench bench-api bench-bus fuzz

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## the program: bin/refinery
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/refinery ./cmd/refinery

run: build ## start everything and build the wheels of examples/requirements.txt (ONCE=1: exit when they are done)
	bin/refinery up -r examples/requirements.txt --build all $(if $(ONCE),--once)

dev: ## start everything from source, with race detector and debug log
	LOG_LEVEL=debug go run -race ./cmd/refinery up

test: ## all tests (TESTFLAGS='-run X -v' for some); the last lines name what was skipped
	@rm -f $(SKIPPED)
	@REFINERY_SKIPPED=$(SKIPPED) go test -shuffle=on -timeout 20m $(TESTFLAGS) ./...; code=$$?; \
	if [ -f $(SKIPPED) ]; then echo; cat $(SKIPPED); fi; exit $$code

lint: ## formatting, vet, staticcheck, complete type switches
	@files=$$(go tool gofumpt -l .) && if [ -n "$$files" ]; then echo "$$files"; echo 'not formatted: go tool gofumpt -w .'; exit 1; fi
	go vet ./...
	go tool staticcheck ./...
	go tool go-check-sumtype ./...

gen: ## generate code anew
	go generate ./...

check: ## exactly what CI runs: generated code is fresh, lint, test
	@state() { git diff; git status --porcelain; }; before=$$(state) && $(MAKE) gen && \
	if [ "$$before" != "$$(state)" ]; then git status --short; echo 'generated code was not fresh: commit what make gen changed'; exit 1; fi
	$(MAKE) lint
	$(MAKE) test CHAOS_TIME=2m

chaos: ## processes killed and connections cut on each transport for CHAOS_TIME (5m); CHAOS_SEED chooses the same again
	CHAOS_TIME=$(or $(CHAOS_TIME),5m) CHAOS_SEED=$(CHAOS_SEED) go test -run '^TestChaos$$' -count 1 -v -timeout 20m ./cmd/refinery

bench: ## benchmarks, each beside its limit
	go test -run '^$$' -bench . -skip '^Benchmark(API|Bus)$$' -timeout 30m -p 1 ./...

bench-api: ## reads over HTTP at 10,000 and at 1,000,000 events (BENCH_EVENTS=…), each beside its limit
	BENCH_EVENTS=$(BENCH_EVENTS) go test -run '^$$' -bench '^BenchmarkAPI$$' -benchtime 1x -timeout 60m ./cmd/refinery

bench-bus: ## each transport by itself, and commands through it from POST to GET, beside the limits
	go test -run '^$$' -bench . -timeout 30m -p 1 ./bus/...
	go test -run '^$$' -bench '^BenchmarkBus$$' -benchtime 1x -timeout 30m ./cmd/refinery

fuzz: ## each fuzz target for FUZZTIME (30s)
	@list=$$(go test -list '^Fuzz' ./...) || { echo "$$list"; exit 1; }; echo "$$list" | awk '/^Fuzz/ { names[++n] = $$1 } /^ok/ { while (n) print names[n--], $$2 }' | \
	while read -r name package; do \
		echo "$$package $$name"; go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$package" || exit 1; \
	done
