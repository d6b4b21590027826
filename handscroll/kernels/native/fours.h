// Attention over int4 keys and values in the processor's products of whole numbers (AVX-512 VNNI), so that neither is
// widened; blocks.h has the same for other processors.
//
// As in integers.h, the other factor is rounded to 16 bits in two planes of bytes: the query times the steps of its
// channels anew for every 32 keys, the softmax weights times the steps of a group of 32 channels for every block. Both
// are off by about 1 / 65,000 of their largest; lowest numbers are added up in float32.

#pragma once
#include "integers.h"

namespace {

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && defined(__AVX512BW__) && defined(__AVX512VL__)

// The bytes 0, then the bytes 1, of 32 numbers in two registers.
inline __m512i apart(__m512i a, __m512i b) {
    alignas(64) static constexpr struct Index {
        uint8_t at[64];
        constexpr Index() : at() {
            for (int i = 0; i < 64; i++) at[i] = (uint8_t)(i % 16 * 4 + i / 16 % 2 * 64 + i / 32);
        }
    } index;
    return _mm512_permutex2var_epi8(a, _mm512_load_si512(index.at), b);
}

template <int R>
class Fours {
  public:
    Fours(const float* given, float scale, int size, Scales<nibbles> scales)
        : size(size), groups(size / 32), scales(scales), q(given, given + R * size) {
        for (auto& one : scaled) one.planes.resize(R * groups);
        for (float& x : q) x *= scale;
        for (int i = 0; i < 32; i++) spread[i] = (uint16_t)(i % 16 * 2 * groups + i / 16 * groups);
    }

    // `at` is a multiple of 32.
    void score(const nibbles* keys, int64_t at, int count, const nibbles* next, float* scores) {
        fetch(scales.keys + (at + BLOCK<nibbles>) / 32 * 2 * size, 2 * size * BLOCK<nibbles> / 32 * sizeof(bf16));
        const auto all = [&](auto constant) {
            constexpr int E = constant;
            const auto ready = [&](int j) { prepare(scales.keys + (at + j) / 32 * 2 * size, scaled[j / 32 % 2]); };
            ready(0);
            for (int j = 0; j < count; j += 32) {
                if (j + 32 < count) ready(j + 32);  // its waits are filled with the products of the keys before
                if (j + 32 <= count) score_of<E, true>(keys, j, count, next, scaled[j / 32 % 2], scores);
                else score_of<E, false>(keys, j, count, next, scaled[j / 32 % 2], scores);
            }
        };
        if (size == 64) all(std::integral_constant<int, 64>{});
        else if (size == 128) all(std::integral_constant<int, 128>{});
        else all(std::integral_constant<int, 0>{});
    }

    // Weights up to the next multiple of 16 are 0.
    void add(const float* weights, const nibbles* values, int64_t at, int count, const nibbles* next, float* out) const {
        if (size == 64) add_of<64>(weights, values, at, count, next, out);
        else if (size == 128) add_of<128>(weights, values, at, count, next, out);
        else add_of<0>(weights, values, at, count, next, out);
    }

  private:
    struct alignas(64) Line { int32_t four[16]; };

    static __m512i lower(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }

    // The queries times the steps of 32 keys that share them, in 16 bits: lower bytes, then upper bytes of a row and group.
    struct Scaled {
        std::vector<Line> planes;
        __m512 factors, lows;  // what a whole number stands for, and what the lowest numbers add, as of `joined`
    };

    // Scores of 32 keys. E: the size if the compiler may know it; 0: any size. WHOLE: all of them are there.
    template <int E, bool WHOLE>
    void score_of(const nibbles* keys, int j, int count, const nibbles* next, const Scaled& by, float* scores) const {
        const int all = E ? E / 32 : groups;
        __m512i sums[R][2][2];  // of the lower and the upper bytes of the query, for 16 keys each
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 4; i++) sums[r][i / 2][i % 2] = _mm512_setzero_si512();
        for (int g = 0; g < all; g++) {
            __m512i k[2][4];
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                sixteen<E, WHOLE>(keys, j + 16 * h, count, g, next, k[h]);
                turn_words(k[h]);
            }
            const Line* q = by.planes.data() + g;
#pragma GCC unroll 4
            for (int m = 0; m < 4; m++) {  // four bytes of a key in each lane
                __m512i bits[2][2];
                for (int h = 0; h < 2; h++) bits[0][h] = lower(k[h][m]), bits[1][h] = lower(_mm512_srli_epi16(k[h][m], 4));
#pragma GCC unroll 4
                for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++) {
                        const __m512i x = _mm512_set1_epi32(q[r * all].four[4 * i + m]);
                        for (int h = 0; h < 2; h++) sums[r][i / 2][h] = products(sums[r][i / 2][h], bits[i % 2][h], x);
                    }
            }
        }
        for (int r = 0; r < R; r++)
            for (int h = 0; h < 2; h++) {
                const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(sums[r][1][h], 8), sums[r][0][h]);
                const __m512 found = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), of_row(by.factors, r), of_row(by.lows, r));
                store(scores + r * BLOCK<nibbles> + j + 16 * h, (f16v)found);
            }
    }

    template <int E>
    void add_of(const float* weights, const nibbles* values, int64_t at, int count, const nibbles* next, float* out) const {
        const int sixteens = (count + 15) / 16;
        fetch(scales.values + (at + BLOCK<nibbles>) * 2 * groups, 2 * groups * BLOCK<nibbles> * sizeof(bf16));
        const int all = E ? E / 32 : groups;
        Peaks peaks[2];
        const auto ready = [&](int g) {
            Peaks& made = peaks[g % 2];
            for (int j = 0; j < sixteens; j++)
                scales_of<E>(scales.values + (at + 16 * j) * 2 * groups, count - 16 * j, g, made.steps[j], made.least[j]);
            find(weights, sixteens, made);
        };
        ready(0);
        for (int g = 0; g < all; g++) {
            if (g + 1 < all) ready(g + 1);  // its waits are filled with the products of this group
            Weighed by;
            weigh(weights, sixteens, peaks[g % 2], by);
            __m512i turned[BLOCK<nibbles> / 16][4];
            columns<E, 0, (R < 4 ? R : 2)>(by, peaks[g % 2], values, count, g, next, turned, out);
            if constexpr (R == 4) columns<E, 2, 2>(by, peaks[g % 2], values, count, g, next, turned, out);  // four rows: too many sums
        }
    }

    // Group g of rows j .. j + 15; lane i of register k is row j + 4 i + k. If they are not all there, the last one is
    // repeated. The rows at `next` are read soon.
    template <int E, bool WHOLE>
    void sixteen(const nibbles* rows, int j, int count, int g, const nibbles* next, __m512i* found) const {
        const int64_t stride = (E ? E : size) / 2;
        const uint8_t* from = (const uint8_t*)rows + j * stride + 16 * g;
        const auto get = [&](int row) {
            return _mm_loadu_si128((const __m128i*)(from + (WHOLE ? row : std::min(row, count - 1 - j)) * stride));
        };
        for (int k = 0; k < 4; k++) {
            const __m256i a = _mm256_inserti128_si256(_mm256_castsi128_si256(get(k)), get(k + 4), 1);
            const __m256i b = _mm256_inserti128_si256(_mm256_castsi128_si256(get(k + 8)), get(k + 12), 1);
            found[k] = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        }
        fetch((const uint8_t*)next + j * stride + 256 * g, 256);
    }

    // The steps and lowest numbers of group g of the next 16 values; zeros where there are none.
    template <int E>
    void scales_of(const bf16* from, int count, int g, __m512& steps, __m512& least) const {
        const int words = 2 * (E ? E / 32 : groups), rows = std::min(count, 16);
        __m512i step, low;
        if constexpr (E == 64 || E == 128) {
            const auto two = [&](int at) {  // of those in two registers: the steps, then in the upper half the lowest numbers
                const auto there = [&](int n) { return n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1; };
                const __m512i a = _mm512_maskz_loadu_epi16(there(rows * words - at), from + at);
                const __m512i b = _mm512_maskz_loadu_epi16(there(rows * words - at - 32), from + at + 32);
                return _mm512_permutex2var_epi16(a, _mm512_add_epi16(_mm512_load_si512(spread), _mm512_set1_epi16((short)g)), b);
            };
            __m512i both = two(0);
            // Of 128 only eight values lie in two registers. Indices wrap at 64, so each half of two(64) is values 8 .. 15
            // twice.
            if (E == 128) both = _mm512_permutex2var_epi64(both, _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), two(64));
            const auto wide = [](__m256i x) { return _mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); };
            step = wide(_mm512_castsi512_si256(both)), low = wide(_mm512_extracti64x4_epi64(both, 1));
        } else {
            const __m512i counted = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            const auto two = [&](int word) {  // this word of each value, and the next one above it
                const __m512i at = _mm512_mullo_epi32(counted, _mm512_set1_epi32(words));
                return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), (__mmask16)((1u << rows) - 1), at, from + word, 2);
            };
            step = _mm512_slli_epi32(two(g), 16);
            low = _mm512_and_si512(two(groups + g - 1), _mm512_set1_epi32((int)0xffff0000u));
        }
        steps = _mm512_abs_ps(_mm512_max_ps(_mm512_setzero_ps(), _mm512_castsi512_ps(step)));  // NaN stays NaN, -0 does not
        least = _mm512_castsi512_ps(low);
    }

    // What `join` makes of all lanes of x[r], in the 128 bits of number r.
    template <class Join>
    static __m512 joined(const __m512* x, Join join) {
        __m512i y[4];
        for (int r = 0; r < 4; r++) y[r] = _mm512_castps_si512(x[r < R ? r : 0]);
        across(y);
        const auto as = [](__m512i z) { return _mm512_castsi512_ps(z); };
        __m512 z = join(join(as(y[0]), as(y[1])), join(as(y[2]), as(y[3])));
        z = join(z, _mm512_permute_ps(z, 0x4e));
        return join(z, _mm512_permute_ps(z, 0xb1));
    }

    static __m512 of_row(__m512 joined, int r) { return _mm512_permutexvar_ps(_mm512_set1_epi32(4 * r), joined); }

    void prepare(const bf16* steps, Scaled& made) const {
        __m512 most[R], low[R];
        for (int r = 0; r < R; r++) most[r] = low[r] = _mm512_setzero_ps();
        for (int e = 0; e < size; e += 16) {
            const __m512 step = (__m512)load(steps + e), least = (__m512)load(steps + size + e);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const __m512 x = (__m512)load(q.data() + r * size + e);
                most[r] = _mm512_max_ps(_mm512_abs_ps(_mm512_mul_ps(x, step)), most[r]);
                low[r] = _mm512_fmadd_ps(x, least, low[r]);  // NaN if a query or a key is
            }
        }
        const __m512 peaks = joined(most, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
        const __m512 whole = _mm512_set1_ps(32512), half = _mm512_set1_ps(128);
        made.lows = joined(low, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
        made.factors = _mm512_div_ps(peaks, whole);
        const __m512 by = _mm512_maskz_div_ps(_mm512_cmp_ps_mask(peaks, _mm512_set1_ps(1e-30f), _CMP_GT_OQ), whole, peaks);
        const __m512i low_bytes = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi8(-128), 0);
        for (int g = 0; g < groups; g++) {
            const __m512 a = (__m512)load(steps + 32 * g), b = (__m512)load(steps + 32 * g + 16);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const float* x = q.data() + r * size + 32 * g;
                const __m512 own = of_row(by, r);
                const auto rounded = [&](const float* x, __m512 step) {
                    return _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_mul_ps((__m512)load(x), step), own, half));
                };
                const __m512i bytes = apart(rounded(x, a), rounded(x + 16, b));  // with 128 added: bytes 1 are those that are nearest
                _mm512_store_si512(made.planes[r * groups + g].four, _mm512_xor_si512(bytes, low_bytes));
            }
        }
    }

    // The steps and lowest numbers of a group of a block's values. Of the weights times the steps: by what they are
    // multiplied to become whole numbers, and what these stand for; and the sum of the weights times the lowest numbers
    // (as of `joined`).
    struct Peaks {
        __m512 steps[BLOCK<nibbles> / 16], least[BLOCK<nibbles> / 16], by, each, lows;
    };

    static void find(const float* weights, int sixteens, Peaks& made) {
        __m512 low[R], most[R];
        for (int r = 0; r < R; r++) low[r] = most[r] = _mm512_setzero_ps();
        const auto highest = [](__m512 a, __m512 b) {  // numbers >= 0 are ordered like their bits, NaN above them
            return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
        };
        for (int j = 0; j < sixteens; j++)
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const __m512 w = _mm512_load_ps(weights + r * BLOCK<nibbles> + 16 * j);
                low[r] = _mm512_fmadd_ps(w, made.least[j], low[r]);
                most[r] = highest(most[r], _mm512_mul_ps(w, made.steps[j]));
            }
        const __m512 peaks = joined(most, highest), whole = _mm512_set1_ps(65535);
        made.each = _mm512_div_ps(peaks, whole);
        made.lows = joined(low, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
        made.by = _mm512_div_ps(whole, _mm512_max_ps(_mm512_set1_ps(1e-30f), peaks));  // NaN stays NaN
    }

    // Weights times steps as whole numbers: of each 16 the lower bytes, then the upper ones, four of them in all lanes of
    // 128 bits.
    struct Weighed { __m512i bytes[R][BLOCK<nibbles> / 16][2]; };

    static void weigh(const float* weights, int sixteens, const Peaks& peaks, Weighed& made) {
        const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        for (int j = 0; j < sixteens; j += 2)
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const __m512 own = of_row(peaks.by, r);
                const auto rounded = [&](int j) {
                    if (j >= sixteens) return _mm512_setzero_si512();
                    const __m512 w = _mm512_load_ps(weights + r * BLOCK<nibbles> + 16 * j);
                    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_mul_ps(w, peaks.steps[j]), own));
                };
                const __m512i both = apart(rounded(j), rounded(j + 1));
                for (int i = 0; i < 4; i++)
                    made.bytes[r][j + i % 2][i / 2] = _mm512_permutexvar_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(4 * i)), both);
            }
    }

    // out += the 32 channels of group g of the values, for N rows from number FROM on. `turned` keeps the values with the
    // bytes of four of them side by side: the rows from number 0 on make it. The sums fill the registers: inlined into
    // `add_of`, or with its lambdas called, GCC 12 keeps them in memory.
    template <int E, int FROM, int N>
    __attribute__((noinline)) void columns(const Weighed& by, const Peaks& peaks, const nibbles* values, int count, int g,
                                           const nibbles* next, __m512i (*turned)[4], float* out) const {
        const bool whole = count % 16 == 0;
        const auto half = [&](auto upper, auto whole) __attribute__((always_inline)) {  // in the lower or the upper bits of bytes
            __m512i sums[N][2][4];
#pragma GCC unroll 4
            for (int r = 0; r < N; r++)
#pragma GCC unroll 4
                for (int m = 0; m < 4; m++) sums[r][0][m] = sums[r][1][m] = _mm512_setzero_si512();
            for (int j = 0; 16 * j < count; j++) {
                __m512i v[4];
                if constexpr (FROM == 0 && !upper) {
                    sixteen<E, whole>(values, 16 * j, count, g, next, v);
                    turn_bytes(v);
                    for (int m = 0; m < 4; m++) turned[j][m] = v[m];
                } else {
                    for (int m = 0; m < 4; m++) v[m] = turned[j][m];
                }
                for (int m = 0; m < 4; m++) v[m] = lower(upper ? _mm512_srli_epi16(v[m], 4) : v[m]);
#pragma GCC unroll 4
                for (int r = 0; r < N; r++)
#pragma GCC unroll 2
                    for (int p = 0; p < 2; p++)
#pragma GCC unroll 4
                        for (int m = 0; m < 4; m++) sums[r][p][m] = products(sums[r][p][m], by.bytes[FROM + r][j][p], v[m]);
            }
#pragma GCC unroll 4
            for (int r = 0; r < N; r++) {
                __m512i y[4];
#pragma GCC unroll 4
                for (int m = 0; m < 4; m++) y[m] = _mm512_add_epi32(_mm512_slli_epi32(sums[r][1][m], 8), sums[r][0][m]);
                across(y);
                const __m512i total = _mm512_add_epi32(_mm512_add_epi32(y[0], y[1]), _mm512_add_epi32(y[2], y[3]));
                float* to = out + (FROM + r) * size + 32 * g + 16 * upper;
                const __m512 more = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), of_row(peaks.each, FROM + r), of_row(peaks.lows, FROM + r));
                store(to, load(to) + (f16v)more);
            }
        };
        const auto both = [&](auto whole) { half(std::false_type{}, whole), half(std::true_type{}, whole); };
        if (whole) both(std::true_type{});
        else both(std::false_type{});
    }

    const int size, groups;
    const Scales<nibbles> scales;
    std::vector<float> q;
    Scaled scaled[2];  // of the keys that are read, and of the next ones
    alignas(64) uint16_t spread[32];  // where the steps, then the lowest numbers of 16 values lie
};

#else
template <int R>
using Fours = Packed<R>;
#endif

}  // namespace
