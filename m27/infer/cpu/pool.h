// Threads that wait together, and memory that is held together.
//
// A step is one parallel region: every thread runs the same code, takes pieces of each phase, first of a part
// of its own and then of the others' (so that a slow core does fewer), and meets the others at a barrier.
// Waiting spins for a short while and then gives the core away; between steps the threads sleep. Who computes
// a piece never changes what is computed.
#pragma once

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace m27 {

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  explicit Pool(int threads) : n_(threads), next_(threads) {
    for (int i = 1; i < n_; ++i)
      workers_.emplace_back([this, i] {
        me_ = i;
        wait_for_work();
      });
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() {
    stop_ = true;
    start();
    for (auto& worker : workers_) worker.join();
  }

  int threads() const { return n_; }
  // Within `run`: this thread's number, below `threads()`.
  static int me() { return me_; }

  // Runs `body` in every thread, this one included, and returns when all are done.
  template <class F>
  void run(F& body) {
    call_ = [](void* f) { (*static_cast<F*>(f))(); };
    argument_ = &body;
    if (n_ > 1) start();
    body();
    barrier();
  }

  // Within `run`: f(begin, end) over pieces of 0 … items - 1, then a barrier. Each thread begins with a part of
  // its own, the same of every phase, since what it wrote there before lies in its cache; then it helps others.
  template <class F>
  void share(int items, F&& f) {
    if (n_ == 1) {
      if (items > 0) f(0, items);
      return;
    }
    for (int i = 0; i < n_; ++i) {
      const int part = (me_ + i) % n_;
      const int first = int(int64_t(items) * part / n_), size = int(int64_t(items) * (part + 1) / n_) - first;
      std::atomic<int>& next = next_[part].taken;
      int begin = next.load(std::memory_order_relaxed);
      while (begin < size) {
        const int piece = (size - begin) / 4, end = begin + (piece > 1 ? piece : 1);
        if (next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) {
          f(first + begin, first + end);
          begin = next.load(std::memory_order_relaxed);
        }
      }
    }
    barrier();
  }

 private:
  static constexpr int kSpins = 4000, kYields = 4000;

  void start() {
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }

  void barrier() {
    if (n_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == n_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      for (int i = 0; i < n_; ++i) next_[i].taken.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int i = 0; phase_.load(std::memory_order_acquire) == phase; ++i) {
      if (i < kSpins)
        pause_briefly();
      else
        std::this_thread::yield();
    }
  }

  void wait_for_work() {
    for (uint32_t seen = 0;;) {
      for (int i = 0; i < kSpins + kYields && generation_.load(std::memory_order_acquire) == seen; ++i) {
        if (i < kSpins)
          pause_briefly();
        else
          std::this_thread::yield();
      }
      generation_.wait(seen, std::memory_order_acquire);
      ++seen;
      if (stop_) return;
      call_(argument_);
      barrier();
    }
  }

  inline static thread_local int me_ = 0;  // 0 is whoever calls `run`
  const int n_;
  std::atomic<bool> stop_{false};
  void (*call_)(void*) = nullptr;
  void* argument_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  struct alignas(64) Part {
    std::atomic<int> taken{0};  // of its items
  };
  std::vector<Part> next_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  std::vector<std::thread> workers_;
};

// Zeroed memory in large pieces, aligned for vectors and for large pages, freed all at once.
class Memory {
 public:
  template <class T>
  T* take(size_t count) {
    const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;  // a vector may read past the end
    if (bytes > left_) grow(bytes);
    void* out = at_;
    at_ += bytes;
    left_ -= bytes;
    taken_ += bytes;
    return static_cast<T*>(out);
  }
  size_t taken() const { return taken_; }

 private:
  static constexpr size_t kPage = size_t(2) << 20, kPiece = size_t(32) << 20;

  void grow(size_t bytes) {
    const size_t piece = bytes > kPiece ? (bytes + kPage - 1) / kPage * kPage : kPiece;
    void* raw = calloc(piece + kPage, 1);
    if (!raw) throw std::bad_alloc();
    held_.emplace_back(raw, &free);
    at_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + kPage - 1) / kPage * kPage);
    left_ = piece;
#if defined(__linux__)
    madvise(at_, piece, MADV_HUGEPAGE);
#endif
  }

  std::vector<std::unique_ptr<void, void (*)(void*)>> held_;
  uint8_t* at_ = nullptr;
  size_t left_ = 0, taken_ = 0;
};

}  // namespace m27
