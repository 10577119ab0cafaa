// A few threads that take numbered pieces of work until none is left.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace rlfn {

class Pool {
   public:
    // Calls f(piece, worker) for pieces 0 .. count - 1 on up to `threads` threads, the caller's included; on fewer
    // where the system gives no more. Throws std::bad_alloc where memory ended in a piece.
    template <class F>
    void run(int threads, int count, F&& f) {
        int helpers = (threads < count ? threads : count) - 1;
        std::unique_lock<std::mutex> mine(busy_, std::defer_lock);
        // Whoever finds the pool taken by another caller does the work alone.
        if (helpers <= 0 || !mine.try_lock()) {
            for (int i = 0; i < count; i++) f(i, 0);
            return;
        }
        while (static_cast<int>(threads_.size()) < helpers && add()) {
        }
        helpers = std::min(helpers, static_cast<int>(threads_.size()));
        next_.store(0, std::memory_order_relaxed);
        count_ = count;
        call_ = [](void* self, int piece, int worker) {
            (*static_cast<std::remove_reference_t<F>*>(self))(piece, worker);
        };
        self_ = &f;
        unfinished_.store(helpers, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            turn_.store((turn_.load(std::memory_order_relaxed) & ~MASK) + MASK + 1 + helpers,
                        std::memory_order_release);
        }
        wake_.notify_all();
        take(0);
        for (int spins = 0; spins < SPINS && unfinished_.load(std::memory_order_acquire) > 0; spins++) _mm_pause();
        // A helper that lost its core to another program needs this one: sleep, so that it is moved here.
        if (unfinished_.load(std::memory_order_acquire) > 0) {
            std::unique_lock<std::mutex> lock(mutex_);
            done_.wait(lock, [&] { return unfinished_.load(std::memory_order_acquire) == 0; });
        }
        if (failed_.exchange(false)) throw std::bad_alloc();
    }

   private:
    // About 20 us: pieces of one picture follow one another faster than a thread falls asleep and wakes.
    static constexpr int SPINS = 1000;
    static constexpr uint64_t MASK = 0xffff;

    // False where the system gives no thread.
    bool add() {
        int worker = static_cast<int>(threads_.size()) + 1;
        uint64_t seen = turn_.load(std::memory_order_acquire);
        try {
            threads_.reserve(worker);
            threads_.emplace_back([this, worker, seen] { serve(worker, seen); });
        } catch (const std::exception&) {
            return false;
        }
        threads_.back().detach();
        return true;
    }

    void serve(int worker, uint64_t seen) {
        for (;;) {
            for (int spins = 0; turn_.load(std::memory_order_acquire) == seen && spins < SPINS; spins++) _mm_pause();
            if (turn_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return turn_.load(std::memory_order_acquire) != seen; });
            }
            seen = turn_.load(std::memory_order_acquire);
            // One number holds turn and helpers: who is not needed may read it late.
            if (worker > static_cast<int>(seen & MASK)) continue;
            take(worker);
            if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
                std::lock_guard<std::mutex> lock(mutex_);
                done_.notify_one();
            }
        }
    }

    void take(int worker) {
        try {
            for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) call_(self_, i, worker);
        } catch (...) {
            // Out of a helper it would end the process.
            failed_.store(true);
        }
    }

    std::mutex busy_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> threads_;
    std::atomic<uint64_t> turn_{0};
    std::atomic<int> next_{0}, unfinished_{0};
    std::atomic<bool> failed_{false};
    int count_ = 0;
    void (*call_)(void*, int, int) = nullptr;
    void* self_ = nullptr;
};

}  // namespace rlfn
