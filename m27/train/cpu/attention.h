// Causal attention within documents, forward and backward, from the same panels as `product`.
//
// Nothing of the squares is kept between the two: backward makes the weights again from the logarithm of their
// sum. A task is one query head of one document.
//
// Shapes: n tokens, G query heads, K key heads, H head width; q [n, G, H] comes scaled; k, v [n, K, H].
#pragma once

#include "product.h"

namespace half {

constexpr int64_t kQueries = 10 * kRows;  // queries that backward takes at a time

struct Heads {
    int64_t tokens, queries, keys, width;
    const int64_t* edges;  // the begin of each document, and the end of the last
    int64_t documents;
};

inline __m512 exponential(__m512 x) {  // to 2 units in the last place; 0 far below
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
    y = _mm512_fmadd_ps(_mm512_mul_ps(y, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(y, n);
}

inline Base base_of(const float* c, int64_t ld, bool add) { return add ? Base{c, ld} : Base{}; }
inline Base base_of(const Bf16*, int64_t, bool) { return {}; }

// Matrices [columns, k] or [k, columns] as panels of kColumns columns each.
struct Panels {
    uint16_t* halves;
    float* back;
    int64_t size;  // halves a panel

    static size_t bytes(int64_t columns, int64_t depth) {
        return static_cast<size_t>(up(columns, kColumns)) * ((depth + 16) * kColumns * 2 + kColumns * 4);
    }
    template <typename T>
    void pack(View<T> b, int64_t columns, int64_t depth) {
        size = (depth + 16) * kColumns;
        back = reinterpret_cast<float*>(halves + up(columns, kColumns) * size);
        for (int64_t j = 0; j * kColumns < columns; ++j)
            pack_columns(b.at(0, j * kColumns), std::min<int64_t>(kColumns, columns - j * kColumns), depth,
                         halves + j * size, back + j * kColumns);
    }
    // c [rows, columns] = a times these, `depth` of k.
    template <typename C>
    void times(const uint16_t* a, const float* rows, int64_t count, int64_t depth, int64_t columns, C* c, int64_t ld,
               bool add = false) const {
        alignas(64) float tile[kRows * kColumns];
        for (int64_t j = 0; j * kColumns < columns; ++j) {
            multiply(a, halves + j * size, depth, tile);
            finish(tile, rows, back + j * kColumns, c + j * kColumns, ld, count, columns - j * kColumns,
                   base_of(c + j * kColumns, ld, add));
        }
    }
};

class Shelf {  // one allocation handed out in pieces
   public:
    explicit Shelf(void* data) : at_(static_cast<char*>(data)) {}
    template <typename T>
    T* take(size_t bytes) {
        T* const out = reinterpret_cast<T*>(at_);
        at_ += (bytes + 127) & ~size_t{63};
        return out;
    }

   private:
    char* at_;
};

inline int64_t longest(const Heads& heads) {
    int64_t most = 0;
    for (int64_t d = 0; d < heads.documents; ++d) most = std::max(most, heads.edges[d + 1] - heads.edges[d]);
    return most;
}

// out [n, G * H] and, for backward, the logarithm [G, n] of each query's sum.
inline void attend(const Heads& heads, const Bf16* q, const Bf16* k, const Bf16* v, Bf16* out, float* logs) {
    const int64_t width = heads.width, group = heads.queries / heads.keys, most = longest(heads);
    const int64_t ld = up(most, kColumns) * kColumns, step_q = heads.queries * width, step_k = heads.keys * width;
#pragma omp parallel
    {
        static thread_local Buffer buffer;
        const size_t keys_size = Panels::bytes(most, width), values_size = Panels::bytes(width, most);
        const size_t rows_size = (std::max(ld, width) + 64) * kRows * 2;
        Shelf shelf(buffer.get(keys_size + values_size + rows_size + kRows * ld * 4 + 1024));
        Panels keys{shelf.take<uint16_t>(keys_size), nullptr, 0};
        Panels values{shelf.take<uint16_t>(values_size), nullptr, 0};
        auto* const rows = shelf.take<uint16_t>(rows_size);
        auto* const s = shelf.take<float>(kRows * ld * 4);
        float back[16];
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < heads.documents * heads.queries; ++task) {
            const int64_t document = task / heads.queries, head = task % heads.queries;
            const int64_t begin = heads.edges[document], length = heads.edges[document + 1] - begin;
            const int64_t own = begin * step_k + head / group * width;
            keys.pack(View<Bf16>{k + own, 1, step_k}, length, width);
            values.pack(View<Bf16>{v + own, step_k, 1}, width, length);
            for (int64_t r0 = 0; r0 < length; r0 += kRows) {
                const int64_t count = std::min<int64_t>(kRows, length - r0), limit = r0 + count;
                const int64_t at = (begin + r0) * step_q + head * width;
                pack_rows(View<Bf16>{q + at, step_q, 1}, count, width, rows, back);
                keys.times(rows, back, kRows, width, limit, s, ld);
                float total[16] = {};
                for (int64_t i = 0; i < count; ++i) {
                    float* const row = s + i * ld;
                    const int64_t seen = r0 + i + 1;
                    __m512 top = _mm512_set1_ps(-3e38f), sum = _mm512_setzero_ps();
                    for (int64_t j = 0; j < seen; j += 16)
                        top = _mm512_mask_max_ps(top, first(seen - j), top, _mm512_loadu_ps(row + j));
                    const float most_here = _mm512_reduce_max_ps(top);
                    for (int64_t j = 0; j < limit; j += 16) {
                        const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(most_here));
                        const __m512 e = _mm512_maskz_mov_ps(first(seen - j), exponential(x));
                        sum = _mm512_add_ps(sum, e);
                        _mm512_storeu_ps(row + j, e);
                    }
                    total[i] = _mm512_reduce_add_ps(sum);
                    logs[head * heads.tokens + begin + r0 + i] = most_here + std::log(total[i]);
                }
                pack_rows(View<float>{s, ld, 1}, count, limit, rows, back);
                for (int64_t i = 0; i < count; ++i) back[i] /= total[i];
                values.times(rows, back, count, limit, width, out + at, step_q);
            }
        }
    }
}

// gq, gk, gv from the gradient g [n, G * H] of `out`; `sums` is room for 2 * G * n * H.
inline void attend_backward(const Heads& heads, const Bf16* q, const Bf16* k, const Bf16* v, const Bf16* out,
                            const float* logs, const Bf16* g, Bf16* gq, Bf16* gk, Bf16* gv, float* sums) {
    const int64_t width = heads.width, group = heads.queries / heads.keys, most = longest(heads);
    const int64_t ld = up(most, kColumns) * kColumns, step_q = heads.queries * width, step_k = heads.keys * width;
    const int64_t all = heads.tokens * width;  // of one head
    float* const values_sum = sums + heads.queries * all;
#pragma omp parallel
    {
        static thread_local Buffer buffer;
        const size_t wide_size = Panels::bytes(most, width), tall_size = Panels::bytes(width, std::max(most, kQueries));
        const size_t rows_size = (std::max({ld, width, kQueries}) + 64) * kRows * 2, square = kQueries * ld * 4;
        Shelf shelf(buffer.get(2 * wide_size + 3 * tall_size + rows_size + 2 * square + 2048));
        Panels keys{shelf.take<uint16_t>(wide_size), nullptr, 0}, values = keys, back_keys = keys, up_q = keys, up_g = keys;
        values.halves = shelf.take<uint16_t>(wide_size);
        back_keys.halves = shelf.take<uint16_t>(tall_size);
        up_q.halves = shelf.take<uint16_t>(tall_size);
        up_g.halves = shelf.take<uint16_t>(tall_size);
        auto* const rows = shelf.take<uint16_t>(rows_size);
        auto* const p = shelf.take<float>(square);
        auto* const d = shelf.take<float>(square);
        float back[16];
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < heads.documents * heads.queries; ++task) {
            const int64_t document = task / heads.queries, head = task % heads.queries;
            const int64_t begin = heads.edges[document], length = heads.edges[document + 1] - begin;
            const int64_t own = begin * step_k + head / group * width;
            float* const to_k = sums + head * all + begin * width;
            float* const to_v = values_sum + head * all + begin * width;
            keys.pack(View<Bf16>{k + own, 1, step_k}, length, width);
            values.pack(View<Bf16>{v + own, 1, step_k}, length, width);
            back_keys.pack(View<Bf16>{k + own, step_k, 1}, width, length);
            std::fill(to_k, to_k + length * width, 0.0f);
            std::fill(to_v, to_v + length * width, 0.0f);
            for (int64_t r0 = 0; r0 < length; r0 += kQueries) {
                const int64_t block = std::min(kQueries, length - r0), limit = r0 + block;
                const int64_t at = (begin + r0) * step_q + head * width;
                for (int64_t i0 = 0; i0 < block; i0 += kRows) {
                    const int64_t count = std::min<int64_t>(kRows, block - i0), here = at + i0 * step_q;
                    const int64_t see = r0 + i0 + count;  // no query of these sees further
                    pack_rows(View<Bf16>{q + here, step_q, 1}, count, width, rows, back);
                    keys.times(rows, back, count, width, see, p + i0 * ld, ld);
                    pack_rows(View<Bf16>{g + here, step_q, 1}, count, width, rows, back);
                    values.times(rows, back, count, width, see, d + i0 * ld, ld);
                    for (int64_t i = i0; i < i0 + count; ++i) {
                        const int64_t place = at + i * step_q, seen = r0 + i + 1;
                        __m512 dot = _mm512_setzero_ps();
                        for (int64_t x = 0; x < width; x += 16) {
                            const __mmask16 mask = first(width - x);
                            dot = _mm512_fmadd_ps(load(g + place + x, mask), load(out + place + x, mask), dot);
                        }
                        const __m512 inner = _mm512_set1_ps(_mm512_reduce_add_ps(dot));
                        const __m512 log = _mm512_set1_ps(logs[head * heads.tokens + begin + r0 + i]);
                        for (int64_t j = 0; j < limit; j += 16) {
                            float *const to_p = p + i * ld + j, *const to_d = d + i * ld + j;
                            const __mmask16 mask = first(seen - j);
                            const __m512 e = _mm512_maskz_mov_ps(mask, exponential(_mm512_sub_ps(_mm512_loadu_ps(to_p), log)));
                            const __m512 part = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, to_d), inner);
                            _mm512_storeu_ps(to_p, e);
                            _mm512_storeu_ps(to_d, _mm512_maskz_mul_ps(mask, e, part));
                        }
                    }
                    pack_rows(View<float>{d + i0 * ld, ld, 1}, count, see, rows, back);
                    back_keys.times(rows, back, count, see, width, gq + here, step_q);
                }
                up_q.pack(View<Bf16>{q + at, step_q, 1}, width, block);
                up_g.pack(View<Bf16>{g + at, step_q, 1}, width, block);
                for (int64_t j = 0; j < limit; j += kRows) {
                    const int64_t count = std::min<int64_t>(kRows, limit - j);
                    pack_rows(View<float>{d + j, 1, ld}, count, block, rows, back);
                    up_q.times(rows, back, count, block, width, to_k + j * width, width, true);
                    pack_rows(View<float>{p + j, 1, ld}, count, block, rows, back);
                    up_g.times(rows, back, count, block, width, to_v + j * width, width, true);
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t token = 0; token < heads.tokens; ++token)
            for (int64_t head = 0; head < heads.keys; ++head)
                for (int64_t x = 0; x < width; x += 16) {
                    const __mmask16 mask = first(width - x);
                    __m512 a = _mm512_setzero_ps(), b = a;
                    for (int64_t i = head * group; i < (head + 1) * group; ++i) {
                        a = _mm512_add_ps(a, _mm512_maskz_loadu_ps(mask, sums + i * all + token * width + x));
                        b = _mm512_add_ps(b, _mm512_maskz_loadu_ps(mask, values_sum + i * all + token * width + x));
                    }
                    put(gk + token * step_k + head * width + x, mask, a);
                    put(gv + token * step_k + head * width + x, mask, b);
                }
    }
}

}  // namespace half
