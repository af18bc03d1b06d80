// Logits to one id, as `m27.infer.sampler` defines it, to the very id: penalty, redirects, temperature,
// top-k, top-p, min-p, then the race of the candidates.
//
// What Python computes in floats is computed in floats here and in the same order, and doubles are
// doubles. Where the result hangs on how numpy rounds (exp, log, logaddexp, sums), numpy's own inner
// loops are called: any other exponential would move a draw where two candidates are all but level.
// Knows no model. A row has K ids, those of the spans in ascending order; a place is a number below K.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "squeeze.h"

namespace m27 {

// An inner loop of numpy's ufuncs (its documented C interface): arrays, count, strides in bytes, data.
struct Loop {
  void (*call)(char**, const intptr_t*, const intptr_t*, void*);
  void* data;
};

struct Loops {  // mirrors `Loops` of drawing.py
  Loop exp, log, logaddexp, add;
};

struct Draw {  // mirrors `DRAW` of drawing.py
  uint64_t key;
  double top_p, min_p;
  float temperature, penalty, guidance;
  int32_t top_k;
  int32_t row, other;   // of the question's rows: the one drawn from, the one that guides it (-1: none)
  int32_t seen, moves;  // where those of the next draw begin, in `Draws`
};

// The draws of all questions, flat. A row is drawn from once: the draw changes it.
struct Draws {
  const Draw* of;
  const int64_t* seen;   // places of ids that were produced before, each once
  const int32_t* moves;  // pairs of ids (from, to)
  const Loops* loops;
  int64_t* out;          // ids; -1 where none is allowed or the logits are no numbers
};

struct Spans {
  const int32_t* of;  // (from, to) pairs
  int count;

  size_t ids() const {
    size_t n = 0;
    for (int i = 0; i < count; ++i) n += of[2 * i + 1] - of[2 * i];
    return n;
  }
  int place(int id) const {
    int before = 0;
    for (int i = 0; i < count; before += of[2 * i + 1] - of[2 * i], ++i)
      if (id >= of[2 * i] && id < of[2 * i + 1]) return before + id - of[2 * i];
    return -1;
  }
};

constexpr int kLong = 20000;   // sampler.py's _LONG: more logits than this are thinned out first
constexpr int kSift = 64;      // that is done for so many at a time
constexpr int kDigit = 1 << 10;

// What one thread needs for rows of up to `room` ids.
class Drawer {
 public:
  void reserve(size_t room) {
    if (room + W <= weights_.size()) return;
    for (auto* v : {&weights_, &sorted_, &spare_}) v->resize(room + W);
    places_.resize(room + W);
    spots_.resize(room + W);
    tops_.resize(room / kSift + 1);
    digits_.resize(3 * kDigit);
  }

  // Draw number `n`, from rows [R, K] of logits.
  void draw(const Draws& draws, int n, const Spans& spans, float* rows) {
    const Draw& d = draws.of[n];
    const size_t ids = spans.ids();
    float* x = rows + d.row * ids;
    loops_ = draws.loops;
    if (d.other >= 0) guide(x, rows + d.other * ids, ids, d.guidance);
    const int seen = n ? draws.of[n - 1].seen : 0, moves = n ? draws.of[n - 1].moves : 0;
    if (d.penalty != 1.0f)
      for (int i = seen; i < d.seen; ++i) {
        float& old = x[draws.seen[i]];
        old = old > 0 ? old / d.penalty : old * d.penalty;
      }
    for (int i = moves; i < d.moves; ++i) redirect(x, spans.place(draws.moves[2 * i]), spans.place(draws.moves[2 * i + 1]));
    draws.out[n] = pick(d, x, int(ids), spans);
  }

 private:
  static void guide(float* c, const float* u, size_t ids, float guidance) {
    for (size_t i = 0; i < ids; ++i) c[i] = (c[i] - u[i]) * guidance + u[i];
  }

  void redirect(float* x, int from, int to) const {
    if (from < 0 || to < 0) return;
    char* arrays[] = {(char*)(x + to), (char*)(x + from), (char*)(x + to)};
    const intptr_t one = 1, steps[] = {4, 4, 4};
    loops_->logaddexp.call(arrays, &one, steps, loops_->logaddexp.data);
    x[from] = -std::numeric_limits<float>::infinity();
  }

  static void apply(const Loop& loop, float* x, int n) {
    char* arrays[] = {(char*)x, (char*)x};
    const intptr_t count = n, steps[] = {4, 4};
    loop.call(arrays, &count, steps, loop.data);
  }

  float sum_of(const float* x, int n) const {
    float total = 0;
    char* arrays[] = {(char*)&total, (char*)x, (char*)&total};
    const intptr_t count = n, steps[] = {0, 4, 0};
    loops_->add.call(arrays, &count, steps, loops_->add.data);
    return total;
  }

  // The highest logit, and the highest of every `kSift`; no number where one of them is none.
  float highest_of(const float* x, int n) {
    constexpr float low = -std::numeric_limits<float>::infinity();
    vi none = {};
    vf high = fill(low);
    int i = 0, block = 0;
    for (; i + kSift <= n; i += kSift) {
      vf top = load(x + i);
      none |= top != top;
      for (int k = W; k < kSift; k += W) {
        const vf v = load(x + i + k);
        none |= v != v;
        top = max(top, v);
      }
      tops_[block++] = highest(top);
      high = max(high, top);
    }
    float best = highest(high), last = low;
    bool bad = false;
    for (; i < n; ++i) {
      bad |= x[i] != x[i];
      last = x[i] > last ? x[i] : last;
    }
    tops_[block] = last;
    for (int k = 0; k < W; ++k) bad |= none[k] != 0;
    return bad ? std::numeric_limits<float>::quiet_NaN() : std::max(best, last);
  }

  int64_t pick(const Draw& d, const float* x, int ids, const Spans& spans) {
    const float best = highest_of(x, ids);
    if (!(best > -std::numeric_limits<float>::infinity())) return -1;
    if (d.temperature == 0.0f) {
      int block = 0;
      while (tops_[block] != best) ++block;
      return id_at(spans, int(std::find(x + block * kSift, x + ids, best) - x));
    }
    if (best == std::numeric_limits<float>::infinity()) return -1;
    if (ids > kLong) {
      sift(x, ids, best - 50.0f * d.temperature);
    } else {
      n_ = ids;
      std::copy(x, x + ids, weights_.begin());
      for (int i = 0; i < ids; ++i) places_[i] = i;
    }
    for (int i = 0; i < n_; ++i) weights_[i] = (weights_[i] - best) / d.temperature;
    apply(loops_->exp, weights_.data(), n_);
    cut(d);
    return n_ == 1 ? id_at(spans, places_[0]) : race(d.key, spans);
  }

  // What is at least `low`, and where.
  void sift(const float* x, int ids, float low) {
    n_ = 0;
    for (int i = 0, block = 0; i < ids; i += kSift, ++block) {
      if (!(tops_[block] >= low)) continue;
      const int end = std::min(ids, i + kSift);
      int k = i;
      for (; k + W <= end; k += W) {
        const vf v = load(x + k);
        n_ += squeeze(v >= low, v, lanes() + k, &weights_[n_], &places_[n_]);
      }
      for (; k < end; ++k) {
        weights_[n_] = x[k];
        places_[n_] = k;
        n_ += x[k] >= low;
      }
    }
  }

  static vi lanes() {
    vi i;
    for (int k = 0; k < W; ++k) i[k] = k;
    return i;
  }

  // The weights that are at least `low` into `xs`, their places into `ps` (these may be weights_ and
  // places_ themselves); how many.
  int thin(float low, float* xs, int32_t* ps) const {
    int kept = 0, i = 0;
    for (; i + W <= n_; i += W) {
      const vf w = load(&weights_[i]);
      const vi p = *reinterpret_cast<const vi_any*>(&places_[i]);
      kept += squeeze(w >= low, w, p, xs + kept, ps + kept);
    }
    for (; i < n_; ++i) {
      const float w = weights_[i];
      const int32_t p = places_[i];
      xs[kept] = w;
      ps[kept] = p;
      kept += w >= low;
    }
    return kept;
  }

  // A power of two such that the weights which are at least that are more than `enough`, so that none
  // below is in the nucleus; 0 where there is none. Sums are off by less than is allowed for.
  float bottom(double enough) const {
    for (float low = 0.5f; low > 1e-9f; low *= 0.5f) {
      vf total = {};
      int i = 0;
      for (; i + W <= n_; i += W) {
        const vf w = load(&weights_[i]);
        total += as_float(as_int(w) & (w >= low));
      }
      float all = sum(total);
      for (; i < n_; ++i) all += weights_[i] >= low ? weights_[i] : 0.0f;
      if (all > 1.01 * enough) return low;
    }
    return 0.0f;
  }

  // The best weights into `sorted_`, at least `many` of them; how many these are. Of so many parts of a
  // row the `many` best maxima belong to as many weights, so what is less than these is not among the best.
  int choose(int many) {
    const int parts = n_ / kSift;
    if (parts < 2 * many) {
      std::copy(&weights_[0], &weights_[0] + n_, sorted_.begin());
      return n_;
    }
    highest_of(&weights_[0], n_);
    std::nth_element(tops_.begin(), tops_.begin() + (many - 1), tops_.begin() + parts, std::greater<float>());
    return thin(tops_[many - 1], &sorted_[0], &spots_[0]);
  }

  // sampler.py's `candidates`, from the weights on; it explains the cuts.
  void cut(const Draw& d) {
    const int top_k = d.top_k < n_ ? d.top_k : 0;
    float least = 2e-22f;
    double total = 0;
    if (d.top_p < 1.0 && !top_k) {
      total = sum_of(weights_.data(), n_);
      least = std::max(least, float(0.999 * (1.0 - d.top_p) * total / n_));
    }
    n_ = thin(least, &weights_[0], &places_[0]);
    if ((!top_k && d.top_p == 1.0 && d.min_p == 0.0) || n_ == 0) return;
    int many = top_k ? std::min(top_k, n_) : n_, chosen;
    if (d.top_p < 1.0 && !top_k && n_ > 1000)
      chosen = many = thin(bottom(d.top_p * total), &sorted_[0], &spots_[0]);
    else
      chosen = choose(many);
    int keep = many;
    const auto from = sorted_.begin();
    if (many < chosen) std::nth_element(from, from + (many - 1), from + chosen, std::greater<float>());
    if (d.top_p < 1.0) {
      sort(many);
      if (total == 0)
        for (int i = 0; i < many; ++i) total += double(sorted_[i]);
      const double enough = d.top_p * total;
      double running = 0;
      for (keep = 1; keep < many; ++keep) {
        running += double(sorted_[keep - 1]);
        if (!(running < enough)) break;
      }
    }
    if (d.min_p > 0.0) {
      const auto likely = std::count_if(from, from + many, [&](float w) { return double(w) >= d.min_p; });
      keep = std::max(1, std::min(keep, int(likely)));
    }
    if (d.top_p == 1.0 && keep < many) std::nth_element(from, from + (keep - 1), from + many, std::greater<float>());
    const float edge = d.top_p < 1.0 || keep < many ? sorted_[keep - 1] : *std::min_element(from, from + many);
    // Of equal ones at the edge, the first.
    int above = 0;
    for (int i = 0; i < n_; ++i) above += weights_[i] > edge;
    int level = keep - above, kept = 0;
    for (int i = 0; i < n_; ++i) {
      const float w = weights_[i];
      if (w < edge || (w == edge && level-- <= 0)) continue;
      weights_[kept] = w;
      places_[kept++] = places_[i];
    }
    n_ = kept;
  }

  // The first `n` of the sorted weights in descending order: their bits order them, below 2^30 as
  // none is above 1, three digits of ten bits.
  void sort(int n) {
    if (n < 1000) {
      std::sort(sorted_.begin(), sorted_.begin() + n, std::greater<float>());
      return;
    }
    std::fill(digits_.begin(), digits_.end(), 0);
    auto bits = [](float w) {
      uint32_t b;
      memcpy(&b, &w, 4);
      return ~b;
    };
    for (int i = 0; i < n; ++i) {
      const uint32_t b = bits(sorted_[i]);
      for (int k = 0; k < 3; ++k) ++digits_[k * kDigit + (b >> (10 * k)) % kDigit];
    }
    for (int k = 0; k < 3; ++k) {
      int* at = &digits_[k * kDigit];
      for (int i = 0, sum = 0; i < kDigit; ++i) {
        const int count = at[i];
        at[i] = sum;
        sum += count;
      }
      for (int i = 0; i < n; ++i) spare_[at[(bits(sorted_[i]) >> (10 * k)) % kDigit]++] = sorted_[i];
      std::swap(sorted_, spare_);
    }
  }

  // sampler.py's `race`, and who wins it.
  int64_t race(uint64_t key, const Spans& spans) {
    float* u = spare_.data();
    for (int i = 0, span = 0, before = 0; i < n_; ++span) {
      const int from = spans.of[2 * span], ids = spans.of[2 * span + 1] - from;
      const int end = int(std::lower_bound(&places_[i], &places_[0] + n_, before + ids) - &places_[0]);
      for (; i < end; ++i) {
        uint64_t h = uint64_t(uint32_t(places_[i] - before + from)) * 0x9E3779B97F4A7C15u + key;
        h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9u;
        h = (h ^ h >> 27) * 0x94D049BB133111EBu;
        h ^= h >> 31;
        u[i] = float(int32_t(h >> 41) * 2 + 1) * 5.9604644775390625e-8f;  // 2^-24
      }
      before += ids;
    }
    apply(loops_->log, u, n_);
    for (int i = 0; i < n_; ++i) u[i] /= weights_[i];  // minus the time that a candidate takes
    const float quickest = highest_of(u, n_);
    if (!(quickest <= 0)) return -1;
    int block = 0;
    while (tops_[block] != quickest) ++block;
    return id_at(spans, places_[std::find(u + block * kSift, u + n_, quickest) - u]);
  }

  static int64_t id_at(const Spans& spans, int place) {
    int span = 0;
    while (place >= spans.of[2 * span + 1] - spans.of[2 * span]) {
      place -= spans.of[2 * span + 1] - spans.of[2 * span];
      ++span;
    }
    return spans.of[2 * span] + place;
  }

  const Loops* loops_ = nullptr;
  int n_ = 0;                 // candidates: their weights and places, ascending by place
  std::vector<float> weights_, sorted_, spare_, tops_;
  std::vector<int32_t> places_, spots_, digits_;
};

}  // namespace m27
