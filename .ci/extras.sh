#!/bin/sh
# What some tests need and users don't: MPI libraries, a second Vulkan driver, a browser, network namespaces. Where it can't be
# installed these tests are ignored and say so; this never fails.
set -u
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2 || exit 0
for package in openmpi-bin mpich chromium chromium-common gcc libc6-dev iproute2; do
  apt-get install --yes --quiet=2 --no-install-recommends "$package" >/dev/null 2>&1 || echo "extras: no $package here"
done
exit 0
