// What is done row by row: the softmax's loss over long rows, with its gradient in their place, and the gated unit.
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

inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// out [n, F] = silu(gate) * up of rows [gate, up] of F each.
inline void swiglu(int64_t rows, int64_t width, const Bf16* gate_up, Bf16* out) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < width; j += 16) {
            const __mmask16 mask = first(width - j);
            const Bf16* const at = gate_up + i * 2 * width + j;
            const __m512 gate = load(at, mask), up = load(at + width, mask);
            put(out + i * width + j, mask, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), up));
        }
}

// The gradient [n, 2 F] of `gate_up` from that of `swiglu`, and once more what that gave.
inline void swiglu_backward(int64_t rows, int64_t width, const Bf16* g, const Bf16* gate_up, Bf16* grad, Bf16* out) {
    const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < width; j += 16) {
            const __mmask16 mask = first(width - j);
            const int64_t at = i * 2 * width + j;
            const __m512 gate = load(gate_up + at, mask), up = load(gate_up + at + width, mask);
            const __m512 own = load(g + i * width + j, mask), s = sigmoid(gate), silu = _mm512_mul_ps(gate, s);
            const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, s), s);
            put(grad + at, mask, _mm512_mul_ps(_mm512_mul_ps(own, up), slope));
            put(grad + at + width, mask, _mm512_mul_ps(own, silu));
            put(out + i * width + j, mask, _mm512_mul_ps(silu, up));
        }
}

}  // namespace half
