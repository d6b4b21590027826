// Rows of x times a matrix in a number format (formats.h), which is read in its own bytes; defined in quantised.cpp.

#pragma once
#include <cstdint>
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
