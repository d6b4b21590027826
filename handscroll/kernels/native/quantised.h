// Rows of x times a matrix in a number format (formats.h), which is read in its own bytes: a few rows (quantised.cpp) or
// more (many.cpp).

#pragma once
#include <cstdint>
#include <functional>
#include <vector>

// Rows of x in the order that a format needs. Every 64 numbers are rounded to 16 bits (two planes of bytes) with their
// own scale: they are off by at most 1 / 65,024 of the largest. Empty if the products are of floats.
struct Planes {
    struct Chunk {
        int8_t high[64], low[64];
        float sums[16];  // of every four numbers
    };
    int64_t chunks = 0;  // of a row
    Chunk* at = nullptr;
    std::vector<uint8_t> room;
    std::vector<float> scales;

    Planes(const float* x, int64_t rows, int64_t inner, int64_t kind);
    Planes(const Planes&) = delete;
};

// y (count, last - first) = `count` rows x (count, inner), also given as `planes`, times rows first .. last - 1 of w.
void quantised_slice(const float* x, const Planes& planes, int64_t count, int64_t kind, int64_t inner, const uint8_t* w,
                     int64_t first, int64_t last, float* y);

constexpr int64_t FEWER = 4;  // with more rows `many_slice` is faster than `quantised_slice`

// Rows of x in 16 bits for many rows: every 256 numbers share a scale. `sums` are those of every `group` numbers in
// units of the scale.
struct Tall {
    int64_t rows, kind, inner, group, size, groups, wides;  // size, groups, wides: numbers, sums, scales of a row
    std::vector<int8_t> high, low;
    std::vector<float> sums, scales;

    Tall(int64_t rows, int64_t inner, int64_t kind);  // room for the rows
    void fill(const float* x, int64_t r);             // x: row r
};

// Whether there are products of whole numbers for many rows and this format.
bool takes_many(int64_t kind);

// `put(r, rows, n, columns, found)` gets results (rows, 16) of rows r .. and columns n .., of which `columns` count.
using Put = std::function<void(int64_t, int64_t, int64_t, int64_t, const float*)>;

// Columns first .. last - 1 of the product, a tile after the other.
void many_slice(const Tall& x, const uint8_t* w, int64_t first, int64_t last, const Put& put);
