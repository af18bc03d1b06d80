// Attention of some tokens over the paged cache: the query heads that share a key head go together.
//
// Within a block of the cache keys lie by dimension and then by token, so that sixteen tokens' scores
// come out in the lanes of a vector; values lie by token. The softmax is taken over chunks of `kChunk`
// positions, each on its own, and the chunks are joined in order: the same arithmetic whether one thread
// walks over all of them or several share them, and whether a token comes alone or in a prompt. A cache in
// bfloat16 has a way of its own (pairs.h).
#pragma once

#include <limits>

#include "product.h"

namespace m27 {

constexpr int kBlock = 16;                    // tokens of a block of the cache
constexpr int kChunk = 128;                   // positions of a chunk of the softmax
constexpr int kQueries = 6;                   // rows (token and head) of a register tile
constexpr int kMostRows = 8 * kQueries;       // rows of a tile of attention
constexpr int kMostWidth = 512;               // of a head
constexpr float kNever = -std::numeric_limits<float>::infinity();

enum CacheKind : int { kCacheFloat = 0, kCacheHalf = 1, kCacheInt8 = 2, kCachePairs = 3 };

// The shape of a cache and where things lie in it: [layer][block][key head] { keys, values, scales }.
struct CacheShape {
  CacheKind kind = kCacheFloat;
  int heads = 0, width = 0, padded = 0;  // key heads; their width, and the same rounded up to 16
  size_t element = 4, head_bytes = 0, block_bytes = 0;

  CacheShape() = default;
  CacheShape(CacheKind k, int n_heads, int head_dim) : kind(k), heads(n_heads), width(head_dim) {
    padded = (width + 15) / 16 * 16;
    element = kind == kCacheFloat ? 4 : kind == kCacheInt8 ? 1 : 2;
    head_bytes = 2 * size_t(kBlock) * padded * element + (kind == kCacheInt8 ? 2 * kBlock * 4 : 0);
    block_bytes = head_bytes * heads;
  }
  size_t values_at() const { return size_t(kBlock) * padded * element; }
  size_t scales_at() const { return 2 * values_at(); }

  // Writes a token's key and value of one head at place `j` of a block.
  void write(uint8_t* head, int j, const float* k, const float* v) const {
    if (kind == kCacheFloat) {
      float* keys = reinterpret_cast<float*>(head);
      for (int d = 0; d < width; ++d) keys[d * kBlock + j] = k[d];
      memcpy(reinterpret_cast<float*>(head + values_at()) + size_t(j) * padded, v, width * 4);
    } else if (kind == kCacheHalf) {
      uint16_t* keys = reinterpret_cast<uint16_t*>(head);
      uint16_t* values = reinterpret_cast<uint16_t*>(head + values_at()) + size_t(j) * padded;
      for (int d = 0; d < width; ++d) keys[d * kBlock + j] = to_half(k[d]);
      for (int d = 0; d < width; ++d) values[d] = to_half(v[d]);
    } else if (kind == kCachePairs) {  // two neighbours side by side: of a key's numbers, of tokens' values
      uint16_t* keys = reinterpret_cast<uint16_t*>(head);
      uint16_t* values = reinterpret_cast<uint16_t*>(head + values_at()) + size_t(j / 2) * 2 * padded + j % 2;
      for (int d = 0; d < width; ++d) keys[d / 2 * 2 * kBlock + 2 * j + d % 2] = to_bf16(k[d]);
      for (int d = 0; d < width; ++d) values[2 * d] = to_bf16(v[d]);
    } else {
      float* scales = reinterpret_cast<float*>(head + scales_at());
      int8_t* keys = reinterpret_cast<int8_t*>(head);
      int8_t* values = reinterpret_cast<int8_t*>(head + values_at()) + size_t(j) * padded;
      for (int side = 0; side < 2; ++side) {
        const float* x = side ? v : k;
        float top = 0;
        for (int d = 0; d < width; ++d) top = std::max(top, std::fabs(x[d]));
        const float factor = top > 0 ? 127.0f / top : 0.0f;
        scales[side * kBlock + j] = top / 127.0f;
        for (int d = 0; d < width; ++d) {
          const int8_t n = int8_t(nearest_int(fill(x[d] * factor))[0]);
          (side ? values[d] : keys[d * kBlock + j]) = n;
        }
      }
    }
  }
};

// Room of one thread.
struct Room {
  float keys[kBlock * kMostWidth];  // a block's keys or values, widened
  float scores[kMostRows * kChunk];
  float out[kMostRows * kMostWidth];
  float joined[kMostRows * kMostWidth];
  uint32_t pairs[kMostRows * kMostWidth / 2];  // queries or weights as pairs of bfloat16
};

// A row's state of the softmax: highest score, sum of weights, and (elsewhere) the weighted values.
struct Soft {
  float top = kNever, total = 0;
};

// Joins chunk (b, b_out) to what came before it.
M27_INLINE void join(Soft& a, float* a_out, const Soft& b, const float* b_out, int padded) {
  if (b.top == kNever) return;
  if (a.top == kNever) {
    a = b;
    memcpy(a_out, b_out, padded * sizeof(float));
    return;
  }
  const float top = a.top > b.top ? a.top : b.top, x = exp1(a.top - top), y = exp1(b.top - top);
  for (int d = 0; d < padded; d += W) store(a_out + d, load(a_out + d) * x + load(b_out + d) * y);
  a.total = a.total * x + b.total * y;
  a.top = top;
}

template <class E, int R>
M27_INLINE void score_tile(const E* keys, const float* const* q, int width, float* scores) {
  vf s[R][kLanes] = {};
  for (int d = 0; d < width; ++d) {
    vf k[kLanes];
    for (int l = 0; l < kLanes; ++l) k[l] = widen(keys + d * kBlock + l * W);
    for (int r = 0; r < R; ++r) {
      const vf x = fill(q[r][d]);
      for (int l = 0; l < kLanes; ++l) s[r][l] = fma(k[l], x, s[r][l]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int l = 0; l < kLanes; ++l) store(scores + r * kChunk + l * W, s[r][l]);
}

template <class E, int R>
M27_INLINE void value_tile(const E* values, const float* weights, int count, int padded, float* out) {
  for (int d = 0; d < padded; d += kRows) {
    vf o[R][kLanes];
    for (int r = 0; r < R; ++r)
      for (int l = 0; l < kLanes; ++l) o[r][l] = load(out + r * padded + d + l * W);
    for (int j = 0; j < count; ++j) {
      vf v[kLanes];
      for (int l = 0; l < kLanes; ++l) v[l] = widen(values + size_t(j) * padded + d + l * W);
      for (int r = 0; r < R; ++r) {
        const vf x = fill(weights[r * kChunk + j]);
        for (int l = 0; l < kLanes; ++l) o[r][l] = fma(v[l], x, o[r][l]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int l = 0; l < kLanes; ++l) store(out + r * padded + d + l * W, o[r][l]);
  }
}

template <class E, int R>
void score_rows(const E* keys, const float* const* q, int rows, int width, float* scores) {
  for (; rows >= R; rows -= R, q += R, scores += R * kChunk) score_tile<E, R>(keys, q, width, scores);
  if constexpr (R > 1)
    if (rows > 0) score_rows<E, R - 1>(keys, q, rows, width, scores);
}

template <class E, int R>
void value_rows(const E* values, const float* weights, int rows, int count, int padded, float* out) {
  for (; rows >= R; rows -= R, weights += R * kChunk, out += R * padded)
    value_tile<E, R>(values, weights, count, padded, out);
  if constexpr (R > 1)
    if (rows > 0) value_rows<E, R - 1>(values, weights, rows, count, padded, out);
}

// Asks for memory that will be read soon: blocks lie where they fell, so no pattern would tell.
M27_INLINE void expect(const uint8_t* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

// Scores of `end` positions → weights, of those that a row sees; their highest score and their sum.
M27_INLINE void soften(Room& room, const int* seen, int rows, int end, Soft* soft) {
  for (int r = 0; r < rows; ++r) {
    float* s = room.scores + r * kChunk;
    for (int i = std::max(0, seen[r]); i < end; ++i) s[i] = kNever;
    vf top = fill(kNever), total = {};
    for (int i = 0; i < end; i += W) top = max(load(s + i), top);
    soft[r].top = highest(top);
    const float base = soft[r].top == kNever ? 0.0f : soft[r].top;
    for (int i = 0; i < end; i += W) {
      const vf weight = exp(load(s + i) - base);
      total += weight;
      store(s + i, weight);
    }
    soft[r].total = sum(total);
  }
}

// What `rows` rows see of the positions of one chunk: seen[r] positions from its beginning. `head` is
// the address of the key head in block 0 of the layer, `table` the blocks from the chunk's beginning on.
template <class E>
void attend_chunk(const CacheShape& shape, const uint8_t* head, const int32_t* table, const float* const* q,
                  const int* seen, int rows, Room& room, Soft* soft) {
  const int width = shape.width, padded = shape.padded;
  const bool shared = rows > kQueries && !std::is_same_v<E, float>;  // widened once for all rows
  int most = 0;
  for (int r = 0; r < rows; ++r) most = std::max(most, seen[r]);
  most = std::min(most, kChunk);
  for (int at = 0; at < most; at += kBlock) {
    const uint8_t* block = head + table[at / kBlock] * shape.block_bytes;
    const E* keys = reinterpret_cast<const E*>(block);
    if (rows <= kQueries) {
      expect(block + shape.values_at(), shape.head_bytes - shape.values_at());
      if (at + kBlock < most) expect(head + table[at / kBlock + 1] * shape.block_bytes, shape.values_at());
    }
    if (shared) {
      for (int i = 0; i < width * kBlock; i += W) store(room.keys + i, widen(keys + i));
      score_rows<float, kQueries>(room.keys, q, rows, width, room.scores + at);
    } else {
      score_rows<E, kQueries>(keys, q, rows, width, room.scores + at);
    }
    if (shape.kind == kCacheInt8) {
      const float* scales = reinterpret_cast<const float*>(block + shape.scales_at());
      for (int r = 0; r < rows; ++r)
        for (int i = 0; i < kBlock; i += W) {
          float* s = room.scores + r * kChunk + at + i;
          store(s, load(s) * load(scales + i));
        }
    }
  }
  soften(room, seen, rows, (most + kBlock - 1) / kBlock * kBlock, soft);
  memset(room.out, 0, size_t(rows) * padded * sizeof(float));
  for (int at = 0; at < most; at += kBlock) {
    const uint8_t* block = head + table[at / kBlock] * shape.block_bytes;
    const E* values = reinterpret_cast<const E*>(block + shape.values_at());
    const int count = std::min(kBlock, most - at);
    if (shape.kind == kCacheInt8) {
      const float* scales = reinterpret_cast<const float*>(block + shape.scales_at()) + kBlock;
      for (int r = 0; r < rows; ++r)
        for (int i = 0; i < count; ++i) room.scores[r * kChunk + at + i] *= scales[i];
    }
    if (shared) {
      for (int i = 0; i < count * padded; i += W) store(room.keys + i, widen(values + i));
      value_rows<float, kQueries>(room.keys, room.scores + at, rows, count, padded, room.out);
    } else {
      value_rows<E, kQueries>(values, room.scores + at, rows, count, padded, room.out);
    }
  }
}

}  // namespace m27
