// The two halves of a decoder layer around its attention, for a few tokens, each in one call and one parallel region.
// Before: norm, the projections to queries, keys and values, and their rotation. After: output projection, norm, gated
// MLP and the two sums; if the layer has branch norms, each branch is normed before it is added. The arithmetic is that
// of products.h and rows.h. The halves save calls, which take longer than the work between the products, and waiting
// threads: each thread makes its own copy of small results, and its share of the columns.

#include <omp.h>
#include "products.h"
#include "rows.h"
#include "runs.h"

namespace {

// A root-mean-square norm; a null weight means no norm. offset: times 1 + weight.
struct Norm {
    const void* weight;
    double epsilon;
    int64_t offset;
};

struct Before {  // kind is that of the hidden states: 0 float32, 1 bfloat16
    int64_t kind, width, heads, kv, size;
    Norm norm, query_norm, key_norm;
    Product query, key, value;
};

struct After {  // activation: 0 silu, 1 the tanh form of gelu; branch norms normalise what is added
    int64_t kind, width, activation;
    Norm attention_branch, norm, mlp_branch;
    Product output, gate, up, down;
};

struct Layer {  // keys and values (B, kv, room, E), scales (B, kv, room) of int8 or null; the first key that is seen
    Before before;
    After after;
    int64_t kind;  // of keys and values, as in `Run`
    void *keys, *values;
    float *key_scales, *value_scales;
    int64_t batch_stride, head_stride, scale_batch_stride, scale_head_stride, first;
    const Run* past;  // keys and values before all these
    int64_t pasts, rotation;  // the number of the layer's tables
    double scale;             // factor of the scores
};

constexpr int64_t FETCHED = 8 << 10;  // bytes of its next matrix that a thread prefetches before it waits

// The columns of a product that this thread computes.
struct Share {
    int64_t first, last;
    const Product& by;

    explicit Share(const Product& by) : by(by) { share(by.outer, omp_get_thread_num(), omp_get_num_threads(), first, last); }

    void fetch() const {
        const int64_t row = row_bytes(by.kind, by.inner), all = (last - first) * row;
        const char* from = (const char*)by.weight + first * row;
        for (int64_t at = 0; at < std::min(all, FETCHED); at += 64) __builtin_prefetch(from + at, 0, 0);
    }

    template <class T>
    void make(const T* x, int64_t rows, T* y) const { Rows<T>(x, rows, by).slice(first, last, y); }
};

template <class T>
void norms(const T* x, const Norm& by, int64_t rows, int64_t width, T* y) {
    for (int64_t r = 0; r < rows; r++)
        norm(x + r * width, (const T*)by.weight, (float)by.epsilon, width, by.offset, y + r * width);
}

// (B, T, heads, E) -> (B, heads, T, E), with each head normed if there is a weight, and rotated.
template <class T>
void heads(T* x, int64_t count, const Before& about, const Norm& by, const float* cosine, const float* sine,
           const int64_t* shape, T* y) {
    const int64_t batch = shape[0], tokens = shape[1], size = about.size;
    if (by.weight) norms(x, by, batch * tokens * count, size, x);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < count; h++)
            for (int64_t t = 0; t < tokens; t++, y += size) {
                const int64_t at = ((shape[2] == 1 ? 0 : b) * tokens + t) * size / 2;
                turn(x + ((b * tokens + t) * count + h) * size, cosine + at, sine + at, size / 2, y);
            }
}

template <class T>
void before(const Before& about, const T* x, const float* cosine, const float* sine, const int64_t* shape, T* q, T* k,
            T* v) {
    const int64_t rows = shape[0] * shape[1];
    std::vector<T> room(rows * (about.query.outer + about.key.outer));
    T *query = room.data(), *key = query + rows * about.query.outer;
#pragma omp parallel num_threads(shape[3])
    {
        const Share queries(about.query), keys(about.key), values(about.value);
        std::vector<T> normed(rows * about.width);
        norms(x, about.norm, rows, about.width, normed.data());
        queries.make(normed.data(), rows, query);
        keys.make(normed.data(), rows, key);
        values.make(normed.data(), rows, v);
    }
    heads(query, about.heads, about, about.query_norm, cosine, sine, shape, q);
    heads(key, about.kv, about, about.key_norm, cosine, sine, shape, k);
}

template <class T>
void after(const After& about, const T* x, const T* read, int64_t rows, int64_t threads, T* y) {
    const int64_t width = about.width, inner = about.gate.outer;
    std::vector<T> room(rows * (2 * width + 2 * inner));
    T *middle = room.data(), *lower = middle + rows * width, *gated = lower + rows * width, *upper = gated + rows * inner;
#pragma omp parallel num_threads(threads)
    {
        const Share output(about.output), gates(about.gate), ups(about.up), down(about.down);
        output.make(read, rows, middle);
        gates.fetch();
#pragma omp barrier
        std::vector<T> mine(2 * rows * width);
        T *sum = mine.data(), *normed = sum + rows * width;
        const T* added = middle;
        if (about.attention_branch.weight) norms(middle, about.attention_branch, rows, width, normed), added = normed;
        for (int64_t i = 0; i < rows * width; i++) put(sum + i, widen(x[i]) + widen(added[i]));
        norms(sum, about.norm, rows, width, normed);
        gates.make(normed, rows, gated);
        ups.make(normed, rows, upper);
        for (int64_t r = 0; r < rows; r++) {
            T *these = gated + r * inner + gates.first, *others = upper + r * inner + gates.first;
            if (about.activation == 1) gate<true>(these, others, gates.last - gates.first, these);
            else gate<false>(these, others, gates.last - gates.first, these);
        }
        down.fetch();
#pragma omp barrier
        down.make(gated, rows, lower);
        added = lower;
        if (about.mlp_branch.weight) {  // norms of whole rows
#pragma omp barrier
            norms(lower, about.mlp_branch, rows, width, normed), added = normed;
        }
        for (int64_t r = 0; r < rows; r++)
            for (int64_t n = down.first; n < down.last; n++)
                put(y + r * width + n, widen(sum[r * width + n]) + widen(added[r * width + n]));
    }
}

// Rounds as kernels/rounding.py does: symmetric, with the largest magnitude at 127.
template <class T>
void rounded(const T* x, int64_t size, int8_t* y, float* scale) {
    float most = 0;
    bool broken = false;
    for (int64_t e = 0; e < size; e++) {
        const float v = std::fabs(widen(x[e]));
        broken |= v != v;
        most = v > most ? v : most;
    }
    *scale = broken ? NAN : most / 127;
    const float by = *scale > 1.17549435e-38f ? *scale : 1.17549435e-38f;
    for (int64_t e = 0; e < size; e++)
        y[e] = (int8_t)std::fmin(127.0f, std::fmax(-127.0f, std::nearbyint(widen(x[e]) / by)));
}

// Writes the vector of a new token into its slot.
template <class T>
void keep(int64_t kind, const T* from, int64_t size, void* to, int64_t at, float* scale) {
    if (kind == 2) rounded(from, size, (int8_t*)to + at, scale);
    else if (kind == 4)
        for (int64_t e = 0; e < size; e++) put((float16*)to + at + e, widen(from[e]));
    else memcpy((T*)to + at, from, sizeof(T) * size);
}

// Computes all layers for a few new tokens of every row; writes their keys and values to the slots from `last` on of
// each layer.
template <class T>
void step(Layer* layers, int64_t count, const T* x, const float* const* tables, const int64_t* shape, T* y) {
    const int64_t batch = shape[0], tokens = shape[1], last = shape[4], rows = batch * tokens;
    const Before& like = layers[0].before;
    const int64_t inner = like.heads * like.size, shared = like.kv * like.size, size = like.size;
    std::vector<T> room(rows * 2 * (inner + shared));
    T *q = room.data(), *k = q + rows * inner, *v = k + rows * shared, *read = v + rows * shared;
    std::vector<float> wide(rows * (inner + like.heads));
    std::vector<Run> runs;
    for (int64_t n = 0; n < count; n++) {
        Layer& layer = layers[n];
        before(layer.before, x, tables[2 * layer.rotation], tables[2 * layer.rotation + 1], shape, q, k, v);
        const bool narrow = layer.key_scales != nullptr;
        for (int64_t b = 0; b < batch; b++)
            for (int64_t h = 0; h < like.kv; h++)
                for (int64_t t = 0; t < tokens; t++) {
                    const T* key = k + ((b * like.kv + h) * tokens + t) * size;
                    const T* value = v + ((b * tokens + t) * like.kv + h) * size;
                    const int64_t to = b * layer.batch_stride + h * layer.head_stride + (last + t) * size;
                    const int64_t scale_to = b * layer.scale_batch_stride + h * layer.scale_head_stride + last + t;
                    keep(layer.kind, key, size, layer.keys, to, narrow ? layer.key_scales + scale_to : nullptr);
                    keep(layer.kind, value, size, layer.values, to, narrow ? layer.value_scales + scale_to : nullptr);
                }
        const auto seen = [&layer](auto* scales) { return scales ? scales + layer.first : nullptr; };
        const int64_t skipped = layer.first * size * (layer.kind == 2 ? 1 : layer.kind == 0 ? 4 : 2);
        runs.assign(layer.past, layer.past + layer.pasts);
        runs.push_back({(char*)layer.keys + skipped, (char*)layer.values + skipped, seen(layer.key_scales),
                        seen(layer.value_scales), layer.kind, last + tokens - layer.first,
                        {layer.batch_stride, layer.head_stride}, {layer.batch_stride, layer.head_stride},
                        {layer.scale_batch_stride, layer.scale_head_stride},
                        {layer.scale_batch_stride, layer.scale_head_stride}});
        const int64_t all[] = {(int64_t)runs.size(), batch, like.kv, like.heads / like.kv * tokens, size, shape[3], tokens, 0};
        handscroll_decode(runs.data(), sizeof(T) == 2, q, (float)layer.scale, all, wide.data(), wide.data() + rows * inner);
        const float* from = wide.data();  // (B, heads, T, E)
        for (int64_t b = 0; b < batch; b++)
            for (int64_t h = 0; h < like.heads; h++)
                for (int64_t t = 0; t < tokens; t++)
                    for (int64_t e = 0; e < size; e++)
                        put(read + ((b * tokens + t) * like.heads + h) * size + e, *from++);
        after(layer.after, x, read, rows, shape[3], y);
        x = y;
    }
}

}  // namespace

// x (B, T, width) is contiguous; tables (batches, T, E / 2) are float32. shape: B, T, batches of the tables, threads. q
// (B, heads, T, E), k (B, kv, T, E) and v (B, T, kv, E) are of x's kind. Sizes are as products.h and rows.h need
// them; all widths are multiples of 16.
extern "C" void handscroll_before(const void* about, const void* x, const float* cosine, const float* sine,
                                  const int64_t* shape, void* q, void* k, void* v) {
    const Before& given = *(const Before*)about;
    if (given.kind == 0) before(given, (const float*)x, cosine, sine, shape, (float*)q, (float*)k, (float*)v);
    else before(given, (const bf16*)x, cosine, sine, shape, (bf16*)q, (bf16*)k, (bf16*)v);
}

// x and y are (rows, width) and may be the same; read is (rows, heads x E). shape: rows, threads.
extern "C" void handscroll_after(const void* about, const void* x, const void* read, const int64_t* shape, void* y) {
    const After& given = *(const After*)about;
    if (given.kind == 0) after(given, (const float*)x, (const float*)read, shape[0], shape[1], (float*)y);
    else after(given, (const bf16*)x, (const bf16*)read, shape[0], shape[1], (bf16*)y);
}

// x and y are (B, T, width). tables: cosines and sines (batches, T, E / 2) of every rotation in turn. shape: B, T,
// batches of the tables, threads, slot of the first new token. All layers have the same shape and the kind of x; keys
// and values have that kind too, or they are int8, or float16 where x is float32.
extern "C" void handscroll_step(void* layers, int64_t count, const void* x, const void* tables, const int64_t* shape,
                                void* y) {
    Layer* all = (Layer*)layers;
    const float* const* turns = (const float* const*)tables;
    if (all->before.kind == 0) step(all, count, (const float*)x, turns, shape, (float*)y);
    else step(all, count, (const bf16*)x, turns, shape, (bf16*)y);
}
