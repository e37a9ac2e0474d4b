# The installed library (component `development`): libferry.so and libferry.a, the public headers, and
# what find_package(ferry) and pkg-config read. Headers of the rooms are not installed.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
include(${CMAKE_CURRENT_LIST_DIR}/ferry_library.cmake)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/ferry)
install(TARGETS ferry_shared EXPORT ferry_targets COMPONENT development
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS ferry_static EXPORT ferry_static_targets COMPONENT development
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT ferry_targets NAMESPACE ferry:: FILE ferryTargets.cmake
        DESTINATION ${package_dir} COMPONENT development)
install(EXPORT ferry_static_targets NAMESPACE ferry:: FILE ferryStaticTargets.cmake
        DESTINATION ${package_dir} COMPONENT development)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/ferry DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        COMPONENT development)

# What libferry.a links must be found there too (ferryConfig.cmake.in); libferry.so finds it by itself.
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/ferryConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/package/ferryConfig.cmake
                              INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/ferryConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/package/ferryConfig.cmake
              ${PROJECT_BINARY_DIR}/package/ferryConfigVersion.cmake
        DESTINATION ${package_dir} COMPONENT development)

# By name, not as packages: libferry.a with the shared libraries of others does not need what those link.
set(pc_libs_private "-lfmt -lcrypto -lpcre2-8 -lutf8proc -lhwloc -pthread")
file(RELATIVE_PATH pc_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(${CMAKE_CURRENT_LIST_DIR}/ferry.pc.in ${PROJECT_BINARY_DIR}/package/ferry.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/package/ferry.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT development)
