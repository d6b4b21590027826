// More than a few rows of x times a matrix in a number format, in products of whole numbers (AVX-512 VNNI) as in
// quantised.cpp: x is in 16 bits, with a scale for 256 numbers. The matrix is never widened: 16 of its rows at a time
// are put side by side, so that a lane is a column of the result. These 16 rows are small enough to stay in the
// processor's cache.

#include <algorithm>
#include <omp.h>
#include <vector>
#include "products.h"
#include "units.h"

#if defined(WHOLE)

namespace {

constexpr int64_t WIDE = 256;    // numbers of x that share a scale
constexpr int64_t COLUMNS = 16;  // columns of a tile
constexpr int TALL = 8;          // rows of a tile
constexpr int64_t PANEL = 256;   // columns that a thread computes at a time, at most

// PARTS numbers of 16 rows, row after row, become PARTS vectors of 16 rows, times `by`.
template <int64_t PARTS>
inline void columns(const float* rows, __m512 by, float* to) {
    const __m512i one = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int g = 0; g < PARTS; g++) {
        const __m512i every = _mm512_add_epi32(_mm512_mullo_epi32(one, _mm512_set1_epi32(PARTS)), _mm512_set1_epi32(g));
        const auto half = [&](const float* p) {
            return _mm512_permutex2var_ps(_mm512_loadu_ps(p), every, _mm512_loadu_ps(p + 16));
        };
        __m512 found = half(rows);
        if constexpr (PARTS == 4) found = _mm512_insertf32x8(found, _mm512_castps512_ps256(half(rows + 32)), 1);
        _mm512_storeu_ps(to + COLUMNS * g, _mm512_mul_ps(found, by));
    }
}

// The first number of each of PARTS equal parts of a vector.
template <int64_t PARTS>
inline void firsts(__m512 x, float* to) {
    if constexpr (PARTS == 4) _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12), x)));
    else _mm_storel_pi((__m64*)to, _mm_unpacklo_ps(_mm512_castps512_ps128(x), _mm512_extractf32x4_ps(x, 2)));
}

// Sixteen rows of the matrix side by side: numbers (size / 4, 16, 4), scales and lows (groups, 16).
struct Tile {
    std::vector<uint8_t> numbers;
    std::vector<float> scales, lows;

    // The words of 64 numbers of each row are turned in registers, so that each byte is written once.
    template <int KIND, int GROUP>
    void fill(const uint8_t* w, int64_t inner, int64_t size, int64_t rows) {
        constexpr int64_t per = LAYOUTS[KIND].numbers, chunks = Unit<KIND>::CHUNKS, in_unit = 64 * chunks / per;
        constexpr int64_t parts = 64 / GROUP;  // of a chunk, with a scale each
        const int64_t blocks = inner / per, groups = size / GROUP, bytes = row_bytes(KIND, inner);
        numbers.resize(COLUMNS * size), scales.resize(COLUMNS * groups), lows.resize(COLUMNS * groups);
        __m512i rough[chunks][COLUMNS] = {};
        float rough_scales[chunks][COLUMNS * parts] = {}, rough_lows[chunks][COLUMNS * parts] = {}, by[COLUMNS];
        for (int64_t n = 0; n < COLUMNS; n++) {
            by[n] = 1;
            if (LAYOUTS[KIND].scaled && n < rows) by[n] = row_scale<KIND>(w + n * bytes, inner);
        }
        const __m512 all = _mm512_loadu_ps(by);
        for (int64_t b = 0, chunk = 0; b < blocks; b += in_unit, chunk += chunks) {
            for (int64_t n = 0; n < rows; n++) {
                const uint8_t* p = w + n * bytes + b * LAYOUTS[KIND].bytes;
                Unit<KIND>::each(p, blocks - b, [&](int c, __m512i q, __m512 scale, __m512 low) __attribute__((always_inline)) {
                    rough[c][n] = q;
                    firsts<parts>(scale, rough_scales[c] + n * parts), firsts<parts>(low, rough_lows[c] + n * parts);
                });
            }
            for (int64_t c = 0; c < chunks; c++) {
                __m512i turned[COLUMNS];
                memcpy(turned, rough[c], sizeof(turned));
                turn(turned);
                for (int64_t i = 0; i < COLUMNS; i++) _mm512_storeu_si512(numbers.data() + 64 * (16 * (chunk + c) + i), turned[i]);
                const int64_t to = (chunk + c) * parts * COLUMNS;
                columns<parts>(rough_scales[c], all, scales.data() + to), columns<parts>(rough_lows[c], all, lows.data() + to);
            }
        }
    }
};

inline __m512i four(const int8_t* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}

// The next tile, of which `lines` of the cache are fetched with every group of this one.
struct Next {
    const uint8_t* at;
    int64_t lines;
    void fetch(int64_t g) const {
        for (int64_t i = g * lines; i < (g + 1) * lines; i++) __builtin_prefetch(at + 64 * i, 0, 2);
    }
};

// R rows of x times a tile: y (R, 16). FETCH: the next tile is fetched meanwhile.
template <int GROUP, int R, bool FETCH>
void multiply(const Tall& x, int64_t first, const Tile& tile, Next next, float* y) {
    __m512 out[R];
    for (int r = 0; r < R; r++) out[r] = _mm512_setzero_ps();
    for (int64_t w = 0; w < x.wides; w++) {
        __m512 total[R];
        for (int r = 0; r < R; r++) total[r] = _mm512_setzero_ps();
        for (int64_t g = w * (WIDE / GROUP); g < std::min((w + 1) * (WIDE / GROUP), x.groups); g++) {
            const uint8_t* numbers = tile.numbers.data() + g * GROUP * COLUMNS;
            const int8_t* high = x.high.data() + first * x.size + g * GROUP;
            const int8_t* low = x.low.data() + first * x.size + g * GROUP;
            if constexpr (FETCH) next.fetch(g);
            __m512i found[R];
            for (int r = 0; r < R; r++) found[r] = _mm512_setzero_si512();
            for (int i = 0; i < GROUP / 4; i++) {
                const __m512i q = _mm512_loadu_si512(numbers + 64 * i);
                for (int r = 0; r < R; r++) found[r] = _mm512_dpbusd_epi32(found[r], q, four(high + r * x.size + 4 * i));
            }
            for (int r = 0; r < R; r++) found[r] = _mm512_slli_epi32(found[r], 8);
            for (int i = 0; i < GROUP / 4; i++) {
                const __m512i q = _mm512_loadu_si512(numbers + 64 * i);
                for (int r = 0; r < R; r++) found[r] = _mm512_dpbusd_epi32(found[r], q, four(low + r * x.size + 4 * i));
            }
            const __m512 scale = _mm512_loadu_ps(&tile.scales[g * COLUMNS]), lows = _mm512_loadu_ps(&tile.lows[g * COLUMNS]);
            for (int r = 0; r < R; r++) {
                total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(found[r]), scale, total[r]);
                total[r] = _mm512_fmadd_ps(_mm512_set1_ps(x.sums[(first + r) * x.groups + g]), lows, total[r]);
            }
        }
        for (int r = 0; r < R; r++)
            out[r] = _mm512_fmadd_ps(total[r], _mm512_set1_ps(x.scales[(first + r) * x.wides + w]), out[r]);
    }
    for (int r = 0; r < R; r++) _mm512_storeu_ps(y + r * COLUMNS, out[r]);
}

template <int KIND>
void slice(const Tall& x, const uint8_t* w, int64_t first, int64_t last, const Put& put) {
    constexpr int GROUP = (int)LAYOUTS[KIND].group;
    const int64_t bytes = row_bytes(KIND, x.inner), lines = (COLUMNS * bytes / x.groups + 63) / 64;
    Tile tile;
    float found[TALL * COLUMNS];
    for (int64_t n = first; n < last; n += COLUMNS) {
        const int64_t here = std::min(COLUMNS, last - n);
        tile.fill<KIND, GROUP>(w + n * bytes, x.inner, x.size, here);
        const Next next{w + (n + here) * bytes, lines};
        grouped<TALL>(x.rows, [&](auto constant, int64_t r) {
            constexpr int R = constant;
            if (r) multiply<GROUP, R, false>(x, r, tile, next, found);
            else multiply<GROUP, R, true>(x, r, tile, next, found);
            put(r, R, n, here, found);
        });
    }
}

template <class T>
void many(int kind, const T* x, const uint8_t* w, const T* bias, const int64_t* shape, T* y) {
    const int64_t rows = shape[0], inner = shape[1], outer = shape[2];
    const int64_t tiles = (outer + COLUMNS - 1) / COLUMNS, panel = std::min(PANEL, (tiles / (4 * shape[3]) + 1) * COLUMNS);
    Tall tall(rows, inner, kind);
#pragma omp parallel num_threads(shape[3])
    {
        std::vector<float> wide(inner);
#pragma omp for
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t e = 0; e < inner; e++) wide[e] = widen(x[r * inner + e]);
            tall.fill(wide.data(), r);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < outer; n += panel) {
            const int64_t last = std::min(n + panel, outer);
            many_slice(tall, w, n, last, [&](int64_t r, int64_t count, int64_t at, int64_t columns, const float* found) {
                for (int64_t i = 0; i < count; i++)
                    for (int64_t c = 0; c < columns; c++)
                        put(y + (r + i) * outer + at + c, found[i * COLUMNS + c] + (bias ? widen(bias[at + c]) : 0.0f));
            });
        }
    }
}

}  // namespace

Tall::Tall(int64_t rows, int64_t inner, int64_t kind)
    : rows(rows), kind(kind), inner(inner), group(LAYOUTS[kind].group), size((inner + 63) / 64 * 64), groups(size / group),
      wides((size + WIDE - 1) / WIDE), high(rows * size), low(rows * size), sums(rows * groups), scales(rows * wides) {}

void Tall::fill(const float* x, int64_t r) {
    for (int64_t w = 0; w < wides; w++) {
        f16v part[4][4];
        const int64_t first = 4 * w, last = std::min(first + 4, size / 64);
        float peak = 0;
        for (int64_t c = first; c < last; c++) {
            take(x, inner, kind, c, part[c - first]);
            const float here = peak_of(part[c - first]);
            peak = here > peak || here != here ? here : peak;
        }
        scales[r * wides + w] = peak / 32512;
        for (int64_t c = first; c < last; c++)
            halve(part[c - first], peak, high.data() + r * size + 64 * c, low.data() + r * size + 64 * c);
    }
    for (int64_t g = 0; g < groups; g++) {
        int32_t total = 0;
        for (int64_t i = r * size + g * group; i < r * size + (g + 1) * group; i++) total += 256 * high[i] + low[i];
        sums[r * groups + g] = (float)total;
    }
}

bool takes_many(int64_t kind) { return kind < FORMATS && LAYOUTS[kind].chunks > 0; }

void many_slice(const Tall& x, const uint8_t* w, int64_t first, int64_t last, const Put& put) {
    of_format(x.kind, [&](auto constant) {
        if constexpr (LAYOUTS[constant].chunks > 0) slice<constant>(x, w, first, last, put);
    });
}

extern "C" int handscroll_fewer(int kind) { return takes_many(kind) ? FEWER : 0; }

// As `handscroll_product`, for the formats that `takes_many` names.
extern "C" void handscroll_many(int kind, int narrow, const void* x, const void* w, const void* bias,
                                const int64_t* shape, void* y) {
    if (narrow) many(kind, (const bf16*)x, (const uint8_t*)w, (const bf16*)bias, shape, (bf16*)y);
    else many(kind, (const float*)x, (const uint8_t*)w, (const float*)bias, shape, (float*)y);
}

#else
Tall::Tall(int64_t, int64_t, int64_t) {}
void Tall::fill(const float*, int64_t) {}
bool takes_many(int64_t) { return false; }
void many_slice(const Tall&, const uint8_t*, int64_t, int64_t, const Put&) {}
extern "C" int handscroll_fewer(int) { return 0; }
extern "C" void handscroll_many(int, int, const void*, const void*, const void*, const int64_t*, void*) {}
#endif
