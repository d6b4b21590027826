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
        __m512i parts[R][BLOCK<int8_t> / 4];
        for (int j = 0; j < count; j += 8) {
            __m512i sums[2 * R][2];
            for (int i = 0; i < 2 * R; i++) sums[i][0] = sums[i][1] = _mm512_setzero_si512();
            for (int c = 0; c < chunks; c++) {
                __m512i k[2][4];
#pragma GCC unroll 2
                for (int h = 0; h < 2; h++) {
                    four(keys, j + 4 * h, count, c, next, k[h]);
                    for (int i = 0; i < 4; i++)  // on this side the products take unsigned numbers
                        k[h][i] = _mm512_xor_si512(k[h][i], _mm512_set1_epi8(-128));
                    turn_words(k[h]);
                }
                const Line* q = planes.data() + c * 4 * 2 * R;
                asm("" : "+r"(q));  // otherwise the compiler keeps queries in registers and sums in memory
                for (int m = 0; m < 4; m++)
                    for (int i = 0; i < 2 * R; i++) {
                        const __m512i x = _mm512_load_si512(q + m * 2 * R + i);
                        for (int h = 0; h < 2; h++) sums[i][h] = _mm512_dpbusd_epi32(sums[i][h], k[h][m], x);
                    }
            }
            for (int r = 0; r < R; r++)
                for (int h = 0; h < 2; h++)
                    parts[r][j / 4 + h] = _mm512_add_epi32(_mm512_slli_epi32(sums[2 * r][h], 8), sums[2 * r + 1][h]);
        }
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
        __m512i turned[BLOCK<int8_t>];
        for (int c = 0; c < chunks; c++) {
            for (int j = 0; j < count; j += 4) {  // the bytes of four values side by side
                __m512i* v = turned + j;
                four(values, j, count, c, next, v);
                turn_bytes(v);
            }
            for (int r = 0; r < R; r++) columns(turned, bytes[0][r], bytes[1][r], steps[r], count, c, out + r * size);
        }
    }

  private:
    struct alignas(64) Line { int8_t bytes[CHUNK]; };

    // Chunk c of rows j .. j + 3; if there are fewer rows, the last one is repeated. The rows at `next` are read soon.
    void four(const int8_t* rows, int j, int count, int c, const int8_t* next, __m512i* found) const {
        const int here = size - CHUNK * c;
        const auto all = [&](auto row) {
            for (int i = 0; i < 4; i++) {
                const int64_t at = (int64_t)row(j + i) * size + CHUNK * c;
                found[i] = here < CHUNK ? _mm512_maskz_loadu_epi8((1ull << here) - 1, rows + at)
                                        : _mm512_loadu_si512(rows + at);  // as in blocks.h, a mask only if it is needed
                __builtin_prefetch(next + at, 0, 0);
            }
        };
        if (j + 4 <= count) all([](int n) { return n; });
        else all([count](int n) { return std::min(n, count - 1); });
    }

    // out += the numbers from CHUNK * c on of the values, weighted by two planes of bytes.
    void columns(const __m512i* turned, const uint8_t* upper, const uint8_t* lower, float step, int count, int c,
                 float* out) const {
        __m512i high[4], low[4];
        for (int m = 0; m < 4; m++) high[m] = low[m] = _mm512_setzero_si512();
        for (int j = 0; j < count; j += 4) {
            int32_t h, l;
            memcpy(&h, upper + j, 4), memcpy(&l, lower + j, 4);
            for (int m = 0; m < 4; m++) {
                __m512i v = turned[j + m];
                asm("" : "+v"(v));  // read once
                high[m] = _mm512_dpbusd_epi32(high[m], _mm512_set1_epi32(h), v);
                low[m] = _mm512_dpbusd_epi32(low[m], _mm512_set1_epi32(l), v);
            }
        }
        for (int m = 0; m < 4; m++) high[m] = _mm512_add_epi32(_mm512_slli_epi32(high[m], 8), low[m]);
        across(high);
        for (int e = CHUNK * c, m = 0; m < 4 && e < size; m++, e += 16)
            store(out + e, load(out + e) + (f16v)_mm512_cvtepi32_ps(high[m]) * splat(step));
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
