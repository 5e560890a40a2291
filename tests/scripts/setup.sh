#!/usr/bin/env bash
# Installs the missing requirements of `make` after printing the commands. Never prompts.
#
# usage: setup.sh build|test
set -euo pipefail

RUST_AT_LEAST=91 # minor version, as `rust-version` in Cargo.toml

say() { printf 'make: %s\n' "$*"; }
die() { printf 'make: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

has cargo || die "Rust is missing. Install it from https://rustup.rs, open a new shell, and try again."
minor=$(rustc --version | sed -E 's/^rustc 1\.([0-9]+).*/\1/')
[ "$minor" -ge "$RUST_AT_LEAST" ] || die "$(rustc --version) is too old, 1.$RUST_AT_LEAST is needed: run 'rustup update'."
has python3 || [ "$(uname)" != Darwin ] || die "Python 3 is missing: run 'xcode-select --install'."

# bindgen needs libclang; neither the `clang` binary nor LLVM's libclang-cpp suffices.
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    (ldconfig -p 2>/dev/null || true) | grep -q 'libclang[-.0-9]*\.so' && return 0
    compgen -G '/usr/lib/llvm-*/lib/libclang[.-][s0-9]*' >/dev/null
}

missing_debian() {
    has make || echo make
    has cmake || echo cmake
    has c++ || echo g++
    has_libclang || echo libclang-dev
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    if [ "$1" = test ]; then
        has valgrind || echo valgrind
        has ip || echo iproute2
        has nft || echo nftables
    fi
}

install_debian() {
    local packages
    packages=$(missing_debian "$1" | tr '\n' ' ')
    [ -n "$packages" ] || return 0
    local sudo=''
    if [ "$(id -u)" != 0 ]; then
        has sudo || die "this needs root: apt-get install -y $packages"
        sudo='sudo'
        # Without a terminal, sudo must not wait for a password.
        if [ ! -t 0 ] || [ "${CI:-}" = true ]; then sudo='sudo -n'; fi
    fi
    say "installing with apt-get: $packages"
    $sudo apt-get update -qq </dev/null
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages </dev/null
}

# The UPnP daemon; its package starts no service. One test needs it and reports if it is missing.
install_forwarder() {
    [ "$(id -u)" = 0 ] && ! has miniupnpd || return 0
    say "installing with apt-get: miniupnpd-nftables"
    apt-get update -qq </dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends miniupnpd-nftables </dev/null ||
        say "miniupnpd could not be installed; the test that needs it will be skipped with a notice"
}

install_macos() {
    xcode-select -p >/dev/null 2>&1 || die "Apple's command line tools are missing: run 'xcode-select --install'."
    has cmake && return 0
    has brew || die "cmake is missing: install it, or install Homebrew (https://brew.sh) so that this script can."
    say "installing with brew: cmake"
    brew install cmake </dev/null
}

install_rust_parts() {
    local part
    for part in fmt clippy; do
        cargo "$part" --version >/dev/null 2>&1 && continue
        has rustup || die "cargo $part is missing: install your distribution's package for it."
        say "installing with rustup: $part"
        rustup component add "${part/fmt/rustfmt}"
    done
}

case "$(uname)" in
    Darwin) install_macos ;;
    *) if has apt-get; then
           install_debian "$1"
           [ "$1" != test ] || install_forwarder
       else
           lacking=$(missing_debian "$1" | tr '\n' ' ')
           [ -z "$lacking" ] || die "missing packages (Debian names): $lacking"
       fi ;;
esac
[ "$1" != test ] || install_rust_parts
