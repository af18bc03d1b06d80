// What Python calls. Kinds of elements: 0 float32, 1 bfloat16. All return 0, or 1 where memory is short.
#include "rows.h"

using half::Bf16;
using half::View;

namespace {

template <typename A, typename B>
void to(int64_t m, int64_t n, int64_t k, View<A> a, View<B> b, void* c, int kind, int64_t ld, half::Base base) {
    if (kind == 0)
        half::product(m, n, k, a, b, static_cast<float*>(c), ld, base);
    else
        half::product(m, n, k, a, b, static_cast<Bf16*>(c), ld, base);
}

template <typename A>
void with(int64_t m, int64_t n, int64_t k, View<A> a, const void* b, int b_kind, int64_t br, int64_t bc, void* c,
          int kind, int64_t ld, half::Base base) {
    if (b_kind == 0)
        to(m, n, k, a, View<float>{static_cast<const float*>(b), br, bc}, c, kind, ld, base);
    else
        to(m, n, k, a, View<Bf16>{static_cast<const Bf16*>(b), br, bc}, c, kind, ld, base);
}

template <typename F>
int guarded(F work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int m27_product(int64_t m, int64_t n, int64_t k, const void* a, int a_kind, int64_t ar, int64_t ac,
                       const void* b, int b_kind, int64_t br, int64_t bc, void* c, int c_kind, int64_t ld,
                       const float* base, int64_t base_ld) {
    return guarded([&] {
        if (a_kind == 0)
            with(m, n, k, View<float>{static_cast<const float*>(a), ar, ac}, b, b_kind, br, bc, c, c_kind, ld, {base, base_ld});
        else
            with(m, n, k, View<Bf16>{static_cast<const Bf16*>(a), ar, ac}, b, b_kind, br, bc, c, c_kind, ld, {base, base_ld});
    });
}

EXPORT int m27_attend(int64_t tokens, int64_t queries, int64_t keys, int64_t width, int64_t documents,
                      const int64_t* edges, const Bf16* q, const Bf16* k, const Bf16* v, Bf16* out, float* logs) {
    return guarded([&] { half::attend({tokens, queries, keys, width, edges, documents}, q, k, v, out, logs); });
}

EXPORT int m27_attend_backward(int64_t tokens, int64_t queries, int64_t keys, int64_t width, int64_t documents,
                               const int64_t* edges, const Bf16* q, const Bf16* k, const Bf16* v, const Bf16* out,
                               const float* logs, const Bf16* g, Bf16* gq, Bf16* gk, Bf16* gv, float* sums) {
    return guarded([&] {
        half::attend_backward({tokens, queries, keys, width, edges, documents}, q, k, v, out, logs, g, gq, gk, gv, sums);
    });
}

EXPORT int m27_entropy(int64_t rows, int64_t count, Bf16* scores, int64_t ld, const int64_t* targets,
                       const float* weights, float z, float* losses) {
    half::entropy(rows, count, scores, ld, targets, weights, z, losses);
    return 0;
}

EXPORT int m27_swiglu(int64_t rows, int64_t width, const Bf16* gate_up, Bf16* out) {
    half::swiglu(rows, width, gate_up, out);
    return 0;
}

EXPORT int m27_swiglu_backward(int64_t rows, int64_t width, const Bf16* g, const Bf16* gate_up, Bf16* grad, Bf16* out) {
    half::swiglu_backward(rows, width, g, gate_up, grad, out);
    return 0;
}
