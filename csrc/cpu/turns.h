// Sums in a fixed order by tasks that run at the same time.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace vqk {

// Numbered tasks that add to shared places: each place is open to task 0 first, then to task 1, and so on. So tasks
// must be started in that order, and each must come to every place. As all walk the places in the same order, one
// follows the other at a distance, and they seldom wait.
class Turns {
  public:
    explicit Turns(std::int64_t places) : next(places) {}

    template <class Work>
    void take(std::int64_t place, std::int64_t task, Work&& work) {
        while (next[place].load(std::memory_order_acquire) != task) std::this_thread::yield();
        work();
        next[place].store(task + 1, std::memory_order_release);
    }

  private:
    std::vector<std::atomic<std::int64_t>> next;
};

}  // namespace vqk
