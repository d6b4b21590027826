// Attention of many query rows over a run of keys and values, as two small matrix products a block: those of requests
// that continue one text, where arithmetic limits the work and not memory. Keys are transposed, so that a lane is a key
// and no sum goes across lanes; keys and values are widened once for all rows. The tiles need the 32 registers of AVX-512.

#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>
#include "blocks.h"

namespace {

#if defined(__AVX512F__)

constexpr int TALL_KEYS = 64;  // keys of a block
constexpr int TALL_ROWS = 6;   // query rows of a register tile

// A block of keys, transposed, as floats (E, 64), or in bfloat16 as pairs (E / 2, 64) for the processor's own products,
// which are exact.
template <class T>
struct Transposed {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    static constexpr bool PAIRS = std::is_same_v<T, bf16>;
#else
    static constexpr bool PAIRS = false;
#endif
    static constexpr int EACH = PAIRS ? 2 : 1;  // features of a word
    const int words;
    std::vector<float> all;

    explicit Transposed(int size) : words(size / EACH), all(words * TALL_KEYS) {}

    // Sixteen words of a key.
    static f16v word(const T* p) {
        f16v x;
        if constexpr (PAIRS) memcpy(&x, p, 64);
        else x = load(p);
        return x;
    }

    // `count` is a multiple of 16; the keys of `next` are read soon.
    void fill(const T* const* keys, int count, const T* const* next, int soon, int size) {
        for (int j = 0; j < count; j += 16) {
            for (int i = j; i < std::min(j + 16, soon); i++) fetch(next[i], size * sizeof(T));
            int e = 0;
            for (; e + 16 <= words; e += 16) {
                f16v part[16];
                for (int i = 0; i < 16; i++) part[i] = word(keys[j + i] + e * EACH);
                turn((__m512i*)part);
                for (int i = 0; i < 16; i++) store(all.data() + (e + i) * TALL_KEYS + j, part[i]);
            }
            for (; e < words; e++)  // eight pairs are left of an odd number of vectors
                for (int i = 0; i < 16; i++) memcpy(all.data() + e * TALL_KEYS + j + i, keys[j + i] + e * EACH, 4);
        }
    }
};

// The query rows in words as those of the keys.
template <class T>
std::vector<float> words_of(const float* q, float scale, int count) {
    std::vector<float> found(count / Transposed<T>::EACH);
    if constexpr (Transposed<T>::PAIRS)
        for (int i = 0; i < count; i += 2) {
            const uint32_t both = narrow(q[i]).bits | (uint32_t)narrow(q[i + 1]).bits << 16;
            memcpy(found.data() + i / 2, &both, 4);
        }
    else
        for (int i = 0; i < count; i++) found[i] = q[i] * scale;
    return found;
}

// scores (R, 64) of R query rows.
template <int R, class T>
void tall_scores(const float* q, const Transposed<T>& keys, float scale, float* scores) {
    f16v s[R][4] = {};
    for (int e = 0; e < keys.words; e++) {
        f16v k[4];
        for (int w = 0; w < 4; w++) k[w] = load(keys.all.data() + e * TALL_KEYS + 16 * w);
        for (int r = 0; r < R; r++) {
            const float* x = q + r * keys.words + e;
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
            if constexpr (Transposed<T>::PAIRS) {
                int32_t both;
                memcpy(&both, x, 4);
                const __m512bh twice = (__m512bh)_mm512_set1_epi32(both);
                for (int w = 0; w < 4; w++) s[r][w] = (f16v)_mm512_dpbf16_ps((__m512)s[r][w], twice, (__m512bh)k[w]);
                continue;
            }
#endif
            for (int w = 0; w < 4; w++) s[r][w] += k[w] * splat(*x);
        }
    }
    for (int r = 0; r < R; r++)
        for (int w = 0; w < 4; w++) store(scores + r * TALL_KEYS + 16 * w, Transposed<T>::PAIRS ? s[r][w] * splat(scale) : s[r][w]);
}

// out (R, E) += weights (R, 64) times W vectors of the values (count, E).
template <int R, int W>
void tall_columns(const float* weights, const float* values, int count, int size, float* out) {
    f16v total[R][W];
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) total[r][w] = load(out + r * size + 16 * w);
    for (int j = 0; j < count; j++) {
        f16v v[W];
        for (int w = 0; w < W; w++) v[w] = load(values + j * size + 16 * w);
        for (int r = 0; r < R; r++)
            for (int w = 0; w < W; w++) total[r][w] += v[w] * splat(weights[r * TALL_KEYS + j]);
    }
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) store(out + r * size + 16 * w, total[r][w]);
}

// Scores become weights of the softmax, and what a row summed before is made smaller where a score is larger than all
// before it. total: sixteen floats whose sum is the mass.
inline void tall_weigh(float* s, int count, int size, float* out, float* top, float* total) {
    for (int j = count; j < TALL_KEYS; j++) s[j] = -INFINITY;
    f16v m = load(s), sum = load(total);
    for (int j = 16; j < TALL_KEYS; j += 16) m = max(m, load(s + j));
    const float high = largest(m);
    if (high > *top) {
        const f16v keep = splat(std::exp(*top - high));
        sum *= keep;
        for (int e = 0; e < size; e += 16) store(out + e, load(out + e) * keep);
        *top = high;
    }
    for (int j = 0; j < TALL_KEYS; j += 16) {
        const f16v w = exponential(load(s + j) - splat(*top));
        sum += w;
        store(s + j, w);
    }
    store(total, sum);
}

// Whether tiles are faster than a pass over the keys for every group of rows (decode.cpp): with few rows memory limits the work, and
// transposing costs more than it saves. From two requests of seven query heads a kv head on; in bfloat16, whose products
// the processor makes in pairs, from six on.
template <class T>
constexpr bool tiled(int64_t rows) { return rows >= (Transposed<T>::PAIRS ? 36 : 12); }

// Query rows q (count, E), as many as `tiled` wants, so that tiles have 4 to 6, over keys first .. last - 1: out (count,
// E) unnormalised, top (count) the largest score, mass (count). A place says where vectors lie (decode.cpp).
template <class T, class Place>
void tall(const float* q, float scale, Place keys, Place values, int64_t first, int64_t last, int count, int size,
          float* out, float* top, float* mass) {
    const std::vector<float> words = words_of<T>(q, scale, count * size);
    Transposed<T> block(size);
    std::vector<float> wide(TALL_KEYS * size), totals(16 * count);
    alignas(64) float scores[TALL_ROWS * TALL_KEYS];
    const T *k[2][TALL_KEYS], *v[2][TALL_KEYS];
    const auto find = [&](int64_t at, int which) {
        const int here = (int)std::min<int64_t>(TALL_KEYS, last - at);
        for (int j = 0; j < here;) {
            const int run = (int)std::min<int64_t>(here - j, keys.left(at + j));
            const T *from = keys.at(at + j), *also = values.at(at + j);
            for (int i = 0; i < run; i++) k[which][j + i] = from + (int64_t)i * size, v[which][j + i] = also + (int64_t)i * size;
            j += run;
        }
        return here;
    };
    for (int r = 0; r < count; r++) top[r] = -INFINITY;
    memset(out, 0, sizeof(float) * count * size);
    int here = first < last ? find(first, 0) : 0, which = 0;
    for (int64_t at = first; at < last; at += TALL_KEYS, which = 1 - which) {
        const int next = at + TALL_KEYS < last ? find(at + TALL_KEYS, 1 - which) : 0, full = (here + 15) / 16 * 16;
        for (int j = here; j < full; j++) k[which][j] = k[which][here - 1];
        block.fill(k[which], full, k[1 - which], next, size);
        for (int j = 0; j < here; j++) {
            if (j < next) fetch(v[1 - which][j], size * sizeof(T));
            for (int e = 0; e < size; e += 16) store(wide.data() + j * size + e, load(v[which][j] + e));
        }
        const int tiles = (count + TALL_ROWS - 1) / TALL_ROWS;
        for (int tile = 0; tile < tiles; tile++) {
            const int begin = count * tile / tiles, rows = count * (tile + 1) / tiles - begin;
            const auto by = [&](auto constant) {
                constexpr int R = constant;
                tall_scores<R>(words.data() + begin * block.words, block, scale, scores);
                for (int r = 0; r < R; r++)
                    tall_weigh(scores + r * TALL_KEYS, here, size, out + (begin + r) * size, top + begin + r, totals.data() + 16 * (begin + r));
                for (int e = 0; e < size; e += e + 64 <= size ? 64 : 16) {
                    float* to = out + begin * size + e;
                    if (e + 64 <= size) tall_columns<R, 4>(scores, wide.data() + e, here, size, to);
                    else tall_columns<R, 1>(scores, wide.data() + e, here, size, to);
                }
            };
            switch (rows) {
                case 4: by(std::integral_constant<int, 4>{}); break;
                case 5: by(std::integral_constant<int, 5>{}); break;
                default: by(std::integral_constant<int, 6>{});
            }
        }
        here = next;
    }
    for (int r = 0; r < count; r++) mass[r] = sum(load(totals.data() + 16 * r));
}

#else
template <class T>
constexpr bool tiled(int64_t) { return false; }

template <class T, class Place>
void tall(const float*, float, Place, Place, int64_t, int64_t, int, int, float*, float*, float*) {}
#endif

}  // namespace
