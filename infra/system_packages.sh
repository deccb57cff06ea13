#!/usr/bin/env bash
# Installs the Debian packages of infra/debian-packages.txt, or with --missing only where a command of theirs is missing.
# No service is started: Debian's nginx and prometheus would otherwise take ports 80 and 9090 at once.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive
list="$(dirname "$0")/debian-packages.txt"
policy=/usr/sbin/policy-rc.d

missing=()
while read -r package command _; do
  [[ -z $package || $package == \#* ]] || command -v "$command" > /dev/null || missing+=("$package")
done < "$list"
[[ ${1:-} == --missing && ${#missing[@]} -eq 0 ]] && exit 0
[[ ${1:-} == --missing ]] || mapfile -t missing < <(awk '/^[^#]/ { print $1 }' "$list")

if [[ $(id -u) != 0 ]]; then
  echo "make: missing: ${missing[*]}: run  sudo make system-packages" >&2
  exit 1
fi
echo "Installing Debian's ${missing[*]}"
if [[ ! -e $policy ]]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
fi
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${missing[@]}" > /dev/null
