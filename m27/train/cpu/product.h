// C = A B for matrices in float32 or bfloat16, multiplied in float16: sums of kChunk products in float16, sums of
// those in float32. The error stays below that of rounding the inputs to bfloat16 (tests measure it).
//
// Blocks of B for the second-level cache, panels of A for the first (Goto & van de Geijn 2008).
#pragma once

#include <omp.h>

#include <cstdlib>
#include <new>

#include "pack.h"

namespace half {

constexpr int64_t kDepth = 768;                 // most of k in a block
constexpr int64_t kTall = 85 * kRows;           // most rows of A in a block
constexpr int64_t kWide = 48 * kColumns;        // most columns of B in a block
constexpr int kNear = 8;                        // panels of B that a core goes through before it comes back

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

// tile[kRows][kColumns] = sum over k of a[k][.] b[k][.], scales still on.
inline void multiply(const int32_t* a, const uint16_t* b, int64_t depth, float* tile) {
    for (int64_t k = 0; k < depth; k += kChunk) {
        const int64_t count = std::min<int64_t>(kChunk, depth - k);
        __m512h sum[kRows][2];
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ph();
        for (int64_t step = 0; step < count; ++step) {
            const __m512h b0 = _mm512_loadu_ph(b), b1 = _mm512_loadu_ph(b + 32);
            b += kColumns;
#pragma GCC unroll 12
            for (int i = 0; i < kRows; ++i) {
                const __m512h x = _mm512_castsi512_ph(_mm512_set1_epi32(a[i]));
                sum[i][0] = _mm512_fmadd_ph(x, b0, sum[i][0]);
                sum[i][1] = _mm512_fmadd_ph(x, b1, sum[i][1]);
            }
            a += kRows;
        }
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
                float* at = tile + i * kColumns + 32 * j;
                const __m512i h = _mm512_castph_si512(sum[i][j]);
                __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(h));
                __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1));
                if (k != 0) {
                    low = _mm512_add_ps(low, _mm512_load_ps(at));
                    high = _mm512_add_ps(high, _mm512_load_ps(at + 16));
                }
                _mm512_store_ps(at, low);
                _mm512_store_ps(at + 16, high);
            }
    }
}

inline void put(float* p, __mmask16 mask, __m512 x, bool add) {
    if (add) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, p));
    _mm512_mask_storeu_ps(p, mask, x);
}
inline void put(Bf16* p, __mmask16 mask, __m512 x, bool add) {
    if (add) x = _mm512_add_ps(x, load(p, mask));
    _mm256_mask_storeu_epi16(p, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

// One tile of C, its scales taken off.
template <typename C>
void finish(const float* tile, const float* rows, const float* columns, C* c, int64_t ld, int64_t m, int64_t n, bool add) {
    for (int i = 0; i < std::min<int64_t>(m, kRows); ++i)
        for (int j = 0; j < kColumns && j < n; j += 16) {
            const __m512 x = _mm512_mul_ps(
                _mm512_mul_ps(_mm512_load_ps(tile + i * kColumns + j), _mm512_set1_ps(rows[i])),
                _mm512_loadu_ps(columns + j));
            put(c + i * ld + j, first(n - j), x, add);
        }
}

inline int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// C [m, n] = A [m, k] B [k, n], or added to C. Runs on as many threads as OpenMP was set to.
template <typename A, typename B, typename C>
void product(int64_t m, int64_t n, int64_t k, View<A> a, View<B> b, C* c, int64_t ld, bool add) {
    static thread_local Buffer rows_of, columns_of, sums_of;
    const int64_t depth = up(up(k, up(k, kDepth)), 16) * 16;
    const int64_t tall = std::min<int64_t>(up(m, kRows) * kRows, kTall);
    const int64_t wide = std::min<int64_t>(up(n, kColumns) * kColumns, kWide);
    const int64_t a_panel = depth * kRows + 16, b_panel = (depth + 16) * kColumns;
    const bool several = k > depth && sizeof(C) != sizeof(float);  // then sums are kept in float32 meanwhile
    auto* const a_words = static_cast<int32_t*>(rows_of.get((tall / kRows) * (a_panel + kRows) * 4));
    auto* const a_back = reinterpret_cast<float*>(a_words + (tall / kRows) * a_panel);
    auto* const b_halves =
        static_cast<uint16_t*>(columns_of.get((wide / kColumns) * (b_panel * 2 + kColumns * 4)));
    auto* const b_back = reinterpret_cast<float*>(b_halves + (wide / kColumns) * b_panel);
    auto* const sums = several ? static_cast<float*>(sums_of.get(up(m, kRows) * kRows * wide * 4)) : nullptr;
#pragma omp parallel
    for (int64_t n0 = 0; n0 < n; n0 += wide) {
        const int64_t b_panels = up(std::min(wide, n - n0), kColumns);
        for (int64_t k0 = 0; k0 < k; k0 += depth) {
            const int64_t deep = std::min(depth, k - k0);
#pragma omp for schedule(dynamic, 2)
            for (int64_t j = 0; j < b_panels; ++j) {
                const int64_t at = n0 + j * kColumns;
                pack_columns(b.at(k0, at), std::min<int64_t>(kColumns, n - at), deep, b_halves + j * b_panel,
                             b_back + j * kColumns);
            }
            for (int64_t m0 = 0; m0 < m; m0 += tall) {
                const int64_t a_panels = up(std::min(tall, m - m0), kRows);
#pragma omp for schedule(dynamic, 2)
                for (int64_t i = 0; i < a_panels; ++i) {
                    const int64_t at = m0 + i * kRows;
                    pack_rows(a.at(at, k0), std::min<int64_t>(kRows, m - at), deep, a_words + i * a_panel,
                              a_back + i * kRows);
                }
                const int64_t strips = up(b_panels, kNear), groups = up(a_panels, 8);
#pragma omp for schedule(dynamic, 1)
                for (int64_t task = 0; task < strips * groups; ++task) {
                    alignas(64) float tile[kRows * kColumns];
                    const int64_t from = task / groups * kNear, i0 = task % groups * 8;
                    for (int64_t i = i0; i < std::min(i0 + 8, a_panels); ++i)
                        for (int64_t j = from; j < std::min(from + kNear, b_panels); ++j) {
                            multiply(a_words + i * a_panel, b_halves + j * b_panel, deep, tile);
                            const int64_t row = m0 + i * kRows, column = n0 + j * kColumns;
                            const float *rows = a_back + i * kRows, *columns = b_back + j * kColumns;
                            if (several) {
                                float* s = sums + (row * wide + j * kColumns);
                                finish(tile, rows, columns, s, wide, kRows, kColumns, k0 != 0);
                                if (k0 + deep < k) continue;
                                C* out = c + row * ld + column;
                                for (int r = 0; r < std::min<int64_t>(kRows, m - row); ++r)
                                    for (int x = 0; x < kColumns && x < n - column; x += 16)
                                        put(out + r * ld + x, first(n - column - x),
                                            _mm512_loadu_ps(s + r * wide + x), add);
                            } else {
                                finish(tile, rows, columns, c + row * ld + column, ld, m - row, n - column,
                                       add || k0 != 0);
                            }
                        }
                }
            }
        }
    }
}

}  // namespace half
