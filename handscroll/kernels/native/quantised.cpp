// Rows of x times a matrix in a number format (formats.h), which is read in its own bytes.
//
// With AVX-512 VNNI the products are of whole numbers: the unsigned numbers of a block times those of x in 16 bits
// (`Planes`). A weight is low + scale * number; the part of `low` is low times sums of x. On other processors a block
// is first widened to float32, in vector extensions that the compiler maps to the processor's instructions.

#include "quantised.h"
#include <algorithm>
#include "units.h"

namespace {

#if defined(WHOLE)

constexpr int64_t SOON = 2048;  // bytes of weights that are prefetched

// The products of 64 numbers 0 .. 255 with those of x; each lane sums four.
inline __m512i multiplied(__m512i numbers, const Planes::Chunk& x) {
    const __m512i high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), numbers, _mm512_load_si512(x.high));
    return _mm512_dpbusd_epi32(_mm512_slli_epi32(high, 8), numbers, _mm512_load_si512(x.low));
}

float split(const f16v* part, Planes::Chunk& to) {
    const float peak = peak_of(part), scale = peak / 32512;
    halve(part, peak, to.high, to.low);
    const __m512i sums = multiplied(_mm512_set1_epi8(1), to);
    _mm512_store_ps(to.sums, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(scale)));
    return scale;
}

// The results of R rows of x, from number `first` on, with one row of weights: y[r] holds them as sixteen sums.
template <int KIND, int R>
inline void whole_row(const Planes& x, int64_t first, int64_t inner, const uint8_t* w, f16v* y) {
    constexpr int64_t numbers = LAYOUTS[KIND].numbers, bytes = LAYOUTS[KIND].bytes;
    constexpr int64_t in_unit = 64 * Unit<KIND>::CHUNKS / numbers;
    const int64_t blocks = inner / numbers;
    __m512 total[R], lows[R];
    for (int r = 0; r < R; r++) total[r] = lows[r] = _mm512_setzero_ps();
    for (int64_t b = 0, chunk = 0; b < blocks; b += in_unit, chunk += Unit<KIND>::CHUNKS) {
        const uint8_t* p = w + b * bytes;
        for (int64_t i = 0; i < in_unit * bytes; i += 64) __builtin_prefetch(p + SOON + i, 0, 0);
        Unit<KIND>::each(p, blocks - b, [&](int c, __m512i q, __m512 scale, __m512 low) __attribute__((always_inline)) {
            for (int r = 0; r < R; r++) {
                const int64_t at = (first + r) * x.chunks + chunk + c;
                const __m512 found = _mm512_cvtepi32_ps(multiplied(q, x.at[at]));
                total[r] = _mm512_fmadd_ps(found, _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[at])), total[r]);
                lows[r] = _mm512_fmadd_ps(low, _mm512_load_ps(x.at[at].sums), lows[r]);
            }
        });
    }
    for (int r = 0; r < R; r++) y[r] = (f16v)_mm512_add_ps(total[r], lows[r]);
}

#endif

// The same in float32.
template <int KIND, int R>
inline void float_row(const float* x, int64_t inner, const uint8_t* w, f16v* y) {
    constexpr int64_t in_block = LAYOUTS[KIND].numbers, numbers = in_block == 1 ? 32 : in_block;
    f16v total[R] = {};
    float wide[numbers];
    for (int64_t e = 0; e < inner; e += numbers) {
        const int64_t here = std::min(numbers, inner - e);
        widen_block<KIND>(w + e / in_block * LAYOUTS[KIND].bytes, wide, here);
        for (int64_t i = 0; i < here; i += 16)
            for (int r = 0; r < R; r++) total[r] += load(wide + i) * load(x + r * inner + e + i);
    }
    for (int r = 0; r < R; r++) y[r] = total[r];
}

// The same for any format; `whole` are the rows of x in 16 bits (unused if the processor has no such products).
template <int KIND, int R>
inline void quantised_row(const float* x, const Planes& whole, int64_t first, int64_t inner, const uint8_t* w, f16v* y) {
#if defined(WHOLE)
    if constexpr (LAYOUTS[KIND].chunks > 0) whole_row<KIND, R>(whole, first, inner, w, y);
    else
#endif
        float_row<KIND, R>(x + first * inner, inner, w, y);
    if constexpr (LAYOUTS[KIND].scaled)
        for (int r = 0; r < R; r++) y[r] *= splat(row_scale<KIND>(w, inner));
    (void)whole;
}

template <int KIND>
void slice(const float* x, const Planes& planes, int64_t count, int64_t inner, const uint8_t* w, int64_t first, int64_t last,
           float* y) {
    constexpr int AT_ONCE = 16;  // rows of weights whose results are summed together
    const int64_t bytes = row_bytes(KIND, inner), width = last - first;
    for (int64_t n = first; n < last; n += AT_ONCE) {
        const int64_t here = std::min((int64_t)AT_ONCE, last - n);
        const auto some = [&](auto constant, int64_t r) {
            constexpr int R = constant;
            f16v parts[R][AT_ONCE] = {}, found[R];
            for (int64_t i = 0; i < here; i++) {
                quantised_row<KIND, R>(x, planes, r, inner, w + (n + i) * bytes, found);
                for (int k = 0; k < R; k++) parts[k][i] = found[k];
            }
            for (int k = 0; k < R; k++) {
                const f16v y16 = sums(parts[k]);
                memcpy(y + (r + k) * width + n - first, &y16, 4 * here);
            }
        };
        int64_t r = 0;
        for (; r + 8 <= count; r += 8) some(std::integral_constant<int, 8>(), r);
        for (; r + 4 <= count; r += 4) some(std::integral_constant<int, 4>(), r);
        for (; r + 2 <= count; r += 2) some(std::integral_constant<int, 2>(), r);
        for (; r < count; r++) some(std::integral_constant<int, 1>(), r);
    }
}

}  // namespace

Planes::Planes(const float* x, int64_t rows, int64_t inner, int64_t kind) {
#if defined(WHOLE)
    if (!LAYOUTS[kind].chunks) return;
    chunks = (inner + 63) / 64;
    room.resize(rows * chunks * sizeof(Chunk) + 64), scales.resize(rows * chunks);
    at = (Chunk*)((uintptr_t)(room.data() + 63) / 64 * 64);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < chunks; c++) {
            f16v part[4];
            take(x + r * inner, inner, kind, c, part);
            scales[r * chunks + c] = split(part, at[r * chunks + c]);
        }
#else
    (void)x, (void)rows, (void)inner, (void)kind;
#endif
}

void quantised_slice(const float* x, const Planes& planes, int64_t count, int64_t kind, int64_t inner, const uint8_t* w,
                     int64_t first, int64_t last, float* y) {
    of_format(kind, [&](auto constant) {
        if constexpr (constant > BF16) slice<constant>(x, planes, count, inner, w, first, last, y);
    });
}
