#!/bin/sh
# Builds the example and the tests of the C interface in strict C99 against nothing but the installed
# library, by pkg-config, and runs them. Usage: install_test.sh SOURCE_DIR BUILD_DIR C_COMPILER
set -eu
source=$1 build=$2 compiler=$3
flags="-std=c99 -pedantic -Wall -Wextra -Werror"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/prefix" --component development >/dev/null
lib=$(dirname "$(find "$work/prefix" -name libferry.so)")
export PKG_CONFIG_PATH="$lib/pkgconfig" LD_LIBRARY_PATH="$lib"
cp -r "$source/examples/moe_layer_c" "$source/tests/c" "$work"  # so that no header is found beside them

# shellcheck disable=SC2046,SC2086
"$compiler" $flags "$work/moe_layer_c/main.c" -o "$work/moe_layer" $(pkg-config --cflags --libs ferry)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT="$port"
for rank in 0 1; do RANK=$rank "$work/moe_layer" >"$work/said.$rank" & done
wait
cat "$work"/said.*
[ "$(cat "$work"/said.* | grep -c 'came back doubled')" = 2 ] || { echo "an example's rank was wrong"; exit 1; }
unset WORLD_SIZE MASTER_ADDR MASTER_PORT

# shellcheck disable=SC2046,SC2086
"$compiler" $flags -D_POSIX_C_SOURCE=200809L "$work"/c/*.c -o "$work/c_api_test" \
  $(pkg-config --cflags --libs ferry) -pthread -lm
FERRY_DEMO_MODEL="$source/assets/demo-moe" "$work/c_api_test"
