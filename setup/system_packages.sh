#!/usr/bin/env bash
# Makes sure that SAPIEN can render: does nothing where it already can, otherwise installs Mesa's software Vulkan.
#
# SAPIEN 3.0.3 needs Mesa >= 24.3 (lavapipe with external_semaphore_fd). Debian 12 has 22.3, so there its backports are
# added, from the mirror that the machine has Debian 12 from; Debian 13 and Ubuntu 24.04's updates are new enough as
# they are. RPD_JAX_ROOT is the folder that holds etc/ (for tests).
set -euo pipefail
python=${1:?usage: system_packages.sh PYTHON}
here=$(dirname "$0")
root=${RPD_JAX_ROOT:-}
backports=$root/etc/apt/sources.list.d/rpd-jax-backports.sources
needed=24.3

renders() { "$python" "$here/can_render.py" >/dev/null 2>&1; }

# True if apt knows a Mesa that is new enough.
has_mesa() {
  local version
  while read -r version; do
    if dpkg --compare-versions "${version#*:}" ge "$needed"; then return 0; fi
  done < <(apt-cache madison mesa-vulkan-drivers 2>/dev/null | awk -F'|' '{ gsub(/ /, "", $2); print $2 }')
  return 1
}

if renders; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "No usable Vulkan device, and this is not a Debian or Ubuntu system: install Mesa >= $needed with its Vulkan drivers (lavapipe) and the Vulkan loader by your own package manager, then run this command again." >&2
  exit 1
fi

. "$root/etc/os-release"
target=()
source=
if [ "${ID:-}" = debian ] && [ "${VERSION_ID:-}" = 12 ]; then
  target=(-t bookworm-backports)
  source=$("$python" "$here/backports_source.py" bookworm "${root:-/}") || exit 1
fi
add=$(printf "printf '%%s\\\\n' %q > %q" "$source" "$backports")
update="apt-get update"
install="apt-get install -y --no-install-recommends${target[*]:+ ${target[*]}} mesa-vulkan-drivers libvulkan1 libegl1 libgl1 libx11-6"

if [ "$(id -u)" = 0 ]; then
  as_root=(bash -c)
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo bash -c)
else
  echo "No usable Vulkan device. Run these commands as root, then this one again:" >&2
  for command in ${source:+"$add"} "$update" "$install"; do echo "  $command" >&2; done
  exit 1
fi
run() {
  echo "+ $1"
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" "$1" >/dev/null
}

echo "No usable Vulkan device: installing Mesa's software Vulkan${target[1]:+ from ${target[1]}}."
if [ -n "$source" ]; then run "$add"; fi
# A mirror without backports makes `apt-get update` fail; what it lacks is said below.
updated=yes
run "$update" || updated=no
if ! has_mesa; then
  if [ -n "$source" ]; then run "rm -f $(printf %q "$backports")"; fi
  mirror=$(sed -n 's/^URIs: //p' <<<"$source")
  echo "Mesa >= $needed is not to be had from ${mirror:-the package sources of this machine}: add a source that has it${target[1]:+ (${target[1]} of a Debian mirror that this machine can reach)} to /etc/apt/sources.list.d by hand, then run this command again." >&2
  exit 1
fi
if [ "$updated" = no ]; then
  echo "\`$update\` failed, as it says above: mend that, then run this command again." >&2
  exit 1
fi
run "$install"
if ! renders; then
  echo "Mesa is installed, but SAPIEN still cannot render. What it says:" >&2
  "$python" "$here/can_render.py" >&2 || true
  exit 1
fi
