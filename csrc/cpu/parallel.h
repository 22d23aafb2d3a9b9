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

#include "cpu/arithmetic.h"

namespace vqk {

// Threads of the caller's: run(work, data) calls work(data) on all of them and waits.
using Team = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);  // as GOMP_parallel
inline std::atomic<Team> team{nullptr};

// Runs task(i) for i in [0, tasks) on up to `threads` threads: those of the team, which after an operation of their
// own spin for milliseconds and leave little of a processor to others, or, without a team, threads that live for one
// call (starting one costs about 20 us; small work stays inline). Which thread runs a task is arbitrary, so results
// must not depend on it; and all may run on one.
template <class Task>
void parallel_for(std::int64_t tasks, int threads, Task&& task) {
    const int workers = int(std::min<std::int64_t>(std::max(threads, 1), tasks));
    if (workers <= 1) {
        for (std::int64_t i = 0; i < tasks; ++i) task(i);
        return;
    }
    std::atomic<std::int64_t> next{0};
    std::atomic<int> entered{0};
    std::exception_ptr failure;
    std::mutex failure_lock;
    auto work = [&] {
        if (entered.fetch_add(1, std::memory_order_relaxed) >= workers) return;
        const DefaultArithmetic arithmetic;
        try {
            for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
        } catch (...) {  // out of memory in a worker must reach the caller, not std::terminate
            std::lock_guard<std::mutex> hold(failure_lock);
            failure = std::current_exception();
            next.store(tasks, std::memory_order_relaxed);
        }
    };
    if (const Team run = team.load(std::memory_order_relaxed)) {
        // all of them: a team that changes its size starts threads anew
        constexpr unsigned all = 0;
        run([](void* data) { (*static_cast<decltype(work)*>(data))(); }, &work, all, 0);
    } else {
        std::vector<std::thread> helpers;
        helpers.reserve(workers - 1);
        try {
            for (int i = 1; i < workers; ++i) helpers.emplace_back(work);
        } catch (const std::system_error&) {
            // no more threads to be had: those there are do all the tasks
        }
        work();
        for (auto& helper : helpers) helper.join();
    }
    if (failure) std::rethrow_exception(failure);
}

// how many threads are worth starting for this many elementary operations
inline int useful_threads(int threads, double operations) {
    constexpr double per_thread = 2e5;
    return int(std::max(1.0, std::min(double(threads), operations / per_thread)));
}

}  // namespace vqk
