// Memory at multiples of 64 bytes, as wide loads want it, counted while a file is opened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace vf {

constexpr size_t alignment = 64;

inline size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// What this thread may take as long as this lives: a small file can ask for any amount, and an operating system that promises more than there is ends the
// process when it is used.
class Allowance {
  public:
    explicit Allowance(size_t bytes);
    ~Allowance();
    Allowance(const Allowance &) = delete;
    void take(size_t bytes); // refused in one line where there is less
    void give(size_t bytes);

  private:
    size_t all_, left_;
};

void *take_memory(size_t count, size_t each); // std::bad_alloc where there is not so much
void give_memory(void *memory, size_t count, size_t each);

template <typename T> struct Aligned {
    using value_type = T;
    Aligned() = default;
    template <typename U> Aligned(const Aligned<U> &) {}
    T *allocate(size_t count) { return static_cast<T *>(take_memory(count, sizeof(T))); }
    void deallocate(T *memory, size_t count) { give_memory(memory, count, sizeof(T)); }
    template <typename U> bool operator==(const Aligned<U> &) const { return true; }
};

template <typename T> using Array = std::vector<T, Aligned<T>>;

} // namespace vf
