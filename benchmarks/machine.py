"""What this machine can do at most: bytes read a second, and products a second.

A small C++ program is compiled for the processor that it runs on, as the engines' own kernels are;
where no compiler is present the limits are not known (None).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCE = r"""
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
using Clock = std::chrono::steady_clock;
typedef float F8 __attribute__((vector_size(32)));
static double seconds(Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
}
template <class F> double together(int n, F work) {
    std::vector<std::thread> all;
    auto begin = Clock::now();
    for (int i = 0; i < n; i++) all.emplace_back(work, i);
    for (auto& t : all) t.join();
    return seconds(begin);
}
int main(int, char** argv) {
    const int n = atoi(argv[1]);
    const size_t each = (size_t(384) << 20) / n / sizeof(F8);
    std::vector<F8*> parts(n);
    for (auto& p : parts) p = (F8*)aligned_alloc(64, each * sizeof(F8));
    together(n, [&](int i) { for (size_t k = 0; k < each; k++) parts[i][k] = F8{} + 1.0f; });
    double read = 0, flops = 0;
    volatile float sink = 0;
    for (int round = 0; round < 7; round++) {
        double s = together(n, [&](int i) {
            F8 a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{};
            F8* p = parts[i];
            for (size_t k = 0; k + 8 <= each; k += 8) {
                a += p[k]; b += p[k + 1]; c += p[k + 2]; d += p[k + 3];
                e += p[k + 4]; f += p[k + 5]; g += p[k + 6]; h += p[k + 7];
            }
            a += b + c + d + e + f + g + h;
            sink = sink + a[0];
        });
        double rate = double(n) * each * sizeof(F8) / s / 1e9;
        if (rate > read) read = rate;
    }
    for (int round = 0; round < 5; round++) {
        const long steps = 20000000;
        double s = together(n, [&](int i) {
            F8 x = F8{} + (1.0f + 1e-9f * i), y = F8{} + 1e-9f;
            F8 a = y, b = y, c = y, d = y, e = y, f = y, g = y, h = y, j = y, k = y;
            for (long t = 0; t < steps; t++) {
                a = a * x + y; b = b * x + y; c = c * x + y; d = d * x + y; e = e * x + y;
                f = f * x + y; g = g * x + y; h = h * x + y; j = j * x + y; k = k * x + y;
                asm volatile("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d), "+x"(e));
                asm volatile("" : "+x"(f), "+x"(g), "+x"(h), "+x"(j), "+x"(k));
            }
            a += b + c + d + e + f + g + h + j + k;
            sink = sink + a[0];
        });
        double rate = double(n) * steps * 10 * 8 * 2 / s / 1e9;
        if (rate > flops) flops = rate;
    }
    printf("{\"read_gb_s\": %.2f, \"float32_gflop_s\": %.1f}\n", read, flops);
}
"""


def limits(threads: int) -> dict[str, float | None]:
    """`read_gb_s` from memory and `float32_gflop_s` (multiply and add count two), best of several,
    with as many threads; a few seconds."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return {"read_gb_s": None, "float32_gflop_s": None}
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "probe.cpp", Path(folder) / "probe"
        source.write_text(SOURCE)
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-pthread"]
        try:
            subprocess.run([compiler, *flags, source, "-o", binary], check=True, capture_output=True)
            done = subprocess.run([binary, str(threads)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return {"read_gb_s": None, "float32_gflop_s": None}
    found: dict[str, float | None] = json.loads(done.stdout)
    return found


def describe(threads: int) -> dict[str, Any]:
    """The processor by name, its cores and vector instructions, the memory, the system."""
    model, flags = platform.processor() or platform.machine(), ""
    memory = 0
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = value
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        pass
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8")
    return {
        "processor": model, "cores": os.cpu_count(), "threads": threads,
        "features": [name for name in wanted if name in flags.split()],
        "memory_gb": round(memory / 1e9, 1), "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }  # fmt: skip


def faster(one: dict[str, float | None], other: dict[str, float | None]) -> dict[str, float | None]:
    """The better of two measurements, figure by figure: something always slows a machine down."""
    out: dict[str, float | None] = {}
    for name in one:
        known = [value for value in (one[name], other.get(name)) if value is not None]
        out[name] = max(known) if known else None
    return out
