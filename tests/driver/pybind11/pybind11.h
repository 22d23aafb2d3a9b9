// What csrc/bindings.cpp wants of pybind11, for a program without Python: the functions it defines are put into a
// table, and called with arguments that are read from a pipe. tests/emulated.py is the other end.
#pragma once

#include <any>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace pybind11 {

// a call as it comes through the pipe
class Message {
  public:
    explicit Message(std::string bytes) : bytes(std::move(bytes)) {}

    void read(void* to, std::size_t count) {
        if (bytes.size() - at < count) throw std::runtime_error("expected more arguments");
        std::memcpy(to, bytes.data() + at, count);
        at += count;
    }
    template <class T>
    T number() {
        T value;
        read(&value, sizeof value);
        return value;
    }
    std::string text() {
        std::string text(number<std::uint32_t>(), ' ');
        read(text.data(), text.size());
        return text;
    }

  private:
    std::string bytes;
    std::size_t at = 0;
};

struct Array {
    std::size_t size;
    std::unique_ptr<unsigned char[]> bytes;
};

// The arguments of one call. An argument begins with the letter of its kind: i a 64-bit integer, d a double, l a list
// with its length, o an object made by the call of a class that follows, a an array with its size in bytes. Arrays go
// back to the caller, who may have wanted them to be written.
struct Arguments {
    using Class = std::function<std::any(Arguments&)>;
    static std::map<std::string, Class>& classes() {
        static std::map<std::string, Class> all;
        return all;
    }

    Message& message;
    std::vector<Array> arrays;

    template <class T>
    T take() {
        const char kind = message.number<char>();
        if constexpr (std::is_same_v<T, std::uintptr_t>) {
            return take_address(kind);
        } else if constexpr (std::is_integral_v<T>) {
            expect(kind, 'i');
            return T(message.number<std::int64_t>());
        } else if constexpr (std::is_floating_point_v<T>) {
            expect(kind, 'd');
            return T(message.number<double>());
        } else if constexpr (is_vector<T>::value) {
            expect(kind, 'l');
            T list(message.number<std::uint32_t>());
            for (auto& element : list) element = take<typename T::value_type>();
            return list;
        } else {
            expect(kind, 'o');
            return std::any_cast<T>(classes().at(message.text())(*this));
        }
    }

  private:
    template <class T>
    struct is_vector : std::false_type {};
    template <class T>
    struct is_vector<std::vector<T>> : std::true_type {};

    static void expect(char kind, char wanted) {
        if (kind != wanted) throw std::runtime_error(std::string("expected ") + wanted + ", got " + kind);
    }
    std::uintptr_t take_address(char kind) {
        if (kind == 'i') return std::uintptr_t(message.number<std::int64_t>());  // null
        expect(kind, 'a');
        const auto size = std::size_t(message.number<std::uint64_t>());
        arrays.push_back({size, std::make_unique<unsigned char[]>(size)});
        message.read(arrays.back().bytes.get(), size);
        return reinterpret_cast<std::uintptr_t>(arrays.back().bytes.get());
    }
};

// a returned value as JSON
inline std::string shown(const char* text) {
    return std::string("\"") + text + "\"";
}
inline std::string shown(bool value) {
    return value ? "true" : "false";
}
inline std::string shown(double value) {
    char text[64];
    std::snprintf(text, sizeof text, "%.17g", value);
    return text;
}
template <class T>
std::enable_if_t<std::is_integral_v<T>, std::string> shown(T value) {
    return std::to_string(value);
}
template <class T>
std::string shown(const std::optional<T>& value) {
    return value ? shown(*value) : "null";
}

struct dict {
    struct Entry {
        std::string& text;
        template <class T>
        void operator=(const T& value) {
            text = shown(value);
        }
    };
    std::map<std::string, std::string> entries;
    Entry operator[](const char* key) { return {entries[key]}; }
};
inline std::string shown(const dict& value) {
    std::string text;
    for (const auto& [key, entry] : value.entries)
        text += (text.empty() ? "" : ", ") + shown(key.c_str()) + ": " + entry;
    return "{" + text + "}";
}

using Function = std::function<std::string(Arguments&)>;
inline std::map<std::string, Function>& functions() {
    static std::map<std::string, Function> all;
    return all;
}

// calls `function` with arguments as it wants them, read from left to right
template <class R, class... A>
R call(const std::function<R(A...)>& function, Arguments& arguments) {
    std::tuple<std::decay_t<A>...> given{arguments.take<std::decay_t<A>>()...};
    return std::apply(function, given);
}

struct arg {
    explicit arg(const char*) {}
    template <class T>
    arg operator=(const T&) const {
        return *this;
    }
};
struct gil_scoped_release {};
template <class...>
struct call_guard {};

struct module_ {
    template <class F, class... Options>
    module_& def(const char* name, F f, const Options&...) {
        functions()[name] = [function = std::function(f)](Arguments& arguments) {
            using Result = typename decltype(std::function(f))::result_type;
            if constexpr (std::is_void_v<Result>) {
                call(function, arguments);
                return std::string("null");
            } else {
                return shown(call(function, arguments));
            }
        };
        return *this;
    }
};

template <class F>
struct Constructor {
    F make;
};
template <class F>
Constructor<F> init(F make) {
    return {make};
}

template <class T>
struct class_ {
    const char* name;
    class_(module_&, const char* name) : name(name) {}
    template <class F>
    class_& def(const Constructor<F>& constructor) {
        Arguments::classes()[name] = [make = std::function(constructor.make)](Arguments& arguments) {
            return std::any(call(make, arguments));
        };
        return *this;
    }
};

}  // namespace pybind11

#define PYBIND11_MODULE(name, variable) void define_functions(pybind11::module_& variable)
