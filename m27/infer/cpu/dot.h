// Integer products of one group of 32 inputs, sixteen outputs and a few tokens: the part that differs
// by machine, with the order of bytes that suits it.
//
// A group's weights are 512 bytes (int8) or 256 (int4, unsigned nibbles); `place8` and `place4` say where
// output r (0 … 15) and input k (0 … 31) lie. Sums are exact, so every machine gives the same integers.
#pragma once

#include "vec.h"

namespace m27 {

constexpr int kGroup = 32, kRows = 16, kLanes = kRows / W;  // kLanes vectors hold a panel's outputs

// int4: nibble k >= 16 is the upper one; bytes are [4][16 outputs][4 inputs].
M27_INLINE int place4(int r, int k) { return (k % 16) / 4 * 64 + r * 4 + k % 4; }

#if defined(__AVX512VNNI__)

// int8: bytes are [8][16 outputs][4 inputs], offset by 128 since one side must be unsigned.
typedef int8_t act8;
constexpr int kOffset = 128, kTokens8 = 8, kTokens4 = 8;
M27_INLINE int place8(int r, int k) { return k / 4 * 64 + r * 4 + k % 4; }
M27_INLINE __m512i quad(const int8_t* a) {
  int32_t four;
  memcpy(&four, a, 4);
  return _mm512_set1_epi32(four);
}

template <int N>
M27_INLINE void dot8(const uint8_t* w, const int8_t* a, size_t stride, const int32_t* offset, size_t offset_stride,
                     vi (&out)[N][kLanes]) {
  __m512i s[N];
  for (int t = 0; t < N; ++t) s[t] = _mm512_set1_epi32(offset[t * offset_stride]);
#pragma GCC unroll 8
  for (int q = 0; q < 8; ++q) {
    const __m512i x = _mm512_loadu_si512(w + 64 * q);
    for (int t = 0; t < N; ++t) s[t] = _mm512_dpbusd_epi32(s[t], x, quad(a + t * stride + 4 * q));
  }
  for (int t = 0; t < N; ++t) out[t][0] = reinterpret_cast<vi>(s[t]);
}

template <int N>
M27_INLINE void dot4(const uint8_t* w, const int8_t* a, size_t stride, vi (&out)[N][kLanes]) {
  const __m512i low = _mm512_set1_epi8(15);
  __m512i s[N];
  for (int t = 0; t < N; ++t) s[t] = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const __m512i x = _mm512_loadu_si512(w + 64 * q);
    const __m512i x0 = _mm512_and_si512(x, low), x1 = _mm512_and_si512(_mm512_srli_epi16(x, 4), low);
    for (int t = 0; t < N; ++t) s[t] = _mm512_dpbusd_epi32(s[t], x0, quad(a + t * stride + 4 * q));
    for (int t = 0; t < N; ++t) s[t] = _mm512_dpbusd_epi32(s[t], x1, quad(a + t * stride + 16 + 4 * q));
  }
  for (int t = 0; t < N; ++t) out[t][0] = reinterpret_cast<vi>(s[t]);
}

#elif defined(__AVX2__)

// int8: bytes are [16][2][8 outputs][2 inputs], widened to 16 bits and multiplied by activations that
// are held in 16 bits: as many instructions as the way over unsigned bytes, and nothing can saturate.
typedef int16_t act8;
constexpr int kOffset = 0, kTokens8 = 4, kTokens4 = 4;
M27_INLINE int place8(int r, int k) { return k / 2 * 32 + r / 8 * 16 + r % 8 * 2 + k % 2; }
M27_INLINE __m256i quad(const void* a) {
  int32_t four;
  memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}
// Keeps a sum where it is: left alone, the compiler forms all products first and spills them.
M27_INLINE __m256i held(__m256i x) {
  asm("" : "+x"(x));
  return x;
}

template <int N>
M27_INLINE void dot8(const uint8_t* w, const int16_t* a, size_t stride, const int32_t*, size_t,
                     vi (&out)[N][kLanes]) {
  __m256i s[N][2];
  for (int t = 0; t < N; ++t) s[t][0] = s[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 16
  for (int p = 0; p < 16; ++p) {
    const __m256i x0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + 32 * p)));
    const __m256i x1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + 32 * p + 16)));
    for (int t = 0; t < N; ++t) {
      const __m256i b = quad(a + t * stride + 2 * p);
      s[t][0] = held(_mm256_add_epi32(s[t][0], _mm256_madd_epi16(x0, b)));
      s[t][1] = held(_mm256_add_epi32(s[t][1], _mm256_madd_epi16(x1, b)));
    }
  }
  for (int t = 0; t < N; ++t)
    for (int l = 0; l < 2; ++l) out[t][l] = reinterpret_cast<vi>(s[t][l]);
}

// A product of unsigned nibbles and bytes is at most 2 * 15 * 127 a pair: eight of them fit 16 bits.
template <int N>
M27_INLINE void dot4(const uint8_t* w, const int8_t* a, size_t stride, vi (&out)[N][kLanes]) {
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i s[N][2];
  for (int t = 0; t < N; ++t) s[t][0] = s[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const __m256i x0 = _mm256_loadu_si256((const __m256i*)(w + 64 * q));
    const __m256i x1 = _mm256_loadu_si256((const __m256i*)(w + 64 * q + 32));
    const __m256i l0 = _mm256_and_si256(x0, low), l1 = _mm256_and_si256(x1, low);
    for (int t = 0; t < N; ++t) {
      const __m256i b = quad(a + t * stride + 4 * q);
      s[t][0] = held(_mm256_add_epi16(s[t][0], _mm256_maddubs_epi16(l0, b)));
      s[t][1] = held(_mm256_add_epi16(s[t][1], _mm256_maddubs_epi16(l1, b)));
    }
    const __m256i h0 = _mm256_and_si256(_mm256_srli_epi16(x0, 4), low);
    const __m256i h1 = _mm256_and_si256(_mm256_srli_epi16(x1, 4), low);
    for (int t = 0; t < N; ++t) {
      const __m256i b = quad(a + t * stride + 16 + 4 * q);
      s[t][0] = held(_mm256_add_epi16(s[t][0], _mm256_maddubs_epi16(h0, b)));
      s[t][1] = held(_mm256_add_epi16(s[t][1], _mm256_maddubs_epi16(h1, b)));
    }
  }
  for (int t = 0; t < N; ++t)
    for (int l = 0; l < 2; ++l) out[t][l] = reinterpret_cast<vi>(_mm256_madd_epi16(s[t][l], ones));
}

#else

typedef int8_t act8;
constexpr int kOffset = 0, kTokens8 = 2, kTokens4 = 2;
M27_INLINE int place8(int r, int k) { return k / 4 * 64 + r * 4 + k % 4; }

template <int N>
M27_INLINE void dot8(const uint8_t* w, const int8_t* a, size_t stride, const int32_t*, size_t,
                     vi (&out)[N][kLanes]) {
  for (int t = 0; t < N; ++t) {
    int32_t s[kRows] = {};
    for (int q = 0; q < 8; ++q)
      for (int r = 0; r < kRows; ++r)
        for (int k = 0; k < 4; ++k) s[r] += int8_t(w[64 * q + 4 * r + k]) * a[t * stride + 4 * q + k];
    memcpy(&out[t], s, sizeof s);
  }
}

template <int N>
M27_INLINE void dot4(const uint8_t* w, const int8_t* a, size_t stride, vi (&out)[N][kLanes]) {
  for (int t = 0; t < N; ++t) {
    int32_t s[kRows] = {};
    for (int q = 0; q < 4; ++q)
      for (int r = 0; r < kRows; ++r)
        for (int k = 0; k < 4; ++k) {
          const int x = w[64 * q + 4 * r + k];
          s[r] += (x & 15) * a[t * stride + 4 * q + k] + (x >> 4) * a[t * stride + 16 + 4 * q + k];
        }
    memcpy(&out[t], s, sizeof s);
  }
}

#endif

}  // namespace m27
