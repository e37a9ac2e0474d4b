# Helpers that keep the CMakeLists of a room to a list of files.

add_library(ferry_flags INTERFACE)
# Fields that a designated initialiser leaves out have their defaults; that is no mistake. GCC 12
# takes its own intrinsics and std::string for uninitialised.
target_compile_options(ferry_flags INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor
                                             -Wno-missing-field-initializers
                                             -Wno-maybe-uninitialized
                                             $<$<BOOL:${FERRY_WERROR}>:-Werror>)
# Sums have one order everywhere (docs/design.md, numerics): the compiler must not contract a
# product and a sum into an FMA on its own, nor reassociate.
target_compile_options(ferry_flags INTERFACE -ffp-contract=off)
target_include_directories(ferry_flags INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
if(FERRY_SANITIZE)
  target_compile_options(ferry_flags INTERFACE -fsanitize=${FERRY_SANITIZE} -fno-omit-frame-pointer
                                               -fno-sanitize-recover=all)
  # What costs compile time and finds little. The address sanitizer stops at null pointers and outside objects anyway. Tests are
  # watched for their accesses, the library for all. Functions with many accesses call the sanitizer rather than hold its
  # code: that halves the time of kernels.
  if("address,undefined" STREQUAL FERRY_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(ferry_flags INTERFACE
      -fno-sanitize=null,object-size "SHELL:--param asan-instrumentation-with-call-threshold=100"
      $<$<BOOL:$<TARGET_PROPERTY:FERRY_TEST>>:-fno-sanitize=undefined>)
  endif()
  target_link_options(ferry_flags INTERFACE -fsanitize=${FERRY_SANITIZE})
  target_compile_definitions(ferry_flags INTERFACE FERRY_SANITIZE="${FERRY_SANITIZE}")
endif()

if(FERRY_FUZZ)
  target_compile_options(ferry_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# ferry_unity(TARGET): with FERRY_UNITY the compiler gets several of the target's files at once, and parses
# headers once for all of them. Files whose names clash with another's (two functions `run` in unnamed
# namespaces) stay alone by ferry_alone(FILE...); so does every file that has compile options of its own.
function(ferry_unity target)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ${FERRY_UNITY} UNITY_BUILD_BATCH_SIZE 8)
endfunction()
function(ferry_alone)
  set_source_files_properties(${ARGN} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

# ferry_room(name SOURCES ... LINKS ... PRIVATE_LINKS ...): one room = one static library ferry_<name>,
# ferry::<name> to others. Our flags stay here: who uses the installed library has their own.
function(ferry_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;LINKS;PRIVATE_LINKS" ${ARGN})
  add_library(ferry_${name} STATIC ${ROOM_SOURCES})
  add_library(ferry::${name} ALIAS ferry_${name})
  target_link_libraries(ferry_${name} PUBLIC $<BUILD_INTERFACE:ferry_flags> ${ROOM_LINKS}
                                      PRIVATE ${ROOM_PRIVATE_LINKS})
endfunction()

# Whole builds parse these once for all files of a room's tests, whose names in unnamed namespaces clash too often for ferry_unity().
set(ferry_test_headers <gtest/gtest.h> <fmt/format.h> <algorithm> <array> <atomic> <chrono> <cstdint> <filesystem> <fstream>
                       <functional> <map> <memory> <mutex> <optional> <random> <span> <string> <thread> <vector>)

# ferry_test(room SOURCES ... LINKS ... LABELS ...): one test binary a room, each TEST a ctest entry,
# labelled with the room and with LABELS (multiproc: starts processes; slow: not under sanitizers).
function(ferry_test room)
  cmake_parse_arguments(T "" "" "SOURCES;LINKS;LABELS" ${ARGN})
  add_executable(${room}_test ${T_SOURCES})
  target_link_libraries(${room}_test PRIVATE ${T_LINKS} ferry_test_support GTest::gtest)
  set_target_properties(${room}_test PROPERTIES FERRY_TEST ON)
  if(FERRY_UNITY)
    if("nlohmann_json::nlohmann_json" IN_LIST T_LINKS)
      set(json <nlohmann/json.hpp>)
    endif()
    target_precompile_headers(${room}_test PRIVATE ${ferry_test_headers} ${json})
    # The first for ccache; gcc 12 warns of memory of std::string where it has not parsed that along with the rest.
    target_compile_options(${room}_test PRIVATE
      $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess;-Wno-array-bounds;-Wno-restrict;-Wno-stringop-overflow>)
  endif()
  target_compile_options(${room}_test PRIVATE $<$<CONFIG:Release>:-O1>)  # what is tested keeps its own
  gtest_discover_tests(${room}_test NO_PRETTY_VALUES DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300)
  # More than one label does not survive gtest_discover_tests(): set when ctest has read its list.
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/labels.cmake @ONLY
       CONTENT "set_tests_properties(\${${room}_test_TESTS} PROPERTIES LABELS \"${room};${T_LABELS}\")
if(DEFINED ENV{FERRY_LONG_TESTS})
  set_tests_properties(\${${room}_test_TESTS} PROPERTIES TIMEOUT 7200)
endif()\n")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${CMAKE_CURRENT_BINARY_DIR}/labels.cmake)
endfunction()
