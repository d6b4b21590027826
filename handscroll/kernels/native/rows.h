// The work between the products, of one row each: the norm of a vector, the rotation of a head, the gate of an MLP.

#pragma once
#include <cmath>
#include "simd.h"

namespace {

// The vector over its root mean square in float32, times the weight. As `RMSNorm` in nn/norm.py, it is rounded to T
// before the product and after it; with an offset it is multiplied by 1 + weight in float32 and rounded once.
template <class T>
void norm(const T* x, const T* weight, float epsilon, int64_t width, bool offset, T* y) {
    f16v total = {};
    for (int64_t e = 0; e < width; e += 16) {
        f16v v = load(x + e);
        total += v * v;
    }
    const f16v scale = splat(1.0f / std::sqrt(sum(total) / (float)width + epsilon));
    for (int64_t e = 0; e < width; e += 16) {
        const f16v scaled = load(x + e) * scale, w = load(weight + e);
        if (offset) store(y + e, scaled * (splat(1.0f) + w));
        else store(y + e, rounded<T>(scaled) * w);
    }
}

// One head, rotated by the tables (half) of its position.
template <class T>
void turn(const T* x, const float* cosine, const float* sine, int64_t half, T* y) {
    for (int64_t e = 0; e < half; e += 16) {
        const f16v first = load(x + e), second = load(x + half + e), c = load(cosine + e), s = load(sine + e);
        store(y + e, first * c - second * s);
        store(y + half + e, second * c + first * s);
    }
}

// The gate of x, rounded to T, times y, rounded to T; 16 numbers at a time. Both gates are x / (1 + e^-u): for silu u
// is x; for the tanh form of gelu u is sqrt(8 / pi) (x + 0.044715 x^3), since 0.5 (1 + tanh(u / 2)) is the same. A
// constant says which: where a number chooses between vectors, GCC 12 takes one lane of the wrong one. `to` may be x.
template <bool GELU, class T>
void gate(const T* x, const T* y, int64_t count, T* to) {
    for (int64_t i = 0; i < count; i += 16) {
        const f16v a = load(x + i);
        f16v u = a;
        if constexpr (GELU) u = splat(1.5957691216057308f) * (a + splat(0.044715f) * a * a * a);
        const f16v e = exponential(u < (f16v){} ? u : -u);
        const f16v s = a * ((u < (f16v){} ? e : splat(1.0f)) / (e + splat(1.0f)));
        store(to + i, rounded<T>(s) * load(y + i));
    }
}

}  // namespace
