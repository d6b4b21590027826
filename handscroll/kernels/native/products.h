// y = x W^T for a few rows x and a matrix W in any number format (formats.h), which is read once. Besides reading the
// cache, this product takes most of the time of decoding a token.
//
// `Rows` are the rows of x in the form that the kernel of a matrix reads; `slice` computes some columns of y in the
// calling thread.

#pragma once
#include <algorithm>
#include <deque>
#include <vector>
#include "formats.h"
#include "quantised.h"

struct Product {  // kind: the number of the format of W; bias may be null
    int64_t kind, inner, outer;
    const void *weight, *bias;
};

namespace {

constexpr int AHEAD = 8;  // rows of w that are fetched ahead

template <class T, int R>
void row(const float* x, int64_t inner, const T* w, float* y) {
    f16v a[R] = {}, b[R] = {};
    int64_t e = 0;
#pragma GCC unroll 2  // with this, and every line fetched ahead, rows of 576 float32 numbers: 37 for 21 GB/s (docs/log.md)
    for (; e + 32 <= inner; e += 32) {
        for (size_t line = 0; line < 32; line += 64 / sizeof(T)) __builtin_prefetch(w + AHEAD * inner + e + line, 0, 0);
        f16v w0 = load(w + e), w1 = load(w + e + 16);
        for (int r = 0; r < R; r++) a[r] += w0 * load(x + r * inner + e), b[r] += w1 * load(x + r * inner + e + 16);
    }
    for (; e < inner; e += 16)
        for (int r = 0; r < R; r++) a[r] += load(w + e) * load(x + r * inner + e);
    for (int r = 0; r < R; r++) y[r] = sum(a[r] + b[r]);
}

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define NARROW 1

// R rows of x and N rows of w, both bfloat16, in the processor's own products with float32 sums. Every sum has one
// chain, so that the result of a row does not depend on the number of rows. Rows of w are prefetched: N short streams
// are too many for the processor's own prefetching.
template <int R, int N>
void narrow_block(const bf16* x, int64_t inner, const bf16* w, const bf16* bias, int64_t outer, bf16* y) {
    static_assert(R * N <= 16);
    __m512 total[16];
    for (int i = 0; i < 16; i++) total[i] = _mm512_setzero_ps();
    for (int64_t e = 0; e < inner; e += 32) {
        const bool whole = inner - e >= 32;  // with a mask the processor would not prefetch
        const auto take = [whole](const void* p) {
            return (__m512bh)(whole ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(0xffff, p));
        };
        __m512bh ws[N];
        for (int n = 0; n < N; n++) {
            ws[n] = take(w + n * inner + e);
            __builtin_prefetch(w + (AHEAD + n) * inner + e, 0, 0);
        }
        for (int r = 0; r < R; r++) {
            const __m512bh xs = take(x + r * inner + e);
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

#endif

// The columns of `outer` that thread `t` of `n` computes: whole vectors.
inline void share(int64_t outer, int64_t t, int64_t n, int64_t& first, int64_t& last) {
    const int64_t units = (outer + 15) / 16;
    first = std::min(outer, units * t / n * 16), last = std::min(outer, units * (t + 1) / n * 16);
}

// `count` contiguous rows of numbers of type T (float or bf16), for the product `by`.
template <class T>
class Rows {
  public:
    Rows(const T* x, int64_t count, const Product& by) : x(x), count(count), by(by) {
#if defined(NARROW)
        as_is = sizeof(T) == 2 && by.kind == BF16;
#endif
        if (as_is) return;
        if constexpr (sizeof(T) == 2) {
            wide.resize(count * by.inner);
            for (size_t i = 0; i < wide.size(); i++) wide[i] = widen(x[i]);
        }
        if (by.kind > BF16 && count > FEWER && takes_many(by.kind)) {
            tall.emplace_back(count, by.inner, by.kind);
            for (int64_t r = 0; r < count; r++) tall[0].fill(floats() + r * by.inner, r);
        } else if (by.kind > BF16) planes.emplace_back(floats(), count, by.inner, by.kind);
    }

    // Columns first .. last - 1 of y (count x by.outer).
    void slice(int64_t first, int64_t last, T* y) const {
        if (by.kind == F32) plain((const float*)by.weight, first, last, y);
        else if (as_is) narrow(first, last, y);
        else if (by.kind == BF16) plain((const bf16*)by.weight, first, last, y);
        else quantised(first, last, y);
    }

  private:
    const float* floats() const {
        if constexpr (sizeof(T) == 2) return wide.data();
        else return x;
    }

    template <class W>
    void plain(const W* w, int64_t first, int64_t last, T* y) const {
        grouped<4>(count, [&](auto constant, int64_t r) {
            constexpr int R = constant;
            for (int64_t n = first; n < last; n++) {
                float found[R];
                row<W, R>(floats() + r * by.inner, by.inner, w + n * by.inner, found);
                keep<R>(found, r, n, y);
            }
        });
    }

    void narrow(int64_t first, int64_t last, T* y) const {
#if defined(NARROW)
        if constexpr (sizeof(T) == 2)
            grouped<8>(count, [&](auto constant, int64_t r) {
                constexpr int R = constant, N = R > 4 ? 2 : 1;  // for few rows memory is the limit, and one stream is fastest
                const T *w = (const T*)by.weight, *add = (const T*)by.bias;
                int64_t n = first;
                for (; n + N <= last; n += N)
                    narrow_block<R, N>(x + r * by.inner, by.inner, w + n * by.inner, add ? add + n : add, by.outer,
                                       y + r * by.outer + n);
                for (; n < last; n++)
                    narrow_block<R, 1>(x + r * by.inner, by.inner, w + n * by.inner, add ? add + n : add, by.outer,
                                       y + r * by.outer + n);
            });
#endif
    }

    void quantised(int64_t first, int64_t last, T* y) const {
        const auto* w = (const uint8_t*)by.weight;
        if (!tall.empty())
            return many_slice(tall[0], w, first, last, [&](int64_t r, int64_t rows, int64_t n, int64_t columns, const float* found) {
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t c = 0; c < columns; c++) keep<1>(found + 16 * i + c, r + i, n + c, y);
            });
        std::vector<float> found(count * (last - first));
        quantised_slice(floats(), planes[0], count, by.kind, by.inner, w, first, last, found.data());
        for (int64_t r = 0; r < count; r++)
            for (int64_t n = first; n < last; n++) keep<1>(&found[r * (last - first) + n - first], r, n, y);
    }

    template <int R>
    void keep(const float* found, int64_t r, int64_t n, T* y) const {
        const float more = by.bias ? widen(((const T*)by.bias)[n]) : 0.0f;
        for (int i = 0; i < R; i++) put(y + (r + i) * by.outer + n, found[i] + more);
    }

    const T* x;
    int64_t count;
    const Product& by;
    bool as_is = false;
    std::vector<float> wide;
    std::deque<Planes> planes;  // one of these, for all but float32 and bfloat16
    std::deque<Tall> tall;
};

}  // namespace
