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
        : size(size), groups(size / 32), scales(scales), q(given, given + R * size), scaled(size), planes(R * groups) {
        for (float& x : q) x *= scale;
        for (int i = 0; i < 32; i++) spread[i] = (uint16_t)(i % 16 * 2 * groups + i / 16 * groups);
    }

    // `at` is a multiple of 32.
    void score(const nibbles* keys, int64_t at, int count, const nibbles* next, float* scores) {
        fetch(scales.keys + (at + BLOCK<nibbles>) / 32 * 2 * size, 2 * size * BLOCK<nibbles> / 32 * sizeof(bf16));
        for (int j = 0; j < count; j += 32) {
            prepare(scales.keys + (at + j) / 32 * 2 * size);
            if (size == 64) score_of<64>(keys, j, count, next, scores);
            else if (size == 128) score_of<128>(keys, j, count, next, scores);
            else score_of<0>(keys, j, count, next, scores);
        }
    }

    // Weights up to the next multiple of 16 are 0.
    void add(const float* weights, const nibbles* values, int64_t at, int count, const nibbles* next, float* out) {
        if (size == 64) add_of<64>(weights, values, at, count, next, out);
        else if (size == 128) add_of<128>(weights, values, at, count, next, out);
        else add_of<0>(weights, values, at, count, next, out);
    }

  private:
    struct alignas(64) Line { int32_t four[16]; };

    static __m512i lower(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }

    // Scores of 32 keys that share their steps. E: the size if the compiler may know it; 0: any size.
    template <int E>
    void score_of(const nibbles* keys, int j, int count, const nibbles* next, float* scores) const {
        __m512i sums[R][2][2];  // of the lower and the upper bytes of the query, for 16 keys each
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 4; i++) sums[r][i / 2][i % 2] = _mm512_setzero_si512();
        for (int g = 0; g < groups; g++) {
            __m512i k[2][4];
            for (int h = 0; h < 2; h++) {
                sixteen<E>(keys, j + 16 * h, count, g, next, k[h]);
                turn_words(k[h]);
            }
            for (int m = 0; m < 4; m++) {  // four bytes of a key in each lane
                __m512i bits[2][2];
                for (int h = 0; h < 2; h++) bits[0][h] = lower(k[h][m]), bits[1][h] = lower(_mm512_srli_epi16(k[h][m], 4));
                for (int r = 0; r < R; r++)
                    for (int i = 0; i < 4; i++) {
                        const __m512i x = _mm512_set1_epi32(planes[r * groups + g].four[4 * i + m]);
                        for (int h = 0; h < 2; h++) sums[r][i / 2][h] = _mm512_dpbusd_epi32(sums[r][i / 2][h], bits[i % 2][h], x);
                    }
            }
        }
        for (int r = 0; r < R; r++)
            for (int h = 0; h < 2; h++) {
                const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(sums[r][1][h], 8), sums[r][0][h]);
                const __m512 found = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(factors[r]), _mm512_set1_ps(lows[r]));
                store(scores + r * BLOCK<nibbles> + j + 16 * h, (f16v)found);
            }
    }

    template <int E>
    void add_of(const float* weights, const nibbles* values, int64_t at, int count, const nibbles* next, float* out) const {
        const int sixteens = (count + 15) / 16;
        fetch(scales.values + (at + BLOCK<nibbles>) * 2 * groups, 2 * groups * BLOCK<nibbles> * sizeof(bf16));
        for (int g = 0; g < groups; g++) {
            __m512i turned[BLOCK<nibbles> / 16][8];
            __m512 steps[BLOCK<nibbles> / 16], least[BLOCK<nibbles> / 16];
            for (int j = 0; j < sixteens; j++) {
                __m512i v[4];
                sixteen<E>(values, 16 * j, count, g, next, v);
                turn_bytes(v);
                for (int m = 0; m < 4; m++)  // a channel of four values in each lane
                    turned[j][m] = lower(v[m]), turned[j][4 + m] = lower(_mm512_srli_epi16(v[m], 4));
                scales_of(scales.values + (at + 16 * j) * 2 * groups, count - 16 * j, g, steps[j], least[j]);
            }
            Weighed by[R];
            for (int r = 0; r < R; r++) by[r] = weighed(weights + r * BLOCK<nibbles>, steps, least, sixteens);
            for (int r = 0; r < R; r++) columns(by[r], turned, sixteens, out + r * size + 32 * g);
        }
    }

    // Group g of rows j .. j + 15; lane i of register k is row j + 4 i + k. If there are fewer rows, the last one is
    // repeated. The rows at `next` are read soon.
    template <int E>
    void sixteen(const nibbles* rows, int j, int count, int g, const nibbles* next, __m512i* found) const {
        const int64_t stride = (E ? E : size) / 2;
        const uint8_t* from = (const uint8_t*)rows + j * stride + 16 * g;
        const auto take = [&](int row) { return _mm_loadu_si128((const __m128i*)(from + std::min(row, count - 1 - j) * stride)); };
        const auto whole = [&](int row) { return _mm_loadu_si128((const __m128i*)(from + row * stride)); };
        const auto all = [&](auto get) {
            for (int k = 0; k < 4; k++) {
                const __m256i a = _mm256_inserti128_si256(_mm256_castsi128_si256(get(k)), get(k + 4), 1);
                const __m256i b = _mm256_inserti128_si256(_mm256_castsi128_si256(get(k + 8)), get(k + 12), 1);
                found[k] = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
            }
        };
        if (count - j >= 16) all(whole);
        else all(take);
        fetch((const uint8_t*)next + j * stride + 256 * g, 256);
    }

    // The steps and lowest numbers of group g of the next 16 values; zeros where there are none.
    void scales_of(const bf16* from, int count, int g, __m512& steps, __m512& least) const {
        __m512i both;
        if (groups <= 2) {
            const int words = 2 * groups * std::min(count, 16);
            const auto there = [](int n) { return n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1; };
            const __m512i a = _mm512_maskz_loadu_epi16(there(words), from), b = _mm512_maskz_loadu_epi16(there(words - 32), from + 32);
            both = _mm512_permutex2var_epi16(a, _mm512_add_epi16(_mm512_load_si512(spread), _mm512_set1_epi16((short)g)), b);
        } else {
            alignas(64) bf16 words[32] = {};
            for (int i = 0; i < std::min(count, 16); i++)
                words[i] = from[i * 2 * groups + g], words[16 + i] = from[i * 2 * groups + groups + g];
            both = _mm512_load_si512(words);
        }
        const auto wide = [](__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); };
        steps = _mm512_max_ps(_mm512_setzero_ps(), wide(_mm512_castsi512_si256(both)));  // NaN stays NaN
        least = wide(_mm512_extracti64x4_epi64(both, 1));
    }

    // The queries times the steps of 32 keys, in 16 bits, and times their lowest numbers.
    void prepare(const bf16* steps) {
        for (int r = 0; r < R; r++) {
            __m512 most = _mm512_setzero_ps(), low = _mm512_setzero_ps();
            for (int e = 0; e < size; e += 16) {
                const __m512 x = (__m512)load(q.data() + r * size + e), y = _mm512_mul_ps(x, (__m512)load(steps + e));
                store(scaled.data() + e, (f16v)y);
                most = _mm512_max_ps(_mm512_abs_ps(y), most);
                low = _mm512_fmadd_ps(x, (__m512)load(steps + size + e), low);  // NaN if a query or a key is
            }
            const float peak = _mm512_reduce_max_ps(most);
            lows[r] = _mm512_reduce_add_ps(low), factors[r] = peak / 32512;
            const __m512 by = _mm512_set1_ps(peak > 1e-30f ? 32512 / peak : 0.0f), half = _mm512_set1_ps(128);
            const __m512i low_bytes = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi8(-128), 0);
            for (int g = 0; g < groups; g++) {
                const auto rounded = [&](int e) {
                    return _mm512_cvtps_epi32(_mm512_fmadd_ps((__m512)load(scaled.data() + 32 * g + e), by, half));
                };
                const __m512i bytes = apart(rounded(0), rounded(16));  // with 128 added: bytes 1 are those that are nearest
                _mm512_store_si512(planes[r * groups + g].four, _mm512_xor_si512(bytes, low_bytes));
            }
        }
    }

    // Weights of a block times the steps of a group: as bytes, the lower ones of 32 weights, then the upper ones; and the
    // sum of the weights times the lowest numbers.
    struct Weighed {
        __m512i bytes[BLOCK<nibbles> / 32];
        float step, low;
    };

    static Weighed weighed(const float* weights, const __m512* steps, const __m512* least, int sixteens) {
        constexpr int most_sixteens = BLOCK<nibbles> / 16;
        __m512 x[most_sixteens], low = _mm512_setzero_ps();
        __m512i most = _mm512_setzero_si512();  // numbers >= 0 are ordered like their bits, NaN above them
        for (int j = 0; j < most_sixteens; j++) {
            x[j] = _mm512_setzero_ps();
            if (j >= sixteens) continue;
            const __m512 w = _mm512_load_ps(weights + 16 * j);
            x[j] = _mm512_mul_ps(w, steps[j]), low = _mm512_fmadd_ps(w, least[j], low);
            most = _mm512_max_epu32(most, _mm512_castps_si512(x[j]));
        }
        const uint32_t bits = _mm512_reduce_max_epu32(most);
        float largest;
        memcpy(&largest, &bits, 4);
        const __m512 by = _mm512_set1_ps(65535 / (largest < 1e-30f ? 1e-30f : largest));
        const auto rounded = [&](int j) { return _mm512_cvtps_epi32(_mm512_mul_ps(x[j], by)); };
        Weighed made;
        for (int j = 0; j < most_sixteens / 2; j++) made.bytes[j] = apart(rounded(2 * j), rounded(2 * j + 1));
        made.step = largest / 65535, made.low = _mm512_reduce_add_ps(low);
        return made;
    }

    // out += 32 channels of values.
    static void columns(const Weighed& by, const __m512i (*turned)[8], int sixteens, float* out) {
        __m512i lower[8], upper[8];
        for (int m = 0; m < 8; m++) lower[m] = upper[m] = _mm512_setzero_si512();
        const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        for (int j = 0; j < sixteens; j++) {
            const int32_t* from = (const int32_t*)&by.bytes[j / 2] + j % 2 * 4;
            const auto four = [&](const int32_t* p) {
                return _mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(_mm_load_si128((const __m128i*)p)));
            };
            const __m512i a = four(from), b = four(from + 8);
            for (int m = 0; m < 8; m++) {
                lower[m] = _mm512_dpbusd_epi32(lower[m], a, turned[j][m]);
                upper[m] = _mm512_dpbusd_epi32(upper[m], b, turned[j][m]);
            }
        }
        const f16v more = splat(by.low), step = splat(by.step);
        for (int h = 0; h < 2; h++) {
            __m512i y[4];
            for (int m = 0; m < 4; m++) y[m] = _mm512_add_epi32(_mm512_slli_epi32(upper[4 * h + m], 8), lower[4 * h + m]);
            across(y);
            const __m512i whole = _mm512_add_epi32(_mm512_add_epi32(y[0], y[1]), _mm512_add_epi32(y[2], y[3]));
            store(out + 16 * h, load(out + 16 * h) + ((f16v)_mm512_cvtepi32_ps(whole) * step + more));
        }
    }

    const int size, groups;
    const Scales<nibbles> scales;
    std::vector<float> q, scaled;
    std::vector<Line> planes;  // of each row and group: lower bytes, then upper bytes
    alignas(64) uint16_t spread[32];  // where the steps, then the lowest numbers of 16 values lie
    float factors[R], lows[R];
};

#else
template <int R>
using Fours = Packed<R>;
#endif

}  // namespace
