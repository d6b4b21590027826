// y = x W^T for a few rows x and a matrix W that is read once: float32, bfloat16, int8 with a scale per row of W, or
// int4 with a scale and a zero per group of a row. What decoding one token spends its time on besides the cache.

#include "simd.h"

namespace {

template <class T, int R>
void row(const float* x, int64_t inner, const T* w, float* y) {
    f16v a[R] = {}, b[R] = {};
    int64_t e = 0;
    for (; e + 32 <= inner; e += 32) {
        f16v w0 = load(w + e), w1 = load(w + e + 16);
        for (int r = 0; r < R; r++) a[r] += w0 * load(x + r * inner + e), b[r] += w1 * load(x + r * inner + e + 16);
    }
    for (; e < inner; e += 16)
        for (int r = 0; r < R; r++) a[r] += load(w + e) * load(x + r * inner + e);
    for (int r = 0; r < R; r++) y[r] = sum(a[r] + b[r]);
}

template <class T, int R, class Out>
void matrix(const float* x, const T* w, const float* scales, const Out* bias, int64_t inner, int64_t outer,
            int64_t threads, Out* y) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < outer; n++) {
        float found[R];
        row<T, R>(x, inner, w + n * inner, found);
        for (int r = 0; r < R; r++)
            put(y + r * outer + n, found[r] * (scales ? scales[n] : 1.0f) + (bias ? widen(bias[n]) : 0.0f));
    }
}

template <class T, class Out>
void several(const float* x, const T* w, const float* scales, const Out* bias, const int64_t* shape, Out* y) {
    const int64_t count = shape[0], inner = shape[1], outer = shape[2], threads = shape[3];
    for (int64_t r = 0; r < count;) {
        const float* here = x + r * inner;
        Out* out = y + r * outer;
        switch (count - r) {
            case 1: matrix<T, 1>(here, w, scales, bias, inner, outer, threads, out); r += 1; break;
            case 2: matrix<T, 2>(here, w, scales, bias, inner, outer, threads, out); r += 2; break;
            case 3: matrix<T, 3>(here, w, scales, bias, inner, outer, threads, out); r += 3; break;
            default: matrix<T, 4>(here, w, scales, bias, inner, outer, threads, out); r += 4;
        }
    }
}

}  // namespace

// x (R, inner) float32; w (outer, inner); scales (outer) float32 for int8; bias (outer) or null and y (R, outer) in
// float32 or bfloat16. shape: R, inner (a multiple of 16), outer, threads. kind: 0 float32, 1 bfloat16, 2 int8.
extern "C" void handscroll_product(int kind, int narrow_out, const float* x, const void* w, const float* scales,
                                   const void* bias, const int64_t* shape, void* y) {
    if (narrow_out) {
        if (kind == 0) several((const float*)x, (const float*)w, scales, (const bf16*)bias, shape, (bf16*)y);
        else if (kind == 1) several(x, (const bf16*)w, scales, (const bf16*)bias, shape, (bf16*)y);
        else several(x, (const int8_t*)w, scales, (const bf16*)bias, shape, (bf16*)y);
    } else {
        if (kind == 0) several(x, (const float*)w, scales, (const float*)bias, shape, (float*)y);
        else if (kind == 1) several(x, (const bf16*)w, scales, (const float*)bias, shape, (float*)y);
        else several(x, (const int8_t*)w, scales, (const float*)bias, shape, (float*)y);
    }
}
