# Compiles for ARM on another machine: Debian's g++-aarch64-linux-gnu, the libraries that scripts/setup.sh arm
# unpacks into build/arm64, and qemu-user for what is to run (docs/arm.md). Used by the preset aarch64.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

get_filename_component(FERRY_ARM_ROOT "${CMAKE_CURRENT_LIST_DIR}/../build/arm64" ABSOLUTE)
set(CMAKE_SYSROOT "${FERRY_ARM_ROOT}")
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L "${FERRY_ARM_ROOT}")

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${FERRY_ARM_ROOT}")
set(ENV{PKG_CONFIG_LIBDIR} "${FERRY_ARM_ROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${FERRY_ARM_ROOT}/usr/share/pkgconfig")
