// Sixteen floats at a time, in GCC's and Clang's vector extensions: the compiler maps them to AVX-512, AVX2 or NEON.

#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

typedef float f16v __attribute__((vector_size(64)));
typedef int32_t i16v __attribute__((vector_size(64)));
typedef int16_t s16v __attribute__((vector_size(32)));
typedef uint16_t u16v __attribute__((vector_size(32)));
typedef int8_t b16v __attribute__((vector_size(16)));
typedef uint8_t c16v __attribute__((vector_size(16)));
typedef uint32_t w16v __attribute__((vector_size(64)));

struct bf16 { uint16_t bits; };
struct float16 { uint16_t bits; };
struct nibbles { uint8_t two; };  // two numbers of four bits; 32 lie in 16 bytes as `load` says

static inline f16v splat(float x) { return x - (f16v){}; }

static inline f16v load(const float* p) { f16v x; memcpy(&x, p, 64); return x; }
static inline void store(float* p, f16v x) { memcpy(p, &x, 64); }

// GCC 12 widens the two halves of a vector one after the other.
static inline f16v widen(u16v x) {
#if defined(__AVX512F__)
    return (f16v)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#else
    return (f16v)(__builtin_convertvector(x, w16v) << 16);
#endif
}
static inline f16v load(const bf16* p) { u16v x; memcpy(&x, p, 32); return widen(x); }

static inline float widen(float16 x) { _Float16 y; memcpy(&y, &x, 2); return (float)y; }
static inline float16 narrow_half(float x) { _Float16 y = (_Float16)x; float16 bits; memcpy(&bits, &y, 2); return bits; }

#if defined(__AVX2__) && !defined(__AVX512F__)
// Two halves of eight numbers side by side.
template <class Half>
static inline f16v both(Half low, Half high) {
    f16v x;
    memcpy(&x, &low, 32), memcpy((char*)&x + 32, &high, 32);
    return x;
}
#endif

static inline f16v load(const float16* p) {
#if defined(__AVX512F__)
    return (f16v)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__) && defined(__F16C__)
    const __m128i* x = (const __m128i*)p;
    return both(_mm256_cvtph_ps(_mm_loadu_si128(x)), _mm256_cvtph_ps(_mm_loadu_si128(x + 1)));
#else
    f16v x;
    for (int i = 0; i < 16; i++) x[i] = widen(p[i]);
    return x;
#endif
}

// GCC 12 widens bytes one by one.
static inline f16v load(const int8_t* p) {
#if defined(__AVX512F__)
    return (f16v)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    const auto eight = [p](int at) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + at)))); };
    return both(eight(0), eight(8));
#else
    b16v x; memcpy(&x, p, 16);
    return __builtin_convertvector(__builtin_convertvector(x, i16v), f16v);
#endif
}

// 32 numbers of four bits, each low + number times scale: those in the low bits of 16 bytes, then those in the high
// bits.
static inline void load(const uint8_t* p, float scale, float low, f16v& a, f16v& b) {
    const f16v counted = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#if defined(__AVX512F__)  // sixteen possible numbers are a register to look up in; the upper bits of an index are ignored
    f16v table = counted * splat(scale) + splat(low);
    __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    a = (f16v)_mm512_permutexvar_ps(x, (__m512)table);
    b = (f16v)_mm512_permutexvar_ps(_mm512_srli_epi32(x, 4), (__m512)table);
#else
    (void)counted;
#if defined(__AVX2__)
    const auto eight = [p](int at) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + at))); };
    const i16v wide = (i16v)both(eight(0), eight(8));
#else
    c16v x; memcpy(&x, p, 16);
    const i16v wide = __builtin_convertvector(x, i16v);
#endif
    a = __builtin_convertvector(wide & 15, f16v) * splat(scale) + splat(low);
    b = __builtin_convertvector(wide >> 4, f16v) * splat(scale) + splat(low);
#endif
}

static inline float widen(float x) { return x; }
static inline float widen(bf16 x) { uint32_t w = (uint32_t)x.bits << 16; float y; memcpy(&y, &w, 4); return y; }

// Rounds to nearest even; NaN stays NaN.
static inline bf16 narrow(float x) {
    uint32_t w; memcpy(&w, &x, 4);
    if ((w & 0x7fffffffu) > 0x7f800000u) return {(uint16_t)((w >> 16) | 0x40)};
    return {(uint16_t)((w + 0x7fffu + ((w >> 16) & 1u)) >> 16)};
}

// Sixteen numbers to bfloat16, as `narrow` rounds them; the processor's own instruction makes those below 1e-38 zero.
static inline u16v narrow(f16v x) {
#if defined(__AVX512BF16__)
    return (u16v)_mm512_cvtneps_pbh((__m512)x);
#else
    const w16v w = (w16v)x, rounded = w + 0x7fffu + ((w >> 16) & 1u);
    return __builtin_convertvector((x == x ? rounded : w | 0x400000u) >> 16, u16v);
#endif
}
static inline void store(bf16* p, f16v x) {
    const u16v halves = narrow(x);
    memcpy(p, &halves, 32);
}

// The numbers that would be stored as T.
template <class T>
static inline f16v rounded(f16v x) {
    if constexpr (std::is_same_v<T, bf16>) return widen(narrow(x));
    else return x;
}

static inline void put(float* p, float x) { *p = x; }
static inline void put(bf16* p, float x) { *p = narrow(x); }
static inline void put(float16* p, float x) { *p = narrow_half(x); }

#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (i16v){__VA_ARGS__})
#endif

// Lane i of the result is the sum of the lanes of a[i]: sixteen horizontal sums in 15 additions.
static inline f16v sums(f16v* a) {
    for (int i = 0; i < 8; i++) {
        f16v x = a[2 * i], y = a[2 * i + 1];
        a[i] = PICK(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               PICK(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
    for (int i = 0; i < 4; i++) {
        f16v x = a[2 * i], y = a[2 * i + 1];
        a[i] = PICK(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               PICK(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
    for (int i = 0; i < 2; i++) {
        f16v x = a[2 * i], y = a[2 * i + 1];
        a[i] = PICK(x, y, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
               PICK(x, y, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    }
    return PICK(a[0], a[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           PICK(a[0], a[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

static inline float sum(f16v x) {
    float s = 0, y[16];
    store(y, x);
    for (int i = 0; i < 8; i++) y[i] += y[i + 8];
    for (int i = 0; i < 4; i++) y[i] += y[i + 4];
    s = (y[0] + y[2]) + (y[1] + y[3]);
    return s;
}

static inline f16v max(f16v x, f16v y) { return x > y ? x : y; }

static inline float largest(f16v x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float y[16];
    store(y, x);
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) y[i] = y[i] > y[i + n] ? y[i] : y[i + n];
    return y[0];
#endif
}

// e^x for x <= 0, relative error below 2e-7; 0 below -104 (-87 without AVX-512). NaN stays NaN.
static inline f16v exponential(f16v x) {
#if defined(__AVX512F__)
    x = (f16v)_mm512_max_ps(_mm512_set1_ps(-104.0f), (__m512)x);  // returns its second argument, x, if that is NaN
    const f16v n = (f16v)_mm512_roundscale_ps((__m512)(x * splat(1.44269504088896f)), 8);
#else
    const f16v magic = splat(12582912.0f), given = x;
    i16v alive = x > splat(-87.0f);
    x = max(x, splat(-87.0f));
    const f16v n = x * splat(1.44269504088896f) + magic - magic;
#endif
    f16v r = x - n * splat(0.693359375f) - n * splat(-2.12194440e-4f);
    f16v p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * r * r + r + splat(1.0f);
#if defined(__AVX512F__)
    return (f16v)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    i16v bits = (i16v)p + (__builtin_convertvector(n, i16v) << 23);
    f16v found = (f16v)(bits & alive);
    return given == given ? found : given;
#endif
}

// Calls `with(R constant)` for groups of at most M of `count` rows.
template <int M, class With>
static inline void grouped(int64_t count, With with) {
    for (int64_t r = 0; r < count; r += M) {
        switch (count - r) {
            case 1: with(std::integral_constant<int, 1>(), r); break;
            case 2: with(std::integral_constant<int, 2>(), r); break;
            case 3: with(std::integral_constant<int, 3>(), r); break;
            default:
                if constexpr (M == 4) {
                    with(std::integral_constant<int, 4>(), r);
                } else {
                    switch (count - r) {
                        case 4: with(std::integral_constant<int, 4>(), r); break;
                        case 5: with(std::integral_constant<int, 5>(), r); break;
                        case 6: with(std::integral_constant<int, 6>(), r); break;
                        case 7: with(std::integral_constant<int, 7>(), r); break;
                        default: with(std::integral_constant<int, 8>(), r);
                    }
                }
        }
    }
}

#if defined(__AVX512F__)

// Lane i of 128 bits of y[m] becomes lane m of y[i].
static inline void across(__m512i* y) {
    const __m512i a = _mm512_shuffle_i32x4(y[0], y[1], 0x44), b = _mm512_shuffle_i32x4(y[0], y[1], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(y[2], y[3], 0x44), d = _mm512_shuffle_i32x4(y[2], y[3], 0xee);
    y[0] = _mm512_shuffle_i32x4(a, c, 0x88), y[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    y[2] = _mm512_shuffle_i32x4(b, d, 0x88), y[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

// In each 128 bits: number i of y[m] becomes number m of y[i], for words of 32 bits.
static inline void turn_words(__m512i* y) {
    const __m512i a = _mm512_unpacklo_epi32(y[0], y[1]), b = _mm512_unpackhi_epi32(y[0], y[1]);
    const __m512i c = _mm512_unpacklo_epi32(y[2], y[3]), d = _mm512_unpackhi_epi32(y[2], y[3]);
    y[0] = _mm512_unpacklo_epi64(a, c), y[1] = _mm512_unpackhi_epi64(a, c);
    y[2] = _mm512_unpacklo_epi64(b, d), y[3] = _mm512_unpackhi_epi64(b, d);
}

// Word i of y[m] becomes word m of y[i], for sixteen words of 32 bits.
static inline void turn(__m512i* y) {
    __m512i u[4];
    for (int m = 0; m < 16; m += 4) turn_words(y + m);
    for (int j = 0; j < 4; j++) {
        for (int m = 0; m < 4; m++) u[m] = y[4 * m + j];
        across(u);
        for (int i = 0; i < 4; i++) y[4 * i + j] = u[i];
    }
}

#endif
