// One kind of error, with one line of text.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>

namespace vf {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    throw Error(text);
}

} // namespace vf
