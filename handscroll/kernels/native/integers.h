// Attention over int8 keys and values in the processor's integer products (AVX-512 VNNI: each lane sums four products
// of bytes), so that neither is widened.
//
// The other factor of a product is rounded to 16 bits, which are two planes of bytes. A query is rounded to 1 / 65,024
// of its largest number, the softmax weights of a block (times their values' scales) to 1 / 131,070 of the largest.
// Keys and values themselves are off by up to 1 / 254.

#pragma once
#include <algorithm>
#include "blocks.h"

namespace {

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)

constexpr int CHUNK = 64;  // bytes of a register

// sum += the products of four unsigned bytes of a with the signed ones of b, in each lane. GCC 12 copies sums around the
// intrinsic of this, and has no registers left then.
inline __m512i products(__m512i sum, __m512i a, __m512i b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

// In each 128 bits: byte 4 i + j of y[m] becomes byte 4 j + m of y[i].
inline void turn_bytes(__m512i* y) {
    const __m512i a = _mm512_unpacklo_epi8(y[0], y[1]), b = _mm512_unpackhi_epi8(y[0], y[1]);
    const __m512i c = _mm512_unpacklo_epi8(y[2], y[3]), d = _mm512_unpackhi_epi8(y[2], y[3]);
    y[0] = _mm512_unpacklo_epi16(a, c), y[1] = _mm512_unpackhi_epi16(a, c);
    y[2] = _mm512_unpacklo_epi16(b, d), y[3] = _mm512_unpackhi_epi16(b, d);
}

// R query rows over int8 keys and values of at most 512 numbers. Their 32-bit sums may overflow on the way; the result
// does not.
template <int R>
class Integers {
  public:
    Integers(const float* q, float scale, int size, Scales<int8_t> scales)
        : size(size), chunks((size + CHUNK - 1) / CHUNK), scales(scales), planes(chunks * 4 * 2 * R) {
        for (int r = 0; r < R; r++, q += size) {
            f16v high = {}, sound = {};
            for (int e = 0; e < size; e += 16) {
                const f16v x = load(q + e);
                high = max(x < (f16v){} ? -x : x, high), sound += x * splat(0.0f);
            }
            const float most = largest(high), step = most / 32512 + sum(sound);  // NaN stays NaN
            const f16v by = splat(most > 1e-30f ? 32512 / most : 0.0f);
            __m512i total = _mm512_setzero_si512();
            for (int c = 0; c < chunks; c++) {
                alignas(64) int8_t bytes[2][CHUNK] = {};
                for (int e = 0; e < std::min(CHUNK, size - CHUNK * c); e += 16) {
                    const __m512i n = _mm512_cvtps_epi32((__m512)(load(q + CHUNK * c + e) * by));
                    const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(128)), 8);
                    _mm_store_si128((__m128i*)(bytes[0] + e), _mm512_cvtepi32_epi8(upper));
                    _mm_store_si128((__m128i*)(bytes[1] + e), _mm512_cvtepi32_epi8(n));
                    total = _mm512_add_epi32(total, n);
                }
                for (int p = 0; p < 2; p++) {  // four bytes of a query meet those of four keys
                    const __m512i x = _mm512_load_si512(bytes[p]);
                    __m512i* to = (__m512i*)&planes[c * 4 * 2 * R + 2 * r + p];
                    to[0] = _mm512_shuffle_epi32(x, (_MM_PERM_ENUM)0x00);
                    to[2 * R] = _mm512_shuffle_epi32(x, (_MM_PERM_ENUM)0x55);
                    to[4 * R] = _mm512_shuffle_epi32(x, (_MM_PERM_ENUM)0xaa);
                    to[6 * R] = _mm512_shuffle_epi32(x, (_MM_PERM_ENUM)0xff);
                }
            }
            factors[r] = step * scale;
            offsets[r] = (int32_t)(128u * (uint32_t)_mm512_reduce_add_epi32(total));
        }
    }

    void score(const int8_t* keys, int64_t at, int count, const int8_t* next, float* scores) const {
        fetch(scales.keys + at + BLOCK<int8_t>, 4 * BLOCK<int8_t>), fetch(scales.values + at + BLOCK<int8_t>, 4 * BLOCK<int8_t>);
        known(count % 8 == 0, [&](auto constant, auto whole) { score_of<constant, whole>(keys, at, count, next, scores); });
    }

    // Weights up to the next multiple of 16 are 0.
    void add(float* weights, const int8_t* values, int64_t at, int count, const int8_t* next, float* out) const {
        alignas(64) uint8_t bytes[2][R][BLOCK<int8_t>];
        float steps[R];
        for (int r = 0; r < R; r++) {
            float* w = weights + r * BLOCK<int8_t>;
            __m512i most = _mm512_setzero_si512();  // numbers >= 0 are ordered like their bits, NaN above them
            for (int j = 0; j < count; j += 16) {
                const __m512 by = _mm512_maskz_loadu_ps(some(count - j), scales.values + at + j);
                const __m512 x = _mm512_mul_ps(_mm512_load_ps(w + j), by);
                most = _mm512_max_epu32(most, _mm512_castps_si512(x));
                _mm512_store_ps(w + j, x);
            }
            const uint32_t bits = _mm512_reduce_max_epu32(most);
            float largest;
            memcpy(&largest, &bits, 4);
            steps[r] = largest / 65535;
            const __m512 by = _mm512_set1_ps(65535 / (largest < 1e-30f ? 1e-30f : largest));
            for (int j = 0; j < count; j += 16) {
                const __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(w + j), by));
                _mm_store_si128((__m128i*)(bytes[0][r] + j), _mm512_cvtepi32_epi8(_mm512_srli_epi32(n, 8)));
                _mm_store_si128((__m128i*)(bytes[1][r] + j), _mm512_cvtepi32_epi8(n));
            }
        }
        known(count % 4 == 0, [&](auto constant, auto whole) {
            constexpr int E = constant;
            for (int c = 0; c < (E ? (E + CHUNK - 1) / CHUNK : chunks); c++) {
                columns<E, whole, 0, (R < 4 ? R : 2)>(bytes, steps, values, count, c, next, out);
                if constexpr (R == 4) columns<E, whole, 2, 2>(bytes, steps, values, count, c, next, out);  // four rows: too many sums
            }
        });
    }

  private:
    struct alignas(64) Line { int8_t bytes[CHUNK]; };

    // Calls `with` for E, the size if the compiler may know it, or 0, and for `whole`: whether no group of rows is cut.
    template <class With>
    void known(bool whole, With with) const {
        const auto sized = [&](auto constant) {
            if (whole) with(constant, std::true_type{});
            else with(constant, std::false_type{});
        };
        if (size == 64) sized(std::integral_constant<int, 64>{});
        else if (size == 128) sized(std::integral_constant<int, 128>{});
        else sized(std::integral_constant<int, 0>{});
    }

    template <int E, bool WHOLE>
    void score_of(const int8_t* keys, int64_t at, int count, const int8_t* next, float* scores) const {
        __m512i parts[R][BLOCK<int8_t> / 4];
        for (int j = 0; j < count; j += 8) eight<E, WHOLE>(keys, j, count, next, parts);
        for (int j = 0; j < count; j += 16) {
            const __m512 steps = _mm512_maskz_loadu_ps(some(count - j), scales.keys + at + j);
            for (int r = 0; r < R; r++) {
                __m512i* p = parts[r] + j / 4;
                across(p);
                const __m512i s = _mm512_add_epi32(_mm512_add_epi32(p[0], p[1]), _mm512_add_epi32(p[2], p[3]));
                const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(s, _mm512_set1_epi32(offsets[r])));
                const __m512 found = _mm512_mul_ps(_mm512_mul_ps(whole, _mm512_set1_ps(factors[r])), steps);
                store(scores + r * BLOCK<int8_t> + j, (f16v)found);
            }
        }
    }

    // Scores of keys j .. j + 7, as four sums each.
    template <int E, bool WHOLE>
    void eight(const int8_t* keys, int j, int count, const int8_t* next, __m512i (*parts)[BLOCK<int8_t> / 4]) const {
        __m512i sums[2 * R][2];
        for (int i = 0; i < 2 * R; i++) sums[i][0] = sums[i][1] = _mm512_setzero_si512();
        for (int c = 0; c < (E ? (E + CHUNK - 1) / CHUNK : chunks); c++) {
            __m512i k[2][4];
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                four<E, WHOLE>(keys, j + 4 * h, count, c, next, k[h]);
                for (int i = 0; i < 4; i++)  // on this side the products take unsigned numbers
                    k[h][i] = _mm512_xor_si512(k[h][i], _mm512_set1_epi8(-128));
                turn_words(k[h]);
            }
            const Line* q = planes.data() + c * 4 * 2 * R;
            asm("" : "+r"(q));  // otherwise the compiler keeps queries in registers and sums in memory
#pragma GCC unroll 4
            for (int m = 0; m < 4; m++)
#pragma GCC unroll 8
                for (int i = 0; i < 2 * R; i++) {
                    __m512i x = _mm512_load_si512(q + m * 2 * R + i);
                    asm("" : "+v"(x));  // read once
#pragma GCC unroll 2
                    for (int h = 0; h < 2; h++) sums[i][h] = products(sums[i][h], k[h][m], x);
                }
        }
        for (int r = 0; r < R; r++)
            for (int h = 0; h < 2; h++)
                parts[r][j / 4 + h] = _mm512_add_epi32(_mm512_slli_epi32(sums[2 * r][h], 8), sums[2 * r + 1][h]);
    }

    // Chunk c of rows j .. j + 3; if they are not all there, the last one is repeated. The rows at `next` are read soon.
    template <int E, bool WHOLE>
    void four(const int8_t* rows, int j, int count, int c, const int8_t* next, __m512i* found) const {
        const int64_t width = E ? E : size;
        const int here = (int)width - CHUNK * c;
        for (int i = 0; i < 4; i++) {
            const int64_t at = (WHOLE ? j + i : std::min(j + i, count - 1)) * width + CHUNK * c;
            found[i] = here < CHUNK ? _mm512_maskz_loadu_epi8((1ull << here) - 1, rows + at)
                                    : _mm512_loadu_si512(rows + at);  // as in blocks.h, a mask only if it is needed
            __builtin_prefetch(next + at, 0, 0);
        }
    }

    // out += the numbers from CHUNK * c on of the values, weighted for N rows from number FROM on by two planes of bytes.
    template <int E, bool WHOLE, int FROM, int N>
    void columns(const uint8_t (*bytes)[R][BLOCK<int8_t>], const float* steps, const int8_t* values, int count, int c,
                 const int8_t* next, float* out) const {
        __m512i high[N][4], low[N][4];
        for (int r = 0; r < N; r++)
            for (int m = 0; m < 4; m++) high[r][m] = low[r][m] = _mm512_setzero_si512();
        for (int j = 0; j < count; j += 4) {
            __m512i v[4];
            four<E, WHOLE>(values, j, count, c, next, v);
            turn_bytes(v);  // the bytes of four values side by side
#pragma GCC unroll 4
            for (int r = 0; r < N; r++) {
                int32_t h, l;
                memcpy(&h, bytes[0][FROM + r] + j, 4), memcpy(&l, bytes[1][FROM + r] + j, 4);
#pragma GCC unroll 4
                for (int m = 0; m < 4; m++) {
                    high[r][m] = products(high[r][m], _mm512_set1_epi32(h), v[m]);
                    low[r][m] = products(low[r][m], _mm512_set1_epi32(l), v[m]);
                }
            }
        }
        for (int r = 0; r < N; r++) {
            __m512i* y = high[r];
            for (int m = 0; m < 4; m++) y[m] = _mm512_add_epi32(_mm512_slli_epi32(y[m], 8), low[r][m]);
            across(y);
            float* to = out + (FROM + r) * size;
            for (int e = CHUNK * c, m = 0; m < 4 && e < size; m++, e += 16)
                store(to + e, load(to + e) + (f16v)_mm512_cvtepi32_ps(y[m]) * splat(steps[FROM + r]));
        }
    }

    static __mmask16 some(int left) { return (__mmask16)((1u << std::min(16, left)) - 1); }

    const int size, chunks;
    const Scales<int8_t> scales;
    std::vector<Line> planes;  // of each chunk, part of it, and row: high bytes and low bytes
    float factors[R];
    int32_t offsets[R];
};

#else
template <int R>
using Integers = Floats<int8_t, R>;
#endif

}  // namespace
