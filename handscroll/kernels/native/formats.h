// The number formats of weight matrices (kernels/formats.py): where the numbers of a block lie, read one by one.
//
// The `number` of a `Format` is its kind here. A row of F32, F16, BF16 and int8 is its numbers; in int8 a float32 scale
// follows. FP8 is blocks of a float32 scale and 32 numbers in float8 (E4M3). The other formats are blocks of 32 or 256
// numbers as in ggml-common.h of llama.cpp. docs/adding/format.md tells how to add one.

#pragma once
#include <type_traits>
#include <utility>
#include "simd.h"

enum FormatNumber { F32, BF16, INT8, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, FP8, FORMATS };

namespace {

// All that kernels ask about a format. The last three are for products of whole numbers (units.h).
struct Layout {
    int64_t numbers, bytes;  // of a block; with 1 number, a row is its numbers, one after the other
    bool scaled = false;     // a float32 scale of the whole row follows its blocks
    int64_t chunks = 0;      // of 64 numbers in a unit; 0: its numbers are not whole, or nothing reads them as such
    int64_t group = 0;       // numbers that share a scale, 16 or 32
    int64_t apart = 32;      // from the first 32 numbers of a chunk to its other 32
};

constexpr Layout LAYOUTS[] = {
    {1, 4},                         // F32
    {1, 2},                         // BF16
    {1, 1, true, 1, 32},            // INT8
    {1, 2},                         // F16
    {32, 18, false, 1, 32},         // Q4_0
    {32, 20, false, 1, 32},         // Q4_1
    {32, 22, false, 1, 32},         // Q5_0
    {32, 24, false, 1, 32},         // Q5_1
    {32, 34, false, 1, 32},         // Q8_0
    {256, 84, false, 4, 16, 128},   // Q2_K
    {256, 110, false, 4, 16, 128},  // Q3_K
    {256, 144, false, 4, 32, 64},   // Q4_K
    {256, 176, false, 4, 32, 64},   // Q5_K
    {256, 210, false, 4, 16},       // Q6_K
    {32, 36},                       // FP8
};

constexpr bool sound() {
    for (const Layout& one : LAYOUTS) {
        const bool blocks = one.bytes > 0 && (one.numbers == 1 || (one.numbers > 0 && one.numbers % 16 == 0));
        const bool group = one.group == 16 || one.group == 32;
        const bool apart = one.apart == 32 || one.apart == 64 || one.apart == 128;
        if (!blocks || (one.chunks && (64 * one.chunks % one.numbers || !group || !apart))) return false;
    }
    return true;
}
static_assert(sizeof(LAYOUTS) / sizeof(Layout) == FORMATS, "every number of a format needs its line in LAYOUTS");
static_assert(sound(), "a block is 1 number or a multiple of 16; a unit is whole blocks; see Layout for the rest");

template <int KIND>
constexpr bool NONE = false;  // for the static_assert in a last branch, which fails only if a format comes there

inline int64_t row_bytes(int64_t kind, int64_t inner) {
    const Layout& one = LAYOUTS[kind];
    return inner / one.numbers * one.bytes + (one.scaled ? 4 : 0);
}

// The scale of a row, which is its last four bytes; 1 in a format without one.
template <int KIND>
inline float row_scale(const uint8_t* w, int64_t inner) {
    float scale = 1;
    if constexpr (LAYOUTS[KIND].scaled) memcpy(&scale, w + row_bytes(KIND, inner) - 4, 4);
    return scale;
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

// Reads the numbers of a block into float32; `count` is used by formats without blocks.
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
    } else if constexpr (KIND == Q6_K) {
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
    } else static_assert(NONE<KIND>, "a number format has no reader in widen_block (formats.h)");
}

template <class With, int... KINDS>
inline void of_format(int64_t kind, With with, std::integer_sequence<int, KINDS...>) {
    (void)((kind == KINDS && (with(std::integral_constant<int, KINDS>()), true)) || ...);
}

// Calls `with(KIND constant)` for a format.
template <class With>
inline void of_format(int64_t kind, With with) {
    of_format(kind, with, std::make_integer_sequence<int, FORMATS>());
}

}  // namespace
