# byokfs. One file, no recursion. `make`, `make check`, `make try`, `make bench`, `make lint`, `make install`.
# V=1 shows commands; WERROR=1 (as in CI) turns warnings into errors; SAN=address|thread makes a sanitizer build in its own directory.

PREFIX  ?= /usr/local
DESTDIR ?=
CC      ?= gcc
SAN     ?=
BUILD   ?= build$(if $(SAN),-$(SAN))
PYTHON  ?= /usr/bin/python3

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo 1.0.0)

PKGS     := fuse3 libsodium libcrypto libcurl inih jansson expat
PKG_CFLAGS = $(shell pkg-config --cflags $(PKGS) libmicrohttpd 2>/dev/null)
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
PROGRAMS := $(BUILD)/byokfs $(BUILD)/byokfsctl $(BUILD)/byokfs-devkms

.PHONY: all clean
all: $(PROGRAMS)

$(BUILD)/libbyokfs.a: $(OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^
$(BUILD)/byokfs: $(BUILD)/src/main.o $(BUILD)/libbyokfs.a
	$(call say,LD,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)
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
$(BUILD)/%.o: %.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

clean:
	rm -rf build build-*

-include $(wildcard $(BUILD)/src/*.d $(BUILD)/tools/*.d $(BUILD)/tests/unit/*.d)
