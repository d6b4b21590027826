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
        const float scale = scales ? scales[n] : 1.0f, add = bias ? widen(bias[n]) : 0.0f;
        for (int r = 0; r < R; r++)  // written out, or the compiler fuses it for some R only
            put(y + r * outer + n, __builtin_fmaf(found[r], scale, add));
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

#if defined(__AVX512BF16__)
constexpr int AHEAD = 8;  // rows of w that are fetched ahead

// R rows of x and N rows of w, both bfloat16, in the processor's own products with float32 sums. Every sum has one
// chain, so that a row does not depend on how many there are. Rows of w are fetched ahead: N
// short streams are too much for the processor's own prefetching.
template <int R, int N>
void narrow_block(const bf16* x, int64_t inner, const bf16* w, const bf16* bias, int64_t outer, bf16* y) {
    static_assert(R * N <= 16);
    __m512 total[16];
    for (int i = 0; i < 16; i++) total[i] = _mm512_setzero_ps();
    for (int64_t e = 0; e < inner; e += 32) {
        const __mmask32 there = inner - e < 32 ? 0xffff : 0xffffffff;
        __m512bh ws[N];
        for (int n = 0; n < N; n++) {
            ws[n] = (__m512bh)_mm512_maskz_loadu_epi16(there, w + n * inner + e);
            __builtin_prefetch(w + (AHEAD + n) * inner + e);
        }
        for (int r = 0; r < R; r++) {
            __m512bh xs = (__m512bh)_mm512_maskz_loadu_epi16(there, x + r * inner + e);
            for (int n = 0; n < N; n++) total[r * N + n] = _mm512_dpbf16_ps(total[r * N + n], xs, ws[n]);
        }
    }
    float found[16];
    if (R * N < 4)  // the same sum in the same order
        for (int i = 0; i < R * N; i++) found[i] = sum((f16v)total[i]);
    else
        store(found, sums((f16v*)total));
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) put(y + r * outer + n, found[r * N + n] + (bias ? widen(bias[n]) : 0.0f));
}

template <int R>
void narrow_matrix(const bf16* x, const bf16* w, const bf16* bias, int64_t inner, int64_t outer, int64_t threads,
                   bf16* y) {
    constexpr int N = R > 4 ? 2 : 1;  // with few rows memory is the limit, and one stream is read fastest
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t block = 0; block < (outer + N - 1) / N; block++) {
        int64_t n = block * N;
        if (n + N <= outer) {
            narrow_block<R, N>(x, inner, w + n * inner, bias ? bias + n : nullptr, outer, y + n);
            continue;
        }
        for (; n < outer; n++) narrow_block<R, 1>(x, inner, w + n * inner, bias ? bias + n : nullptr, outer, y + n);
    }
}

void narrow_several(const bf16* x, const bf16* w, const bf16* bias, const int64_t* shape, bf16* y) {
    const int64_t count = shape[0], inner = shape[1], outer = shape[2], threads = shape[3];
    for (int64_t r = 0; r < count; r += 8) {
        const bf16* here = x + r * inner;
        bf16* out = y + r * outer;
        switch (count - r) {
            case 1: narrow_matrix<1>(here, w, bias, inner, outer, threads, out); break;
            case 2: narrow_matrix<2>(here, w, bias, inner, outer, threads, out); break;
            case 3: narrow_matrix<3>(here, w, bias, inner, outer, threads, out); break;
            case 4: narrow_matrix<4>(here, w, bias, inner, outer, threads, out); break;
            case 5: narrow_matrix<5>(here, w, bias, inner, outer, threads, out); break;
            case 6: narrow_matrix<6>(here, w, bias, inner, outer, threads, out); break;
            case 7: narrow_matrix<7>(here, w, bias, inner, outer, threads, out); break;
            default: narrow_matrix<8>(here, w, bias, inner, outer, threads, out);
        }
    }
}
#endif

}  // namespace

// Where the processor multiplies bfloat16 (handscroll_has_prefill says so): x (R, inner), w (outer, inner), bias (outer)
// or null and y (R, outer), all bfloat16. shape: R, inner (a multiple of 16), outer, threads.
extern "C" void handscroll_narrow_product(const void* x, const void* w, const void* bias, const int64_t* shape, void* y) {
#if defined(__AVX512BF16__)
    narrow_several((const bf16*)x, (const bf16*)w, (const bf16*)bias, shape, (bf16*)y);
#endif
}

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
