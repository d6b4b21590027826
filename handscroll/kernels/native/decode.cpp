// Attention of a few query rows over a long run of keys, for decoding. Memory limits it, so each key and value is read
// once.
//
// The query heads that share a kv head (and the tokens of a short draft, and batch rows that read the same keys) are the
// rows of one task. A task reads a run of keys in blocks of 64 (int4: 128) with an online softmax, four rows at a
// time (float16: eight) or, if there are many, in tiles (tall.h); runs are merged by log-sum-exp (Dao et al. 2023, "Flash-Decoding").
// Keys are contiguous runs (runs.h), or lie in pages of a pool that a table lists (Kwon et al. 2023, "PagedAttention").

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <vector>
#include "blocks.h"
#include "fours.h"
#include "runs.h"
#include "tall.h"

namespace {

constexpr int64_t WHOLE_BLOCKS = 128;  // parts of a run are multiples of it
constexpr int64_t PART = 512;  // keys of a task over pages: fixed, so that a row does not depend on other rows

// Where the vectors of one kv head lie, and how many from `n` on are contiguous.
template <class T>
struct Whole {
    const T* start;
    int64_t stride;  // int4: bytes
    const T* at(int64_t n) const { return start + n * stride; }
    int64_t left(int64_t) const { return INT64_MAX; }
};

template <class T>
struct Pages {
    const T* start;
    int64_t size, page;
    const int64_t* table;
    const T* at(int64_t n) const { return start + (table[n / page] * page + n % page) * size; }
    int64_t left(int64_t n) const { return page - n % page; }
};

// How R rows read keys and values of type T.
template <class T, int R>
struct Ways { using Way = Floats<T, R>; };
template <int R>
struct Ways<bf16, R> { using Way = Narrow<R>; };
template <int R>
struct Ways<int8_t, R> { using Way = Integers<R>; };
template <int R>
struct Ways<nibbles, R> { using Way = Fours<R>; };

// The keys that the rows of a head see: row r sees those before number `length` - `tokens` + 1 + r % `tokens`.
struct Sight {
    int64_t length = INT64_MAX, tokens = 1;
    int64_t of(int64_t r) const { return length - tokens + 1 + r % tokens; }
};

// One task: R rows, the first of which is number `begin` of its head, over keys first .. last - 1. Results: out (R,
// size) unnormalised, top (R) the largest score, mass (R).
template <class T, int R, class Place>
void run(const float* q, float scale, Place keys, Place values, Scales<T> scales, int64_t first, int64_t last,
         Sight sight, int begin, int size, float* out, float* top, float* mass) {
    alignas(64) float scores[R * BLOCK<T>];
    typename Ways<T, R>::Way way(q, scale, size, scales);
    f16v total[R] = {};  // of weights
    for (int r = 0; r < R; r++) top[r] = -INFINITY;
    memset(out, 0, sizeof(float) * R * size);
    for (int64_t at = first, taken = 0; at < last; at += taken) {
        taken = std::min({last - at, (int64_t)BLOCK<T>, keys.left(at)});
        const int count = (int)taken, padded = (count + 15) / 16 * 16;
        way.score(keys.at(at), at, count, values.at(at), scores);
        for (int r = 0; r < R; r++) {
            float* s = scores + r * BLOCK<T>;
            const int64_t seen = sight.of(begin + r) - at;
            if (seen <= 0) {  // no key of this block is seen
                memset(s, 0, sizeof(float) * padded);
                continue;
            }
            for (int j = (int)std::min(seen, (int64_t)count); j < padded; j++) s[j] = -INFINITY;
            f16v m = load(s);
            for (int j = 16; j < padded; j += 16) m = max(m, load(s + j));
            float high = largest(m);
            if (high > top[r]) {
                float keep = std::exp(top[r] - high);
                total[r] *= splat(keep);
                for (int e = 0; e < size; e += 16) store(out + r * size + e, load(out + r * size + e) * splat(keep));
                top[r] = high;
            }
            for (int j = 0; j < padded; j += 16) {
                f16v w = exponential(load(s + j) - splat(top[r]));
                total[r] += w;
                store(s + j, w);
            }
        }
        way.add(scores, values.at(at), at, count, keys.at(at + taken < last ? at + taken : at), out);
    }
    for (int r = 0; r < R; r++) mass[r] = sum(total[r]);
}

template <class T, class Place>
void rows(const float* q, float scale, Place keys, Place values, Scales<T> scales, int64_t first, int64_t last,
          Sight sight, int count, int size, float* out, float* top, float* mass) {
    grouped<std::is_same_v<T, float16> ? 8 : 4>(count, [&](auto constant, int64_t r) {  // float16 is widened once for each group
        run<T, constant>(q + r * size, scale, keys, values, scales, first, last, sight, (int)r, size, out + r * size, top + r, mass + r);
    });
}

// As `tall` (tall.h), in groups as `rows` makes them.
template <class T, class Place>
void plain(const float* q, float scale, Place keys, Place values, int64_t first, int64_t last, int count, int size,
           float* out, float* top, float* mass) {
    rows<T>(q, scale, keys, values, Scales<T>{}, first, last, Sight{}, count, size, out, top, mass);
}

// Merges the `parts` partial results of a lane, from number `begin` on, by their largest scores and masses. A result that
// is normalised has its log-sum-exp for a largest score, and a mass of one.
void join(const float* outs, const float* tops, const float* masses, int64_t begin, int64_t parts, int64_t count,
          int64_t size, float* out, float* lse) {
    for (int64_t r = 0; r < count; r++) {
        float high = -INFINITY, total = 0;
        for (int64_t p = 0; p < parts; p++) high = std::fmax(high, tops[(begin + p) * count + r]);
        float* o = out + r * size;
        memset(o, 0, sizeof(float) * size);
        for (int64_t p = 0; p < parts; p++) {
            int64_t at = (begin + p) * count + r;
            if (masses[at] == 0) continue;
            float weight = std::exp(tops[at] - high);
            total += weight * masses[at];
            for (int64_t e = 0; e < size; e++) o[e] += weight * outs[at * size + e];
        }
        for (int64_t e = 0; e < size && total != 0; e++) o[e] /= total;  // NaN stays NaN
        lse[r] = total != 0 ? high + std::log(total) : -INFINITY;
    }
}

// A task over keys first .. last - 1 of head h of batch row b of a run; results as those of `run`. many: all rows see all
// keys, and may be multiplied in tiles.
template <class T>
void part(const Run& from, const float* q, float scale, int64_t b, int64_t h, int64_t first, int64_t last, Sight sight,
          bool many, int count, int size, float* out, float* top, float* mass) {
    const auto at = [b, h](auto* all, const int64_t* strides) { return all ? all + b * strides[0] + h * strides[1] : all; };
    const int64_t stride = std::is_same_v<T, nibbles> ? size / 2 : size;
    const Whole<T> keys{at((const T*)from.keys, from.key_strides), stride};
    const Whole<T> values{at((const T*)from.values, from.value_strides), stride};
    const Scales<T> scales{at((const Scale<T>*)from.key_scales, from.key_scale_strides),
                           at((const Scale<T>*)from.value_scales, from.value_scale_strides)};
    if constexpr (!std::is_same_v<T, int8_t> && !std::is_same_v<T, nibbles>)
        if (many && tiled<T>(count)) return tall<T>(q, scale, keys, values, first, last, count, size, out, top, mass);
    rows<T>(q, scale, keys, values, scales, first, last, sight, count, size, out, top, mass);
}

// Rows (R, E) of several batch rows that read the same keys, one after the other as the rows of one task, and their
// results, which are given to the places of each.
struct Gathered {
    int64_t batch, count, size;
    std::vector<float> room;
    Gathered(int64_t batch, int64_t count, int64_t size) : batch(batch), count(count), size(size), room(batch * count * (2 * size + 2)) {}
    float* rows() { return room.data(); }
    float* outs() { return rows() + batch * count * size; }
    float* tops() { return outs() + batch * count * size; }
    float* masses() { return tops() + batch * count; }
    void take(int64_t i, const float* q) { memcpy(rows() + i * count * size, q, sizeof(float) * count * size); }
    void give(int64_t i, int64_t to, float* out, float* top, float* mass) {
        memcpy(out + to * count * size, outs() + i * count * size, sizeof(float) * count * size);
        memcpy(top + to * count, tops() + i * count, sizeof(float) * count);
        memcpy(mass + to * count, masses() + i * count, sizeof(float) * count);
    }
};

// How many parts a run of `length` of `all` keys is divided into: every thread gets the same amount of a single run, and
// many short runs (the parts of a saved reading) are not divided.
int64_t parts_of(int64_t length, int64_t all, int64_t lanes, int64_t threads) {
    int64_t parts = (4 * threads + lanes - 1) / lanes;
    while (lanes * parts % threads) parts++;
    if (threads == 1) parts = 1;
    return length ? std::min((parts * length + all - 1) / all, (length + 255) / 256) : 0;
}

void decode(const Run* runs, const float* q, float scale, const int64_t* shape, float* out, float* lse) {
    const int64_t batch = shape[1], heads = shape[2], count = shape[3], size = shape[4], threads = shape[5];
    const int64_t lanes = batch * heads;
    // A run that all batch rows read: their rows are those of one task.
    const auto common = [&](int64_t n) {
        const bool floats = runs[n].kind < 2 || runs[n].kind == 4, seen = n < shape[0] - 1 || shape[6] == 1;
        return batch > 1 && floats && seen && !runs[n].key_strides[0] && !runs[n].value_strides[0];
    };
    int64_t all = 0;
    for (int64_t n = 0; n < shape[0]; n++) all += runs[n].length;
    std::vector<int64_t> begin(shape[0] + 1, 0);  // of a run's parts
    std::vector<std::array<int64_t, 2>> tasks;    // a part, and a lane or a head of a common run
    for (int64_t n = 0; n < shape[0]; n++) {
        const int64_t these = common(n) ? heads : lanes;
        begin[n + 1] = begin[n] + parts_of(runs[n].length, all, these, threads);
        for (int64_t at = begin[n]; at < begin[n + 1]; at++)
            for (int64_t lane = 0; lane < these; lane++) tasks.push_back({at, lane});
    }
    const int64_t parts = begin[shape[0]];
    std::vector<float> partial(lanes * parts * count * (size + 2));
    float* outs = partial.data();
    float* tops = outs + lanes * parts * count * size;
    float* masses = tops + lanes * parts * count;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (size_t task = 0; task < tasks.size(); task++) {
        const int64_t at = tasks[task][0], lane = tasks[task][1];  // clang captures no structured binding
        const int64_t n = std::upper_bound(begin.begin(), begin.end(), at) - begin.begin() - 1;
        const Run& from = runs[n];
        const int64_t these = begin[n + 1] - begin[n], number = at - begin[n];
        const int64_t step = ((from.length + these - 1) / these + WHOLE_BLOCKS - 1) / WHOLE_BLOCKS * WHOLE_BLOCKS;
        const int64_t last = std::min((number + 1) * step, from.length), first = std::min(number * step, last);
        const Sight sight = n == shape[0] - 1 ? Sight{from.length, shape[6]} : Sight{};
        const auto go = [&](auto like) {
            const int64_t to = lane * parts + at;
            if (!common(n))
                return part<decltype(like)>(from, q + lane * count * size, scale, lane / heads, lane % heads, first, last, sight,
                                            shape[7] != 0, (int)count, (int)size, outs + to * count * size, tops + to * count, masses + to * count);
            Gathered mine(batch, count, size);
            for (int64_t b = 0; b < batch; b++) mine.take(b, q + (b * heads + lane) * count * size);
            part<decltype(like)>(from, mine.rows(), scale, 0, lane, first, last, sight, true, (int)(batch * count), (int)size,
                                 mine.outs(), mine.tops(), mine.masses());
            for (int64_t b = 0; b < batch; b++) mine.give(b, (b * heads + lane) * parts + at, outs, tops, masses);
        };
        switch (from.kind) {
            case 0: go(0.0f); break;
            case 1: go(bf16{}); break;
            case 2: go(int8_t{}); break;
            case 3: go(nibbles{}); break;
            default: go(float16{});
        }
    }
    for (int64_t lane = 0; lane < lanes; lane++)
        join(outs, tops, masses, lane * parts, parts, count, size, out + lane * count * size, lse + lane * count);
}

// Every batch row has its own pages and its own run of keys: spans (B, 3) hold where its table begins, first and last.
// Rows that read the same pages (of a document that many ask about) are the rows of one task.
template <class T>
void paged(const float* q, float scale, const T* keys, const T* values, const int64_t* table, const int64_t* spans,
           const int64_t* shape, float* out, float* lse) {
    const int64_t batch = shape[0], heads = shape[1], count = shape[2], size = shape[3];
    const int64_t page = shape[4], slots = shape[5], threads = shape[6];
    std::vector<int64_t> begin(batch + 1, 0);  // of a row's parts
    for (int64_t b = 0; b < batch; b++)
        begin[b + 1] = begin[b] + (spans[3 * b + 2] - spans[3 * b + 1] + PART - 1) / PART;
    struct Part {
        int64_t row, first, last;
        std::vector<int64_t> pages;
    };
    std::vector<Part> parts;
    for (int64_t b = 0; b < batch; b++)
        for (int64_t at = spans[3 * b + 1], end = spans[3 * b + 2]; at < end; at += PART) {
            const int64_t last = std::min(at + PART, end), *of = table + spans[3 * b];
            parts.push_back({b, at, last, {of + at / page, of + (last - 1) / page + 1}});
        }
    std::vector<int64_t> order(parts.size()), groups;
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    const auto less = [&](int64_t i, int64_t j) {
        const auto read = [&](int64_t n) { return std::tie(parts[n].pages, parts[n].first, parts[n].last); };
        return read(i) < read(j);
    };
    std::stable_sort(order.begin(), order.end(), less);
    for (size_t i = 0; i < order.size(); i++)
        if (i == 0 || less(order[i - 1], order[i])) groups.push_back(i);
    groups.push_back(order.size());
    std::vector<float> partial(heads * parts.size() * count * (size + 2));
    float* outs = partial.data();
    float* tops = outs + heads * parts.size() * count * size;
    float* masses = tops + heads * parts.size() * count;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t number = 0; number < heads * (int64_t)(groups.size() - 1); number++) {
        const int64_t h = number % heads, begin = groups[number / heads], many = groups[number / heads + 1] - begin;
        const Part& one = parts[order[begin]];
        const Pages<T> k{keys + h * slots * size, size, page, table + spans[3 * one.row]};
        const Pages<T> v{values + h * slots * size, size, page, table + spans[3 * one.row]};
        Gathered all(many, count, size);
        for (int64_t i = 0; i < many; i++) all.take(i, q + (parts[order[begin + i]].row * heads + h) * count * size);
        const auto task = shape[7] && tiled<T>(many * count) ? tall<T, Pages<T>> : plain<T, Pages<T>>;
        task(all.rows(), scale, k, v, one.first, one.last, (int)(many * count), (int)size, all.outs(), all.tops(), all.masses());
        for (int64_t i = 0; i < many; i++) all.give(i, h * parts.size() + order[begin + i], outs, tops, masses);
    }
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < heads; h++) {
            const int64_t lane = b * heads + h;
            join(outs, tops, masses, h * parts.size() + begin[b], begin[b + 1] - begin[b], count, size,
                 out + lane * count * size, lse + lane * count);
        }
}

std::vector<float> widened(const void* q, int narrow, int64_t count) {
    std::vector<float> wide(count);
    for (int64_t i = 0; i < count; i++) wide[i] = narrow ? widen(((const bf16*)q)[i]) : ((const float*)q)[i];
    return wide;
}

}  // namespace

extern "C" void handscroll_decode(const void* runs, int narrow, const void* queries, float scale, const int64_t* shape,
                                  float* out, float* lse) {
    const std::vector<float> wide = widened(queries, narrow, shape[1] * shape[2] * shape[3] * shape[4]);
    decode((const Run*)runs, wide.data(), scale, shape, out, lse);
}

// Joins attention over other keys, more (H, n, E) with its log-sum-exp (H, n), into out (B, H, E) and lse (B, H) of the
// batch rows with these numbers. shape: n, H, E. Torch's own functions give a row other bits beside other rows.
extern "C" void handscroll_join(const float* more, const float* more_lse, const int64_t* numbers, const int64_t* shape,
                                float* out, float* lse) {
    const int64_t count = shape[0], heads = shape[1], size = shape[2];
    std::vector<float> both(2 * size);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < count; i++) {
            const int64_t from = h * count + i, to = numbers[i] * heads + h;
            memcpy(both.data(), out + to * size, sizeof(float) * size);
            memcpy(both.data() + size, more + from * size, sizeof(float) * size);
            const float tops[] = {lse[to], more_lse[from]};
            const float masses[] = {tops[0] == -INFINITY ? 0.0f : 1.0f, tops[1] == -INFINITY ? 0.0f : 1.0f};
            join(both.data(), tops, masses, 0, 2, 1, size, out + to * size, lse + to);
        }
}

// q (B, K, R, E), float32 or (narrow) bfloat16, is multiplied by scale. Keys and values (K, slots, E) are contiguous
// and of kind 0, 1 or 4, with `page` slots a page. table: numbers of pages, row after row. shape: B, K, R, E (a multiple
// of 16), page, slots, threads, many: not 0 if rows that read the same pages may be multiplied in tiles.
extern "C" void handscroll_paged(int kind, int narrow, const void* queries, float scale, const void* keys, const void* values,
                                 const int64_t* table, const int64_t* spans, const int64_t* shape, float* out, float* lse) {
    const std::vector<float> wide = widened(queries, narrow, shape[0] * shape[1] * shape[2] * shape[3]);
    const float* q = wide.data();
    if (kind == 0) paged(q, scale, (const float*)keys, (const float*)values, table, spans, shape, out, lse);
    else if (kind == 4) paged(q, scale, (const float16*)keys, (const float16*)values, table, spans, shape, out, lse);
    else paged(q, scale, (const bf16*)keys, (const bf16*)values, table, spans, shape, out, lse);
}
