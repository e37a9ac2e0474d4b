#!/usr/bin/env bash
# Installs what is missing to build Tokenferry, and only that. Quiet when there is nothing to do.
# Usage: scripts/setup.sh [program|tests|ci|fuzz|bench|clients]    (program, tests and ci each include the
# ones before; fuzz is tests and what libFuzzer needs; bench is tests and the libraries that benchmarks
# compare with; clients is tests and the programs that talk to a server in them; default tests)
#
# The one list of packages; README.md says why each ("Dependencies"), and tools/lint.sh checks that
# it knows them all.
set -euo pipefail

program=(g++ cmake ninja-build pkg-config libfmt-dev libspdlog-dev libcli11-dev nlohmann-json3-dev
         libpcre2-dev libutf8proc-dev libssl-dev libhwloc-dev libcpp-httplib-dev
         prometheus-cpp-dev)
tests=(libgtest-dev libgmock-dev libbenchmark-dev libfabric-dev libopenmpi-dev openmpi-bin
       iproute2 curl python3-dev python3-venv abigail-tools)
pypi=(nanobind numpy ml_dtypes pytest)  # of tests, into build/venv
ci=(ccache clang-format clang-tidy git python3)
fuzz=(clang libclang-rt-14-dev)
bench=(libdnnl-dev)
clients=(chromium)  # and PyPI's openai, into build/clients

case "${1:-tests}" in
  program) wanted=("${program[@]}") ;;
  tests) wanted=("${program[@]}" "${tests[@]}") ;;
  ci) wanted=("${program[@]}" "${tests[@]}" "${ci[@]}") ;;
  fuzz) wanted=("${program[@]}" "${tests[@]}" "${fuzz[@]}") ;;
  bench) wanted=("${program[@]}" "${tests[@]}" "${bench[@]}") ;;
  clients) wanted=("${program[@]}" "${tests[@]}" "${clients[@]}") ;;
  --list)
    printf '%s\n' "${program[@]}" "${tests[@]}" "${ci[@]}" "${fuzz[@]}" "${bench[@]}" "${clients[@]}" openai "${pypi[@]}"
    exit ;;
  *) echo "usage: scripts/setup.sh [program|tests|ci|fuzz|bench|clients]" >&2; exit 2 ;;
esac

if ! command -v dpkg-query apt-get >/dev/null; then
  echo "setup: no apt on this system; these must be there already: ${wanted[*]}" >&2
  exit 0
fi

install_openai() {
  local venv
  venv=$(dirname "$0")/../build/clients
  "$venv/bin/python" -c 'import openai' 2>/dev/null && return
  echo "setup: installing openai from PyPI" >&2
  python3 -m venv "$venv" && "$venv/bin/pip" -q --disable-pip-version-check install openai >&2
}
# Without it the Python package is not built, and its tests are not there.
install_pypi() {
  local venv
  venv=$(dirname "$0")/../build/venv
  "$venv/bin/python" -c 'import nanobind, numpy, ml_dtypes, pytest' 2>/dev/null && return
  echo "setup: installing ${pypi[*]} from PyPI" >&2
  python3 -m venv "$venv" && "$venv/bin/pip" -q --disable-pip-version-check install "${pypi[@]}" >&2 && return
  echo "setup: PyPI cannot be reached; the Python package is left out" >&2
  rm -rf "$venv"
}
finish() {
  case "${1:-tests}" in
    clients) install_openai && install_pypi ;;
    tests | ci | bench) install_pypi ;;
  esac
}

missing=()
for package in "${wanted[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $state == installed ]] || missing+=("$package")
done
((${#missing[@]})) || { finish "$@"; exit; }

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "setup: missing packages, and no sudo here; as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
echo "setup: installing ${missing[*]}" >&2
"${apt[@]}" update >&2
"${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >&2
finish "$@"
