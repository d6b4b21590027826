// Many rows of x times a matrix in a number format, in products of whole numbers (AVX-512 VNNI) as in quantised.cpp: x
// is in 16 bits, with a scale for 256 numbers. The matrix is never widened: 16 of its rows at a time are put side by
// side, so that a lane is a column of the result. These 16 rows are small enough to stay in the processor's cache.

#include <algorithm>
#include <omp.h>
#include <vector>
#include "units.h"

#if defined(WHOLE)

namespace {

constexpr int64_t WIDE = 256;    // numbers of x that share a scale
constexpr int64_t COLUMNS = 16;  // columns of a tile
constexpr int TALL = 8;          // rows of a tile

// Rows of x in 16 bits, in the order that a format needs, and sums of every `group` numbers in units of the scale.
struct Tall {
    int64_t size, groups, wides;  // per row: numbers, groups, scales
    std::vector<int8_t> high, low;
    std::vector<float> sums, scales;

    Tall(int64_t rows, int64_t inner, int64_t group)
        : size((inner + 63) / 64 * 64), groups(size / group), wides((size + WIDE - 1) / WIDE),
          high(rows * size), low(rows * size), sums(rows * groups), scales(rows * wides) {}

    void fill(const float* x, int64_t inner, int64_t kind, int64_t group, int64_t r) {
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
};

// Sixteen rows of the matrix side by side: numbers (size / 4, 16, 4), scales and lows (groups, 16).
struct Tile {
    std::vector<uint8_t> numbers, apart;
    std::vector<float> scales, lows;

    template <int KIND, int GROUP>
    void fill(const uint8_t* w, int64_t inner, int64_t size, int64_t rows) {
        constexpr int64_t per = BLOCK_NUMBERS[KIND], in_unit = 64 * Unit<KIND>::CHUNKS / per;
        const int64_t blocks = inner / per, groups = size / GROUP, bytes = row_bytes(KIND, inner);
        numbers.resize(COLUMNS * size), apart.resize(COLUMNS * size);
        scales.assign(COLUMNS * groups, 0), lows.assign(COLUMNS * groups, 0);
        for (int64_t n = 0; n < rows; n++) {
            const uint8_t* row = w + n * bytes;
            float by = 1;
            if (KIND == INT8) memcpy(&by, row + inner, 4);
            for (int64_t b = 0, chunk = 0; b < blocks; b += in_unit, chunk += Unit<KIND>::CHUNKS)
                Unit<KIND>::each(row + b * BLOCK_BYTES[KIND], blocks - b, [&](int c, __m512i q, __m512 scale, __m512 low) {
                    _mm512_storeu_si512(apart.data() + n * size + 64 * (chunk + c), q);
                    const f16v s = (f16v)scale, l = (f16v)low;
                    for (int g = 0; g < 64 / GROUP; g++) {
                        const int64_t to = ((chunk + c) * (64 / GROUP) + g) * COLUMNS + n;
                        scales[to] = by * s[g * GROUP / 4], lows[to] = by * l[g * GROUP / 4];
                    }
                });
        }
        const __m512i rows_at = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                                   _mm512_set1_epi32((int)size));
        for (int64_t i = 0; i < size; i += 4)
            _mm512_storeu_si512(numbers.data() + COLUMNS * i, _mm512_i32gather_epi32(rows_at, apart.data() + i, 1));
    }
};

inline __m512i four(const int8_t* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}

// R rows of x times a tile: y (R, 16).
template <int GROUP, int R>
void multiply(const Tall& x, int64_t first, const Tile& tile, float* y) {
    __m512 out[R];
    for (int r = 0; r < R; r++) out[r] = _mm512_setzero_ps();
    for (int64_t w = 0; w < x.wides; w++) {
        __m512 total[R];
        for (int r = 0; r < R; r++) total[r] = _mm512_setzero_ps();
        for (int64_t g = w * (WIDE / GROUP); g < std::min((w + 1) * (WIDE / GROUP), x.groups); g++) {
            const uint8_t* numbers = tile.numbers.data() + g * GROUP * COLUMNS;
            const int8_t* high = x.high.data() + first * x.size + g * GROUP;
            const int8_t* low = x.low.data() + first * x.size + g * GROUP;
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

template <int KIND, class T>
void many(const T* x, const uint8_t* w, const T* bias, const int64_t* shape, T* y) {
    constexpr int GROUP = KIND == Q2_K || KIND == Q3_K || KIND == Q6_K ? 16 : 32;
    const int64_t rows = shape[0], inner = shape[1], outer = shape[2];
    Tall tall(rows, inner, GROUP);
#pragma omp parallel num_threads(shape[3])
    {
        std::vector<float> wide(inner);
#pragma omp for
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t e = 0; e < inner; e++) wide[e] = widen(x[r * inner + e]);
            tall.fill(wide.data(), inner, KIND, GROUP, r);
        }
        Tile tile;
        float found[TALL * COLUMNS];
#pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < outer; n += COLUMNS) {
            const int64_t here = std::min(COLUMNS, outer - n);
            tile.fill<KIND, GROUP>(w + n * row_bytes(KIND, inner), inner, tall.size, here);
            for (int64_t r = 0, some; r < rows; r += some) {
                some = rows - r >= TALL ? TALL : 1;
                if (some == TALL) multiply<GROUP, TALL>(tall, r, tile, found);
                else multiply<GROUP, 1>(tall, r, tile, found);
                for (int64_t i = 0; i < some; i++)
                    for (int64_t c = 0; c < here; c++)
                        put(y + (r + i) * outer + n + c, found[i * COLUMNS + c] + (bias ? widen(bias[n + c]) : 0.0f));
            }
        }
    }
}

template <class T>
void of_kind(int kind, const T* x, const void* w, const T* bias, const int64_t* shape, T* y) {
    of_format(kind, [&](auto constant) {
        if constexpr (constant == INT8 || (constant >= Q4_0 && constant != FP8)) many<constant, T>(x, (const uint8_t*)w, bias, shape, y);
    });
}

}  // namespace

extern "C" int handscroll_has_many() { return 1; }

// As `handscroll_product`, for int8 and the formats with blocks.
extern "C" void handscroll_many(int kind, int narrow, const void* x, const void* w, const void* bias,
                                const int64_t* shape, void* y) {
    if (narrow) of_kind(kind, (const bf16*)x, w, (const bf16*)bias, shape, (bf16*)y);
    else of_kind(kind, (const float*)x, w, (const float*)bias, shape, (float*)y);
}

#else
extern "C" int handscroll_has_many() { return 0; }
extern "C" void handscroll_many(int, int, const void*, const void*, const void*, const int64_t*, void*) {}
#endif
