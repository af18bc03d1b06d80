// The kernel in bfloat16: pairs of products along k go into sums in float32. For processors with AVX512-BF16 that
// issue it at full speed (Zen 4 and later) and have no AVX512-FP16.
//
// Panels: rows of A, columns of B, rounded to bfloat16; nothing is scaled. A panel of A is [k/2][kRows][2], a panel
// of B [k/2][kColumns][2], an odd k filled up with zero. `back` is one for rows, and left alone for columns.
#pragma once

#include "view.h"

namespace half {

constexpr bool kScaled = false;
constexpr int kRows = 12, kColumns = 32;

// Thirty-two halves end to end, zeros from `count` on.
inline __m512i line(const float* p, int64_t count) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(load(p + 16, first(count - 16)), load(p, first(count))));
}
inline __m512i line(const Bf16* p, int64_t count) {
    const __mmask32 mask = count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
    return _mm512_maskz_loadu_epi16(mask, p);
}

// Sixteen words of a value of `p` and one of `q`, which may be none.
inline __m512i both(__m512i halves) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, halves);
}
inline __m512i both(const float* p, const float* q, __mmask16 mask) {
    const __m512 second = q == nullptr ? _mm512_setzero_ps() : load(q, mask);
    return both(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, load(p, mask))));
}
inline __m512i both(const Bf16* p, const Bf16* q, __mmask16 mask) {
    const __m256i second = q == nullptr ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16(mask, q);
    return both(_mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi16(mask, p)), second, 1));
}

// Bring near what is read a little later: rows are short and far apart, and the processor's own guesses miss them.
template <typename T>
void soon(const T* p) {
    for (int64_t i = 0; i < 32; i += 64 / static_cast<int64_t>(sizeof(T)))
        _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T1);
}

// Words of up to sixteen vectors, each lying end to end: [k/2][16] at `out`, whose rows are `step` words apart. A row
// runs over into the next one's place, which is written after it.
template <typename T>
void pack_lines(const T* data, int64_t apart, int vectors, int64_t depth, uint32_t* out, int step) {
    for (int64_t k = 0; k < depth; k += 32) {
        __m512i r[16];
        const int64_t then = k + 128 < depth ? k + 128 : k + 128 - depth + std::min(vectors, 16) * apart;
        for (int i = 0; i < std::min(vectors, 16); ++i) soon(data + i * apart + then);
        for (int i = 0; i < 16; ++i)
            r[i] = i < vectors ? line(data + i * apart + k, depth - k) : _mm512_setzero_si512();
        transpose(r);
        const int64_t rows = std::min<int64_t>(16, (depth - k + 1) / 2);
        for (int i = 0; i < rows; ++i) _mm512_storeu_si512(out + (k / 2 + i) * step, r[i]);
    }
}

// A panel of A: `rows` (at most kRows) rows, `depth` of k. `out` needs room for 32 rows of k more.
template <typename T>
void pack_rows(View<T> a, int rows, int64_t depth, uint16_t* out, float* back) {
    auto* const words = reinterpret_cast<uint32_t*>(out);
    std::fill(back, back + kRows, 1.0f);
    if (a.columns == 1) {
        pack_lines(a.data, a.rows, rows, depth, words, kRows);
        return;
    }
    const __mmask16 mask = first(rows);
    for (int64_t k = 0; k < depth; k += 2) {
        const T* const p = a.data + k * a.columns;
        _mm_prefetch(reinterpret_cast<const char*>(p + 32 * a.columns), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(p + 33 * a.columns), _MM_HINT_T1);
        _mm512_storeu_si512(words + k / 2 * kRows, both(p, k + 1 < depth ? p + a.columns : nullptr, mask));
    }
}

// A panel of B: `columns` (at most kColumns) columns, `depth` of k. `out` needs room for 16 rows more.
template <typename T>
void pack_columns(View<T> b, int columns, int64_t depth, uint16_t* out, float*) {
    auto* const words = reinterpret_cast<uint32_t*>(out);
    if (b.columns != 1) {
        for (int j = 0; j < kColumns; j += 16)
            pack_lines(b.data + j * b.columns, b.columns, columns - j, depth, words + j, kColumns);
        return;
    }
    for (int64_t k = 0; k < depth; k += 2) {
        const T *const p = b.data + k * b.rows, *const q = k + 1 < depth ? p + b.rows : nullptr;
        soon(p + 16 * b.rows);
        soon(p + 17 * b.rows);
        for (int j = 0; j < kColumns; j += 16)
            _mm512_storeu_si512(words + k / 2 * kColumns + j,
                                both(p + j, q == nullptr ? q : q + j, first(columns - j)));
    }
}

// sum += b * *a, two products a lane: a pair broadcast by the instruction itself costs nothing.
#define M27_FUSE(sum, b, a) asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*(a)))

// tile[kRows][kColumns] = sum over k of a[k][.] b[k][.]. The sums are named one by one and not an array, which the
// compiler would keep in memory.
inline void multiply(const uint16_t* a_halves, const uint16_t* b_halves, int64_t depth, float* tile) {
#define M27_ROWS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define M27_ZERO(i) __m512 low##i = _mm512_setzero_ps(), high##i = low##i;
#define M27_STEP(i) M27_FUSE(low##i, b0, a + i); M27_FUSE(high##i, b1, a + i);
#define M27_FLUSH(i) _mm512_store_ps(tile + i * kColumns, low##i); _mm512_store_ps(tile + i * kColumns + 16, high##i);
    static_assert(kRows == 12 && kColumns == 32);
    const auto* a = reinterpret_cast<const uint32_t*>(a_halves);
    const auto* b = reinterpret_cast<const uint32_t*>(b_halves);
    const uint32_t* const end = a + (depth + 1) / 2 * kRows;
    M27_ROWS(M27_ZERO)
    for (; a != end; a += kRows, b += kColumns) {
        const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
        M27_ROWS(M27_STEP)
    }
    M27_ROWS(M27_FLUSH)
#undef M27_ROWS
#undef M27_ZERO
#undef M27_STEP
#undef M27_FLUSH
}
#undef M27_FUSE

}  // namespace half
