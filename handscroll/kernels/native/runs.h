// A run of keys and values that a few query rows read, and attention over several runs (decode.cpp).

#pragma once
#include <cstdint>

// Keys and values (B, K, length, E) with contiguous rows of E. kind: 0 float32, 1 bfloat16, 2 int8, 3 int4 (rows of
// E / 2 bytes), 4 float16. int8 has float32 scales (B, K, length), int4 has bfloat16 scales (see `Scale` in blocks.h).
// The strides are those of a batch row (0: all rows read the same) and of a head.
struct Run {
    const void *keys, *values, *key_scales, *value_scales;
    int64_t kind, length;
    int64_t key_strides[2], value_strides[2], key_scale_strides[2], value_scale_strides[2];
};

// q (B, K, R, E), float32 or (narrow) bfloat16, is multiplied by scale. shape: runs, B, K, R, E (a multiple of 16; of
// 32 for int4), threads, tokens, many: row r sees all keys but the last tokens - 1 - r % tokens of the last run. many: not
// 0 if all rows see all keys and may be multiplied in tiles (tall.h), as those of a run that all batch rows read may be. out (B, K, R, E) and lse (B, K, R) are float32.
extern "C" void handscroll_decode(const void* runs, int narrow, const void* queries, float scale, const int64_t* shape,
                                  float* out, float* lse);
