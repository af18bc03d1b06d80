// Rounds matrices to groups of 32 with a scale (int8) or a scale and a minimum (int4).
//
// The same search as `quantize.round_int4`, which explains it; here it takes a tenth of a second for a
// hundred million weights. Sums run in another order, so the last bits of a scale may differ.
#pragma once

#include "product.h"

namespace m27 {

constexpr float kShrink[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.7f, 0.6f};
constexpr int kFits = 2;
constexpr int kParts = kGroup / W;

inline void round8(const float* w, int8_t* q, uint16_t* scale) {
  float top = 0;
  for (int i = 0; i < kGroup; ++i) top = std::max(top, std::fabs(w[i]));
  *scale = to_half(top / 127.0f);
  const float step = from_half(*scale), inverse = step > 0 ? 1.0f / step : 0.0f;
  for (int i = 0; i < kGroup; i += W) {
    const vi n = nearest_int(max(fill(-127.0f), -max(fill(-127.0f), -(load(w + i) * inverse))));
    for (int k = 0; k < W; ++k) q[i + k] = int8_t(n[k]);
  }
}

// `counts`: how much the error of each of the 32 counts.
inline void round4(const float* w, const float* counts, uint8_t* q, uint16_t* scale, uint16_t* minimum) {
  vf x[kParts], c[kParts], n_of = {}, squares_of = {}, total_of = {}, high_of = load(w), low_of = -load(w);
  for (int i = 0; i < kParts; ++i) {
    x[i] = load(w + i * W);
    c[i] = load(counts + i * W);
    high_of = max(x[i], high_of);
    low_of = max(-x[i], low_of);
    n_of += c[i];
    total_of += c[i] * x[i];
    squares_of += c[i] * x[i] * x[i];
  }
  const float high = highest(high_of), low = -highest(low_of), n = sum(n_of), total = sum(total_of);
  const float squares = sum(squares_of), middle = (low + high) / 2, half_range = (high - low) / 2;
  float best = std::numeric_limits<float>::infinity(), a_best = 0, b_best = low;
  for (float shrink : kShrink) {
    float a = half_range * (2 * shrink / 15), b = middle - half_range * shrink, product = 0;
    for (int fit = 0; fit < kFits; ++fit) {
      const float inverse = a > 0 ? 1.0f / a : 0.0f, offset = -b * inverse;
      vf s_of = {}, ss_of = {}, product_of = {};
      for (int i = 0; i < kParts; ++i) {
        const vf r = nearest(max(-max(-(x[i] * inverse + offset), fill(-15.0f)), vf{})), rc = r * c[i];
        s_of += rc;
        ss_of += rc * r;
        product_of += rc * x[i];
      }
      const float s = sum(s_of), ss = sum(ss_of), spread = n * ss - s * s;
      product = sum(product_of);
      a = spread > 0 ? (n * product - s * total) / spread : 0.0f;
      b = (total - a * s) / n;
    }
    const float error = squares - a * product - b * total;
    if (error < best && a >= 0) best = error, a_best = a, b_best = b;
  }
  *scale = to_half(a_best);
  *minimum = to_half(b_best);
  const float step = from_half(*scale), inverse = step > 0 ? 1.0f / step : 0.0f, base = from_half(*minimum);
  int32_t rounded[kGroup];
  for (int i = 0; i < kParts; ++i) {
    const vi r = nearest_int(max(-max(-((x[i] - base) * inverse), fill(-15.0f)), vf{}));
    memcpy(rounded + i * W, &r, sizeof r);
  }
  for (int i = 0; i < kGroup / 2; ++i) q[i] = uint8_t(rounded[i] | rounded[i + 16] << 4);
}

// A matrix [rows, cols] into q, scale and minimum (null for int8), columns filled up with zeros. `counts`: of each
// column of the groups, for int4.
inline void round_matrix(Pool& pool, const float* w, const float* counts, int rows, int cols, uint8_t* q,
                         uint16_t* scale, uint16_t* minimum) {
  const size_t groups = groups_of(cols);
  auto body = [&] {
    pool.share(rows, [&](int begin, int end) {
      float group[kGroup];
      for (size_t r = begin; r < size_t(end); ++r)
        for (size_t g = 0; g < groups; ++g) {
          const size_t left = std::min<size_t>(kGroup, cols - g * kGroup), at = r * groups + g;
          memset(group, 0, sizeof group);
          memcpy(group, w + r * cols + g * kGroup, left * sizeof(float));
          if (minimum)
            round4(group, counts + g * kGroup, q + at * (kGroup / 2), scale + at, minimum + at);
          else
            round8(group, reinterpret_cast<int8_t*>(q) + at * kGroup, scale + at);
        }
    });
  };
  pool.run(body);
}

}  // namespace m27
