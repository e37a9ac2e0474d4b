# Kernels for CUDA devices, where FERRY_WITH_CUDA asks for them. nvcc makes one image of them for the
# architectures below, which becomes a part of the program; nothing of CUDA is linked, the driver is loaded
# when a device is asked for. nvcc and cuda.h come from a CUDA toolkit, or from PyPI by
# `scripts/setup.sh cuda`. No machine with a GPU is needed to build.
#
# ferry_cuda_image(TARGET FILE.cu HOST.cpp): builds the image, and tells HOST.cpp where it is.
# ferry_calls_cuda(FILE...): these may include cuda.h.

file(GLOB ferry_cuda_of_setup ${PROJECT_SOURCE_DIR}/build/cuda/lib/python3*/site-packages/nvidia/cu*)
find_program(FERRY_NVCC nvcc HINTS ${ferry_cuda_of_setup}/bin /usr/local/cuda/bin)
if(NOT FERRY_NVCC)
  message(FATAL_ERROR "FERRY_WITH_CUDA: no nvcc; `scripts/setup.sh cuda` brings one, FERRY_NVCC names another")
endif()
get_filename_component(ferry_cuda_root ${FERRY_NVCC} DIRECTORY)
find_path(FERRY_CUDA_INCLUDE cuda.h HINTS ${ferry_cuda_root}/../include REQUIRED)

set(ferry_cuda_flags -std=c++20 --expt-relaxed-constexpr -fmad=false -ftz=true -lineinfo
    -Werror all-warnings -Xcompiler -Wall -Xptxas -v,-warn-spills)
foreach(architecture 80 90a 100a)
  list(APPEND ferry_cuda_flags -gencode arch=compute_${architecture},code=sm_${architecture})
endforeach()
# Devices that are newer than all of these compile it when it is loaded.
list(APPEND ferry_cuda_flags -gencode arch=compute_80,code=compute_80)

function(ferry_cuda_image target kernels host)
  get_filename_component(name ${kernels} NAME_WE)
  set(image ${CMAKE_CURRENT_BINARY_DIR}/${name}.fatbin)
  add_custom_command(
    OUTPUT ${image}
    COMMAND ${FERRY_NVCC} ${ferry_cuda_flags} -ccbin ${CMAKE_CXX_COMPILER} -I${PROJECT_SOURCE_DIR}
            -I${PROJECT_SOURCE_DIR}/include -MD -MF ${image}.d -MT ${image} --fatbin
            ${CMAKE_CURRENT_SOURCE_DIR}/${kernels} -o ${image}
    MAIN_DEPENDENCY ${CMAKE_CURRENT_SOURCE_DIR}/${kernels}
    DEPFILE ${image}.d
    COMMENT "Compiling ${name} for sm_80, sm_90a and sm_100a"
    VERBATIM)
  set_source_files_properties(${host} PROPERTIES
    OBJECT_DEPENDS ${image}
    COMPILE_DEFINITIONS "FERRY_CUDA_IMAGE=\"${image}\"")
endfunction()

function(ferry_calls_cuda)
  set_source_files_properties(${ARGN} PROPERTIES INCLUDE_DIRECTORIES ${FERRY_CUDA_INCLUDE})
  ferry_alone(${ARGN})
endfunction()
