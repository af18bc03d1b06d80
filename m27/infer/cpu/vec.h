// A vector of W floats, and the few things of it that need an instruction of their own.
//
// Everything else is the compiler's vector extension, so that one source serves AVX-512, AVX2 and any
// other machine (where a vector is two or more registers). It knows no matrix and no cache.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace m27 {

#define M27_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int W = 16;
#else
constexpr int W = 8;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef float vf_any __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t vi_any __attribute__((vector_size(W * 4), aligned(4), may_alias));

M27_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
M27_INLINE void store(float* p, vf x) { *reinterpret_cast<vf_any*>(p) = x; }
M27_INLINE vf fill(float x) { return x - vf{}; }
M27_INLINE vf as_float(vi x) { return (vf)x; }
M27_INLINE vi as_int(vf x) { return (vi)x; }
M27_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

// a * b + c: rounded once where the machine can, else twice.
M27_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c));
#elif defined(__FMA__)
  return reinterpret_cast<vf>(_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c));
#else
  return a * b + c;
#endif
}

M27_INLINE vf max(vf a, vf b) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_max_ps((__m512)a, (__m512)b));
#elif defined(__AVX2__)
  return reinterpret_cast<vf>(_mm256_max_ps((__m256)a, (__m256)b));
#else
  return a > b ? a : b;
#endif
}

M27_INLINE vf absolute(vf x) { return as_float(as_int(x) & 0x7fffffff); }

// Sums and maxima over the lanes, in one order on every machine with the same W: halves are folded.
#if defined(__AVX2__)
M27_INLINE __m256 low_half(vf x) {
#if defined(__AVX512F__)
  return _mm512_castps512_ps256((__m512)x);
#else
  return (__m256)x;
#endif
}

M27_INLINE float sum(vf x) {
  __m256 a = low_half(x);
#if defined(__AVX512F__)
  a = _mm256_add_ps(a, _mm512_extractf32x8_ps((__m512)x, 1));
#endif
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

M27_INLINE float highest(vf x) {
  __m256 a = low_half(x);
#if defined(__AVX512F__)
  a = _mm256_max_ps(a, _mm512_extractf32x8_ps((__m512)x, 1));
#endif
  const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
#else
M27_INLINE float sum(vf x) {
  float lane[W];
  store(lane, x);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

M27_INLINE float highest(vf x) {
  float lane[W];
  store(lane, x);
  float top = lane[0];
  for (int i = 1; i < W; ++i) top = lane[i] > top ? lane[i] : top;
  return top;
}
#endif

M27_INLINE int32_t total(vi x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)x);
#else
  int32_t sum = 0;
  for (int i = 0; i < W; ++i) sum += x[i];
  return sum;
#endif
}

// Nearest integer (ties to even) of |x| < 2^22, as float and as integer.
constexpr float kMagic = 12582912.0f;
M27_INLINE vf nearest(vf x) { return (x + kMagic) - kMagic; }
M27_INLINE vi nearest_int(vf x) { return as_int(x + kMagic) - 0x4b400000; }

// e^x to about one unit in the last place (Cephes' expf); exactly 0 below -87.
M27_INLINE vf exp(vf x) {
  const vf high = fill(88.0f);
  const vi tiny = x < -87.0f;
  x = x > high ? high : x;
  x = tiny ? vf{} : x;
  const vf n = nearest(x * 1.44269504088896341f);
  vf r = fma(n, fill(-0.693359375f), x);
  r = fma(n, fill(2.12194440e-4f), r);
  vf p = fma(fill(1.9875691500e-4f), r, fill(1.3981999507e-3f));
  p = fma(p, r, fill(8.3334519073e-3f));
  p = fma(p, r, fill(4.1665795894e-2f));
  p = fma(p, r, fill(1.6666665459e-1f));
  p = fma(p, r, fill(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const vi power = (nearest_int(n) + 127) << 23;
  const vf y = p * as_float(power);
  return tiny ? vf{} : y;
}

M27_INLINE float exp1(float x) { return exp(fill(x))[0]; }

// Half precision (IEEE binary16), ties to even.
M27_INLINE float from_half(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
  uint32_t bits;
  if (rest >= 0x7c00) {
    bits = 0x7f800000 | (rest & 0x3ff) << 13;
  } else if (rest >= 0x400) {
    bits = (rest << 13) + ((127 - 15) << 23);
  } else {
    const float small = float(rest) * 5.9604644775390625e-8f;  // 2^-24
    memcpy(&bits, &small, 4);
  }
  bits |= sign;
  float x;
  memcpy(&x, &bits, 4);
  return x;
#endif
}

M27_INLINE uint16_t to_half(float x) {
#if defined(__F16C__)
  return uint16_t(_cvtss_sh(x, 0));
#else
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (bits < 0x38800000) {  // below 2^-14: let float addition do the rounding
    float small;
    memcpy(&small, &bits, 4);
    small += 0.5f;
    memcpy(&bits, &small, 4);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  const uint32_t odd = bits >> 13 & 1;
  return uint16_t(sign | ((bits - ((127 - 15) << 23) + 0xfff + odd) >> 13));
#endif
}

// bfloat16, ties to even; no number becomes another's NaN.
M27_INLINE uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 64);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

M27_INLINE float from_bf16(uint16_t b) {
  const uint32_t bits = uint32_t(b) << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

struct half {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

// W values of each type that weights and caches are stored in, widened.
M27_INLINE vf widen(const float* p) { return load(p); }

M27_INLINE vf widen(const half* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)));
#elif defined(__F16C__)
  return reinterpret_cast<vf>(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
#else
  vf x;
  for (int i = 0; i < W; ++i) x[i] = from_half(p[i].bits);
  return x;
#endif
}

M27_INLINE vf widen(const bf16* p) {
#if defined(__AVX512F__)
  return as_float(reinterpret_cast<vi>(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))) << 16);
#elif defined(__AVX2__)
  return as_float(reinterpret_cast<vi>(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p))) << 16);
#else
  vi x;
  for (int i = 0; i < W; ++i) x[i] = int32_t(uint32_t(p[i].bits) << 16);
  return as_float(x);
#endif
}

M27_INLINE vf widen(const int8_t* p) {
#if defined(__AVX512F__)
  return to_float(reinterpret_cast<vi>(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))));
#elif defined(__AVX2__)
  return to_float(reinterpret_cast<vi>(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))));
#else
  vf x;
  for (int i = 0; i < W; ++i) x[i] = float(p[i]);
  return x;
#endif
}

}  // namespace m27
