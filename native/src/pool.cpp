#include "pool.hpp"

#include <system_error>

#include "error.hpp"

namespace vf {

namespace {
constexpr int spins = 2000;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}
} // namespace

void Barrier::wait() {
    if (count_ == 1) return;
    unsigned turn = turn_.load(std::memory_order_acquire);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
        waiting_.store(0, std::memory_order_relaxed);
        turn_.fetch_add(1, std::memory_order_release);
        return;
    }
    for (int spin = 0; turn_.load(std::memory_order_acquire) == turn; spin++) {
        if (spin < spins) pause();
        else std::this_thread::yield();
    }
}

Pool::Pool(int threads) {
    try {
        for (int worker = 1; worker < threads; worker++) workers_.emplace_back([this, worker] { serve(worker); });
    } catch (const std::system_error &) {
        const size_t started = workers_.size() + 1;
        close();
        fail("this process may start no more than %zu of %d threads; give fewer threads", started, threads);
    }
}

Pool::~Pool() { close(); }

void Pool::close() {
    {
        std::lock_guard guard(lock_);
        closing_ = true;
    }
    changed_.notify_all();
    for (std::thread &worker : workers_) worker.join();
}

void Pool::run(const std::function<void(int)> &work) {
    if (!workers_.empty()) {
        std::lock_guard guard(lock_);
        work_ = &work, busy_ = int(workers_.size()), turn_++;
        changed_.notify_all();
    }
    work(0);
    if (workers_.empty()) return;
    std::unique_lock guard(lock_);
    finished_.wait(guard, [this] { return busy_ == 0; });
}

void Pool::serve(int worker) {
    unsigned seen = 0;
    for (;;) {
        const std::function<void(int)> *work;
        {
            std::unique_lock guard(lock_);
            changed_.wait(guard, [&] { return closing_ || turn_ != seen; });
            if (closing_) return;
            seen = turn_, work = work_;
        }
        (*work)(worker);
        std::lock_guard guard(lock_);
        if (--busy_ == 0) finished_.notify_one();
    }
}

} // namespace vf
