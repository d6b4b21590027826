// How R query rows read a block of keys and values, for the kinds that are multiplied as floats: `score` computes the
// scores of its keys, `add` adds up its values. integers.h is the same for int8.

#pragma once
#include <vector>
#include "simd.h"

namespace {

// Keys per softmax block.
template <class T>
constexpr int BLOCK = std::is_same_v<T, nibbles> ? 128 : 64;

// The scales of numbers of type T. int8: one float per token. int4, in bfloat16: scales and lowest numbers of a channel
// over 32 keys (S / 32, 2, E), and of 32 channels of a value (S, 2, E / 32).
template <class T>
using Scale = std::conditional_t<std::is_same_v<T, nibbles>, bf16, float>;

template <class T>
struct Scales {  // of one kv head of one batch row
    const Scale<T>* keys = nullptr;
    const Scale<T>* values = nullptr;
};

// Prefetches one row of `bytes` at `p` that is read soon: keys and values alternate, so the processor's own prefetching
// begins anew with each block.
inline void fetch(const void* p, int64_t bytes) {
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch((const char*)p + b, 0, 0);
}

// out[r] += sum over values of weights[r][j] * value[j], for W vectors of them; values at `next` are read soon.
template <int R, int W, class T>
void add_columns(const float* weights, const T* values, int count, int size, const T* next, float* out) {
    f16v total[R][W];
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) total[r][w] = load(out + r * size + 16 * w);
    for (int j = 0; j < count; j++) {
        f16v v[W];
        for (int w = 0; w < W; w++) v[w] = load(values + (int64_t)j * size + 16 * w);
        fetch(next + (int64_t)j * size, 16 * W * sizeof(T));
        for (int r = 0; r < R; r++)
            for (int w = 0; w < W; w++) total[r][w] += v[w] * splat(weights[r * BLOCK<T> + j]);
    }
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) store(out + r * size + 16 * w, total[r][w]);
}

template <int R, class T>
void add_values(const float* weights, const T* values, int count, int size, const T* next, float* out) {
    int e = 0;
    if constexpr (R > 4)  // four vectors for each of more than four rows would need more than the 32 registers
        for (; e + 32 <= size; e += 32) add_columns<R, 2>(weights, values + e, count, size, next + e, out + e);
    for (; e + 64 <= size; e += 64) add_columns<R, 4>(weights, values + e, count, size, next + e, out + e);
    for (; e < size; e += 16) add_columns<R, 1>(weights, values + e, count, size, next + e, out + e);
}

// float32, bfloat16 and int8, all widened to float32.
template <class T, int R>
class Floats {
  public:
    Floats(const float* given, float scale, int size, Scales<T> scales)
        : size(size), scales(scales), q(given, given + R * size) {
        for (float& x : q) x *= scale;
    }

    // scores[r][j] of `count` keys from number `at` on, up to the next multiple of 16; rows at `next` are read soon.
    void score(const T* keys, int64_t at, int count, const T* next, float* scores) const {
        for (int j = 0; j < count; j += 16) {
            const int here = count - j < 16 ? count - j : 16;
            f16v part[R][16];
            for (int i = 0; i < 16; i++) {
                const T* key = keys + (int64_t)(j + (i < here ? i : here - 1)) * size;
                f16v total[R] = {};
                for (int e = 0; e < size; e += 16) {
                    f16v k = load(key + e);
                    for (int r = 0; r < R; r++) total[r] += k * load(q.data() + r * size + e);
                }
                fetch(next + (key - keys), size * sizeof(T));
                for (int r = 0; r < R; r++) part[r][i] = total[r];
            }
            for (int r = 0; r < R; r++) {
                f16v s = sums(part[r]);
                if (scales.keys) {
                    float w[16];
                    for (int i = 0; i < 16; i++) w[i] = scales.keys[at + j + (i < here ? i : here - 1)];
                    s *= load(w);
                }
                store(scores + r * BLOCK<T> + j, s);
            }
        }
    }

    // out[r] += sum over values of weights[r][j] * value[j]; weights may be changed.
    void add(float* weights, const T* values, int64_t at, int count, const T* next, float* out) const {
        if (scales.values)
            for (int r = 0; r < R; r++)
                for (int j = 0; j < count; j++) weights[r * BLOCK<T> + j] *= scales.values[at + j];
        add_values<R>(weights, values, count, size, next, out);
    }

  private:
    const int size;
    const Scales<T> scales;
    std::vector<float> q;  // scaled
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
// bfloat16 queries and keys in the processor's own products, which are exact; the sums are float32.
template <int R>
class Narrow {
  public:
    Narrow(const float* given, float scale, int size, Scales<bf16>) : size(size), scale(scale), q(R * size) {
        for (int i = 0; i < R * size; i++) q[i] = narrow(given[i]).bits;
    }

    void score(const bf16* keys, int64_t, int count, const bf16* next, float* scores) const {
        if (size == 64) score_of<64>(keys, count, next, scores);
        else if (size == 128) score_of<128>(keys, count, next, scores);
        else score_of<0>(keys, count, next, scores);
    }

    void add(const float* weights, const bf16* values, int64_t, int count, const bf16* next, float* out) const {
        int e = 0;
        for (; e + 64 <= size; e += 64) add_pairs<2>(weights, values + e, count, next + e, out + e);
        for (; e + 32 <= size; e += 32) add_pairs<1>(weights, values + e, count, next + e, out + e);
        for (; e < size; e += 16) add_columns<R, 1>(weights, values + e, count, size, next + e, out + e);
    }

  private:
    static __m512bh take(const void* p) { return (__m512bh)_mm512_loadu_si512(p); }
    static __m512bh half(const void* p) { return (__m512bh)_mm512_maskz_loadu_epi16(0xffff, p); }

    // E: the size if the compiler may know it (the queries then stay in registers); 0: any size.
    template <int E>
    void score_of(const bf16* keys, int count, const bf16* next, float* scores) const {
        const int width = E ? E : size;
        constexpr int KNOWN = E ? E / 32 : 1;
        __m512bh known[R][KNOWN];
        if (E)
            for (int r = 0; r < R; r++)
                for (int c = 0; c < KNOWN; c++) known[r][c] = take(q.data() + r * width + 32 * c);
        for (int j = 0; j < count; j += 16) {
            const int here = count - j < 16 ? count - j : 16;
            f16v part[R][16];
            const auto one = [&](int i, int64_t at) {
                __m512 total[R];
                for (int r = 0; r < R; r++) total[r] = _mm512_setzero_ps();
                if (E) {
                    for (int c = 0; c < KNOWN; c++) {
                        const __m512bh k = take(keys + at + 32 * c);
                        for (int r = 0; r < R; r++) total[r] = _mm512_dpbf16_ps(total[r], known[r][c], k);
                    }
                } else {
                    for (int e = 0; e < width; e += 32) {
                        const bool whole = width - e >= 32;  // with a mask the processor would not prefetch
                        const __m512bh k = whole ? take(keys + at + e) : half(keys + at + e);
                        for (int r = 0; r < R; r++) {
                            const uint16_t* x = q.data() + r * width + e;
                            total[r] = _mm512_dpbf16_ps(total[r], whole ? take(x) : half(x), k);
                        }
                    }
                }
                fetch(next + at, 2 * width);
                for (int r = 0; r < R; r++) part[r][i] = (f16v)total[r];
            };
            if (here == 16)
                for (int i = 0; i < 16; i++) one(i, (int64_t)(j + i) * width);
            else
                for (int i = 0; i < 16; i++) one(i, (int64_t)(j + (i < here ? i : here - 1)) * width);
            for (int r = 0; r < R; r++) store(scores + r * BLOCK<bf16> + j, sums(part[r]) * splat(scale));
        }
    }

    // As `add_columns`, for 32 W columns. In a vector of bfloat16, the even columns are its numbers shifted, the odd
    // ones masked.
    template <int W>
    void add_pairs(const float* weights, const bf16* values, int count, const bf16* next, float* out) const {
        const __m512i odd = _mm512_set1_epi32(0xffff0000);
        const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odds = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        __m512 total[R][2 * W];
        for (int r = 0; r < R; r++)
            for (int w = 0; w < W; w++) {
                const __m512 a = _mm512_loadu_ps(out + r * size + 32 * w), b = _mm512_loadu_ps(out + r * size + 32 * w + 16);
                total[r][2 * w] = _mm512_permutex2var_ps(a, evens, b), total[r][2 * w + 1] = _mm512_permutex2var_ps(a, odds, b);
            }
        for (int j = 0; j < count; j++) {
            __m512 v[2 * W];
            for (int w = 0; w < W; w++) {
                const __m512i both = _mm512_loadu_si512(values + (int64_t)j * size + 32 * w);
                v[2 * w] = (__m512)_mm512_slli_epi32(both, 16), v[2 * w + 1] = (__m512)_mm512_and_si512(both, odd);
            }
            fetch(next + (int64_t)j * size, 64 * W);
            for (int r = 0; r < R; r++) {
                const __m512 weight = _mm512_set1_ps(weights[r * BLOCK<bf16> + j]);
                for (int w = 0; w < 2 * W; w++) total[r][w] = _mm512_fmadd_ps(v[w], weight, total[r][w]);
            }
        }
        for (int r = 0; r < R; r++)
            for (int w = 0; w < W; w++) {
                const __m512 a = total[r][2 * w], b = total[r][2 * w + 1];
                _mm512_storeu_ps(out + r * size + 32 * w, _mm512_permutex2var_ps(a, low, b));
                _mm512_storeu_ps(out + r * size + 32 * w + 16, _mm512_permutex2var_ps(a, high, b));
            }
    }

    const int size;
    const float scale;
    std::vector<uint16_t> q;
};
#else
template <int R>
using Narrow = Floats<bf16, R>;
#endif

// int4: once per 32 keys, the scales of channels are multiplied into the query and their lowest numbers go into one
// sum.
template <int R>
class Packed {
  public:
    Packed(const float* given, float scale, int size, Scales<nibbles> scales)
        : size(size), scales(scales), q(given, given + R * size), scaled(R * size), wide(BLOCK<nibbles> * size / 16) {
        for (float& x : q) x *= scale;
    }

    // `at` is a multiple of 32.
    void score(const nibbles* given, int64_t at, int count, const nibbles*, float* scores) {
        const uint8_t* keys = (const uint8_t*)given;
        float low[R];
        for (int j = 0; j < count; j += 16) {
            if (j % 32 == 0) {
                const bf16 *steps = scales.keys + (at + j) / 32 * 2 * size, *lows = steps + size;
                for (int r = 0; r < R; r++) {
                    f16v total = {};
                    for (int e = 0; e < size; e += 16) {
                        f16v x = load(q.data() + r * size + e);
                        store(scaled.data() + r * size + e, x * load(steps + e));
                        total += x * load(lows + e);
                    }
                    low[r] = sum(total);
                }
            }
            const int here = count - j < 16 ? count - j : 16;
            f16v part[R][16];
            for (int i = 0; i < 16; i++) {
                const uint8_t* key = keys + (int64_t)(j + (i < here ? i : here - 1)) * (size / 2);
                f16v total[R] = {};
                for (int e = 0; e < size; e += 32) {
                    f16v a, b;
                    load(key + e / 2, 1.0f, 0.0f, a, b);
                    for (int r = 0; r < R; r++) {
                        const float* x = scaled.data() + r * size + e;
                        total[r] += a * load(x) + b * load(x + 16);
                    }
                }
                for (int r = 0; r < R; r++) part[r][i] = total[r];
            }
            for (int r = 0; r < R; r++) store(scores + r * BLOCK<nibbles> + j, sums(part[r]) + splat(low[r]));
        }
    }

    void add(const float* weights, const nibbles* given, int64_t at, int count, const nibbles*, float* out) {
        const uint8_t* values = (const uint8_t*)given;
        const bf16* from = scales.values + at * size / 16;
        const int groups = size / 32;
        for (int i = 0; i < count * 2 * groups; i++) wide[i] = widen(from[i]);
        for (int g = 0; g < groups; g++) {
            f16v a[R], b[R];
            for (int r = 0; r < R; r++) a[r] = load(out + r * size + 32 * g), b[r] = load(out + r * size + 32 * g + 16);
            for (int j = 0; j < count; j++) {
                const float* here = wide.data() + j * 2 * groups + g;
                f16v v, w;
                load(values + (int64_t)j * (size / 2) + 16 * g, here[0], here[groups], v, w);
                for (int r = 0; r < R; r++) {
                    f16v weight = splat(weights[r * BLOCK<nibbles> + j]);
                    a[r] += v * weight, b[r] += w * weight;
                }
            }
            for (int r = 0; r < R; r++) store(out + r * size + 32 * g, a[r]), store(out + r * size + 32 * g + 16, b[r]);
        }
    }

  private:
    const int size;
    const Scales<nibbles> scales;
    std::vector<float> q, scaled, wide;
};

}  // namespace
