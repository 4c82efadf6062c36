// Threads that work on one thing together, with barriers in between.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace vf {

class Barrier {
  public:
    explicit Barrier(int count) : count_(count) {}
    // Returns when all have come. Waiting threads spin for a moment, then give way to others.
    void wait();

  private:
    const int count_;
    std::atomic<int> waiting_{0};
    std::atomic<unsigned> turn_{0};
};

class Pool {
  public:
    explicit Pool(int threads); // Throws Error where they cannot be started.
    ~Pool();
    int threads() const { return int(workers_.size()) + 1; }
    // Calls work(0) .. work(threads - 1), each in a thread of its own, the first in the caller's. `work` must not throw.
    void run(const std::function<void(int)> &work);
    // Whoever holds it may run; others work alone.
    std::mutex &owner() { return owner_; }

  private:
    void serve(int worker);
    void close();

    std::mutex owner_, lock_;
    std::condition_variable changed_, finished_;
    const std::function<void(int)> *work_ = nullptr;
    unsigned turn_ = 0;
    int busy_ = 0;
    bool closing_ = false;
    std::vector<std::thread> workers_;
};

} // namespace vf
