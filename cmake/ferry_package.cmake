# The installed library: `cmake --install` puts the rooms that other engines use under lib, their
# headers under include/ferry, and what find_package(ferry) reads under lib/cmake/ferry. The rooms
# that only the program uses stay here.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/ferry)
foreach(room core kernels transport compute exchange moe balance)
  if(TARGET ferry_${room})
    set_target_properties(ferry_${room} PROPERTIES EXPORT_NAME ${room})
    target_compile_features(ferry_${room} INTERFACE $<INSTALL_INTERFACE:cxx_std_20>)
    install(TARGETS ferry_${room} EXPORT ferry_targets
            ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development
            INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
    install(DIRECTORY ${PROJECT_SOURCE_DIR}/ferry/${room}
            DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ferry COMPONENT development
            FILES_MATCHING PATTERN "*.h" PATTERN cpu EXCLUDE)
  endif()
endforeach()
install(EXPORT ferry_targets NAMESPACE ferry:: FILE ferryTargets.cmake
        DESTINATION ${package_dir} COMPONENT development)

# What the rooms above link, privately or not, must be found there too (ferryConfig.cmake.in).
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/ferryConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/package/ferryConfig.cmake
                              INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/ferryConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/package/ferryConfig.cmake
              ${PROJECT_BINARY_DIR}/package/ferryConfigVersion.cmake
        DESTINATION ${package_dir} COMPONENT development)
