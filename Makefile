# byokfs. One file, no recursion. `make`, `make check`, `make try`, `make bench`, `make lint`, `make install`.
# V=1 shows commands; WERROR=1 (as in CI) turns warnings into errors; SAN=address|thread makes a sanitizer build in its own directory.

PREFIX  ?= /usr/local
DESTDIR ?=
CC      ?= gcc
SAN     ?=
LOCKPROF ?=
BUILD   ?= build$(if $(SAN),-$(SAN))$(if $(LOCKPROF),-lockprof)
PYTHON  ?= /usr/bin/python3

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo 1.0.0)

PKGS     := fuse3 libsodium libcrypto libcurl inih jansson expat
PKG_CFLAGS = $(shell pkg-config --cflags $(PKGS) libmicrohttpd p11-kit-1 2>/dev/null)
LIBS      = $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lpthread

WARN := -Wall -Wextra -Wshadow -Wvla -Wformat=2 -Wstrict-prototypes -Wmissing-prototypes \
	-Wwrite-strings -Wcast-qual -Wundef -Wconversion -Wimplicit-fallthrough $(if $(WERROR),-Werror)
HARDEN := -fstack-protector-strong -fstack-clash-protection -fcf-protection -fPIE
ifeq ($(SAN),)
HARDEN += -D_FORTIFY_SOURCE=3 -ftrivial-auto-var-init=zero
OPT ?= -O2 -g
else ifeq ($(SAN),address)
OPT ?= -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
else
OPT ?= -O1 -g -fsanitize=$(SAN) -fno-omit-frame-pointer
endif
CPPFLAGS += -Iinclude -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DFUSE_USE_VERSION=312 -DBYOKFS_VERSION='"$(VERSION)"'
CFLAGS   += -std=gnu11 $(OPT) $(WARN) $(HARDEN) $(PKG_CFLAGS)
LDFLAGS  += -pie -Wl,-z,relro,-z,now,-z,noexecstack $(filter -fsanitize%,$(OPT))

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' $(1) $(2))

SRC   := $(filter-out src/main.c,$(wildcard src/*.c))
OBJ   := $(SRC:%.c=$(BUILD)/%.o)
CTL   := $(filter-out tools/byokfs-devkms% tools/devkms%,$(wildcard tools/*.c))
KMSD  := $(wildcard tools/byokfs-devkms*.c tools/devkms*.c)
UNITS := $(patsubst tests/unit/%.c,$(BUILD)/unit/%,$(wildcard tests/unit/test_*.c))
# What tests/tools/lockprof.c stands in for.
WRAPPED := -Wl,--wrap=pthread_mutex_lock -Wl,--wrap=pthread_rwlock_rdlock -Wl,--wrap=pthread_rwlock_wrlock
PROGRAMS := $(BUILD)/byokfs $(BUILD)/byokfsctl $(BUILD)/byokfs-devkms

.PHONY: all clean
.SECONDARY:
all: $(PROGRAMS)

$(BUILD)/libbyokfs.a: $(OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^
$(BUILD)/byokfs: $(BUILD)/src/main.o $(if $(LOCKPROF),$(BUILD)/tests/tools/lockprof.o) $(BUILD)/libbyokfs.a
	$(call say,LD,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(if $(LOCKPROF),$(WRAPPED)) -o $@ $^ $(LIBS)
$(BUILD)/byokfsctl: $(CTL:%.c=$(BUILD)/%.o) $(BUILD)/libbyokfs.a
	$(call say,LD,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)
$(BUILD)/byokfs-devkms: $(KMSD:%.c=$(BUILD)/%.o) $(BUILD)/libbyokfs.a
	$(call say,LD,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS) -lmicrohttpd
$(BUILD)/unit/%: $(BUILD)/tests/unit/%.o $(BUILD)/libbyokfs.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS) -lcmocka
# A PKCS#11 module that misbehaves, for the tests of that provider.
$(BUILD)/unit/test_kms_pkcs11: | $(BUILD)/unit/fake_pkcs11.so
$(BUILD)/unit/fake_pkcs11.so: tests/unit/fake_pkcs11.c tests/unit/fake_pkcs11.h
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -fPIC -shared -Wl,-z,relro,-z,now -o $@ $<
$(BUILD)/%.o: %.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# --- what a bare Debian 12 lacks ------------------------------------------------------------------------------------
DEPS_BUILD := gcc make pkg-config libfuse3-dev fuse3 libsodium-dev libssl-dev libcurl4-openssl-dev libinih-dev libjansson-dev \
	libexpat1-dev libmicrohttpd-dev libp11-kit-dev ca-certificates
DEPS_TEST  := procps glusterfs-server libcmocka-dev python3-pytest python3-pytest-xdist python3-boto3 python3-cryptography awscli git rsync sqlite3 attr acl mandoc strace xfsprogs e2fsprogs curl vim-tiny jq softhsm2 opensc gocryptfs fio quota
DEPS_LINT  := clang-tidy cppcheck
DEPS_BENCH := securefs encfs cryfs bindfs
DEPS_DEB   := debhelper dpkg-dev lintian
SUDO       := $(if $(filter 0,$(shell id -u)),,sudo)

# $(call need,PACKAGES): installs what is missing of them, quietly; nothing missing costs no apt call.
need = missing=$$(for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing:" $$missing; $(SUDO) apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

.PHONY: deps deps-test deps-lint deps-bench deps-deb
deps:
	@$(call need,$(DEPS_BUILD))
deps-test: deps
	@$(call need,$(DEPS_TEST))
deps-lint: deps
	@$(call need,$(DEPS_LINT))
deps-bench: deps
	@$(call need,$(DEPS_BENCH))

deps-deb: deps
	@$(call need,$(DEPS_DEB))

# --- tests ----------------------------------------------------------------------------------------------------------
PYTEST := $(PYTHON) -B -m pytest -p no:cacheprovider -q --no-header
# Mount tests wait more than they work: one more process than there are cores. The tests of one file stay together, in order.
MOUNT_JOBS ?= $(shell expr $$(nproc) + 1)
MOUNT_PYTEST = $(PYTEST) -n $(MOUNT_JOBS) --dist loadfile

.PHONY: check unit style conformance mount-test asan check-asan units tools-test
# A package installed a moment ago changes what pkg-config says, so everything after deps is a make of its own.
check: deps-test deps-deb
	@$(MAKE) --no-print-directory -j$$(nproc) WERROR=$(WERROR) all units tools-test
	@$(MAKE) --no-print-directory unit style conformance mount-test
	@$(MAKE) --no-print-directory check-asan

units: $(UNITS)
# lockprof.c is no program: it is linked into a daemon by LOCKPROF=1.
tools-test: $(patsubst tests/tools/%.c,$(BUILD)/tests/tools/%,$(filter-out tests/tools/lockprof.c,$(wildcard tests/tools/*.c)))
$(BUILD)/tests/tools/%: $(BUILD)/tests/tools/%.o $(BUILD)/libbyokfs.a
	$(call say,LD,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

unit: $(UNITS)
	@fail=0; for t in $(abspath $(UNITS)); do echo "== $$(basename $$t)"; (cd tests && $$t 2>&1) || fail=1; done; exit $$fail
style:
	@sh tests/style/run.sh
conformance: all tools-test
	BUILD=$(abspath $(BUILD)) $(PYTEST) tests/conformance tests/reader
mount-test: all $(BUILD)/unit/fake_pkcs11.so
	BUILD=$(abspath $(BUILD)) $(MOUNT_PYTEST) tests/mount
# The unit layer and the heart of the mount layer once more under AddressSanitizer and UndefinedBehaviorSanitizer.
check-asan:
	@$(MAKE) --no-print-directory -j$$(nproc) SAN=address all units
	@$(MAKE) --no-print-directory SAN=address unit
	BUILD=$(abspath build-address) $(MOUNT_PYTEST) tests/mount -m sanitizer

# --- analysis -------------------------------------------------------------------------------------------------------
.PHONY: lint
# gcc 12's analyzer does not follow cleanup attributes, out-parameters and interior pointers: these two kinds were all false.
ANALYZER_OFF := -Wno-analyzer-use-of-uninitialized-value -Wno-analyzer-malloc-leak
lint: deps-lint deps-test
	@$(MAKE) --no-print-directory style
	cppcheck --quiet --std=c11 --enable=warning,portability,performance --inline-suppr --error-exitcode=1 -j2 -Iinclude -Itools \
		-D_GNU_SOURCE --suppress=missingIncludeSystem --suppress=unknownMacro --suppress=memleak --suppress=uninitvar '-DSTAILQ_HEAD(n,t)=struct n{struct t*f;}' src tools
	ls src/*.c tools/*.c | grep -v devkms | TIDY='-std=gnu11 -Iinclude -Itools -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DFUSE_USE_VERSION=312 \
		-DBYOKFS_VERSION="lint" $(PKG_CFLAGS)' xargs -P2 -n4 sh -c 'clang-tidy --quiet --warnings-as-errors="*" "$$@" -- $$TIDY 2>/dev/null' _
	@$(MAKE) --no-print-directory BUILD=build-analyzer OPT='-O2 -g -fanalyzer $(ANALYZER_OFF)' WERROR=1 all 

# --- trial, bench, installation -------------------------------------------------------------------------------------
.PHONY: try untry bench bench-plots bench-scale install deb
try: deps
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@sh tools/try.sh start $(BUILD)
untry:
	@sh tools/try.sh stop $(BUILD)
bench: deps-bench deps-test
	@$(MAKE) --no-print-directory -j$$(nproc) all
	BUILD=$(abspath $(BUILD)) $(PYTHON) -B tests/bench/bench.py $(BENCH)
# Pictures of the last run, and of what else is named: make bench-plots PLOTS="$(BUILD)/bench.json curve.json"
PLOTS ?= $(BUILD)/bench.json
bench-plots:
	$(PYTHON) -B tests/bench/plots.py --out docs/bench $(PLOTS)

# What an operation costs as the tree grows, to a million files; some minutes, and 8 GiB of /dev/shm.
bench-scale: deps deps-test
	@$(MAKE) --no-print-directory -j$$(nproc) all
	BUILD=$(abspath $(BUILD)) $(PYTHON) -B tests/bench/scale.py $(BENCH)

# The packages of the last commit, in $(BUILD)/deb; then: apt install ./build/deb/byokfs_*.deb
deb: deps-deb
	@sh tools/deb.sh $(BUILD)
	lintian --fail-on error,warning $(BUILD)/deb/*.changes

SBIN := $(DESTDIR)$(PREFIX)/sbin
MAN  := $(DESTDIR)$(PREFIX)/share/man
install: all
	install -D -m 755 $(BUILD)/byokfs $(SBIN)/byokfs
	install -D -m 755 $(BUILD)/byokfsctl $(SBIN)/byokfsctl
	install -D -m 755 $(BUILD)/byokfs-devkms $(DESTDIR)$(PREFIX)/bin/byokfs-devkms
	install -d $(DESTDIR)/sbin && ln -sf $(PREFIX)/sbin/byokfs $(DESTDIR)/sbin/mount.byokfs
	for s in 1 5 8; do for m in docs/*.$$s; do [ ! -e $$m ] || install -D -m 644 $$m $(MAN)/man$$s/$$(basename $$m); done; done
	ln -sf byokfs.8 $(MAN)/man8/mount.byokfs.8
	install -D -m 644 byokfs.ini.example $(DESTDIR)$(PREFIX)/share/doc/byokfs/byokfs.ini.example
	install -d $(DESTDIR)/etc/byokfs
	install -d $(DESTDIR)/lib/systemd/system
	for u in systemd/*; do sed 's|/usr/local/sbin|$(PREFIX)/sbin|g' $$u >$(DESTDIR)/lib/systemd/system/$$(basename $$u); done
	install -D -m 644 docs/completion/byokfsctl.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/byokfsctl
	install -D -m 644 docs/completion/_byokfsctl $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_byokfsctl

clean:
	rm -rf build build-*

-include $(wildcard $(BUILD)/src/*.d $(BUILD)/tools/*.d $(BUILD)/tests/unit/*.d)
