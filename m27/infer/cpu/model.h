// The decoder's weights, its cache, and one step of it: Llama and Qwen3, dense.
//
// A step takes tokens of any sequences at any positions and answers logits where they are asked for. It
// knows ids, slots and blocks; which are whose is the engine's matter.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "attention.h"
#include "draw.h"
#include "pairs.h"

namespace m27 {

struct Shape {
  int32_t vocab, dim, layers, heads, kv_heads, head_dim, ffn, max_len, tied, qk_norm;
  // Kinds of the matrices: most of them, values and output of attention, embedding and head; a CacheKind.
  int32_t body, careful, head, cache, blocks, threads;
};

enum Part : int { kQ, kK, kV, kO, kGate, kUp, kDown, kEmbed, kHead };
enum Vector : int { kNorm1, kNorm2, kNormQ, kNormK, kNormLast };

// Mirrors `_Batch` of binding.py. All arrays belong to the caller.
struct Batch {
  int32_t tokens, sequences, width, questions;
  const int32_t *ids, *positions, *slots, *starts, *tables, *adapters;
  const int32_t *rows, *row_starts;    // places in T of all questions; where each question's begin
  const int32_t *spans, *span_starts;  // (from, to) of all questions; where each question's begin
  float* const* out;                   // [rows, ids] for each question that has no draws
  const int32_t* draw_starts;          // where each question's draws begin; their rows are not given out
  const Draws* draws;
};

struct LowRank {
  int rank = 0, in = 0, out = 0;
  std::vector<float> a, b;  // [rank, in], [rank, out]
};

struct Adapter {
  std::vector<LowRank> parts;  // [layers, 7]
};

struct Layer {
  Matrix qk, v, o, gate_up, down;  // gate_up: a panel of gates, a panel of ups, and so on
  float *norm1, *norm2, *norm_q, *norm_k;
  uint8_t* cache;
};

struct Tile {  // tokens of one sequence that walk over the cache together
  int sequence, begin, count, chunks;
};

class Model {
 public:
  Model(const Shape& s, float eps, const float* frequencies)
      : s_(s), eps_(eps), pool_(s.threads), cache_(CacheKind(s.cache), s.kv_heads, s.head_dim) {
    group_ = s.heads / s.kv_heads;
    half_ = s.head_dim / 2;
    width_ = round16(s.dim);
    values_at_ = (s.heads + s.kv_heads) * s.head_dim;
    qkv_width_ = round16(values_at_ + s.kv_heads * s.head_dim);
    frequencies_.assign(frequencies, frequencies + half_);
    layers_.resize(s.layers);
    for (Layer& layer : layers_) {
      layer.qk.reserve(weights_, Kind(s.body), round16(values_at_) / kRows, s.dim);
      layer.v.reserve(weights_, Kind(s.careful), round16(s.kv_heads * s.head_dim) / kRows, s.dim);
      layer.o.reserve(weights_, Kind(s.careful), width_ / kRows, s.heads * s.head_dim);
      layer.gate_up.reserve(weights_, Kind(s.body), 2 * round16(s.ffn) / kRows, s.dim);
      layer.down.reserve(weights_, Kind(s.body), width_ / kRows, s.ffn);
      layer.norm1 = weights_.take<float>(width_);
      layer.norm2 = weights_.take<float>(width_);
      layer.norm_q = weights_.take<float>(s.head_dim);
      layer.norm_k = weights_.take<float>(s.head_dim);
      layer.cache = held_.take<uint8_t>(cache_.block_bytes * s.blocks);
    }
    last_ = weights_.take<float>(width_);
    embed_.reserve(weights_, Kind(s.head), round16(s.vocab) / kRows, s.dim);
    if (!s.tied) head_.reserve(weights_, Kind(s.head), round16(s.vocab) / kRows, s.dim);
    rooms_.resize(s.threads);
    for (auto& room : rooms_) room = std::make_unique<Room>();
    drawers_.resize(s.threads);
  }

  // Rows `row` … of one part, as `Matrix::put` takes them: `bytes` from one row to the next.
  void set(Part part, int layer, int rows, const uint8_t* values, size_t bytes, const uint16_t* scale,
           const uint16_t* minimum) {
    Matrix* m = nullptr;
    int first = 0;
    if (part == kEmbed || part == kHead) {
      m = part == kEmbed || s_.tied ? &embed_ : &head_;
    } else {
      Layer& l = layers_.at(layer);
      m = part <= kK ? &l.qk : part == kV ? &l.v : part == kO ? &l.o : part == kDown ? &l.down : &l.gate_up;
      if (part == kK) first = s_.heads * s_.head_dim;
    }
    const size_t g = groups_of(m->cols);
    auto body = [&] {
      pool_.share((rows + kRows - 1) / kRows, [&](int begin, int end) {
        for (int r = begin * kRows; r < std::min(rows, end * kRows); ++r) {
          int row = first + r;
          if (part == kGate || part == kUp) row = r / kRows * 2 * kRows + (part == kUp ? kRows : 0) + r % kRows;
          m->put(row, values + r * bytes, scale ? scale + r * g : nullptr, minimum ? minimum + r * g : nullptr);
        }
      });
    };
    pool_.run(body);
  }

  void set(Vector which, int layer, const float* values) {
    if (which == kNormLast) {
      memcpy(last_, values, s_.dim * sizeof(float));
      return;
    }
    Layer& l = layers_.at(layer);
    float* to = which == kNorm1 ? l.norm1 : which == kNorm2 ? l.norm2 : which == kNormQ ? l.norm_q : l.norm_k;
    memcpy(to, values, (which <= kNorm2 ? s_.dim : s_.head_dim) * sizeof(float));
  }

  int add_adapter() {
    auto made = std::make_unique<Adapter>();
    made->parts.resize(size_t(s_.layers) * 7);
    for (size_t i = 0; i < adapters_.size(); ++i)
      if (!adapters_[i]) {
        adapters_[i] = std::move(made);
        return int(i);
      }
    adapters_.push_back(std::move(made));
    return int(adapters_.size()) - 1;
  }

  void remove_adapter(int number) { adapters_.at(number).reset(); }

  // A [rank, in] and B [out, rank] of one matrix.
  void set_adapter(int number, int layer, Part part, int rank, int in, int out, const float* a, const float* b) {
    LowRank& p = adapters_.at(number)->parts.at(size_t(layer) * 7 + part);
    p.rank = rank;
    p.in = in;
    p.out = out;
    p.a.assign(a, a + size_t(rank) * in);
    p.b.resize(size_t(rank) * out);
    for (int r = 0; r < rank; ++r)
      for (int i = 0; i < out; ++i) p.b[size_t(r) * out + i] = b[size_t(i) * rank + r];
  }

  void run(const Batch& b) {
    check(b);
    if (b.tokens == 0) return;
    prepare(b);
    auto body = [&] { work(b); };
    pool_.run(body);
  }

  size_t weight_bytes() const { return weights_.taken(); }
  size_t cache_bytes() const { return held_.taken(); }
  int threads() const { return pool_.threads(); }

 private:
  static int round16(int n) { return (n + 15) / 16 * 16; }

  void check(const Batch& b) const;
  void prepare(const Batch& b);
  void work(const Batch& b);
  void embed(const Batch& b, int t);
  void norm(const float* x, const float* gain, float* out) const;
  void place(const Batch& b, const Layer& layer, int t);
  void rotate(float* head, const float* gain, int t, float scale) const;
  void attend(const Batch& b, const Layer& layer, int thread);
  void chunk(const Batch& b, const Layer& layer, const Tile& tile, int head, int number, Room& room, Soft* soft) const;
  void finish(const Tile& tile, int head, const Soft* soft, const float* out);
  void adapt(int layer, Part part, const Acts& in, float* y, size_t stride, int step);
  void answer(const Batch& b, int thread);
  static Spans spans_of(const Batch& b, int question) {
    return {b.spans + 2 * b.span_starts[question], b.span_starts[question + 1] - b.span_starts[question]};
  }

  Shape s_;
  float eps_;
  Pool pool_;
  CacheShape cache_;
  int group_, half_, width_, values_at_, qkv_width_;
  std::vector<float> frequencies_;
  Memory weights_, held_;
  std::vector<Layer> layers_;
  float* last_;
  Matrix embed_, head_;
  std::vector<std::unique_ptr<Adapter>> adapters_;
  std::vector<std::unique_ptr<Room>> rooms_;

  // Of the step: scratch for `room_` tokens and `asked_room_` questions, grown as needed.
  Memory scratch_, asked_scratch_;
  int room_ = 0, asked_room_ = 0;
  float *x_ = nullptr, *qkv_ = nullptr, *wide_ = nullptr, *cos_ = nullptr, *sin_ = nullptr;
  Acts in_, mixed_, inner_, asked_;
  std::vector<const Adapter*> adapter_of_;  // by token; empty where nobody has one
  std::vector<Tile> tiles_;
  bool split_ = false;
  std::vector<int> first_chunk_;  // of each tile, when chunks are shared out
  std::vector<float> parts_;      // their values
  std::vector<Soft> softs_;
  std::vector<size_t> drawn_at_;  // where the rows of each question lie in `drawn_`
  std::vector<float> drawn_;
  std::vector<Drawer> drawers_;  // of each thread
};

}  // namespace m27
