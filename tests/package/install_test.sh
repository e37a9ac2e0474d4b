#!/bin/sh
# Installs the library as a stranger would, builds examples/all_to_all against nothing but that, in all
# four ways (libferry.so and libferry.a, by find_package and by pkg-config), and runs each.
# Usage: install_test.sh SOURCE_DIR BUILD_DIR COMPILER SANITIZERS
set -eu
source=$1 build=$2 compiler=$3 sanitizers=$4
flags="-Wall -Wextra -Werror ${sanitizers:+-fsanitize=$sanitizers}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" --component development >/dev/null
lib=$(dirname "$(find "$work/prefix" -name libferry.so)")
if grep -rqe -Werror -e "$source" -e "$build" "$lib/cmake" "$lib/pkgconfig"; then
  echo "the package names our flags or folders:"
  grep -rne -Werror -e "$source" -e "$build" "$lib/cmake" "$lib/pkgconfig"
  exit 1
fi

# A copy, so that no header can be found beside the example.
cp -r "$source/examples/all_to_all" "$work/example"

runs() {  # runs PROGRAM: every rank says that it was right
  for ranks in 1 3; do
    "$1" $ranks | tee "$work/said"
    doubled=$(grep -c 'came back doubled' "$work/said")
    [ "$doubled" = $ranks ] || { echo "$1: $doubled of $ranks ranks were right"; exit 1; }
  done
}

links_shared() {  # links_shared PROGRAM: whether it wants libferry.so of this minor version
  readelf -d "$1" | grep -q 'NEEDED.*libferry\.so\.[0-9]*\.[0-9]*\]'
}

for static in OFF ON; do
  cmake -S "$work/example" -B "$work/build-$static" -DCMAKE_PREFIX_PATH="$work/prefix" -DSTATIC_FERRY=$static \
        -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_CXX_FLAGS="$flags" >/dev/null
  cmake --build "$work/build-$static" >/dev/null
  runs "$work/build-$static/all_to_all"
done
links_shared "$work/build-OFF/all_to_all" || { echo "ferry::ferry is not libferry.so"; exit 1; }
! links_shared "$work/build-ON/all_to_all" || { echo "ferry::static needs libferry.so"; exit 1; }

export PKG_CONFIG_PATH="$lib/pkgconfig"
# shellcheck disable=SC2046,SC2086
"$compiler" -std=c++20 $flags "$work/example/main.cpp" -o "$work/shared" $(pkg-config --cflags --libs ferry)
LD_LIBRARY_PATH="$lib" runs "$work/shared"
# -lferry would take the shared one where there are both.
static_libs=$(pkg-config --static --libs ferry | sed 's/-lferry\b/-l:libferry.a/')
# shellcheck disable=SC2046,SC2086
"$compiler" -std=c++20 $flags "$work/example/main.cpp" -o "$work/static" $(pkg-config --cflags ferry) $static_libs
runs "$work/static"

# Every public header finds what it includes, by itself.
cd "$work/prefix/include"
for header in ferry/*.h; do
  echo "#include \"$header\"" >"$work/one.cpp"
  "$compiler" -std=c++20 -fsyntax-only -I. "$work/one.cpp"
done
