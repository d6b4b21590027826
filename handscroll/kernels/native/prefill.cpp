// Attention of many queries over a run of keys in bfloat16, in blocks that stay in cache: two small matrix products
// (AVX-512 BF16, float32 sums) around an online softmax (Dao et al. 2022, "FlashAttention").
//
// Queries are bfloat16 over keys and values of bfloat16, or float32 over float16. A float16 key is the sum of two
// bfloat16 numbers, and a float32 query nearly so (16 bits of 24). Three of the four products are made, since that of the
// two small parts is below the others' rounding. float16 values are rounded to bfloat16.
//
// A task is 256 tokens of the query heads that share one kv head. Keys are packed so that a vector holds two features
// of sixteen keys, values so that it holds two keys' numbers of sixteen features. Both are packed once per task and
// block, in panels of 64 columns (16 where fewer are left) whose lines lie one after the other: with the lines of all
// columns side by side, those of a panel fall into a few sets of the first cache and push each other out.

#include <cmath>
#include <vector>
#include "simd.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>

namespace {

constexpr int KEYS = 256;    // keys of a block
constexpr int TOKENS = 256;  // query tokens of a task
constexpr int TALL = 6;      // rows of the register tile
constexpr int ROWS = 48;     // query rows whose scores are computed at a time

// C (R x 64, row stride n) (+)= A (R rows of bfloat16 pairs, row stride a_stride) x B (a panel: depth pairs x 64 x 2).
template <int R, bool ADD>
inline void tile(const uint16_t* a, int64_t a_stride, const uint16_t* b, int depth, float* c, int64_t n) {
    __m512 s[R][4];  // all loops over it are unrolled: otherwise GCC 12 also keeps it in memory
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int w = 0; w < 4; w++) s[r][w] = ADD ? _mm512_loadu_ps(c + r * n + 16 * w) : _mm512_setzero_ps();
    for (int d = 0; d < depth; d++) {
        __m512bh v[4];
        for (int w = 0; w < 4; w++) v[w] = (__m512bh)_mm512_loadu_si512(b + d * 128 + 32 * w);
        for (int r = 0; r < R; r++) {
            int32_t pair;
            memcpy(&pair, a + r * a_stride + 2 * d, 4);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            for (int w = 0; w < 4; w++) s[r][w] = _mm512_dpbf16_ps(s[r][w], x, v[w]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int w = 0; w < 4; w++) _mm512_storeu_ps(c + r * n + 16 * w, s[r][w]);
}

// The same for a panel of 16 columns.
template <int R, bool ADD>
inline void narrow_tile(const uint16_t* a, int64_t a_stride, const uint16_t* b, int depth, float* c, int64_t n) {
    __m512 s[R];
    for (int r = 0; r < R; r++) s[r] = ADD ? _mm512_loadu_ps(c + r * n) : _mm512_setzero_ps();
    for (int d = 0; d < depth; d++) {
        __m512bh v = (__m512bh)_mm512_loadu_si512(b + d * 32);
        for (int r = 0; r < R; r++) {
            int32_t pair;
            memcpy(&pair, a + r * a_stride + 2 * d, 4);
            s[r] = _mm512_dpbf16_ps(s[r], (__m512bh)_mm512_set1_epi32(pair), v);
        }
    }
    for (int r = 0; r < R; r++) _mm512_storeu_ps(c + r * n, s[r]);
}

// Where the panel begins that holds column e of `size`, for panels with room for `room` pairs; and the width of it.
inline int64_t panel(int e, int size, int64_t room, int& width) {
    const int whole = size / 64 * 64, first = e < whole ? e / 64 * 64 : e / 16 * 16;
    width = e < whole ? 64 : 16;
    return 2 * room * first;
}

// A (rows x 2 depth) x B (panels with room for `room` pairs, of which `depth` count), columns a multiple of 16.
template <bool ADD>
void product(const uint16_t* a, int64_t a_stride, const uint16_t* b, int columns, int64_t room, int depth, int rows, float* c, int64_t n) {
    int w = 0;
    for (; w + 64 <= columns; w += 64) {
        int r = 0;
        for (; r + TALL <= rows; r += TALL) tile<TALL, ADD>(a + r * a_stride, a_stride, b + 2 * room * w, depth, c + r * n + w, n);
        for (; r < rows; r++) tile<1, ADD>(a + r * a_stride, a_stride, b + 2 * room * w, depth, c + r * n + w, n);
    }
    for (; w < columns; w += 16) {
        int r = 0;
        for (; r + 8 <= rows; r += 8) narrow_tile<8, ADD>(a + r * a_stride, a_stride, b + 2 * room * w, depth, c + r * n + w, n);
        for (; r < rows; r++) narrow_tile<1, ADD>(a + r * a_stride, a_stride, b + 2 * room * w, depth, c + r * n + w, n);
    }
}

// The high and low part of 16 numbers, as bfloat16.
template <class N>
inline void split(const N* from, uint16_t* high, uint16_t* low) {
    const __m512 x = (__m512)load(from);
    const __m256i part = (__m256i)_mm512_cvtneps_pbh(x);
    const __m512 wide = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16);
    const __m256i rest = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(x, wide));
    memcpy(high, &part, 32);
    memcpy(low, &rest, 32);
}

// One key -> column j of the panels (size / 2) x 64 x 2.
inline void pack_key(const uint16_t* key, int j, int size, uint16_t* packed) {
    const uint32_t* from = (const uint32_t*)key;
    uint32_t* to = (uint32_t*)packed + j / 64 * 64 * (size / 2) + j % 64;
    for (int e = 0; e < size / 2; e++) to[e * 64] = from[e];
}

// The columns of missing keys are zero.
void pack_nothing(int count, int size, uint16_t* packed) {
    for (int j = count; j < KEYS; j = j / 64 * 64 + 64)
        for (int e = 0; e < size / 2; e++) memset(packed + j / 64 * 64 * size + 2 * (e * 64 + j % 64), 0, 4 * (64 - j % 64));
}

// Keys (count rows of `size`) -> panels (size / 2) x 64 x 2, and `rest`, the low parts of float16 keys, in the same way.
void pack_keys(const bf16* keys, int count, int size, uint16_t* packed, uint16_t*) {
    for (int j = 0; j < count; j++) pack_key((const uint16_t*)keys + (int64_t)j * size, j, size, packed);
    pack_nothing(count, size, packed);
}

void pack_keys(const float16* keys, int count, int size, uint16_t* packed, uint16_t* rest) {
    static thread_local std::vector<uint16_t> parts;
    parts.resize(2 * size);
    uint16_t *high = parts.data(), *low = high + size;
    for (int j = 0; j < count; j++) {
        for (int e = 0; e < size; e += 16) split(keys + (int64_t)j * size + e, high + e, low + e);
        pack_key(high, j, size, packed);
        pack_key(low, j, size, rest);
    }
    pack_nothing(count, size, packed);
    pack_nothing(count, size, rest);
}

inline __m256i take(const bf16* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline __m256i take(const float16* p) { return (__m256i)_mm512_cvtneps_pbh((__m512)load(p)); }

// Values (count rows of `size`) -> panels (KEYS / 2) x 64 (or 16) x 2; missing values are zero.
template <class K>
void pack_values(const K* values, int count, int size, uint16_t* packed) {
    for (int j = 0; j < KEYS / 2; j++) {
        const K* a = 2 * j < count ? values + (int64_t)2 * j * size : nullptr;
        const K* b = 2 * j + 1 < count ? a + size : nullptr;
        for (int e = 0; e < size; e += 16) {
            int width;
            uint16_t* to = packed + panel(e, size, KEYS / 2, width);
            to += (j * width + e % width) * 2;
            __m256i x = a ? take(a + e) : _mm256_setzero_si256();
            __m256i y = b ? take(b + e) : _mm256_setzero_si256();
            __m512i low = _mm512_cvtepu16_epi32(x), high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(y), 16);
            _mm512_storeu_si512(to, _mm512_or_si512(low, high));
        }
    }
}

// A query or a result of 16 numbers; `rest` takes the low parts of float32.
inline void take(const bf16* from, uint16_t* to, uint16_t*) { memcpy(to, from, 32); }
inline void take(const float* from, uint16_t* to, uint16_t* rest) { split(from, to, rest); }
inline void give(f16v x, bf16* to) {
    const __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)x);
    memcpy(to, &half, 32);
}
inline void give(f16v x, float* to) { store(to, x); }

constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;

// 2^x for x <= 0, relative error below 3e-7, 0 below -150. NaN stays NaN.
inline f16v power(f16v x) {
    const __m512 t = _mm512_max_ps(_mm512_set1_ps(-200.0f), (__m512)x);  // if x is NaN, it returns x, its second argument
    const __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const f16v r = (f16v)_mm512_sub_ps(t, whole);
    f16v p = splat(1.33908668e-3f);
    p = p * r + splat(9.66637395e-3f);
    p = p * r + splat(5.55035695e-2f);
    p = p * r + splat(2.40223482e-1f);
    p = p * r + splat(6.93147182e-1f);
    p = p * r + splat(1.0f);
    return (f16v)_mm512_scalef_ps((__m512)p, whole);
}

// Softmax of one row of KEYS scores, of which `seen` count, merged with the earlier keys of the row; writes weights in
// bfloat16. `scale` and `top` are in powers of two.
void weigh(float* scores, int seen, float scale, uint16_t* weights, float* top, float* mass, float* out, int size) {
    f16v high = splat(-INFINITY);
    int end = (seen + 15) / 16 * 16;
    for (int j = seen; j < end; j++) scores[j] = -INFINITY;
    for (int j = 0; j < end; j += 16) high = max(high, load(scores + j));
    float peak = largest(high) * scale;
    if (peak > *top) {
        float keep = std::exp2(*top - peak);
        *mass *= keep;
        if (keep != 1.0f)
            for (int e = 0; e < size; e += 16) store(out + e, load(out + e) * splat(keep));
        *top = peak;
    }
    f16v total = {}, base = splat(*top), by = splat(scale);
    for (int j = 0; j < end; j += 16) {
        f16v w = power(load(scores + j) * by - base);
        __m256bh half = _mm512_cvtneps_pbh((__m512)w);
        memcpy(weights + j, &half, 32);
        total += w;
    }
    if (end < KEYS) memset(weights + end, 0, 2 * (KEYS - end));
    *mass += sum(total);
}

// T: the type of queries and results, K: that of keys and values.
template <class T, class K>
struct Job {
    const T* q;
    const K *keys, *values;
    int64_t q_batch, q_head, q_token, k_batch, k_head, v_batch, v_head, out_batch, out_head, out_token;
    int64_t batch, heads, kv, tokens, length, size;
    int square;  // query t sees keys 0 .. length - tokens + t
    float scale;
    T* out;
    float* lse;
};

template <class T, class K>
void task(const Job<T, K>& job, int64_t b, int64_t kv, int64_t first) {
    constexpr bool SPLIT = std::is_same_v<K, float16>;
    const int64_t groups = job.heads / job.kv, size = job.size;
    const int64_t here = job.tokens - first < TOKENS ? job.tokens - first : TOKENS;
    const int64_t rows = groups * here;
    const int64_t before = job.length - job.tokens;  // keys before the diagonal
    const int64_t length = job.square ? before + first + here : job.length;
    static thread_local std::vector<uint16_t> narrow;
    static thread_local std::vector<float> wide;
    narrow.resize((SPLIT ? 2 : 1) * rows * size + (SPLIT ? 3 : 2) * KEYS * size + ROWS * KEYS);
    wide.resize(rows * (size + 2) + ROWS * KEYS);
    uint16_t *q = narrow.data(), *packed_keys = q + rows * size, *packed_values = packed_keys + KEYS * size;
    uint16_t *weights = packed_values + KEYS * size, *rest = weights + ROWS * KEYS, *q_rest = rest + KEYS * size;
    float *out = wide.data(), *top = out + rows * size, *mass = top + rows, *scores = mass + rows;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t t = 0; t < here; t++) {
            const T* from = job.q + b * job.q_batch + (kv * groups + g) * job.q_head + (first + t) * job.q_token;
            const int64_t at = (g * here + t) * size;
            for (int64_t e = 0; e < size; e += 16) take(from + e, q + at + e, q_rest + at + e);
        }
    memset(out, 0, sizeof(float) * rows * size);
    for (int64_t r = 0; r < rows; r++) top[r] = -INFINITY, mass[r] = 0;
    const K* keys = job.keys + b * job.k_batch + kv * job.k_head;
    const K* values = job.values + b * job.v_batch + kv * job.v_head;
    for (int64_t at = 0; at < length; at += KEYS) {
        int count = (int)(length - at < KEYS ? length - at : KEYS);
        pack_keys(keys + at * size, count, (int)size, packed_keys, rest);
        pack_values(values + at * size, count, (int)size, packed_values);
        for (int64_t r = 0; r < rows; r += ROWS) {
            int some = (int)(rows - r < ROWS ? rows - r : ROWS), sees[ROWS], most = 0;
            for (int i = 0; i < some; i++) {
                const int64_t seen = job.square ? before + first + (r + i) % here + 1 - at : count;
                sees[i] = seen < 0 ? 0 : seen > count ? count : (int)seen;
                most = sees[i] > most ? sees[i] : most;
            }
            if (most == 0) continue;
            const int columns = (most + 63) / 64 * 64;
            product<false>(q + r * size, size, packed_keys, columns, size / 2, (int)size / 2, some, scores, KEYS);
            if (SPLIT) {
                product<true>(q + r * size, size, rest, columns, size / 2, (int)size / 2, some, scores, KEYS);
                product<true>(q_rest + r * size, size, packed_keys, columns, size / 2, (int)size / 2, some, scores, KEYS);
            }
            for (int i = 0; i < some; i++) {
                const int seen = sees[i];
                if (seen == 0)
                    memset(weights + i * KEYS, 0, 2 * KEYS);
                else
                    weigh(scores + i * KEYS, seen, job.scale * LOG2E, weights + i * KEYS, top + r + i, mass + r + i,
                          out + (r + i) * size, (int)size);
            }
            product<true>(weights, KEYS, packed_values, (int)size, KEYS / 2, (most + 1) / 2, some, out + r * size, size);
        }
    }
    for (int64_t g = 0; g < groups; g++)
        for (int64_t t = 0; t < here; t++) {
            int64_t r = g * here + t;
            T* to = job.out + b * job.out_batch + (kv * groups + g) * job.out_head + (first + t) * job.out_token;
            float by = mass[r] != 0 ? 1.0f / mass[r] : 0.0f;  // NaN stays NaN
            for (int64_t e = 0; e < size; e += 16) give(load(out + r * size + e) * splat(by), to + e);
            job.lse[(b * job.heads + kv * groups + g) * job.tokens + first + t] =
                mass[r] != 0 ? top[r] * LN2 + std::log(mass[r]) : -INFINITY;
        }
}

template <class T, class K>
void prefill(const void* q, const void* keys, const void* values, float scale, const int64_t* n, void* out, float* lse) {
    const Job<T, K> job{(const T*)q, (const K*)keys, (const K*)values,
                        n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16], n[17],
                        n[0], n[1], n[2], n[3], n[4], n[5], (int)n[6], scale, (T*)out, lse};
    const int64_t tiles = (job.tokens + TOKENS - 1) / TOKENS, lanes = job.batch * job.kv;
#pragma omp parallel for schedule(dynamic, 1) num_threads(n[7])
    for (int64_t i = 0; i < lanes * tiles; i++) {
        int64_t at = lanes * tiles - 1 - i;  // the longest rows of a square first
        task(job, at % lanes / job.kv, at % lanes % job.kv, at / lanes * TOKENS);
    }
}

}  // namespace

// q and out (B, H, T, E) are bfloat16 over keys and values (B, K, S, E) of bfloat16 (kind 1), or float32 over float16
// (kind 4); lse (B, H, T) is float32. E is a multiple of 16. numbers: B, H, K, T, S, E, square, threads, then strides: q
// batch, head, token; keys batch, head; values batch, head; out batch, head, token (the rows of keys and values are
// contiguous).
extern "C" int handscroll_has_prefill() { return 1; }
extern "C" void handscroll_prefill(int kind, const void* q, const void* keys, const void* values, float scale,
                                  const int64_t* numbers, void* out, float* lse) {
    if (kind == 4) prefill<float, float16>(q, keys, values, scale, numbers, out, lse);
    else prefill<bf16, bf16>(q, keys, values, scale, numbers, out, lse);
}
#else
extern "C" int handscroll_has_prefill() { return 0; }
extern "C" void handscroll_prefill(int, const void*, const void*, const void*, float, const int64_t*, void*, float*) {}
#endif
