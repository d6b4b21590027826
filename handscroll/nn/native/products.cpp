// y = x W^T for a few rows x and a matrix W that is read once: float32, bfloat16, int8 with a scale per row of W, or
// int4 with a scale and a lowest number per 32. What decoding one token spends its time on besides the cache.

#include <type_traits>
#include <vector>
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

// The same for four bits: bytes of a row, and its scales followed by its lowest numbers, one of each for 32.
template <int R>
void row(const float* x, int64_t inner, const uint8_t* w, const bf16* scales, float* y) {
    const int64_t groups = inner / 32;
    f16v a[R] = {}, b[R] = {};
    for (int64_t g = 0; g < groups; g++) {
        f16v w0, w1;
        load(w + 16 * g, widen(scales[g]), widen(scales[groups + g]), w0, w1);
        const float* at = x + 32 * g;
        for (int r = 0; r < R; r++) a[r] += w0 * load(at + r * inner), b[r] += w1 * load(at + r * inner + 16);
    }
    for (int r = 0; r < R; r++) y[r] = sum(a[r] + b[r]);
}

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define NARROW 1

// Rows of bfloat16 numbers for `row_narrow`: 64 at a time as [0..15, 32..47, 16..31, 48..63], and the sums of every 32.
struct Narrow {
    std::vector<uint16_t> x;
    std::vector<float> sums;
    int64_t padded;  // sums of a row

    Narrow(const float* given, int64_t rows, int64_t inner)
        : x(rows * inner), padded((inner / 32 + 15) / 16 * 16) {
        sums.resize(rows * padded);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t e = 0; e < inner; e += 64) {
                const float* at = given + r * inner + e;
                uint16_t* out = x.data() + r * inner + e;
                const f16v part[4] = {load(at), load(at + 16), load(at + 32), load(at + 48)};
                const int places[4] = {0, 32, 16, 48};
                for (int i = 0; i < 4; i++) {  // bfloat16 numbers, widened: their upper halves are all
                    const u16v bits = __builtin_convertvector((w16v)part[i] >> 16, u16v);
                    memcpy(out + places[i], &bits, 32);
                }
                sums[r * padded + e / 32] = sum(part[0] + part[1]);
                sums[r * padded + e / 32 + 1] = sum(part[2] + part[3]);
            }
    }
};

// int4 times bfloat16: the products of two groups of 32 fill a register of sums, which then meets their scales.
template <int R>
void row_narrow(const Narrow& given, int64_t first, int64_t inner, const uint8_t* w, const bf16* scales, float* y) {
    const int64_t groups = inner / 32;
    alignas(64) static const uint16_t counted[32] = {  // 0 .. 15 in bfloat16, twice: five bits of an index are read
        0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
        0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
        0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
    const __m512i table = _mm512_load_si512(counted);
    const __m512i halves = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    f16v total[R] = {};
    for (int64_t g = 0; g < groups; g += 16) {
        const int64_t here = groups - g < 16 ? groups - g : 16;
        const __mmask16 some = (__mmask16)((1u << here) - 1);
        auto wide = [&](const bf16* p) {
            return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, p)), 16));
        };
        const __m512 steps = wide(scales + g);
        const f16v lows = (f16v)wide(scales + groups + g);
        for (int r = 0; r < R; r++) total[r] += lows * load(given.sums.data() + (first + r) * given.padded + g);
        for (int64_t i = 0; i < here; i += 2) {
            const __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(w + 16 * (g + i))));
            const __m512bh a = (__m512bh)_mm512_permutexvar_epi16(both, table);
            const __m512bh b = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), table);
            const f16v step = (f16v)_mm512_permutexvar_ps(_mm512_add_epi32(halves, _mm512_set1_epi32((int)i)), steps);
            for (int r = 0; r < R; r++) {
                const uint16_t* at = given.x.data() + (first + r) * inner + 32 * (g + i);
                __m512 found = _mm512_dpbf16_ps(_mm512_setzero_ps(), a, (__m512bh)_mm512_loadu_si512(at));
                found = _mm512_dpbf16_ps(found, b, (__m512bh)_mm512_loadu_si512(at + 32));
                total[r] += (f16v)found * step;
            }
        }
    }
    for (int r = 0; r < R; r++) y[r] = sum(total[r]);
}

template <int R>
void matrix_narrow(const Narrow& given, int64_t first, const nibbles* w, const bf16* scales, const bf16* bias,
                   int64_t inner, int64_t outer, int64_t threads, bf16* y) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < outer; n++) {
        float found[R];
        row_narrow<R>(given, first, inner, (const uint8_t*)w + n * inner / 2, scales + n * inner / 16, found);
        for (int r = 0; r < R; r++) put(y + (first + r) * outer + n, found[r] + (bias ? widen(bias[n]) : 0.0f));
    }
}

void several_narrow(const float* x, const nibbles* w, const bf16* scales, const bf16* bias, const int64_t* shape,
                    bf16* y) {
    const int64_t count = shape[0], inner = shape[1], outer = shape[2], threads = shape[3];
    const Narrow given(x, count, inner);
    for (int64_t r = 0; r < count;) {
        switch (count - r) {
            case 1: matrix_narrow<1>(given, r, w, scales, bias, inner, outer, threads, y); r += 1; break;
            case 2: matrix_narrow<2>(given, r, w, scales, bias, inner, outer, threads, y); r += 2; break;
            case 3: matrix_narrow<3>(given, r, w, scales, bias, inner, outer, threads, y); r += 3; break;
            default: matrix_narrow<4>(given, r, w, scales, bias, inner, outer, threads, y); r += 4;
        }
    }
}
#endif

template <class T, int R, class Out>
void matrix(const float* x, const T* w, const void* scales, const Out* bias, int64_t inner, int64_t outer,
            int64_t threads, Out* y) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < outer; n++) {
        float found[R], scale = 1.0f;
        if constexpr (std::is_same_v<T, nibbles>) {
            row<R>(x, inner, (const uint8_t*)w + n * inner / 2, (const bf16*)scales + n * inner / 16, found);
        } else {
            row<T, R>(x, inner, w + n * inner, found);
            if (scales) scale = ((const float*)scales)[n];
        }
        const float add = bias ? widen(bias[n]) : 0.0f;
        for (int r = 0; r < R; r++)  // written out, or the compiler fuses it for some R only
            put(y + r * outer + n, __builtin_fmaf(found[r], scale, add));
    }
}

template <class T, class Out>
void several(const float* x, const T* w, const void* scales, const Out* bias, const int64_t* shape, Out* y) {
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

// x (R, inner) float32; w (outer, inner); scales (outer) float32 for int8, (outer, 2, inner / 32) bfloat16 for int4; bias
// (outer) or null and y (R, outer) in float32 or bfloat16. shape: R, inner (a multiple of 16; of 32 for int4), outer,
// threads. kind: 0 float32, 1 bfloat16, 2 int8, 3 int4 (w (outer, inner / 2) bytes).
extern "C" void handscroll_product(int kind, int narrow_out, const float* x, const void* w, const void* scales,
                                   const void* bias, const int64_t* shape, void* y) {
    if (narrow_out) {
        if (kind == 0) several((const float*)x, (const float*)w, scales, (const bf16*)bias, shape, (bf16*)y);
        else if (kind == 1) several(x, (const bf16*)w, scales, (const bf16*)bias, shape, (bf16*)y);
        else if (kind == 2) several(x, (const int8_t*)w, scales, (const bf16*)bias, shape, (bf16*)y);
#if defined(NARROW)
        else if (shape[1] % 64 == 0)
            several_narrow(x, (const nibbles*)w, (const bf16*)scales, (const bf16*)bias, shape, (bf16*)y);
#endif
        else several(x, (const nibbles*)w, scales, (const bf16*)bias, shape, (bf16*)y);
    } else {
        if (kind == 0) several(x, (const float*)w, scales, (const float*)bias, shape, (float*)y);
        else if (kind == 1) several(x, (const bf16*)w, scales, (const float*)bias, shape, (float*)y);
        else if (kind == 2) several(x, (const int8_t*)w, scales, (const float*)bias, shape, (float*)y);
        else several(x, (const nibbles*)w, scales, (const float*)bias, shape, (float*)y);
    }
}
