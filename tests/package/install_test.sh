#!/bin/sh
# Installs the library as a stranger would, builds examples/all_to_all against nothing but that, and
# runs it. Usage: install_test.sh SOURCE_DIR BUILD_DIR COMPILER SANITIZERS
set -eu
source=$1 build=$2 compiler=$3 sanitizers=$4

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" --component development >/dev/null
if grep -rqe -Werror -e "$source" -e "$build" "$work/prefix/lib"*/cmake; then
  echo "the package names our flags or folders:"
  grep -rne -Werror -e "$source" -e "$build" "$work/prefix/lib"*/cmake
  exit 1
fi

# A copy, so that no header can be found beside the example.
cp -r "$source/examples/all_to_all" "$work/example"
cmake -S "$work/example" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" \
      -DCMAKE_CXX_COMPILER="$compiler" \
      -DCMAKE_CXX_FLAGS="-Wall -Wextra -Werror ${sanitizers:+-fsanitize=$sanitizers}" >/dev/null
cmake --build "$work/build" >/dev/null

for ranks in 1 3; do
  "$work/build/all_to_all" $ranks | tee "$work/said"
  doubled=$(grep -c 'came back doubled' "$work/said")
  [ "$doubled" = $ranks ] || { echo "$doubled of $ranks ranks were right"; exit 1; }
done

# Every installed header finds what it includes.
cd "$work/prefix/include"
for header in $(find ferry -name '*.h'); do
  echo "#include \"$header\""
done >"$work/all.cpp"
"$compiler" -std=c++20 -fsyntax-only -I. "$work/all.cpp"
