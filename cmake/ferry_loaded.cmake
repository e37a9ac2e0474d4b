# Libraries that are loaded while the program runs, if they are there (ferry/transport/loaded_library.h):
# of libfabric and MPI only the headers are needed here, and a few facts about the library that they
# belong to (ferry_libfabric_facts and ferry_mpi_facts, for fabric_calls.cpp and mpi_calls.cpp).
# FERRY_HAS_LIBFABRIC and FERRY_HAS_MPI say whether they were found.
#
# ferry_calls_fabric(TARGET), ferry_calls_mpi(TARGET FILE...): files of the target may include the headers.

# soname_of(LIBRARY RESULT): the name under which programs look for it.
function(soname_of library result)
  execute_process(COMMAND ${CMAKE_OBJDUMP} -p ${library} OUTPUT_VARIABLE headers ERROR_QUIET)
  string(REGEX MATCH "SONAME +([^\n]+)" ignored "${headers}")
  set(${result} "${CMAKE_MATCH_1}" PARENT_SCOPE)
endfunction()

set(FERRY_HAS_LIBFABRIC OFF)
set(FERRY_HAS_MPI OFF)
if(FERRY_WITH_LIBFABRIC)
  pkg_check_modules(LIBFABRIC libfabric)
endif()
if(FERRY_WITH_LIBFABRIC AND LIBFABRIC_FOUND)  # FOUND is remembered from earlier
  find_library(FERRY_LIBFABRIC fabric HINTS ${LIBFABRIC_LIBRARY_DIRS})
  soname_of(${FERRY_LIBFABRIC} soname)
  set(ferry_libfabric_facts "FERRY_LIBFABRIC_FILE=\"${soname}\"")
  # Each function in the version that the headers mean: the linker would take the same.
  execute_process(COMMAND ${CMAKE_OBJDUMP} -T ${FERRY_LIBFABRIC} OUTPUT_VARIABLE symbols ERROR_QUIET)
  foreach(function fi_getinfo fi_freeinfo fi_dupinfo fi_fabric fi_strerror)
    string(REGEX MATCH " (FABRIC_[0-9.]+) +${function}\n" ignored "${symbols}")
    list(APPEND ferry_libfabric_facts "FERRY_VERSION_${function}=\"${CMAKE_MATCH_1}\"")
  endforeach()
  if(soname AND CMAKE_MATCH_1)
    set(FERRY_HAS_LIBFABRIC ON)
  endif()
endif()
if(FERRY_WITH_MPI)
  find_package(MPI 3 COMPONENTS CXX QUIET)
endif()
if(FERRY_WITH_MPI AND MPI_CXX_FOUND)
  # Beside it may lie the library of its old C++ classes.
  set(mpi_library ${MPI_CXX_LIBRARIES})
  list(FILTER mpi_library EXCLUDE REGEX "cxx")
  list(GET mpi_library 0 mpi_library)
  soname_of(${mpi_library} soname)
  set(ferry_mpi_facts "FERRY_MPI_SONAME=\"${soname}\"" "FERRY_MPI_FILE=\"${mpi_library}\"")
  if(soname)
    set(FERRY_HAS_MPI ON)
  endif()
endif()

function(ferry_calls_fabric target)
  if(FERRY_HAS_LIBFABRIC)
    target_include_directories(${target} SYSTEM PRIVATE ${LIBFABRIC_INCLUDE_DIRS})
  endif()
endfunction()
# The C interface alone: MPI's headers would draw in its old C++ classes.
function(ferry_calls_mpi target)
  if(FERRY_HAS_MPI)
    target_include_directories(${target} SYSTEM PRIVATE ${MPI_CXX_INCLUDE_DIRS})
    set_property(SOURCE ${ARGN} APPEND PROPERTY COMPILE_DEFINITIONS OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)
  endif()
endfunction()
