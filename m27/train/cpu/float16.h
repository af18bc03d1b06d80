// The kernel in float16: sums of kChunk products in float16, sums of those in float32. For processors with
// AVX512-FP16.
//
// Panels: rows of A, columns of B, scaled by powers of two and rounded to float16. A panel of A is [k][kRows], a
// panel of B [k][kColumns]. Each row or column is scaled so that its largest
// magnitude within the block of k lies in [8, 16): then kChunk products never sum beyond what float16 holds, and
// values down to 2^-18 of the largest keep all their bits. `back` takes the scale off again.
#pragma once

#include "view.h"

namespace half {

constexpr bool kScaled = true;
constexpr int kRows = 12, kColumns = 64, kChunk = 128;
constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// 2^(3 - exponent of `largest`), and its inverse: sixteen at a time. Of zero both are finite; an infinity or a
// NaN stays one.
inline __m512 scale_of(__m512 largest, __m512* back) {
    const __m512i bits = _mm512_castps_si512(largest);
    __m512i exponent = _mm512_srli_epi32(_mm512_slli_epi32(bits, 1), 24);
    exponent = _mm512_max_epi32(exponent, _mm512_set1_epi32(8));
    exponent = _mm512_min_epi32(exponent, _mm512_set1_epi32(250));
    *back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_sub_epi32(exponent, _mm512_set1_epi32(3)), 23));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(257), exponent), 23));
}

inline __m512i to_half(__m512 x, __m512 scale) {  // sixteen halves in the low halves of words
    return _mm512_cvtepu16_epi32(
        _mm512_cvtps_ph(_mm512_mul_ps(x, scale), kNearest));
}

template <typename T>
float largest_in(const T* p, int64_t count) {
    __m512 most = _mm512_setzero_ps();
    for (int64_t k = 0; k < count; k += 16) most = _mm512_max_ps(most, _mm512_abs_ps(load(p + k, first(count - k))));
    return _mm512_reduce_max_ps(most);
}

// Scales of up to 64 vectors of `count` values, `step` apart, each lying end to end.
template <typename T>
void scales_of(const T* data, int64_t step, int vectors, int64_t count, float* scale, float* back) {
    for (int i = 0; i < vectors; ++i) scale[i] = largest_in(data + i * step, count);
    for (int i = 0; i < (vectors + 15) / 16; ++i) {
        __m512 inverse;
        const __m512 s = scale_of(_mm512_loadu_ps(scale + 16 * i), &inverse);
        _mm512_storeu_ps(scale + 16 * i, s);
        _mm512_storeu_ps(back + 16 * i, inverse);
    }
}

// A panel of A: `rows` (at most kRows) rows, `depth` of k. `out` needs room for 32 rows of k more.
template <typename T>
void pack_rows(View<T> a, int rows, int64_t depth, uint16_t* out, float* back) {
    alignas(64) float scale[16] = {}, inverse[16];
    if (a.columns == 1) {
        scales_of(a.data, a.rows, rows, depth, scale, inverse);
        const auto at = [&](int i, int64_t k) {
            return i < rows ? to_half(load(a.data + i * a.rows + k, first(depth - k)), _mm512_set1_ps(scale[i]))
                            : _mm512_setzero_si512();
        };
        for (int64_t k = 0; k < depth; k += 32) {
            __m512i r[16];  // two rows a word; of the first sixteen of k, then of the others
            for (int i = 0; i < 8; ++i)
                for (int side = 0; side < 2; ++side)
                    r[8 * side + i] = i >= kRows / 2 || k + 16 * side >= depth
                                          ? _mm512_setzero_si512()
                                          : _mm512_or_si512(at(2 * i, k + 16 * side),
                                                            _mm512_slli_epi32(at(2 * i + 1, k + 16 * side), 16));
            transpose(r);
            // Each store runs over into the next one's place, which comes after it.
            for (int i = 0; i < 16; ++i)
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (k + i) * kRows), _mm512_castsi512_si256(r[i]));
            for (int i = 0; i < 16; ++i)
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (k + 16 + i) * kRows),
                                    _mm512_extracti64x4_epi64(r[i], 1));
        }
    } else {
        const __mmask16 mask = first(rows);
        __m512 most = _mm512_setzero_ps(), b;
        for (int64_t k = 0; k < depth; ++k) most = _mm512_max_ps(most, _mm512_abs_ps(load(a.data + k * a.columns, mask)));
        const __m512 s = scale_of(most, &b);
        _mm512_store_ps(inverse, b);
        for (int64_t k = 0; k < depth; ++k)
            _mm256_storeu_si256(
                reinterpret_cast<__m256i*>(out + k * kRows),
                _mm512_cvtps_ph(_mm512_mul_ps(load(a.data + k * a.columns, mask), s), kNearest));
    }
    std::copy(inverse, inverse + kRows, back);
}

// A panel of B: `columns` (at most kColumns) columns, `depth` of k. `out` needs room for 16 rows more.
template <typename T>
void pack_columns(View<T> b, int columns, int64_t depth, uint16_t* out, float* back) {
    alignas(64) float scale[kColumns] = {};
    if (b.columns == 1) {
        __m512 most[4] = {}, s[4];
        for (int64_t k = 0; k < depth; ++k)
            for (int j = 0; j < 4; ++j)
                most[j] = _mm512_max_ps(
                    most[j], _mm512_abs_ps(load(b.data + k * b.rows + 16 * j, first(columns - 16 * j))));
        for (int j = 0; j < 4; ++j) {
            __m512 inverse;
            s[j] = scale_of(most[j], &inverse);
            _mm512_storeu_ps(back + 16 * j, inverse);
        }
        for (int64_t k = 0; k < depth; ++k)
            for (int j = 0; j < 4; ++j) {
                const __m512 x = load(b.data + k * b.rows + 16 * j, first(columns - 16 * j));
                _mm256_storeu_si256(
                    reinterpret_cast<__m256i*>(out + k * kColumns + 16 * j),
                    _mm512_cvtps_ph(_mm512_mul_ps(x, s[j]), kNearest));
            }
        return;
    }
    scales_of(b.data, b.columns, columns, depth, scale, back);
    for (int64_t k = 0; k < depth; k += 16) {
        const __mmask16 mask = first(depth - k);
        for (int side = 0; side < 2; ++side) {
            __m512i r[16];
            for (int i = 0; i < 16; ++i) {
                const int n = 32 * side + 2 * i;
                r[i] = n < columns ? to_half(load(b.data + n * b.columns + k, mask), _mm512_set1_ps(scale[n]))
                                   : _mm512_setzero_si512();
                if (n + 1 < columns) {
                    const __m512i h =
                        to_half(load(b.data + (n + 1) * b.columns + k, mask), _mm512_set1_ps(scale[n + 1]));
                    r[i] = _mm512_or_si512(r[i], _mm512_slli_epi32(h, 16));
                }
            }
            transpose(r);
            for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + (k + i) * kColumns + 32 * side, r[i]);
        }
    }
}

// sum += b * *a in every lane: a half broadcast by the instruction itself costs nothing.
#define M27_FUSE(sum, b, a) asm("vfmadd231ph %2%{1to32%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*(a)))

inline void flush(__m512h sum, float* at, bool add) {
    const __m512i h = _mm512_castph_si512(sum);
    __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(h));
    __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1));
    if (add) {
        low = _mm512_add_ps(low, _mm512_load_ps(at));
        high = _mm512_add_ps(high, _mm512_load_ps(at + 16));
    }
    _mm512_store_ps(at, low);
    _mm512_store_ps(at + 16, high);
}

// tile[kRows][kColumns] = sum over k of a[k][.] b[k][.], scales still on. The sums are named one by one and not an
// array, which the compiler would keep in memory.
inline void multiply(const uint16_t* a, const uint16_t* b, int64_t depth, float* tile) {
#define M27_ROWS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define M27_ZERO(i) __m512h low##i = _mm512_setzero_ph(), high##i = low##i;
#define M27_STEP(i) M27_FUSE(low##i, b0, a + i); M27_FUSE(high##i, b1, a + i);
#define M27_FLUSH(i) flush(low##i, tile + i * kColumns, k != 0); flush(high##i, tile + i * kColumns + 32, k != 0);
    static_assert(kRows == 12 && kColumns == 64);
    for (int64_t k = 0; k < depth; k += kChunk) {
        M27_ROWS(M27_ZERO)
        const uint16_t* const end = a + std::min<int64_t>(kChunk, depth - k) * kRows;
        for (; a != end; a += kRows, b += kColumns) {
            const __m512h b0 = _mm512_loadu_ph(b), b1 = _mm512_loadu_ph(b + 32);
            M27_ROWS(M27_STEP)
        }
        M27_ROWS(M27_FLUSH)
    }
#undef M27_ROWS
#undef M27_ZERO
#undef M27_STEP
#undef M27_FLUSH
}
#undef M27_FUSE

}  // namespace half
