// Matrices packed in panels of sixteen outputs, and their products with the vectors of some tokens.
//
// A panel holds its outputs side by side, so that they fall into the lanes of a vector and nothing is
// ever summed across lanes. Each sum runs over the inputs in one order, whatever the number of tokens:
// a token's result is the same to the last bit in a prompt and on its own.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "dot.h"
#include "pool.h"

namespace m27 {

enum Kind : int { kFloat = 0, kBF16 = 1, kInt8 = 2, kInt4 = 3 };

constexpr bool kSameActs = std::is_same_v<act8, int8_t>;

M27_INLINE int groups_of(int cols) { return (cols + kGroup - 1) / kGroup; }

// Vectors of up to `tokens` tokens, as they are and as integers: q = x / scale, by groups of 32.
struct Acts {
  int cols = 0, groups = 0;
  float* x = nullptr;      // [tokens, groups * 32], zero behind cols
  act8* q8 = nullptr;      // rounded, of the same shape, for matrices of int8
  int8_t* q4 = nullptr;    // and for those of int4
  float* scale = nullptr;  // [tokens, groups]
  int32_t* offset = nullptr;  // [tokens, groups]: what takes the weights' offset away again
  float* weight = nullptr; // scale * sum: what the minimum of an int4 group is multiplied by

  size_t stride() const { return size_t(groups) * kGroup; }
  void reserve(Memory& memory, int tokens, int columns) {
    cols = columns;
    groups = groups_of(columns);
    const size_t g = size_t(tokens) * groups;
    x = memory.take<float>(g * kGroup);
    q8 = memory.take<act8>(g * kGroup);
    q4 = kSameActs ? reinterpret_cast<int8_t*>(q8) : memory.take<int8_t>(g * kGroup);
    scale = memory.take<float>(g);
    offset = memory.take<int32_t>(g);
    weight = memory.take<float>(g);
  }
  float* row(int t) const { return x + t * stride(); }
  // The same vectors from token t on.
  Acts from(int t) const {
    Acts a = *this;
    a.x = row(t);
    a.q8 += t * stride();
    a.q4 += t * stride();
    a.scale += size_t(t) * groups;
    a.offset += size_t(t) * groups;
    a.weight += size_t(t) * groups;
    return a;
  }

  // Rounds token t for matrices of this kind; on some machines both kinds read the same integers.
  void quantise(Kind kind, int t) const {
    if (kind == kInt8) to_integers(q8, t);
    if (kind == kInt4) to_integers(q4, t);
  }

 private:
  template <class T>
  void to_integers(T* q, int t) const {
    typedef T narrow __attribute__((vector_size(W * sizeof(T))));
    typedef T narrow_any __attribute__((vector_size(W * sizeof(T)), aligned(1), may_alias));
    for (int g = 0; g < groups; ++g) {
      const float* from = row(t) + g * kGroup;
      T* to = q + t * stride() + g * kGroup;
      vf top = {};
      for (int i = 0; i < kGroup; i += W) top = max(absolute(load(from + i)), top);
      const float amax = highest(top), factor = amax > 0 ? 127.0f / amax : 0.0f;
      vi all = {};
      for (int i = 0; i < kGroup; i += W) {
        const vi n = nearest_int(load(from + i) * factor);
        all += n;
        *reinterpret_cast<narrow_any*>(to + i) = __builtin_convertvector(n, narrow);
      }
      const int32_t sum = total(all);
      const size_t at = size_t(t) * groups + g;
      scale[at] = amax / 127.0f;
      offset[at] = -kOffset * sum;
      weight[at] = scale[at] * float(sum);
    }
  }
};

struct Matrix {
  Kind kind = kFloat;
  int rows = 0, cols = 0, panels = 0;
  size_t panel_bytes = 0;
  uint8_t* data = nullptr;

  void reserve(Memory& memory, Kind k, int n_panels, int columns) {
    kind = k;
    cols = columns;
    panels = n_panels;
    rows = panels * kRows;
    const size_t g = groups_of(cols);
    panel_bytes = k == kFloat ? size_t(cols) * kRows * 4
                  : k == kBF16 ? size_t(cols) * kRows * 2
                  : k == kInt8 ? g * (2 * kRows + kRows * kGroup)
                               : g * (4 * kRows + kRows * kGroup / 2);
    data = memory.take<uint8_t>(panel_bytes * panels);
  }

  // Puts a row in place: `values` are float, bf16, int8 or int4 (a byte of a group of 32 holds input i
  // below and i + 16 above), by kind; scales and minima are half precision, one a group.
  void put(int row, const void* values, const uint16_t* scale, const uint16_t* minimum) {
    uint8_t* p = data + row / kRows * panel_bytes;
    const int r = row % kRows, g = groups_of(cols);
    if (kind == kFloat || kind == kBF16) {
      const size_t size = kind == kFloat ? 4 : 2;
      for (int k = 0; k < cols; ++k)
        memcpy(p + (size_t(k) * kRows + r) * size, static_cast<const uint8_t*>(values) + k * size, size);
    } else if (kind == kInt8) {
      const uint8_t* v = static_cast<const uint8_t*>(values);
      for (int i = 0; i < g; ++i, p += 2 * kRows + kRows * kGroup, v += kGroup) {
        memcpy(p + 2 * r, scale + i, 2);
        for (int k = 0; k < kGroup; ++k) p[2 * kRows + place8(r, k)] = uint8_t(v[k] + kOffset);
      }
    } else {
      const uint8_t* v = static_cast<const uint8_t*>(values);
      for (int i = 0; i < g; ++i, p += 4 * kRows + kRows * kGroup / 2, v += kGroup / 2) {
        memcpy(p + 2 * r, scale + i, 2);
        memcpy(p + 2 * kRows + 2 * r, minimum + i, 2);
        for (int k = 0; k < kGroup / 2; ++k) p[4 * kRows + place4(r, k)] = v[k];
      }
    }
  }

  // The row as floats: an embedding.
  void get(int row, float* out) const {
    const uint8_t* p = data + row / kRows * panel_bytes;
    const int r = row % kRows;
    for (int k = 0; k < cols; ++k) {
      const int g = k / kGroup, i = k % kGroup;
      if (kind == kFloat) {
        memcpy(out + k, p + (size_t(k) * kRows + r) * 4, 4);
      } else if (kind == kBF16) {
        const uint32_t bits = uint32_t(half_at(p + (size_t(k) * kRows + r) * 2)) << 16;
        memcpy(out + k, &bits, 4);
      } else if (kind == kInt8) {
        const uint8_t* at = p + g * (2 * kRows + kRows * kGroup);
        out[k] = from_half(half_at(at + 2 * r)) * float(int8_t(at[2 * kRows + place8(r, i)] - kOffset));
      } else {
        const uint8_t* at = p + g * (4 * kRows + kRows * kGroup / 2);
        const int both = at[4 * kRows + place4(r, i)], q = i < 16 ? both & 15 : both >> 4;
        out[k] = from_half(half_at(at + 2 * r)) * float(q) + from_half(half_at(at + 2 * kRows + 2 * r));
      }
    }
  }

 private:
  static uint16_t half_at(const uint8_t* p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return h;
  }
};

template <Kind K>
constexpr int kTokens = K == kInt8 ? kTokens8 : K == kInt4 ? kTokens4 : W == 16 ? 8 : 6;

// out[n][0 … 15] = the panel's outputs for token t + n; `out_stride` floats from one token to the next.
template <Kind K, int N>
void tile(const uint8_t* p, const Acts& a, int t, float* out, int out_stride) {
  vf acc[N][kLanes] = {};
  if constexpr (K == kFloat || K == kBF16) {
    typedef std::conditional_t<K == kFloat, float, bf16> E;
    const E* w = reinterpret_cast<const E*>(p);
    const float* x = a.row(t);
    const size_t stride = a.stride();
    for (int k = 0; k < a.cols; ++k, w += kRows) {
      vf b[kLanes];
      for (int l = 0; l < kLanes; ++l) b[l] = widen(w + l * W);
      for (int n = 0; n < N; ++n) {
        const vf v = fill(x[n * stride + k]);
        for (int l = 0; l < kLanes; ++l) acc[n][l] = fma(b[l], v, acc[n][l]);
      }
    }
  } else {
    const size_t g = a.groups, stride = a.stride(), from = t * g;
    for (size_t i = 0; i < g; ++i) {
      vi s[N][kLanes];
      vf scale[kLanes];
      for (int l = 0; l < kLanes; ++l) scale[l] = widen(reinterpret_cast<const half*>(p) + l * W);
      if constexpr (K == kInt8) {
        const act8* q = a.q8 + t * stride + i * kGroup;
        dot8<N>(p + 2 * kRows, q, stride, a.offset + from + i, g, s);
        for (int n = 0; n < N; ++n)
          for (int l = 0; l < kLanes; ++l) acc[n][l] += to_float(s[n][l]) * (scale[l] * a.scale[from + n * g + i]);
        p += 2 * kRows + kRows * kGroup;
      } else {
        const int8_t* q = a.q4 + t * stride + i * kGroup;
        dot4<N>(p + 4 * kRows, q, stride, s);
        for (int l = 0; l < kLanes; ++l) {
          const vf minimum = widen(reinterpret_cast<const half*>(p) + kRows + l * W);
          for (int n = 0; n < N; ++n) {
            acc[n][l] += to_float(s[n][l]) * (scale[l] * a.scale[from + n * g + i]);
            acc[n][l] += minimum * a.weight[from + n * g + i];
          }
        }
        p += 4 * kRows + kRows * kGroup / 2;
      }
    }
  }
  for (int n = 0; n < N; ++n)
    for (int l = 0; l < kLanes; ++l) store(out + n * out_stride + l * W, acc[n][l]);
}

template <Kind K, int N>
void tile_of(int n, const uint8_t* p, const Acts& a, int t, float* out, int out_stride) {
  if (n == N) return tile<K, N>(p, a, t, out, out_stride);
  if constexpr (N > 1) tile_of<K, N - 1>(n, p, a, t, out, out_stride);
}

// What is done with sixteen outputs (or twice sixteen) of a token: a function and what it knows.
class Done {
 public:
  template <class F>
  Done(F& f) : call_([](void* f, int t, int unit, const float* v) { (*static_cast<F*>(f))(t, unit, v); }), f_(&f) {}
  void operator()(int t, int unit, const float* values) const { call_(f_, t, unit, values); }

 private:
  void (*call_)(void*, int, int, const float*);
  void* f_;
};

template <Kind K>
void product_of(Pool& pool, const Matrix& m, const Acts& a, int tokens, int first, int units, int per_unit, Done done) {
  constexpr int N = kTokens<K>;
  // As many tokens at a time as leave their vectors, and what is made of them, in the second-level cache.
  const size_t bytes = a.stride() * (K == kInt4 ? 1 : K == kInt8 ? sizeof(act8) : 4);
  const int most = std::max<int>(1, int(std::min((size_t(192) << 10) / bytes, size_t(48)) / N)) * N;
  const int blocks = (tokens + most - 1) / most;
  pool.share(units * blocks, [&](int begin, int end) {
    float out[N * 2 * kRows];
    for (; begin < end; ++begin) {
      const int unit = first + begin % units, from = begin / units * most, to = std::min(tokens, from + most);
      for (int t = from; t < to; t += N) {
        const int n = std::min(N, to - t);
        for (int i = 0; i < per_unit; ++i)
          tile_of<K, N>(n, m.data + size_t(unit * per_unit + i) * m.panel_bytes, a, t, out + i * kRows, per_unit * kRows);
        for (int i = 0; i < n; ++i) done(t + i, unit, out + i * per_unit * kRows);
      }
    }
  });
}

// Units `first` … `first + units - 1` of `per_unit` (1 or 2) neighbouring panels, for tokens 0 … tokens - 1,
// by all threads; done(t, unit, values) takes each unit's outputs.
template <class F>
void product(Pool& pool, const Matrix& m, const Acts& a, int tokens, int first, int units, int per_unit, F&& f) {
  const Done done(f);
  switch (m.kind) {
    case kFloat: return product_of<kFloat>(pool, m, a, tokens, first, units, per_unit, done);
    case kBF16: return product_of<kBF16>(pool, m, a, tokens, first, units, per_unit, done);
    case kInt8: return product_of<kInt8>(pool, m, a, tokens, first, units, per_unit, done);
    case kInt4: return product_of<kInt4>(pool, m, a, tokens, first, units, per_unit, done);
  }
}

}  // namespace m27
