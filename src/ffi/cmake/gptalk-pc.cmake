# The version, and the system's libraries that the static library needs, as gptalk.pc has them. The
# folders are found from here, for an installation may have been moved.

get_filename_component(_gptalk_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(_gptalk_includedir "${_gptalk_prefix}/include")
foreach(_gptalk_dir IN ITEMS "lib/${CMAKE_LIBRARY_ARCHITECTURE}" lib64 lib)
  set(_gptalk_libdir "${_gptalk_prefix}/${_gptalk_dir}")
  if(EXISTS "${_gptalk_libdir}/pkgconfig/gptalk.pc")
    break()
  endif()
endforeach()
file(STRINGS "${_gptalk_libdir}/pkgconfig/gptalk.pc" _gptalk_pc REGEX "^(Version|Libs\\.private):")
string(REGEX REPLACE ".*Version: ([0-9.]+).*" "\\1" _gptalk_version "${_gptalk_pc}")
string(REGEX REPLACE ".*Libs\\.private: ([^;]*).*" "\\1" _gptalk_libs_private "${_gptalk_pc}")
string(REPLACE " " ";" _gptalk_libs_private "${_gptalk_libs_private}")
