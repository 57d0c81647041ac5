# The version, and the system's libraries that the static library needs, as gptalk.pc has them; nothing
# where there is none. The folders are found from here, for an installation may have been moved.

get_filename_component(_gptalk_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(_gptalk_includedir "${_gptalk_prefix}/include")
# Of several, that of the architecture, which is not known before a language is enabled.
set(_gptalk_pc "${_gptalk_prefix}/lib/${CMAKE_LIBRARY_ARCHITECTURE}/pkgconfig/gptalk.pc")
if(NOT EXISTS "${_gptalk_pc}")
  file(GLOB _gptalk_pc "${_gptalk_prefix}/lib*/pkgconfig/gptalk.pc" "${_gptalk_prefix}/lib/*/pkgconfig/gptalk.pc")
endif()

set(_gptalk_said "")
if(_gptalk_pc)
  list(GET _gptalk_pc 0 _gptalk_pc)
  get_filename_component(_gptalk_libdir "${_gptalk_pc}/../.." ABSOLUTE)
  file(STRINGS "${_gptalk_pc}" _gptalk_said REGEX "^(Version|Libs\\.private):")
endif()
string(REGEX REPLACE ".*Version: ([0-9.]+).*" "\\1" _gptalk_version "${_gptalk_said}")
string(REGEX REPLACE ".*Libs\\.private: ([^;]*).*" "\\1" _gptalk_libs_private "${_gptalk_said}")
string(REPLACE " " ";" _gptalk_libs_private "${_gptalk_libs_private}")
