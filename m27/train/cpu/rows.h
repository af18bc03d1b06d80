// The softmax's loss over long rows, and its gradient in their place.
#pragma once

#include <cmath>

#include "attention.h"

namespace half {

// Of `rows` rows of `count` scores each: the losses -log p[target], and in place of the scores the gradient
// weight * (p - [target]), and of weight * z * log(sum)^2 with it.
inline void entropy(int64_t rows, int64_t count, Bf16* scores, int64_t ld, const int64_t* targets,
                    const float* weights, float z, float* losses) {
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t i = 0; i < rows; ++i) {
        Bf16* const row = scores + i * ld;
        __m512 top = _mm512_set1_ps(-3e38f), sum = _mm512_setzero_ps();
        for (int64_t j = 0; j < count; j += 16) {
            const __mmask16 mask = first(count - j);
            top = _mm512_mask_max_ps(top, mask, top, load(row + j, mask));
        }
        const float most = _mm512_reduce_max_ps(top);
        for (int64_t j = 0; j < count; j += 16) {
            const __mmask16 mask = first(count - j);
            const __m512 e = exponential(_mm512_sub_ps(load(row + j, mask), _mm512_set1_ps(most)));
            sum = _mm512_mask_add_ps(sum, mask, sum, e);
        }
        const float total = _mm512_reduce_add_ps(sum), log = most + std::log(total);
        const uint32_t bits = static_cast<uint32_t>(row[targets[i]].bits) << 16;
        float score;
        std::copy_n(reinterpret_cast<const char*>(&bits), 4, reinterpret_cast<char*>(&score));
        losses[i] = log - score;
        const float drift = 2 * z * log;
        const __m512 scale = _mm512_set1_ps(weights[i] * (1 + drift));
        for (int64_t j = 0; j < count; j += 16) {
            const __mmask16 mask = first(count - j);
            const __m512 e = exponential(_mm512_sub_ps(load(row + j, mask), _mm512_set1_ps(log)));
            put(row + j, mask, _mm512_mul_ps(e, scale));
        }
        const float own = weights[i] * (std::expm1(score - log) + drift * std::exp(score - log));
        put(row + targets[i], 1, _mm512_set1_ps(own));
    }
}

}  // namespace half
