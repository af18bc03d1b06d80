// C = A B for matrices in float32 or bfloat16, multiplied in the 16 bits that the processor is fast in and summed in
// float32 (float16.h, bfloat16.h).
//
// Blocks of B for the second-level cache, panels of A for the first (Goto & van de Geijn 2008).
#pragma once

#include <omp.h>

#include <cstdlib>
#include <new>

#ifdef __AVX512FP16__
#include "float16.h"
#else
#include "bfloat16.h"
#endif

namespace half {

constexpr int64_t kDepth = 1024;            // most of k in a block
constexpr int64_t kWide = 3072;             // most columns of B in a block
constexpr int64_t kGroup = 5;               // panels of A that a core holds at a time

class Buffer {  // kept from call to call
   public:
    ~Buffer() { std::free(data_); }
    void* get(size_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = (bytes + 4095) & ~size_t{4095};
            data_ = std::aligned_alloc(4096, size_);
            if (data_ == nullptr) throw std::bad_alloc();
        }
        return data_;
    }

   private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

// What a product is added to, in float32: nothing, another matrix, or C itself.
struct Base {
    const float* data = nullptr;
    int64_t ld = 0;
    Base at(int64_t i, int64_t j) const { return {data == nullptr ? data : data + i * ld + j, ld}; }
    __m512 plus(__m512 x, int64_t i, int64_t j, __mmask16 mask) const {
        return data == nullptr ? x : _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, data + i * ld + j));
    }
};

// One tile of C, its scales taken off.
template <typename C>
void finish(const float* tile, const float* rows, const float* columns, C* c, int64_t ld, int64_t m, int64_t n,
            Base base) {
    for (int i = 0; i < std::min<int64_t>(m, kRows); ++i)
        for (int j = 0; j < kColumns && j < n; j += 16) {
            const __mmask16 mask = first(n - j);
            __m512 x = _mm512_mul_ps(_mm512_load_ps(tile + i * kColumns + j), _mm512_set1_ps(rows[i]));
            if constexpr (kScaled) x = _mm512_mul_ps(x, _mm512_loadu_ps(columns + j));
            put(c + i * ld + j, mask, base.plus(x, i, j, mask));
        }
}

inline int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Bring a tile of C near while its product is made: it comes from afar, and in short pieces.
template <typename C>
void expect(const C* c, int64_t ld, int64_t m, int64_t n) {
    for (int i = 0; i < std::min<int64_t>(m, kRows); ++i)
        for (int64_t j = 0; j < std::min<int64_t>(n, kColumns); j += 64 / static_cast<int64_t>(sizeof(C)))
            _mm_prefetch(reinterpret_cast<const char*>(c + i * ld + j), _MM_HINT_T0);
}

// C [m, n] = base + A [m, k] B [k, n]. Runs on as many threads as OpenMP was set to.
template <typename A, typename B, typename C>
void product(int64_t m, int64_t n, int64_t k, View<A> a, View<B> b, C* c, int64_t ld, Base base) {
    static thread_local Buffer columns_of, sums_of;
    const int64_t depth = up(up(k, up(k, kDepth)), 32) * 32;
    const int64_t wide = std::min<int64_t>(up(n, kColumns) * kColumns, kWide), panels = up(m, kRows);
    const int64_t a_panel = (depth + 32) * kRows, b_panel = (depth + 16) * kColumns;
    const bool several = k > depth && sizeof(C) != sizeof(float);  // then sums are kept in float32 meanwhile
    auto* const b_halves =
        static_cast<uint16_t*>(columns_of.get((wide / kColumns) * (b_panel * 2 + kColumns * 4)));
    auto* const b_back = reinterpret_cast<float*>(b_halves + (wide / kColumns) * b_panel);
    auto* const sums = several ? static_cast<float*>(sums_of.get(panels * kRows * wide * 4)) : nullptr;
    const int64_t threads = omp_get_max_threads(), tasks = up(panels, threads * kGroup) * threads;
#pragma omp parallel
    {
        static thread_local Buffer rows_of;
        auto* const a_halves = static_cast<uint16_t*>(rows_of.get(kGroup * a_panel * 2));
        alignas(64) float tile[kRows * kColumns], a_back[kGroup * kRows];
        for (int64_t n0 = 0; n0 < n; n0 += wide) {
            const int64_t b_panels = up(std::min(wide, n - n0), kColumns);
            for (int64_t k0 = 0; k0 < k; k0 += depth) {
                const int64_t deep = std::min(depth, k - k0);
#pragma omp for schedule(dynamic, 1)
                for (int64_t j = 0; j < b_panels; ++j) {
                    const int64_t at = n0 + j * kColumns;
                    pack_columns(b.at(k0, at), std::min<int64_t>(kColumns, n - at), deep, b_halves + j * b_panel,
                                 b_back + j * kColumns);
                }
#pragma omp for schedule(dynamic, 1)
                for (int64_t task = 0; task < tasks; ++task) {
                    const int64_t from = task * panels / tasks, to = (task + 1) * panels / tasks;
                    for (int64_t i = from; i < to; ++i)
                        pack_rows(a.at(i * kRows, k0), std::min<int64_t>(kRows, m - i * kRows), deep,
                                  a_halves + (i - from) * a_panel, a_back + (i - from) * kRows);
                    for (int64_t j = 0; j < b_panels; ++j)
                        for (int64_t i = from; i < to; ++i) {
                            const int64_t row = i * kRows, column = n0 + j * kColumns;
                            const float *rows = a_back + (i - from) * kRows, *columns = b_back + j * kColumns;
                            C* const out = c + row * ld + column;
                            if (!several) expect(out, ld, m - row, n - column);
                            multiply(a_halves + (i - from) * a_panel, b_halves + j * b_panel, deep, tile);
                            if constexpr (sizeof(C) == sizeof(float)) {
                                const Base under = k0 == 0 ? base.at(row, column) : Base{out, ld};
                                finish(tile, rows, columns, out, ld, m - row, n - column, under);
                                continue;
                            }
                            if (!several) {
                                finish(tile, rows, columns, out, ld, m - row, n - column, base.at(row, column));
                                continue;
                            }
                            float* const s = sums + row * wide + j * kColumns;
                            finish(tile, rows, columns, s, wide, kRows, kColumns, k0 == 0 ? Base{} : Base{s, wide});
                            if (k0 + deep < k) continue;
                            const Base under = base.at(row, column);
                            for (int r = 0; r < std::min<int64_t>(kRows, m - row); ++r)
                                for (int x = 0; x < kColumns && x < n - column; x += 16) {
                                    const __mmask16 mask = first(n - column - x);
                                    put(out + r * ld + x, mask, under.plus(_mm512_loadu_ps(s + r * wide + x), r, x, mask));
                                }
                        }
                }
            }
        }
    }
}

}  // namespace half
