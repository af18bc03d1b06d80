// Attention over a cache in bfloat16, in which two neighbours lie side by side: one instruction multiplies
// sixteen pairs and adds each to a sum in float32. Queries and weights are rounded to bfloat16 too.
//
// As elsewhere each sum runs in one order, whatever the number of rows and blocks that go together. Machines
// without the instruction multiply the halves of the pairs one after the other.
#pragma once

#include "attention.h"

namespace m27 {

constexpr int kPairRows = 6;    // rows of a register tile where there are many
constexpr int kPairTiles = 4;   // vectors of keys or values beside each row where there are few

#if defined(__AVX512BF16__)
M27_INLINE vf dot_pairs(vf sum, vi a, vi b) {
  return reinterpret_cast<vf>(_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b));
}
#else
M27_INLINE vf dot_pairs(vf sum, vi a, vi b) {
  const int32_t high = int32_t(0xffff0000);
  sum = fma(as_float(a & high), as_float(b & high), sum);
  return fma(as_float(a << 16), as_float(b << 16), sum);
}
#endif

M27_INLINE vi load_pairs(const void* p) { return *reinterpret_cast<const vi_any*>(p); }

// `count` numbers as pairs, the first of each below.
M27_INLINE void to_pairs(const float* x, int count, uint32_t* out) {
  int i = 0;
#if defined(__AVX512BF16__)
  for (; i + 32 <= count; i += 32)
    _mm512_storeu_si512(out + i / 2, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i)));
#endif
  for (; i < count; i += 2) out[i / 2] = uint32_t(to_bf16(x[i])) | uint32_t(to_bf16(x[i + 1])) << 16;
}

// scores[r][16 t + j] of R rows and T blocks of keys; `q` [R][half] pairs, `half` of them a row.
template <int R, int T>
M27_INLINE void score_pairs(const uint8_t* const* keys, const uint32_t* q, int half, float* scores) {
  vf s[R][T * kLanes] = {};
  for (int d = 0; d < half; ++d) {
    vi k[T * kLanes];
    for (int i = 0; i < T * kLanes; ++i) k[i] = load_pairs(keys[i / kLanes] + 4 * (d * kBlock + i % kLanes * W));
    for (int r = 0; r < R; ++r) {
      const vi x = int32_t(q[r * half + d]) - vi{};
      for (int i = 0; i < T * kLanes; ++i) s[r][i] = dot_pairs(s[r][i], k[i], x);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < T * kLanes; ++i) store(scores + r * kChunk + i * W, s[r][i]);
}

// out[r][0 … T W) of R rows: their weights' pairs times the values of `count` positions from these blocks.
template <int R, int T>
M27_INLINE void value_pairs(const uint8_t* const* values, const uint32_t* weights, int count, int padded, float* out) {
  vf o[R][T] = {};
  for (int j = 0; j < count; j += 2) {
    const uint8_t* at = values[j / kBlock] + size_t(j % kBlock / 2) * 4 * padded;
    vi v[T];
    for (int i = 0; i < T; ++i) {
      v[i] = load_pairs(at + 4 * i * W);
      if (j + 1 == count) v[i] &= 0xffff;  // behind the last one lies whatever was there before
    }
    for (int r = 0; r < R; ++r) {
      const vi x = int32_t(weights[r * (kChunk / 2) + j / 2]) - vi{};
      for (int i = 0; i < T; ++i) o[r][i] = dot_pairs(o[r][i], v[i], x);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < T; ++i) store(out + r * padded + i * W, o[r][i]);
}

template <int R>
void score_all(const uint8_t* const* keys, int blocks, const uint32_t* q, int rows, int half, float* scores) {
  constexpr int T = R == kPairRows ? (W == 16 ? 2 : 1) : W == 16 ? kPairTiles : 1;
  for (; rows >= R; rows -= R, q += R * half, scores += R * kChunk) {
    int at = 0;
    for (; at + T <= blocks; at += T) score_pairs<R, T>(keys + at, q, half, scores + at * kBlock);
    for (; at < blocks; ++at) score_pairs<R, 1>(keys + at, q, half, scores + at * kBlock);
  }
  if constexpr (R > 1)
    if (rows > 0) score_all<R - 1>(keys, blocks, q, rows, half, scores);
}

template <int R>
void value_all(const uint8_t* const* values, const uint32_t* weights, int rows, int count, int padded, float* out) {
  constexpr int T = W == 16 ? kPairTiles : 2;
  for (; rows >= R; rows -= R, weights += R * (kChunk / 2), out += R * padded) {
    const uint8_t* from[kChunk / kBlock] = {};
    int d = 0;
    auto shifted = [&] {
      for (int b = 0; b * kBlock < count; ++b) from[b] = values[b] + 4 * d;
      return from;
    };
    for (; d + T * W <= padded; d += T * W) value_pairs<R, T>(shifted(), weights, count, padded, out + d);
    for (; d < padded; d += W) value_pairs<R, 1>(shifted(), weights, count, padded, out + d);
  }
  if constexpr (R > 1)
    if (rows > 0) value_all<R - 1>(values, weights, rows, count, padded, out);
}

// As `attend_chunk`.
inline void attend_pairs(const CacheShape& shape, const uint8_t* head, const int32_t* table, const float* const* q,
                         const int* seen, int rows, Room& room, Soft* soft) {
  const int half = shape.width / 2, padded = shape.padded;
  int most = 0;
  for (int r = 0; r < rows; ++r) most = std::max(most, seen[r]);
  most = std::min(most, kChunk);
  const int blocks = (most + kBlock - 1) / kBlock;
  const uint8_t *keys[kChunk / kBlock] = {}, *values[kChunk / kBlock] = {};
  for (int b = 0; b < blocks; ++b) {
    keys[b] = head + table[b] * shape.block_bytes;
    values[b] = keys[b] + shape.values_at();
    if (rows <= kPairRows) expect(values[b], shape.values_at());
  }
  for (int r = 0; r < rows; ++r) to_pairs(q[r], shape.width, room.pairs + r * half);
  score_all<kPairRows>(keys, blocks, room.pairs, rows, half, room.scores);
  soften(room, seen, rows, blocks * kBlock, soft);
  for (int r = 0; r < rows; ++r) {
    uint32_t* weights = room.pairs + r * (kChunk / 2);
    to_pairs(room.scores + r * kChunk, blocks * kBlock, weights);
    vf all = {};  // the sum of the weights as they are rounded, so that they make one whole
    int j = 0;
    for (; j + W <= blocks * kBlock / 2; j += W) {
      const vi both = load_pairs(weights + j);
      all += as_float(both << 16) + as_float(both & int32_t(0xffff0000));
    }
    soft[r].total = sum(all);
    for (; j < blocks * kBlock / 2; ++j)
      soft[r].total += from_bf16(uint16_t(weights[j])) + from_bf16(uint16_t(weights[j] >> 16));
  }
  value_all<kPairRows>(values, room.pairs, rows, most, padded, room.out);
}

}  // namespace m27
