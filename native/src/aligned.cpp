#include "aligned.hpp"

#include "error.hpp"

namespace vf {

namespace {

thread_local Allowance *allowance = nullptr;

size_t whole(size_t bytes) { return round_up(bytes + 1, alignment); }

} // namespace

Allowance::Allowance(size_t bytes) : all_(bytes), left_(bytes) { allowance = this; }
Allowance::~Allowance() { allowance = nullptr; }

void Allowance::take(size_t bytes) {
    if (bytes > left_) fail("the model file is damaged: it takes more than %zu MB of memory; export it again", all_ >> 20);
    left_ -= bytes;
}
void Allowance::give(size_t bytes) { left_ += bytes; }

void *take_memory(size_t count, size_t each) {
    if (count > SIZE_MAX / 2 / each) throw std::bad_alloc();
    const size_t bytes = whole(count * each);
    if (allowance) allowance->take(bytes);
    void *const memory = std::aligned_alloc(alignment, bytes);
    if (memory != nullptr) return memory;
    if (allowance) allowance->give(bytes);
    throw std::bad_alloc();
}

void give_memory(void *memory, size_t count, size_t each) {
    if (allowance) allowance->give(whole(count * each));
    std::free(memory);
}

} // namespace vf
