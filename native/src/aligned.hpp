// Memory at multiples of 64 bytes, as wide loads want it.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

namespace vf {

constexpr size_t alignment = 64;

inline size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <typename T> struct Aligned {
    using value_type = T;
    Aligned() = default;
    template <typename U> Aligned(const Aligned<U> &) {}
    T *allocate(size_t count) {
        if (count > SIZE_MAX / 2 / sizeof(T)) throw std::bad_alloc();
        void *memory = std::aligned_alloc(alignment, round_up(count * sizeof(T) + 1, alignment));
        if (memory == nullptr) throw std::bad_alloc();
        return static_cast<T *>(memory);
    }
    void deallocate(T *memory, size_t) { std::free(memory); }
    template <typename U> bool operator==(const Aligned<U> &) const { return true; }
};

template <typename T> using Array = std::vector<T, Aligned<T>>;

} // namespace vf
