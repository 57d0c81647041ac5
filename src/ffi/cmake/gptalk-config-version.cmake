# Before 1.0 a new minor version is a new ABI.

include("${CMAKE_CURRENT_LIST_DIR}/gptalk-pc.cmake")

set(PACKAGE_VERSION "${_gptalk_version}")
if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
string(REGEX MATCH "^(0\\.[0-9]+|[0-9]+)" _gptalk_abi "${PACKAGE_VERSION}")
string(REGEX MATCH "^(0\\.[0-9]+|[0-9]+)" _gptalk_wanted "${PACKAGE_FIND_VERSION}")
if(_gptalk_wanted STREQUAL _gptalk_abi AND PACKAGE_FIND_VERSION VERSION_LESS_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
