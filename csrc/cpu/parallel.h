// Fan-out of independent tasks over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace vqk {

// Runs task(i) for i in [0, tasks) on up to `threads` threads. Threads live for one call: there is no pool to
// survive a fork or to spin beside the caller's own (starting one costs about 20 us; small work stays inline).
// Which thread runs a task is arbitrary, so results must not depend on it.
template <class Task>
void parallel_for(std::int64_t tasks, int threads, Task&& task) {
    const int workers = int(std::min<std::int64_t>(std::max(threads, 1), tasks));
    if (workers <= 1) {
        for (std::int64_t i = 0; i < tasks; ++i) task(i);
        return;
    }
    std::atomic<std::int64_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_lock;
    auto work = [&] {
        try {
            for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
        } catch (...) {  // out of memory in a worker must reach the caller, not std::terminate
            std::lock_guard<std::mutex> hold(failure_lock);
            failure = std::current_exception();
            next.store(tasks, std::memory_order_relaxed);
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(workers - 1);
    try {
        for (int i = 1; i < workers; ++i) helpers.emplace_back(work);
    } catch (const std::system_error&) {
        // no more threads to be had: those there are do all the tasks
    }
    work();
    for (auto& helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

// how many threads are worth starting for this many elementary operations
inline int useful_threads(int threads, double operations) {
    constexpr double per_thread = 2e5;
    return int(std::max(1.0, std::min(double(threads), operations / per_thread)));
}

}  // namespace vqk
