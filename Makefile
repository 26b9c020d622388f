# Everything is a target; `make help` lists them.
SHELL := /bin/bash
CACHE ?= $(or $(BLOCKMOVER_CACHE),$(HOME)/.cache/blockmover)
NAME ?= blockmover
CLUSTER := $(CACHE)/bin/cluster

# Builds and tests share their compiled packages only with the same settings.
export CGO_ENABLED := 0
export GOFLAGS := -buildvcs=false -trimpath

export BLOCKMOVER_CACHE := $(CACHE)
export BLOCKMOVER_CLUSTER := $(NAME)
export BLOCKMOVER_E2E := $(CURDIR)/e2e

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: cluster-command
cluster-command:
	@mkdir -p $(CACHE)/bin
	@cd e2e && go build -ldflags '-s -w' -o $(CLUSTER) ./cmd/cluster

.PHONY: cluster-build
cluster-build: cluster-command ## fill the cache: binaries, container runtime, images
	@$(CLUSTER) build

.PHONY: cluster-up
cluster-up: cluster-command ## start the test cluster (NAME=blockmover, VELERO=1 installs Velero too)
	@$(CLUSTER) up $(if $(VELERO),--velero)

.PHONY: cluster-down
cluster-down: ## stop the test cluster and remove everything it left
	@test -x $(CLUSTER) || $(MAKE) --no-print-directory cluster-command
	@$(CLUSTER) down

.PHONY: images
images: cluster-build ## make the container images as docker-archives, print their paths
	@$(CLUSTER) images load --save

# The time of the commit, so that two builds of it give one digest.
IMAGES := $(CURDIR)/dist/images
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)

.PHONY: release-images
release-images: ## the images for amd64 and arm64, with SBOMs, in dist/images (VERSION=v1.2.3)
	@rm -rf $(IMAGES) && mkdir -p $(dir $(IMAGES))
	@cd e2e && go run ./cmd/release --source $(CURDIR) --version $(VERSION) --revision "$$(git rev-parse HEAD)" $(IMAGES)

# Helm is built from the module that tests the chart.
.PHONY: chart
chart: ## the Helm chart in dist/charts (VERSION=v1.2.3)
	@mkdir -p dist/charts
	@cd e2e/helm && go tool helm package $(CURDIR)/deploy --destination $(CURDIR)/dist/charts --version $(VERSION:v%=%) --app-version $(VERSION)

.PHONY: quickstart
quickstart: ## backup, restore and verify of one volume, without a cluster and without root
	@mkdir -p $(CACHE)/bin
	@go build -ldflags '-s -w' -o $(CACHE)/bin/quickstart ./mover
	@hack/quickstart.sh $(CACHE)/bin/quickstart

# The scenarios run on a cluster of their own, or on the one that KUBECONFIG
# names. BLOCKMOVER_RETAINED_BACKUPS=20 makes one of them longer: e2e/README.md.
SCENARIOS := $(CACHE)/bin/scenarios.test
DEMO := $(CACHE)/bin/demo

.PHONY: demo
demo: cluster-build ## the main job, start to finish, on a cluster of its own
	@cd e2e && go build -o $(DEMO) ./cmd/demo
	@E2E_DEPLOY_DIR=$(CURDIR)/deploy hack/with-cluster.sh demo $(DEMO)

# The tests with VMs run with real KubeVirt, or with what stands in for it.
VMS := $(CACHE)/bin/kubevirt.test

# A run of chaos goes on after the last round in its log, which has seed, faults and result of each.
CHAOS := $(CACHE)/bin/chaos
CHAOS_LOG ?= $(CACHE)/chaos/log.jsonl
CHAOS_DURATION ?= 30m

.PHONY: e2e-binaries
e2e-binaries: cluster-build
	@cd e2e && go test -c -o $(SCENARIOS) ./scenarios && go test -c -o $(VMS) ./kubevirt && go build -o $(CACHE)/bin/rights ./cmd/rights && go build -o $(CHAOS) ./cmd/chaos

.PHONY: e2e
e2e: e2e-binaries ## the scenarios, the tests with VMs and some chaos, on three clusters (RUN=regexp picks some scenarios, on one)
	@E2E_DEPLOY_DIR=$(CURDIR)/deploy hack/e2e.sh $(SCENARIOS) $(VMS) $(CHAOS) $(if $(RUN),'$(RUN)')

.PHONY: vm-e2e
vm-e2e: e2e-binaries ## VMs, with what stands in for KubeVirt, on a cluster of its own (RUN=regexp picks some tests)
	@E2E_DEPLOY_DIR=$(CURDIR)/deploy hack/with-cluster.sh vm $(VMS) -test.v -test.timeout 60m $(if $(RUN),-test.run '$(RUN)')

# Real KubeVirt is built from the module cache, and from packages of Debian.
KUBEVIRT_VERSION ?= v1.8.2
KUBEVIRT := $(CACHE)/kubevirt-$(KUBEVIRT_VERSION)

.PHONY: kubevirt-e2e
kubevirt-e2e: e2e-binaries ## VMs on real KubeVirt, on a cluster of its own (KUBEVIRT_VERSION=v1.8.2|v1.9.0, RUN=regexp picks some tests)
	@e2e/kubevirt/build.sh $(KUBEVIRT) $(KUBEVIRT_VERSION)
	@BLOCKMOVER_KUBEVIRT=$(KUBEVIRT) BLOCKMOVER_AUDIT=$(KUBEVIRT)/audit.log E2E_DEPLOY_DIR=$(CURDIR)/deploy \
		hack/with-cluster.sh kubevirt $(VMS) -test.v -test.timeout 60m $(if $(RUN),-test.run '$(RUN)')
	@$(if $(RUN),,$(CACHE)/bin/rights $(CURDIR)/deploy/kubevirt $(KUBEVIRT)/audit.log)

.PHONY: chaos
chaos: cluster-build ## faults at random moments, and a judge (CHAOS_DURATION=30m CHAOS_SEED=number CHAOS_MIX=worker=3,s3; e2e/README.md has more)
	@cd e2e && go build -o $(CHAOS) ./cmd/chaos
	@E2E_DEPLOY_DIR=$(CURDIR)/deploy hack/with-cluster.sh $(or $(E2E_NAME),chaos) $(CHAOS) --log $(CHAOS_LOG) --duration $(CHAOS_DURATION) \
		$(if $(CHAOS_SEED),--seed $(CHAOS_SEED)) $(if $(CHAOS_MIX),--mix $(CHAOS_MIX)) $(if $(CHAOS_FAULTS),--faults $(CHAOS_FAULTS)) $(if $(KEEP_GOING),--keep-going)

# Tests mount file systems. In a mount namespace of their own, nothing of them stays, however they
# end, and a container that starts meanwhile does not keep them busy.
PRIVATE := $(if $(filter 0,$(shell id -u)),unshare --mount)

.PHONY: unit
unit: ## unit tests of all modules; as root they use loop devices
	$(PRIVATE) go test -timeout 20m ./...
	cd e2e && go test $$(go list ./... | grep -v -e /scenarios -e /csidriver -e /kubevirt -e /kit -e /release)
	@# Go keeps the result of a test although a file outside of its module has changed.
	cd e2e && go test -count=1 ./kit ./release
	cd e2e/helm && go test -count=1 ./...

FUZZTIME ?= 20s

.PHONY: fuzz
fuzz: ## every fuzz target for some time (FUZZTIME=20s, FUZZ=regexp picks some, FUZZ_MEMORY=2048 MiB for each process)
	@hack/fuzz.sh $(FUZZTIME) $(if $(FUZZ),'$(FUZZ)')

.PHONY: csi-sanity
csi-sanity: cluster-build ## kubernetes-csi's sanity suite and our own tests on the test driver
	cd e2e && go test ./csidriver/...

# The soak has binaries of its own, and needs no cluster.
SOAK := $(CACHE)/soak
SOAK_STEPS ?= 200

.PHONY: soak
soak: ## as root: random lives of volumes against a model (SOAK_STEPS=200 SOAK_SEED=number)
	@mkdir -p $(SOAK)
	@cd e2e && go build -o $(SOAK)/csidriver ./csidriver
	@cd e2e/velero && go build -o $(SOAK)/kopia github.com/kopia/kopia
	@cd e2e/soak && go test -c -o $(SOAK)/soak.test .
	@BLOCKMOVER_SOAK_DRIVER=$(SOAK)/csidriver BLOCKMOVER_SOAK_KOPIA=$(SOAK)/kopia \
		BLOCKMOVER_SOAK_STEPS=$(SOAK_STEPS) BLOCKMOVER_SOAK_SEED=$(SOAK_SEED) \
		$(SOAK)/soak.test -test.v -test.timeout 0

.PHONY: soak-short
soak-short:
	@$(MAKE) --no-print-directory soak SOAK_STEPS=80 SOAK_SEED=$(or $(SOAK_SEED),1)

# The benchmark has binaries of its own: a cluster that runs keeps its.
BENCH := $(CACHE)/bench
BENCH_SIZE ?= 4Gi
BENCH_RUNS ?= 3
BENCH_LINES ?= 3

.PHONY: bench
bench: ## as root: against stock kopia and the bare device (BENCH_SIZE=4Gi BENCH_RUNS=3)
	@mkdir -p $(BENCH)
	@go build -o $(BENCH)/blockmover ./mover
	@go build -o $(BENCH)/bench ./hack/bench
	@cd e2e/velero && go build -o $(BENCH)/kopia github.com/kopia/kopia
	@$(BENCH)/bench --blockmover $(BENCH)/blockmover --kopia $(BENCH)/kopia \
		--text "$$(go env GOROOT)/src" --size $(BENCH_SIZE) --runs $(BENCH_RUNS) --out $(BENCH)/bench.json

.PHONY: bench-link
bench-link: ## as root: over links to an object store, against stock kopia (BENCH_SIZE=4Gi BENCH_RUNS=3 BENCH_LINES=3)
	@mkdir -p $(BENCH)
	@go build -o $(BENCH)/bench ./hack/bench
	@cd e2e/velero && go build -o $(BENCH) github.com/kopia/kopia github.com/versity/versitygw/cmd/versitygw
	@$(BENCH)/bench --link $(BENCH)/versitygw --lines $(BENCH_LINES) --kopia $(BENCH)/kopia \
		--text "$$(go env GOROOT)/src" --size $(BENCH_SIZE) --runs $(BENCH_RUNS)

.PHONY: bench-slow
bench-slow: ## as root: devices whose accesses take 0, 1 and 5 ms, against the bare device (BENCH_SIZE=4Gi BENCH_RUNS=3)
	@mkdir -p $(BENCH)
	@go build -o $(BENCH)/blockmover ./mover
	@go build -o $(BENCH)/bench ./hack/bench
	@cd e2e/velero && go build -o $(BENCH)/kopia github.com/kopia/kopia
	@$(BENCH)/bench --slow --blockmover $(BENCH)/blockmover --kopia $(BENCH)/kopia \
		--text "$$(go env GOROOT)/src" --size $(BENCH_SIZE) --runs $(BENCH_RUNS) --out $(BENCH)/bench-slow.json

.PHONY: bench-limits
bench-limits: ## peak memory of volumes of 1 GiB to 10 TiB, and what is done again after a kill
	@mkdir -p $(BENCH)
	@go build -o $(BENCH)/blockmover ./mover
	@go build -o $(BENCH)/bench ./hack/bench
	@$(BENCH)/bench --limits --blockmover $(BENCH)/blockmover

BENCH_INCREMENTS ?= 10

.PHONY: bench-vm
bench-vm: ## a VM's disk with increments: qcow2 files and images beside each other (BENCH_SIZE=4Gi BENCH_INCREMENTS=10)
	@mkdir -p $(BENCH)
	@go build -o $(BENCH)/benchvm ./hack/benchvm
	@$(BENCH)/benchvm --size $(BENCH_SIZE) --increments $(BENCH_INCREMENTS)

QUEUE_MANAGERS ?= now=$(BENCH)/blockmover

.PHONY: bench-queue
bench-queue: cluster-build ## what 1,000 queued DataUploads cost the API server (QUEUE_MANAGERS="now=PATH before=PATH")
	@mkdir -p $(BENCH)
	@go build -o $(BENCH)/blockmover ./mover
	@go build -o $(BENCH)/benchqueue ./hack/benchqueue
	@$(BENCH)/benchqueue --kube $(CACHE)/bin/kube --crds $(CACHE)/crds $(addprefix --manager ,$(QUEUE_MANAGERS))

QUEUE_MEMORY ?= 1,100,1000,2000

.PHONY: bench-manager
bench-manager: cluster-build ## peak memory of a manager with so many DataUploads (QUEUE_MEMORY=1,100,1000,2000)
	@mkdir -p $(BENCH)
	@go build -o $(BENCH)/blockmover ./mover
	@go build -o $(BENCH)/benchqueue ./hack/benchqueue
	@$(BENCH)/benchqueue --kube $(CACHE)/bin/kube --crds $(CACHE)/crds --manager now=$(BENCH)/blockmover --memory $(QUEUE_MEMORY)

.PHONY: lint
lint: ## golangci-lint on all modules
	@mkdir -p $(CACHE)/bin
	@cd tools/lint && go build -o $(CACHE)/bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	$(CACHE)/bin/golangci-lint run ./...
	@# Not cmd/kube: it is 60 lines, and all of Kubernetes would be analyzed for it.
	cd e2e && $(CACHE)/bin/golangci-lint run $$(go list -f '{{.Dir}}' ./... | grep -v /cmd/kube)
	cd e2e/soak && $(CACHE)/bin/golangci-lint run ./...
	cd e2e/helm && $(CACHE)/bin/golangci-lint run ./...

.PHONY: test
test: cluster-build lint unit csi-sanity soak-short e2e ## everything that CI runs
