// The functions of csrc/bindings.cpp without Python. Reads calls from standard input until it ends: their size, the
// name of a function and its arguments. Answers each on standard output with a status (0, or what was thrown: 1 an
// invalid argument, 2 anything else), the returned value and all arrays of the call, or the message.
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <utility>

#include "bindings.cpp"

namespace {

void answer(py::Message call) {
    py::Arguments arguments{call, {}};
    unsigned char status = 0;
    std::string said;
    try {
        said = py::functions().at(call.text())(arguments);
    } catch (const std::invalid_argument& error) {
        status = 1;
        said = error.what();
    } catch (const std::exception& error) {
        status = 2;
        said = error.what();
    }
    const auto size = std::uint32_t(said.size());
    std::fwrite(&status, 1, 1, stdout);
    std::fwrite(&size, sizeof size, 1, stdout);
    std::fwrite(said.data(), 1, size, stdout);
    for (const auto& array : arguments.arrays) {
        if (status == 0) std::fwrite(array.bytes.get(), 1, array.size, stdout);
    }
    std::fflush(stdout);
}

}  // namespace

int main() {
    py::module_ module;
    define_functions(module);
    for (std::uint64_t size; std::fread(&size, sizeof size, 1, stdin) == 1;) {
        std::string bytes(size, '\0');
        if (std::fread(bytes.data(), 1, size, stdin) != size) return 1;
        answer(py::Message(std::move(bytes)));
    }
}
