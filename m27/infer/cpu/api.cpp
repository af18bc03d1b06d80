// What Python calls: plain functions over pointers. Errors come back as text; nothing is thrown outwards.

#include <chrono>

#include "rounding.h"
#include "step.h"

using namespace m27;

namespace {

template <class F>
int guarded(char* error, size_t room, F f) {
  try {
    f();
    return 0;
  } catch (const std::bad_alloc&) {
    snprintf(error, room, "not enough memory");
  } catch (const std::exception& e) {
    snprintf(error, room, "%s", e.what());
  }
  return 1;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int m27_block() { return kBlock; }
int m27_lanes() { return W; }

Model* m27_new(const Shape* shape, float eps, const float* frequencies, char* error, size_t room) {
  Model* made = nullptr;
  guarded(error, room, [&] { made = new Model(*shape, eps, frequencies); });
  return made;
}

void m27_free(Model* model) { delete model; }

int m27_set(Model* m, int part, int layer, int rows, const uint8_t* values, size_t bytes, const uint16_t* scale,
            const uint16_t* minimum, char* error, size_t room) {
  return guarded(error, room, [&] { m->set(Part(part), layer, rows, values, bytes, scale, minimum); });
}

int m27_set_vector(Model* m, int which, int layer, const float* values, char* error, size_t room) {
  return guarded(error, room, [&] { m->set(Vector(which), layer, values); });
}

int m27_run(Model* m, const Batch* batch, char* error, size_t room) {
  return guarded(error, room, [&] { m->run(*batch); });
}

// Draws from rows [R, K] of one question that are there already, which are changed; the seconds that it took.
// For tests and benchmarks.
double m27_draw(float* rows, const int32_t* spans, int count, const Draws* draws, int number, int threads, char* error,
                size_t room) {
  double seconds = 0;
  guarded(error, room, [&] {
    Pool pool(threads);
    std::vector<Drawer> drawers(threads);
    const Spans ids{spans, count};
    for (Drawer& drawer : drawers) drawer.reserve(ids.ids());
    auto body = [&] {
      Drawer& drawer = drawers[Pool::me()];
      pool.share(number, [&](int begin, int end) {
        for (; begin < end; ++begin) drawer.draw(*draws, begin, ids, rows);
      });
    };
    const auto begin = std::chrono::steady_clock::now();
    pool.run(body);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  });
  return seconds;
}

int m27_add_adapter(Model* m) { return m->add_adapter(); }

int m27_set_adapter(Model* m, int number, int layer, int part, int rank, int in, int out, const float* a,
                    const float* b, char* error, size_t room) {
  return guarded(error, room, [&] { m->set_adapter(number, layer, Part(part), rank, in, out, a, b); });
}

int m27_remove_adapter(Model* m, int number, char* error, size_t room) {
  return guarded(error, room, [&] { m->remove_adapter(number); });
}

size_t m27_bytes(const Model* m, int cache) { return cache ? m->cache_bytes() : m->weight_bytes(); }

void m27_round(const float* w, const float* counts, int rows, int cols, uint8_t* q, uint16_t* scale, uint16_t* minimum,
               int threads) {
  Pool pool(threads);
  round_matrix(pool, w, counts, rows, cols, q, scale, minimum);
}

// y [tokens, rows] = W x [tokens, cols], `repeat` times; the seconds of one of them. For tests and benchmarks.
double m27_product(int kind, int rows, int cols, const uint8_t* values, size_t bytes, const uint16_t* scale,
                   const uint16_t* minimum, const float* x, int tokens, float* y, int threads, int repeat) {
  Memory memory;
  Pool pool(threads);
  Matrix m;
  Acts acts;
  m.reserve(memory, Kind(kind), (rows + kRows - 1) / kRows, cols);
  const size_t g = groups_of(cols);
  for (int r = 0; r < rows; ++r)
    m.put(r, values + r * bytes, scale ? scale + r * g : nullptr, minimum ? minimum + r * g : nullptr);
  acts.reserve(memory, tokens, cols);
  for (int t = 0; t < tokens; ++t) {
    memcpy(acts.row(t), x + size_t(t) * cols, cols * sizeof(float));
    acts.quantise(Kind(kind), t);
  }
  auto body = [&] {
    for (int i = 0; i < repeat; ++i)
      product(pool, m, acts, tokens, 0, m.panels, 1, [&](int t, int unit, const float* v) {
        const int row = unit * kRows;
        memcpy(y + size_t(t) * rows + row, v, std::min(kRows, rows - row) * sizeof(float));
      });
  };
  const auto begin = std::chrono::steady_clock::now();
  pool.run(body);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / repeat;
}

// Gigabytes a second that `threads` threads read together: the machine's limit at batch 1.
double m27_bandwidth(size_t bytes, int threads, int repeat) {
  Memory memory;
  Pool pool(threads);
  const size_t piece = 1 << 16, pieces = bytes / piece;
  float* data = memory.take<float>(bytes / 4);
  for (size_t i = 0; i < bytes / 4; ++i) data[i] = float(i & 7);
  std::atomic<int> found{0};
  auto body = [&] {
    for (int i = 0; i < repeat; ++i)
      pool.share(int(pieces), [&](int begin, int end) {
        vf a = {}, b = {}, c = {}, d = {};
        for (size_t k = begin * piece / 4; k < end * piece / 4; k += 4 * W) {
          a += load(data + k), b += load(data + k + W);
          c += load(data + k + 2 * W), d += load(data + k + 3 * W);
        }
        if (sum(a + b + c + d) < 0) found = 1;
      });
  };
  const auto begin = std::chrono::steady_clock::now();
  pool.run(body);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return double(pieces * piece) * repeat / seconds / 1e9;
}

}  // extern "C"
