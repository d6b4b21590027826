// y = x W^T for a few rows x and a matrix W that is read once: float32, bfloat16, int8 with a scale per row of W, or
// int4 with a scale and a lowest number per 32. What decoding one token spends its time on besides the cache.
//
// `Rows` are the rows of x as the kernel of a matrix reads them; `slice` makes some columns of y in the calling thread.

#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>
#include "simd.h"

struct Product {  // kind: 0 float32, 1 bfloat16, 2 int8, 3 int4; scales and bias may be null
    int64_t kind, inner, outer;
    const void *weight, *scales, *bias;
};

namespace {

constexpr int AHEAD = 8;  // rows of w that are fetched ahead

template <class T, int R>
void row(const float* x, int64_t inner, const T* w, float* y) {
    f16v a[R] = {}, b[R] = {};
    int64_t e = 0;
    for (; e + 32 <= inner; e += 32) {
        __builtin_prefetch(w + AHEAD * inner + e, 0, 0);
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

// R rows of x and N rows of w, both bfloat16, in the processor's own products with float32 sums. Every sum has one
// chain, so that a row does not depend on how many there are. Rows of w are fetched ahead: N
// short streams are too much for the processor's own prefetching.
template <int R, int N>
void narrow_block(const bf16* x, int64_t inner, const bf16* w, const bf16* bias, int64_t outer, bf16* y) {
    static_assert(R * N <= 16);
    __m512 total[16];
    for (int i = 0; i < 16; i++) total[i] = _mm512_setzero_ps();
    for (int64_t e = 0; e < inner; e += 32) {
        const bool whole = inner - e >= 32;  // a mask hides from the processor what it could fetch ahead
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

#else
struct Narrow {};
#endif

// Which columns of `outer` thread `t` of `n` makes: whole vectors.
inline void share(int64_t outer, int64_t t, int64_t n, int64_t& first, int64_t& last) {
    const int64_t units = (outer + 15) / 16;
    first = std::min(outer, units * t / n * 16), last = std::min(outer, units * (t + 1) / n * 16);
}

// Calls `with(R constant)` for groups of at most M of `count` rows.
template <int M, class With>
inline void grouped(int64_t count, With with) {
    for (int64_t r = 0; r < count; r += M) {
        switch (count - r) {
            case 1: with(std::integral_constant<int, 1>(), r); break;
            case 2: with(std::integral_constant<int, 2>(), r); break;
            case 3: with(std::integral_constant<int, 3>(), r); break;
            default:
                if constexpr (M == 4) {
                    with(std::integral_constant<int, 4>(), r);
                } else {
                    switch (count - r) {
                        case 4: with(std::integral_constant<int, 4>(), r); break;
                        case 5: with(std::integral_constant<int, 5>(), r); break;
                        case 6: with(std::integral_constant<int, 6>(), r); break;
                        case 7: with(std::integral_constant<int, 7>(), r); break;
                        default: with(std::integral_constant<int, 8>(), r);
                    }
                }
        }
    }
}

// `count` rows of numbers of type T (float or bf16), without gaps, for the product `by`.
template <class T>
class Rows {
  public:
    Rows(const T* x, int64_t count, const Product& by) : x(x), count(count), by(by) {
#if defined(NARROW)
        as_is = sizeof(T) == 2 && by.kind == 1;
#endif
        if (as_is) return;
        if constexpr (sizeof(T) == 2) {
            wide.resize(count * by.inner);
            for (size_t i = 0; i < wide.size(); i++) wide[i] = widen(x[i]);
        }
#if defined(NARROW)
        if (sizeof(T) == 2 && by.kind == 3 && by.inner % 64 == 0) packed.emplace_back(floats(), count, by.inner);
#endif
    }

    // Columns first .. last - 1 of y (count x by.outer).
    void slice(int64_t first, int64_t last, T* y) const {
        if (by.kind == 0) plain((const float*)by.weight, first, last, y);
        else if (by.kind == 1 && as_is) narrow(first, last, y);
        else if (by.kind == 1) plain((const bf16*)by.weight, first, last, y);
        else if (by.kind == 2) plain((const int8_t*)by.weight, first, last, y);
        else if (packed.empty()) plain((const nibbles*)by.weight, first, last, y);
        else looked_up(first, last, y);
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
            const float* here = floats() + r * by.inner;
            for (int64_t n = first; n < last; n++) {
                float found[R], scale = 1.0f;
                if constexpr (std::is_same_v<W, nibbles>) {
                    row<R>(here, by.inner, (const uint8_t*)w + n * by.inner / 2,
                           (const bf16*)by.scales + n * by.inner / 16, found);
                } else {
                    row<W, R>(here, by.inner, w + n * by.inner, found);
                    if (by.scales) scale = ((const float*)by.scales)[n];
                }
                for (int i = 0; i < R; i++)  // written out, or the compiler fuses it for some R only
                    put(y + (r + i) * by.outer + n, __builtin_fmaf(found[i], scale, bias(n)));
            }
        });
    }

    void narrow(int64_t first, int64_t last, T* y) const {
#if defined(NARROW)
        if constexpr (sizeof(T) == 2)
            grouped<8>(count, [&](auto constant, int64_t r) {
                constexpr int R = constant, N = R > 4 ? 2 : 1;  // few rows: memory is the limit, one stream is fastest
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

    void looked_up(int64_t first, int64_t last, T* y) const {
#if defined(NARROW)
        grouped<4>(count, [&](auto constant, int64_t r) {
            constexpr int R = constant;
            for (int64_t n = first; n < last; n++) {
                float found[R];
                row_narrow<R>(packed[0], r, by.inner, (const uint8_t*)by.weight + n * by.inner / 2,
                              (const bf16*)by.scales + n * by.inner / 16, found);
                for (int i = 0; i < R; i++) put(y + (r + i) * by.outer + n, found[i] + bias(n));
            }
        });
#endif
    }

    float bias(int64_t n) const { return by.bias ? widen(((const T*)by.bias)[n]) : 0.0f; }

    const T* x;
    int64_t count;
    const Product& by;
    bool as_is = false;
    std::vector<float> wide;
    std::vector<Narrow> packed;  // one, for int4 in bfloat16
};

}  // namespace
