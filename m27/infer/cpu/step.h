// One step of `Model`, phase by phase: every thread runs `work`, and each phase ends at a barrier.
#pragma once

#include "model.h"

namespace m27 {

inline void Model::check(const Batch& b) const {
  auto fail = [](const std::string& what) { throw std::invalid_argument(what); };
  auto at = [](const char* name, int i) { return std::string(name) + "[" + std::to_string(i) + "]"; };
  if (b.tokens == 0) return;
  if (b.starts[0] != 0 || b.starts[b.sequences] != b.tokens) fail("starts do not run from 0 to the number of tokens");
  for (int s = 0; s < b.sequences; ++s) {
    if (b.starts[s + 1] < b.starts[s] || b.starts[s + 1] > b.tokens) fail(at("starts", s + 1) + " is out of order");
    const int a = b.adapters[s];
    if (a < -1 || a >= int(adapters_.size()) || (a >= 0 && !adapters_[a])) fail(at("adapters", s) + " names no adapter");
    int top = -1;
    for (int t = b.starts[s]; t < b.starts[s + 1]; ++t) {
      if (b.ids[t] < 0 || b.ids[t] >= s_.vocab) fail(at("ids", t) + " is " + std::to_string(b.ids[t]));
      if (b.positions[t] < 0 || b.positions[t] >= s_.max_len) fail(at("positions", t) + " is " + std::to_string(b.positions[t]));
      if (b.slots[t] < 0 || b.slots[t] / kBlock >= s_.blocks) fail(at("slots", t) + " is " + std::to_string(b.slots[t]));
      top = std::max(top, b.positions[t]);
    }
    if (top >= 0 && top / kBlock >= b.width) fail(at("tables", s) + " is shorter than its positions");
    for (int i = 0; i <= top / kBlock && top >= 0; ++i) {
      const int block = b.tables[size_t(s) * b.width + i];
      if (block < 0 || block >= s_.blocks) fail(at("tables", s) + " lists block " + std::to_string(block));
    }
  }
  for (int i = 0; i < b.row_starts[b.questions]; ++i)
    if (b.rows[i] < 0 || b.rows[i] >= b.tokens) fail(at("tokens", i) + " wanted is " + std::to_string(b.rows[i]));
  for (int i = 0; i < b.span_starts[b.questions]; ++i)
    if (b.spans[2 * i] < 0 || b.spans[2 * i + 1] <= b.spans[2 * i] || b.spans[2 * i + 1] > s_.vocab)
      fail(at("spans", i) + " lies outside the vocabulary");
  for (int n = 0; n < b.questions; ++n) {
    const int rows = b.row_starts[n + 1] - b.row_starts[n], ids = int(spans_of(b, n).ids());
    for (int i = b.draw_starts[n]; i < b.draw_starts[n + 1]; ++i) {
      const Draw& d = b.draws->of[i];
      if (d.row < 0 || d.row >= rows || d.other < -1 || d.other >= rows) fail(at("draws", i) + " is of no row");
      for (int k = i ? b.draws->of[i - 1].seen : 0; k < d.seen; ++k)
        if (b.draws->seen[k] < 0 || b.draws->seen[k] >= ids) fail(at("draws", i) + " has seen an id outside its spans");
    }
  }
}

inline void Model::prepare(const Batch& b) {
  if (b.tokens > room_) {
    room_ = std::max(b.tokens, std::min(2 * room_, 4096));
    scratch_ = Memory();
    x_ = scratch_.take<float>(size_t(room_) * width_);
    qkv_ = scratch_.take<float>(size_t(room_) * qkv_width_);
    wide_ = scratch_.take<float>(size_t(room_) * 2 * round16(s_.ffn));
    cos_ = scratch_.take<float>(size_t(room_) * half_);
    sin_ = scratch_.take<float>(size_t(room_) * half_);
    in_.reserve(scratch_, room_, s_.dim);
    mixed_.reserve(scratch_, room_, s_.heads * s_.head_dim);
    inner_.reserve(scratch_, room_, s_.ffn);
  }
  const int asked = b.row_starts[b.questions];
  if (asked > asked_room_) {
    asked_room_ = std::max(asked, 2 * asked_room_);
    asked_scratch_ = Memory();
    asked_.reserve(asked_scratch_, asked_room_, s_.dim);
  }
  size_t drawn = 0, widest = 0;
  drawn_at_.clear();
  for (int n = 0; n < b.questions; ++n) {
    drawn_at_.push_back(drawn);
    if (b.draw_starts[n] == b.draw_starts[n + 1]) continue;
    widest = std::max(widest, spans_of(b, n).ids());
    drawn += spans_of(b, n).ids() * (b.row_starts[n + 1] - b.row_starts[n]);
  }
  if (drawn > drawn_.size()) drawn_.resize(drawn);
  for (Drawer& drawer : drawers_) drawer.reserve(widest);
  adapter_of_.clear();
  tiles_.clear();
  first_chunk_.clear();
  const int most = std::max(1, kMostRows / group_);
  int chunks = 0;
  for (int s = 0; s < b.sequences; ++s) {
    if (b.adapters[s] >= 0) {
      adapter_of_.resize(b.tokens, nullptr);
      std::fill(&adapter_of_[b.starts[s]], &adapter_of_[b.starts[s]] + (b.starts[s + 1] - b.starts[s]), adapters_[b.adapters[s]].get());
    }
    for (int t = b.starts[s]; t < b.starts[s + 1]; t += most) {
      Tile tile{s, t, std::min(most, b.starts[s + 1] - t), 0};
      for (int i = 0; i < tile.count; ++i) tile.chunks = std::max(tile.chunks, b.positions[t + i] / kChunk + 1);
      first_chunk_.push_back(chunks);
      chunks += tile.chunks;
      tiles_.push_back(tile);
    }
  }
  // Few tiles: their chunks are shared out. The arithmetic is the same.
  split_ = int(tiles_.size()) * s_.kv_heads < 8 * pool_.threads() && chunks > int(tiles_.size());
  if (split_) {
    const size_t n = size_t(chunks) * s_.kv_heads * most * group_;
    if (parts_.size() < n * cache_.padded) parts_.resize(n * cache_.padded);
    if (softs_.size() < n) softs_.resize(n);
  }
  first_chunk_.push_back(chunks);
}

inline void Model::work(const Batch& b) {
  const int T = b.tokens, thread = Pool::me();
  auto each = [&](auto f) {
    pool_.share(T, [&](int begin, int end) {
      for (int t = begin; t < end; ++t) f(t);
    });
  };
  each([&](int t) { embed(b, t); });
  const Kind body = Kind(s_.body), careful = Kind(s_.careful);
  const bool adapted = !adapter_of_.empty();
  const size_t wide = 2 * size_t(round16(s_.ffn));
  for (int l = 0; l < s_.layers; ++l) {
    const Layer& layer = layers_[l];
    each([&](int t) {
      norm(x_ + size_t(t) * width_, layer.norm1, in_.row(t));
      in_.quantise(body, t);
      if (careful != body && !(kSameActs && body >= kInt8)) in_.quantise(careful, t);
    });
    auto keep = [&](int begin, int end) {
      return [=, this](int t, int unit, const float* v) {
        const int row = begin + unit * kRows;
        memcpy(qkv_ + size_t(t) * qkv_width_ + row, v, std::min(kRows, end - row) * sizeof(float));
      };
    };
    product(pool_, layer.qk, in_, T, 0, layer.qk.panels, 1, keep(0, values_at_));
    product(pool_, layer.v, in_, T, 0, layer.v.panels, 1, keep(values_at_, values_at_ + s_.kv_heads * s_.head_dim));
    if (adapted) {
      adapt(l, kQ, in_, qkv_, qkv_width_, kRows);
      adapt(l, kK, in_, qkv_ + s_.heads * s_.head_dim, qkv_width_, kRows);
      adapt(l, kV, in_, qkv_ + values_at_, qkv_width_, kRows);
    }
    each([&](int t) { place(b, layer, t); });
    attend(b, layer, thread);
    if (careful >= kInt8) each([&](int t) { mixed_.quantise(careful, t); });
    auto add = [&](int t, int unit, const float* v) {
      float* x = x_ + size_t(t) * width_ + unit * kRows;
      for (int i = 0; i < kRows; i += W) store(x + i, load(x + i) + load(v + i));
    };
    product(pool_, layer.o, mixed_, T, 0, layer.o.panels, 1, add);
    if (adapted) adapt(l, kO, mixed_, x_, width_, kRows);
    each([&](int t) {
      norm(x_ + size_t(t) * width_, layer.norm2, in_.row(t));
      in_.quantise(body, t);
    });
    auto gate = [&](int t, int unit, const float* v) {
      float* y = inner_.row(t) + unit * kRows;
      for (int i = 0; i < kRows; i += W) {
        const vf g = load(v + i);
        store(y + i, g / (exp(-g) + 1.0f) * load(v + kRows + i));
      }
    };
    if (adapted) {
      product(pool_, layer.gate_up, in_, T, 0, layer.gate_up.panels, 1, [&](int t, int unit, const float* v) {
        memcpy(wide_ + t * wide + unit * kRows, v, kRows * sizeof(float));
      });
      adapt(l, kGate, in_, wide_, wide, 2 * kRows);
      adapt(l, kUp, in_, wide_ + kRows, wide, 2 * kRows);
      each([&](int t) {
        for (int unit = 0; unit < layer.gate_up.panels / 2; ++unit) gate(t, unit, wide_ + t * wide + unit * 2 * kRows);
      });
    } else {
      product(pool_, layer.gate_up, in_, T, 0, layer.gate_up.panels / 2, 2, gate);
    }
    if (body >= kInt8) each([&](int t) { inner_.quantise(body, t); });
    product(pool_, layer.down, inner_, T, 0, layer.down.panels, 1, add);
    if (adapted) adapt(l, kDown, inner_, x_, width_, kRows);
  }
  answer(b, thread);
}

inline void Model::embed(const Batch& b, int t) {
  embed_.get(b.ids[t], x_ + size_t(t) * width_);
  for (int i = 0; i < half_; ++i) {
    const double angle = float(b.positions[t]) * frequencies_[i];
    cos_[size_t(t) * half_ + i] = float(std::cos(angle));
    sin_[size_t(t) * half_ + i] = float(std::sin(angle));
  }
}

inline void Model::norm(const float* x, const float* gain, float* out) const {
  vf squares = {};
  for (int i = 0; i < width_; i += W) squares = fma(load(x + i), load(x + i), squares);
  const float factor = 1.0f / std::sqrt(sum(squares) / float(s_.dim) + eps_);
  for (int i = 0; i < width_; i += W) store(out + i, load(x + i) * factor * load(gain + i));
}

// Normalises (where there is a gain), turns and scales one head.
inline void Model::rotate(float* head, const float* gain, int t, float scale) const {
  if (gain) {
    float squares = 0;
    for (int d = 0; d < s_.head_dim; ++d) squares += head[d] * head[d];
    const float factor = 1.0f / std::sqrt(squares / float(s_.head_dim) + eps_);
    for (int d = 0; d < s_.head_dim; ++d) head[d] = head[d] * factor * gain[d];
  }
  const float *c = cos_ + size_t(t) * half_, *s = sin_ + size_t(t) * half_;
  for (int d = 0; d < half_; ++d) {
    const float x = head[d], y = head[d + half_];
    head[d] = (x * c[d] - y * s[d]) * scale;
    head[d + half_] = (y * c[d] + x * s[d]) * scale;
  }
}

// Queries are turned in place; keys are turned, and go into the cache with their values.
inline void Model::place(const Batch& b, const Layer& layer, int t) {
  const float scale = 1.0f / std::sqrt(float(s_.head_dim));
  float* head = qkv_ + size_t(t) * qkv_width_;
  for (int n = 0; n < s_.heads; ++n, head += s_.head_dim) rotate(head, s_.qk_norm ? layer.norm_q : nullptr, t, scale);
  uint8_t* block = layer.cache + b.slots[t] / kBlock * cache_.block_bytes;
  for (int n = 0; n < s_.kv_heads; ++n, head += s_.head_dim) {
    rotate(head, s_.qk_norm ? layer.norm_k : nullptr, t, 1.0f);
    cache_.write(block + n * cache_.head_bytes, b.slots[t] % kBlock, head, head + s_.kv_heads * s_.head_dim);
  }
}

inline void Model::chunk(const Batch& b, const Layer& layer, const Tile& tile, int head, int number, Room& room, Soft* soft) const {
  const float* q[kMostRows];
  int seen[kMostRows], rows = 0;
  for (int i = 0; i < tile.count; ++i)
    for (int g = 0; g < group_; ++g, ++rows) {
      q[rows] = qkv_ + size_t(tile.begin + i) * qkv_width_ + (head * group_ + g) * s_.head_dim;
      seen[rows] = b.positions[tile.begin + i] + 1 - number * kChunk;
    }
  const int32_t* table = b.tables + size_t(tile.sequence) * b.width + number * (kChunk / kBlock);
  const uint8_t* at = layer.cache + head * cache_.head_bytes;
  switch (cache_.kind) {
    case kCacheFloat: return attend_chunk<float>(cache_, at, table, q, seen, rows, room, soft);
    case kCacheHalf: return attend_chunk<half>(cache_, at, table, q, seen, rows, room, soft);
    case kCacheInt8: return attend_chunk<int8_t>(cache_, at, table, q, seen, rows, room, soft);
    case kCachePairs: return attend_pairs(cache_, at, table, q, seen, rows, room, soft);
  }
}

inline void Model::finish(const Tile& tile, int head, const Soft* soft, const float* out) {
  for (int i = 0; i < tile.count; ++i)
    for (int g = 0; g < group_; ++g, ++soft, out += cache_.padded) {
      float* to = mixed_.row(tile.begin + i) + (head * group_ + g) * s_.head_dim;
      for (int d = 0; d < s_.head_dim; ++d) to[d] = out[d] / soft->total;
    }
}

inline void Model::attend(const Batch& b, const Layer& layer, int thread) {
  Room& room = *rooms_[thread];
  const int padded = cache_.padded, heads = s_.kv_heads, tiles = int(tiles_.size());
  Soft soft[kMostRows];
  if (!split_) {
    pool_.share(tiles * heads, [&](int begin, int end) {
      for (int i = begin; i < end; ++i) {
        const Tile& tile = tiles_[i / heads];
        const int head = i % heads, rows = tile.count * group_;
        Soft joined[kMostRows];
        for (int c = 0; c < tile.chunks; ++c) {
          chunk(b, layer, tile, head, c, room, soft);
          for (int r = 0; r < rows; ++r) join(joined[r], room.joined + r * padded, soft[r], room.out + r * padded, padded);
        }
        finish(tile, head, joined, room.joined);
      }
    });
    return;
  }
  const size_t rows_most = std::max(1, kMostRows / group_) * group_;
  pool_.share(first_chunk_[tiles] * heads, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      const int number = i / heads, head = i % heads;
      const int which = int(std::upper_bound(first_chunk_.begin(), first_chunk_.end(), number) - first_chunk_.begin()) - 1;
      const Tile& tile = tiles_[which];
      const int rows = tile.count * group_;
      chunk(b, layer, tile, head, number - first_chunk_[which], room, &softs_[i * rows_most]);
      memcpy(&parts_[i * rows_most * padded], room.out, size_t(rows) * padded * sizeof(float));
    }
  });
  pool_.share(tiles * heads, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      const Tile& tile = tiles_[i / heads];
      const int head = i % heads, rows = tile.count * group_;
      Soft joined[kMostRows];
      for (int c = 0; c < tile.chunks; ++c) {
        const size_t at = (size_t(first_chunk_[i / heads] + c) * heads + head) * rows_most;
        for (int r = 0; r < rows; ++r) join(joined[r], room.joined + r * padded, softs_[at + r], &parts_[(at + r) * padded], padded);
      }
      finish(tile, head, joined, room.joined);
    }
  });
}

// y += B A x for the tokens whose sequence has an adapter; sixteen outputs lie `step` floats apart.
inline void Model::adapt(int layer, Part part, const Acts& in, float* y, size_t stride, int step) {
  pool_.share(int(adapter_of_.size()), [&](int begin, int end) {
    for (int t = begin; t < end; ++t) {
      if (!adapter_of_[t]) continue;
      const LowRank& p = adapter_of_[t]->parts[size_t(layer) * 7 + part];
      for (int r = 0; r < p.rank; ++r) {
        const float *a = &p.a[size_t(r) * p.in], *bias = &p.b[size_t(r) * p.out], *x = in.row(t);
        vf acc = {};
        int k = 0;
        for (; k + W <= p.in; k += W) acc = fma(load(x + k), load(a + k), acc);
        float u = sum(acc);
        for (; k < p.in; ++k) u += x[k] * a[k];
        for (int i = 0; i < p.out; i += kRows) {
          float* to = y + t * stride + size_t(i / kRows) * step;
          for (int j = 0; j < std::min(kRows, p.out - i); ++j) to[j] += u * bias[i + j];
        }
      }
    }
  });
}

inline void Model::answer(const Batch& b, int thread) {
  pool_.share(b.row_starts[b.questions], [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      norm(x_ + size_t(b.rows[i]) * width_, last_, asked_.row(i));
      asked_.quantise(Kind(s_.head), i);
    }
  });
  const Matrix& head = s_.tied ? embed_ : head_;
  for (int n = 0; n < b.questions; ++n) {
    const int row = b.row_starts[n], rows = b.row_starts[n + 1] - row;
    const size_t ids = spans_of(b, n).ids();
    float* out = b.draw_starts[n] < b.draw_starts[n + 1] ? &drawn_[drawn_at_[n]] : b.out[n];
    size_t before = 0;
    const Acts acts = asked_.from(row);
    for (int i = b.span_starts[n]; i < b.span_starts[n + 1]; ++i) {
      const int from = b.spans[2 * i], to = b.spans[2 * i + 1], first = from / kRows;
      product(pool_, head, acts, rows, first, (to - 1) / kRows - first + 1, 1, [&](int t, int unit, const float* v) {
        const int begin = std::max(from, unit * kRows), end = std::min(to, (unit + 1) * kRows);
        memcpy(out + t * ids + before + (begin - from), v + (begin - unit * kRows), (end - begin) * sizeof(float));
      });
      before += to - from;
    }
  }
  if (b.draw_starts[b.questions] == 0) return;
  pool_.share(b.draw_starts[b.questions], [&](int begin, int end) {
    for (; begin < end; ++begin) {
      const int n = int(std::upper_bound(b.draw_starts, b.draw_starts + b.questions, begin) - b.draw_starts) - 1;
      drawers_[thread].draw(*b.draws, begin, spans_of(b, n), &drawn_[drawn_at_[n]]);
    }
  });
}

}  // namespace m27
