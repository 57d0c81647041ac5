# find_package(gptalk) gives, each where it is installed:
#
#   gptalk::gptalk          the shared library
#   gptalk::gptalk_static   the static one, with the system's libraries that it needs
#
# Each is a component, too: find_package(gptalk REQUIRED COMPONENTS gptalk_static).

include("${CMAKE_CURRENT_LIST_DIR}/gptalk-pc.cmake")

if(NOT _gptalk_pc)
  set(gptalk_FOUND FALSE)
  set(gptalk_NOT_FOUND_MESSAGE "there is no gptalk.pc below ${_gptalk_prefix}/lib")
  return()
endif()

set(_gptalk_shared "${_gptalk_libdir}/${CMAKE_SHARED_LIBRARY_PREFIX}gptalk${CMAKE_SHARED_LIBRARY_SUFFIX}")
if(EXISTS "${_gptalk_shared}" AND NOT TARGET gptalk::gptalk)
  add_library(gptalk::gptalk SHARED IMPORTED)
  set_target_properties(
    gptalk::gptalk PROPERTIES IMPORTED_LOCATION "${_gptalk_shared}"
                              INTERFACE_INCLUDE_DIRECTORIES "${_gptalk_includedir}")
endif()

set(_gptalk_static "${_gptalk_libdir}/${CMAKE_STATIC_LIBRARY_PREFIX}gptalk${CMAKE_STATIC_LIBRARY_SUFFIX}")
if(EXISTS "${_gptalk_static}" AND NOT TARGET gptalk::gptalk_static)
  add_library(gptalk::gptalk_static STATIC IMPORTED)
  set_target_properties(
    gptalk::gptalk_static PROPERTIES IMPORTED_LOCATION "${_gptalk_static}"
                                     INTERFACE_INCLUDE_DIRECTORIES "${_gptalk_includedir}"
                                     INTERFACE_LINK_LIBRARIES "${_gptalk_libs_private}")
endif()

if(NOT TARGET gptalk::gptalk AND NOT TARGET gptalk::gptalk_static)
  set(gptalk_FOUND FALSE)
  set(gptalk_NOT_FOUND_MESSAGE "there is no gptalk library in ${_gptalk_libdir}")
endif()

foreach(_gptalk_component IN LISTS gptalk_FIND_COMPONENTS)
  if(TARGET "gptalk::${_gptalk_component}")
    set(gptalk_${_gptalk_component}_FOUND TRUE)
  elseif(gptalk_FIND_REQUIRED_${_gptalk_component})
    set(gptalk_FOUND FALSE)
    set(gptalk_NOT_FOUND_MESSAGE "there is no gptalk::${_gptalk_component} in ${_gptalk_libdir}")
  endif()
endforeach()
