// Blocks of the number formats for the processor's products of whole numbers (AVX-512 VNNI): the numbers of a block are
// taken unsigned, 64 at a time, and rows of x in 16 bits. A weight is low + scale * number.

#pragma once
#include "formats.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define WHOLE 1

namespace {

// Where the two runs of 32 begin whose 64 numbers are multiplied together. The 256 numbers of a block are four such
// chunks.
inline void runs_of(int64_t kind, int64_t chunk, int64_t& first, int64_t& second) {
    const int64_t base = chunk / 4 * 256, c = chunk % 4;
    const int64_t apart = LAYOUTS[kind].apart;
    if (apart == 64) first = base + c / 2 * 128 + c % 2 * 32;
    else if (apart == 128) first = base + 32 * c;
    else first = 64 * chunk;
    second = first + apart;
}

// The 64 numbers of x for a chunk, with zeros after the end of x.
inline void take(const float* x, int64_t inner, int64_t kind, int64_t chunk, f16v* part) {
    int64_t runs[2];
    runs_of(kind, chunk, runs[0], runs[1]);
    for (int i = 0; i < 4; i++) {
        const int64_t from = runs[i / 2] + i % 2 * 16;
        part[i] = from + 16 <= inner ? load(x + from) : (f16v){};
    }
}

// The largest magnitude of 64 numbers; NaN if one of them is NaN.
inline float peak_of(const f16v* part) {
    f16v most = {}, none = {};
    for (int i = 0; i < 4; i++) most = max(most, max(part[i], -part[i])), none += part[i] * splat(0.0f);
    return largest(most) + sum(none);
}

// Splits 64 numbers into high and low bytes: a number is about (256 * high + low) * peak / 32,512.
inline void halve(const f16v* part, float peak, int8_t* highs, int8_t* lows) {
    const __m512 by = _mm512_set1_ps(peak > 1e-35f ? 32512 / peak : 0.0f);
    for (int i = 0; i < 4; i++) {
        const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps((__m512)part[i], by));
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
        const __m512i low = _mm512_sub_epi32(v, _mm512_slli_epi32(high, 8));
        _mm_storeu_si128((__m128i*)(highs + 16 * i), _mm512_cvtepi32_epi8(high));
        _mm_storeu_si128((__m128i*)(lows + 16 * i), _mm512_cvtepi32_epi8(low));
    }
}

inline __m512i twice(const void* p) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p)); }
inline __m512i pair(int first, int second) {
    return _mm512_inserti64x4(_mm512_set1_epi8((char)first), _mm256_set1_epi8((char)second), 1);
}
inline __m512i lanes(int a, int b, int c, int d) {
    return _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
}

// One unit of a row, 64 numbers times the format's `chunks`: calls `use(chunk, numbers, scales, lows)` for every 64; lane
// i is for four numbers.
template <int KIND>
struct Unit {
    static constexpr int64_t CHUNKS = LAYOUTS[KIND].chunks;

    // `blocks` are the blocks that are left in the row.
    template <class Use>
    static void each(const uint8_t* p, int64_t blocks, Use use) {
        if constexpr (KIND == INT8) {
            const __m512i bytes = _mm512_maskz_loadu_epi8(blocks < 64 ? (1ull << blocks) - 1 : ~0ull, p);
            use(0, _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)), _mm512_set1_ps(1), _mm512_set1_ps(-128));
        } else if constexpr (KIND == Q8_0) eight(p, blocks > 1, use);
        else if constexpr (KIND >= Q4_0 && KIND <= Q5_1) fours(p, blocks, use);
        else if constexpr (KIND == Q2_K || KIND == Q3_K) twos(p, use);
        else if constexpr (KIND == Q4_K || KIND == Q5_K) nested(p, use);
        else if constexpr (KIND == Q6_K) six(p, use);
        else static_assert(NONE<KIND>, "a number format has `chunks` but no reader of whole numbers (units.h)");
    }

  private:
    template <class Use>
    static void eight(const uint8_t* p, bool both, Use use) {
        const __m256i a = _mm256_loadu_si256((const __m256i*)(p + 2));
        const __m256i b = both ? _mm256_loadu_si256((const __m256i*)(p + 36)) : _mm256_setzero_si256();
        uint16_t scales[2] = {0, 0};
        memcpy(scales, p, 2);
        if (both) memcpy(scales + 1, p + 34, 2);
        const __m128 two = _mm_cvtph_ps(_mm_cvtsi32_si128(scales[0] | scales[1] << 16));
        const __m512 scale = _mm512_permutexvar_ps(lanes(0, 0, 1, 1), _mm512_castps128_ps512(two));
        const __m512i numbers = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        use(0, _mm512_xor_si512(numbers, _mm512_set1_epi8(-128)), scale, _mm512_mul_ps(scale, _mm512_set1_ps(-128)));
    }

    template <class Use>
    static void fours(const uint8_t* p, int64_t blocks, Use use) {
        constexpr int bytes = (int)LAYOUTS[KIND].bytes, words = bytes / 2;
        constexpr bool five = KIND >= Q5_0, lowest = KIND == Q4_1 || KIND == Q5_1;
        constexpr int numbers = (lowest ? 4 : 2) + (five ? 4 : 0);
        const __mmask64 there = blocks > 1 ? (1ull << 2 * bytes) - 1 : (1ull << bytes) - 1;
        const __m512i all = blocks > 3 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(there, p);
        const __m512i sixteen = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        const __m512i at = _mm512_add_epi8(sixteen, pair(numbers, bytes + numbers));
        const __m512i shifts = _mm512_setr_epi64(0, 0, 0x4000400040004, 0x4000400040004, 0, 0, 0x4000400040004, 0x4000400040004);
        __m512i q = _mm512_srlv_epi16(_mm512_permutexvar_epi8(at, all), shifts);
        q = _mm512_and_si512(q, _mm512_set1_epi8(15));
        if constexpr (five) {
            uint32_t bits[2] = {0, 0};
            memcpy(bits, p + numbers - 4, 4);
            if (blocks > 1) memcpy(bits + 1, p + bytes + numbers - 4, 4);
            q = _mm512_mask_add_epi8(q, bits[0] | (uint64_t)bits[1] << 32, q, _mm512_set1_epi8(16));
        }
        const auto halves = [&](int word) {
            const __m256i index = _mm256_set_m128i(_mm_set1_epi16((short)(words + word)), _mm_set1_epi16((short)word));
            return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(_mm512_castsi256_si512(index), all)));
        };
        const __m512 scale = halves(0);
        use(0, q, scale, lowest ? halves(1) : _mm512_mul_ps(scale, _mm512_set1_ps(five ? -16 : -8)));
    }

    template <class Use>
    static void twos(const uint8_t* p, Use use) {
        __m512 scales, lows;
        __m512i high = _mm512_setzero_si512();
        if constexpr (KIND == Q2_K) {
            const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
            scales = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_and_si512(both, _mm512_set1_epi32(15))), _mm512_set1_ps(half(p + 80)));
            lows = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(both, 4)), _mm512_set1_ps(-half(p + 82)));
        } else {
            const Sixteen found(p + 96);
            const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)found.scales));
            scales = _mm512_cvtepi32_ps(_mm512_sub_epi32(wide, _mm512_set1_epi32(32)));
            scales = _mm512_mul_ps(scales, _mm512_set1_ps(half(p + 108)));
            lows = _mm512_mul_ps(scales, _mm512_set1_ps(-4));
            high = twice(p);
        }
        const __m512i numbers = _mm512_loadu_si512(p + (KIND == Q2_K ? 16 : 32));
        for (int c = 0; c < 4; c++) {
            __m512i q = _mm512_and_si512(_mm512_srli_epi16(numbers, 2 * c), _mm512_set1_epi8(3));
            if constexpr (KIND == Q3_K)
                q = _mm512_mask_add_epi8(q, _mm512_test_epi8_mask(high, pair(1 << c, 16 << c)), q, _mm512_set1_epi8(4));
            const __m512i of = lanes(2 * c, 2 * c + 1, 2 * c + 8, 2 * c + 9);
            use(c, q, _mm512_permutexvar_ps(of, scales), _mm512_permutexvar_ps(of, lows));
        }
    }

    template <class Use>
    static void nested(const uint8_t* p, Use use) {
        const Twelve twelve(p + 4);
        const auto wide = [](const uint32_t* eight, float by) {
            const __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)eight)));
            return _mm512_castps256_ps512(_mm256_mul_ps(x, _mm256_set1_ps(by)));
        };
        const __m512 scales = wide(twelve.scales, half(p)), lows = wide(twelve.lows, -half(p + 2));
        const __m512i high = KIND == Q5_K ? twice(p + 16) : _mm512_setzero_si512();
        for (int c = 0; c < 4; c++) {
            const __m512i both = _mm512_loadu_si512(p + (KIND == Q4_K ? 16 : 48) + c / 2 * 64);
            __m512i q = _mm512_and_si512(c % 2 ? _mm512_srli_epi16(both, 4) : both, _mm512_set1_epi8(15));
            const int first = c / 2 * 4 + c % 2, second = first + 2;
            if constexpr (KIND == Q5_K) {
                const __mmask64 more = _mm512_test_epi8_mask(high, pair(1 << first, 1 << second));
                q = _mm512_mask_add_epi8(q, more, q, _mm512_set1_epi8(16));
            }
            const __m512i of = lanes(first, first, second, second);
            use(c, q, _mm512_permutexvar_ps(of, scales), _mm512_permutexvar_ps(of, lows));
        }
    }

    template <class Use>
    static void six(const uint8_t* p, Use use) {
        const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(p + 192)));
        const __m512 scales = _mm512_mul_ps(_mm512_cvtepi32_ps(wide), _mm512_set1_ps(half(p + 208)));
        const __m512 lows = _mm512_mul_ps(scales, _mm512_set1_ps(-32));
        const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
        for (int c = 0; c < 4; c++) {
            const __m512i both = _mm512_loadu_si512(p + c / 2 * 64);
            const __m512i low = _mm512_and_si512(c % 2 ? _mm512_srli_epi16(both, 4) : both, _mm512_set1_epi8(15));
            __m512i high = _mm512_srlv_epi16(twice(p + 128 + c / 2 * 32), shifts);
            if (c % 2) high = _mm512_srli_epi16(high, 4);
            high = _mm512_slli_epi16(_mm512_and_si512(high, _mm512_set1_epi8(3)), 4);
            const __m512i of = lanes(4 * c, 4 * c + 1, 4 * c + 2, 4 * c + 3);
            use(c, _mm512_or_si512(low, high), _mm512_permutexvar_ps(of, scales), _mm512_permutexvar_ps(of, lows));
        }
    }
};

}  // namespace
#endif
