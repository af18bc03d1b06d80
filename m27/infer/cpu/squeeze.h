// Some lanes of a vector, one behind the other: what keeps the candidates of a long row.
#pragma once

#include "vec.h"

namespace m27 {

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each mask of eight lanes those that it keeps, one behind the other.
constexpr struct Squeeze {
  alignas(32) int32_t of[256][8] = {};
  constexpr Squeeze() {
    for (int mask = 0; mask < 256; ++mask)
      for (int i = 0, n = 0; i < 8; ++i)
        if (mask >> i & 1) of[mask][n++] = i;
  }
} kSqueeze;
#endif

// Writes the lanes of x and p that are to be kept, one behind the other; how many. What lies behind
// them, up to a whole vector, may be written over.
M27_INLINE int squeeze(vi keep, vf x, vi p, float* xs, int32_t* ps) {
#if defined(__AVX512F__)
  const __mmask16 mask = _mm512_movepi32_mask((__m512i)keep);
  _mm512_storeu_ps(xs, _mm512_maskz_compress_ps(mask, (__m512)x));
  _mm512_storeu_si512(ps, _mm512_maskz_compress_epi32(mask, (__m512i)p));
  return __builtin_popcount(mask);
#elif defined(__AVX2__)
  const int mask = _mm256_movemask_ps((__m256)keep);
  const __m256i from = _mm256_load_si256((const __m256i*)kSqueeze.of[mask]);
  _mm256_storeu_ps(xs, _mm256_permutevar8x32_ps((__m256)x, from));
  _mm256_storeu_si256((__m256i*)ps, _mm256_permutevar8x32_epi32((__m256i)p, from));
  return __builtin_popcount(mask);
#else
  int n = 0;
  for (int i = 0; i < W; ++i) {
    xs[n] = x[i], ps[n] = p[i];
    n -= keep[i];
  }
  return n;
#endif
}

}  // namespace m27
