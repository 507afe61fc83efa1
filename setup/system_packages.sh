#!/usr/bin/env bash
# Makes sure that SAPIEN can render: does nothing where it already can, otherwise installs Mesa's software Vulkan.
#
# SAPIEN 3.0.3 needs Mesa >= 24.3 (lavapipe with external_semaphore_fd). Debian 12 has 22.3, so there its backports are
# added; Debian 13 and Ubuntu 24.04's updates are new enough as they are.
set -euo pipefail
python=${1:?usage: system_packages.sh PYTHON}
backports=/etc/apt/sources.list.d/rpd-jax-backports.sources

renders() { "$python" "$(dirname "$0")/can_render.py" >/dev/null 2>&1; }

if renders; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "No usable Vulkan device, and this is not a Debian or Ubuntu system: install Mesa >= 24.3 with its Vulkan drivers (lavapipe) and the Vulkan loader by your own package manager, then run this command again." >&2
  exit 1
fi

. /etc/os-release
commands=()
target=()
if [ "${ID:-}" = debian ] && [ "${VERSION_ID:-}" = 12 ]; then
  target=(-t bookworm-backports)
  if ! [ -e "$backports" ]; then
    commands+=("printf 'Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' > $backports")
  fi
fi
commands+=("apt-get update")
commands+=("apt-get install -y --no-install-recommends ${target[*]} mesa-vulkan-drivers libvulkan1 libegl1 libgl1 libx11-6")

if [ "$(id -u)" = 0 ]; then
  as_root=(bash -c)
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo bash -c)
else
  echo "No usable Vulkan device. Run these commands as root, then this one again:" >&2
  printf '  %s\n' "${commands[@]}" >&2
  exit 1
fi
origin=${target[1]:+" from ${target[1]} (named in $backports)"}
echo "No usable Vulkan device: installing Mesa's software Vulkan$origin."
for command in "${commands[@]}"; do
  echo "+ $command"
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" "$command" >/dev/null
done
if ! renders; then
  echo "Mesa is installed, but SAPIEN still cannot render. What it says:" >&2
  "$python" "$(dirname "$0")/can_render.py" >&2 || true
  exit 1
fi
