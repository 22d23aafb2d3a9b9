#include "processor.h"

#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <sstream>
#include <string>

namespace {

std::string plain(std::string name) {
    name.erase(std::remove(name.begin(), name.end(), '_'), name.end());
    return name;
}

std::atomic<bool> permitted{false};

}  // namespace

bool emulated_feature(const char* name) {
    const char* flags = std::getenv("EMULATED_FLAGS");
    std::istringstream words(flags ? flags : "");
    for (std::string word; words >> word;) {
        if (plain(word) == plain(name)) return true;
    }
    return false;
}

bool emulated_tiles_permitted() {
    return permitted;
}

// the linker's --wrap=syscall puts it in the place of syscall, which csrc calls for one purpose alone
extern "C" long __wrap_syscall(long number, long request, long component) {
    constexpr long request_permission = 0x1023, tile_data = 18;
    const bool for_tiles = number == SYS_arch_prctl && request == request_permission && component == tile_data;
    if (for_tiles && emulated_feature("amx_tile")) {
        permitted = true;
        return 0;
    }
    errno = EINVAL;
    return -1;
}
