// The number formats of weight matrices (kernels/formats.py): where the numbers of a block lie, read one by one.
//
// The `number` of a `Format` is its kind here. A row of F32, F16, BF16 and int8 is its numbers; in int8 a float32 scale
// follows. FP8 is blocks of a float32 scale and 32 numbers in float8 (E4M3). The other formats are blocks of 32 or 256
// numbers as in ggml-common.h of llama.cpp.

#pragma once
#include <type_traits>
#include "simd.h"

enum FormatNumber { F32, BF16, INT8, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, FP8, FORMATS };

namespace {

constexpr int64_t BLOCK_NUMBERS[FORMATS] = {1, 1, 1, 1, 32, 32, 32, 32, 32, 256, 256, 256, 256, 256, 32};
constexpr int64_t BLOCK_BYTES[FORMATS] = {4, 2, 1, 2, 18, 20, 22, 24, 34, 84, 110, 144, 176, 210, 36};

inline int64_t row_bytes(int64_t kind, int64_t inner) {
    return inner / BLOCK_NUMBERS[kind] * BLOCK_BYTES[kind] + (kind == INT8 ? 4 : 0);
}

inline float half(const uint8_t* p) {
    _Float16 x;
    memcpy(&x, p, 2);
    return (float)x;
}

// The eight 6-bit scales and eight 6-bit lowest numbers in the 12 bytes of Q4_K and Q5_K, four per word.
struct Twelve {
    uint32_t scales[2], lows[2];
    explicit Twelve(const uint8_t* p) {
        uint32_t w[3];
        memcpy(w, p, 12);
        scales[0] = w[0] & 0x3f3f3f3fu, lows[0] = w[1] & 0x3f3f3f3fu;
        scales[1] = (w[2] & 0x0f0f0f0fu) | ((w[0] >> 2) & 0x30303030u);
        lows[1] = ((w[2] >> 4) & 0x0f0f0f0fu) | ((w[1] >> 2) & 0x30303030u);
    }
};

// The sixteen 6-bit scales in the 12 bytes of Q3_K, stored with 32 added, four per word.
struct Sixteen {
    uint32_t scales[4];
    explicit Sixteen(const uint8_t* p) {
        uint32_t w[3];
        memcpy(w, p, 12);
        for (int i = 0; i < 4; i++)
            scales[i] = ((i < 2 ? w[i] : w[i - 2] >> 4) & 0x0f0f0f0fu) | (((w[2] >> 2 * i) & 0x03030303u) << 4);
    }
};

// Reads a block of 32 or 256 numbers into float32; `count` is used by formats without blocks.
template <int KIND>
inline void widen_block(const uint8_t* b, float* y, int64_t count = 32) {
    if constexpr (KIND <= F16) {
        for (int64_t i = 0; i < count; i++) {
            if constexpr (KIND == F32) memcpy(y + i, b + 4 * i, 4);
            else if constexpr (KIND == F16) y[i] = half(b + 2 * i);
            else if constexpr (KIND == INT8) y[i] = (float)(int8_t)b[i];
            else y[i] = widen(bf16{(uint16_t)(b[2 * i] | b[2 * i + 1] << 8)});
        }
    } else if constexpr (KIND == FP8) {
        float scale;
        memcpy(&scale, b, 4);
        for (int i = 0; i < 32; i++) {  // as float16 the exponent of the same bits is 8 less
            const uint16_t size = (b[4 + i] & 0x7f) << 7, none = size == 0x3f80 ? 0x7c00 : 0;  // 0x7f is no number
            const uint16_t bits = (b[4 + i] & 0x80) << 8 | size | none;
            y[i] = half((const uint8_t*)&bits) * 256 * scale;
        }
    } else if constexpr (KIND == Q8_0) {
        for (int i = 0; i < 32; i++) y[i] = half(b) * (int8_t)b[2 + i];
    } else if constexpr (KIND <= Q5_1) {
        constexpr bool five = KIND >= Q5_0, lowest = KIND == Q4_1 || KIND == Q5_1;
        const uint8_t* numbers = b + (lowest ? 4 : 2) + (five ? 4 : 0);
        const float scale = half(b), low = lowest ? half(b + 2) : -scale * (five ? 16 : 8);
        uint32_t bits = 0;
        if (five) memcpy(&bits, numbers - 4, 4);
        for (int i = 0; i < 16; i++) {
            y[i] = low + scale * (float)((numbers[i] & 15) | (bits >> i & 1) << 4);
            y[16 + i] = low + scale * (float)(numbers[i] >> 4 | (bits >> (16 + i) & 1) << 4);
        }
    } else if constexpr (KIND == Q2_K || KIND == Q3_K) {
        const uint8_t* numbers = b + (KIND == Q2_K ? 16 : 32);
        const float all = half(b + (KIND == Q2_K ? 80 : 108)), lows = KIND == Q2_K ? half(b + 82) : 0.0f;
        uint8_t scales[16];
        if constexpr (KIND == Q2_K) memcpy(scales, b, 16);
        else memcpy(scales, Sixteen(b + 96).scales, 16);
        for (int g = 0; g < 16; g++) {  // groups of 16
            const int at = g / 8 * 32 + g % 2 * 16, shift = g / 2 % 4 * 2;
            const float scale = KIND == Q2_K ? all * (scales[g] & 15) : all * (scales[g] - 32);
            const float low = KIND == Q2_K ? -lows * (scales[g] >> 4) : -4 * scale;
            for (int i = 0; i < 16; i++) {
                int x = numbers[at + i] >> shift & 3;
                if (KIND == Q3_K) x |= (b[at % 32 + i] >> g / 2 & 1) << 2;
                y[16 * g + i] = low + scale * (float)x;
            }
        }
    } else if constexpr (KIND == Q4_K || KIND == Q5_K) {
        const Twelve twelve(b + 4);
        const uint8_t *scales = (const uint8_t*)twelve.scales, *lows = (const uint8_t*)twelve.lows;
        const uint8_t* numbers = b + (KIND == Q4_K ? 16 : 48);
        for (int g = 0; g < 8; g++) {  // groups of 32
            const float scale = half(b) * scales[g], low = -half(b + 2) * lows[g];
            for (int i = 0; i < 32; i++) {
                int x = numbers[g / 2 * 32 + i] >> (g % 2 * 4) & 15;
                if (KIND == Q5_K) x |= (b[16 + i] >> g & 1) << 4;
                y[32 * g + i] = low + scale * (float)x;
            }
        }
    } else {
        const int8_t* scales = (const int8_t*)b + 192;
        for (int g = 0; g < 16; g++) {  // groups of 16
            const int part = g / 8, quarter = g / 2 % 4, at = g % 2 * 16;
            const uint8_t* low = b + 64 * part + 32 * (quarter % 2) + at;
            const uint8_t* high = b + 128 + 32 * part + at;
            const float scale = half(b + 208) * scales[g];
            for (int i = 0; i < 16; i++) {
                const int x = (low[i] >> quarter / 2 * 4 & 15) | (high[i] >> 2 * quarter & 3) << 4;
                y[16 * g + i] = scale * (float)(x - 32);
            }
        }
    }
}

// Calls `with(KIND constant)` for a format.
template <class With>
inline void of_format(int64_t kind, With with) {
    switch (kind) {
        case F32: return with(std::integral_constant<int, F32>());
        case BF16: return with(std::integral_constant<int, BF16>());
        case INT8: return with(std::integral_constant<int, INT8>());
        case F16: return with(std::integral_constant<int, F16>());
        case Q4_0: return with(std::integral_constant<int, Q4_0>());
        case Q4_1: return with(std::integral_constant<int, Q4_1>());
        case Q5_0: return with(std::integral_constant<int, Q5_0>());
        case Q5_1: return with(std::integral_constant<int, Q5_1>());
        case Q8_0: return with(std::integral_constant<int, Q8_0>());
        case Q2_K: return with(std::integral_constant<int, Q2_K>());
        case Q3_K: return with(std::integral_constant<int, Q3_K>());
        case Q4_K: return with(std::integral_constant<int, Q4_K>());
        case Q5_K: return with(std::integral_constant<int, Q5_K>());
        case Q6_K: return with(std::integral_constant<int, Q6_K>());
        case FP8: return with(std::integral_constant<int, FP8>());
    }
}

}  // namespace
