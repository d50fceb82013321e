#!/bin/sh
# Makes a bare machine ready for wgpt: Deno, a Vulkan driver where no WebGPU adapter shows up, and the npm packages.
# Idempotent; asks nothing. Exit codes: 1 a step failed, 3 no adapter and no known way to add one, 4 no right to install.
set -eu
cd "$(dirname "$0")"

DENO_AT_LEAST=2.9
# What `deno` must satisfy for npm, and the version that wgpt is tested with.
DENO_PACKAGE=deno@2.9.6

say() { printf 'setup: %s\n' "$*"; }

# Prints what a person with the right to do it should run, and gives up.
no_right() {
  say "cannot $1: no right to install here, and sudo asks for a password" >&2
  shift
  say "run this, then ./setup.sh again:" >&2
  for line in "$@"; do printf '  %s\n' "$line" >&2; done
  exit 4
}

# Runs a command as root: directly, or through a sudo that needs no password. Fails where neither works.
can_be_root() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

is_debian() { command -v apt-get >/dev/null 2>&1; }

apt_updated=no
apt_install() {
  can_be_root || no_right "install $*" "sudo apt-get update && sudo apt-get install --yes $*"
  if [ "$apt_updated" = no ]; then as_root apt-get update --quiet=2; apt_updated=yes; fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends "$@" >/dev/null
}

# deno VERSION is at least DENO_AT_LEAST.
deno_is_new() {
  command -v deno >/dev/null 2>&1 || return 1
  version=$(deno --version 2>/dev/null | sed -n 's/^deno \([0-9.]*\).*/\1/p')
  [ -n "$version" ] || return 1
  [ "$(printf '%s\n%s\n' "$DENO_AT_LEAST" "$version" | sort -t. -k1,1n -k2,2n | head -n 1)" = "$DENO_AT_LEAST" ]
}

on_path() { case ":$PATH:" in *":$1:"*) return 0 ;; *) return 1 ;; esac; }

# A folder on the PATH to put `deno` in, printed as its prefix; empty where only root could write one.
writable_prefix() {
  for prefix in /usr/local "$HOME/.local"; do
    on_path "$prefix/bin" || continue
    mkdir -p "$prefix/bin" "$prefix/lib" 2>/dev/null || continue
    if [ -w "$prefix/bin" ] && [ -w "$prefix/lib" ]; then printf '%s' "$prefix"; return; fi
  done
}

install_deno() {
  prefix=$(writable_prefix)
  run=
  if [ -z "$prefix" ]; then
    prefix=/usr/local
    if can_be_root && on_path /usr/local/bin; then run=as_root; else
      no_right "put deno on the PATH" "sudo npm install --global --prefix /usr/local $DENO_PACKAGE"
    fi
  fi
  if ! command -v npm >/dev/null 2>&1 && is_debian; then
    say "installing npm, to install Deno with it"
    apt_install npm ca-certificates
  fi
  if command -v npm >/dev/null 2>&1; then
    say "installing Deno into $prefix/bin through npm"
    # Where npm runs no install scripts, the package's launcher finds its binary by itself.
    $run npm install --global --prefix "$prefix" --no-fund --no-audit --loglevel=error "$DENO_PACKAGE" >/dev/null
  else
    say "installing Deno into $prefix/bin with its own installer"
    if ! command -v curl >/dev/null 2>&1; then
      say "install npm or curl with your package manager, then run ./setup.sh again" >&2
      exit 1
    fi
    curl -fsSL https://deno.land/install.sh | $run env DENO_INSTALL="$prefix" sh -s -- -y --no-modify-path >/dev/null
  fi
  hash -r 2>/dev/null || true
}

# The adapters WebGPU can see. GL is left out on Linux, as wgpt leaves it out.
has_adapter() {
  backend=${DENO_WEBGPU_BACKEND:-}
  if [ "$(uname -s)" = Linux ] && [ -z "$backend" ]; then backend=vulkan; fi
  XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/tmp}" DENO_WEBGPU_BACKEND="$backend" \
    deno eval 'console.log(await navigator.gpu.requestAdapter() === null ? "none" : "some")' 2>/dev/null | grep -q some
}

install_driver() {
  if is_debian; then
    say "no WebGPU adapter found; installing Mesa's Vulkan drivers (a CPU driver among them)"
    apt_install mesa-vulkan-drivers libvulkan1
    return
  fi
  say "no WebGPU adapter found: install your GPU's Vulkan driver, or Mesa's CPU driver:" >&2
  say "  Fedora: sudo dnf install mesa-vulkan-drivers vulkan-loader" >&2
  say "  Arch:   sudo pacman -S vulkan-swrast vulkan-icd-loader" >&2
  say "  Alpine: sudo apk add mesa-vulkan-swrast vulkan-loader" >&2
  say "  openSUSE: sudo zypper install libvulkan_lvp libvulkan1" >&2
  exit 3
}

if deno_is_new; then say "Deno $version is here"; else
  install_deno
  deno_is_new || { say "Deno $DENO_AT_LEAST or newer isn't on the PATH after its installation" >&2; exit 1; }
  say "Deno $version is installed"
fi

if has_adapter; then say "a WebGPU adapter is here"; else
  install_driver
  has_adapter || { say "still no WebGPU adapter; see what \`vulkaninfo --summary\` says (package vulkan-tools)" >&2; exit 3; }
  say "a WebGPU adapter is here now"
fi

say "installing the npm packages that deno.lock names"
deno install --frozen --quiet
say "ready: deno task train"
