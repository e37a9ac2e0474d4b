# The library that other programs link: the rooms below as one libferry.so and one libferry.a, of the
# same objects. Of the shared one only what FERRY_API marks can be seen (include/ferry/export.h): our
# files are compiled with hidden visibility, and libferry.map hides what templates of the standard
# library and of fmt would add.
set(ferry_library_rooms core kernels transport compute exchange moe balance checkpoint text state model engine runtime c)
file(GLOB ferry_public_headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/ferry/*.h
     ${PROJECT_SOURCE_DIR}/include/ferry/c/*.h)

find_package(OpenSSL REQUIRED COMPONENTS Crypto)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(HWLOC REQUIRED IMPORTED_TARGET hwloc)
set(library_links fmt::fmt Threads::Threads OpenSSL::Crypto PkgConfig::PCRE2 PkgConfig::UTF8PROC PkgConfig::HWLOC)

set(library_objects)
foreach(room ${ferry_library_rooms})
  list(APPEND library_objects $<TARGET_OBJECTS:ferry_${room}>)
endforeach()
if(TARGET xgrammar)
  list(APPEND library_objects $<TARGET_OBJECTS:xgrammar>)
endif()

set(map ${PROJECT_SOURCE_DIR}/cmake/libferry.map)
add_library(ferry_shared SHARED ${library_objects})
set_target_properties(ferry_shared PROPERTIES
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}  # below 1.0 a minor version may break
  LINK_DEPENDS ${map} EXPORT_NAME ferry)
target_link_options(ferry_shared PRIVATE -Wl,--version-script=${map} -Wl,--no-undefined)
add_library(ferry_static STATIC ${library_objects})
set_target_properties(ferry_static PROPERTIES EXPORT_NAME static)

foreach(library ferry_shared ferry_static)
  set_target_properties(${library} PROPERTIES OUTPUT_NAME ferry LINKER_LANGUAGE CXX)
  target_link_libraries(${library} PRIVATE $<BUILD_INTERFACE:ferry_flags> ${library_links})
  target_compile_features(${library} INTERFACE cxx_std_20)
endforeach()
