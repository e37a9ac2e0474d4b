#!/bin/sh
# An inline function from a shared header, compiled in a file with -m flags, may be linked as
# everybody's copy and then runs AVX code on a machine that has none. So object files of one
# instruction set may define no weak symbols. Usage: NM=nm no_shared_code.sh OBJECT...
status=0
for object in "$@"; do
  case "${object##*/}" in
    *avx2*|*avx512*|*amx*|*neon*) ;;
    *) continue ;;
  esac
  weak=$("${NM:-nm}" -C --defined-only "$object" | grep ' [WVu] ')
  if [ -n "$weak" ]; then
    echo "$object defines symbols that other files would share:"
    echo "$weak"
    status=1
  fi
done
exit $status
