// The work between the products: the norm of a vector, the rotation of a head, and the gate of an MLP, each in one pass
// over its rows. In torch, each would be several loops: for a few rows their calls take longer than their work, and for
// many rows each loop reads and writes memory again.

#include "rows.h"

namespace {

constexpr int64_t ALONE = 1 << 15;  // numbers that one thread takes before others are woken

template <class T>
void norms(const T* x, const T* weight, float epsilon, const int64_t* shape, T* y) {
    const int64_t rows = shape[0], width = shape[1];
#pragma omp parallel for num_threads(shape[3]) if (shape[3] > 1 && rows * width > ALONE)
    for (int64_t r = 0; r < rows; r++) norm(x + r * width, weight, epsilon, width, shape[2], y + r * width);
}

// y (B, H, T, E) is contiguous; x has strides of batch, head and token; tables are (batches, T, E / 2).
template <class T>
void turns(const T* x, const float* cosine, const float* sine, const int64_t* shape, const int64_t* strides, T* y) {
    const int64_t heads = shape[1], count = shape[2], half = shape[3] / 2, all = shape[0] * heads * count;
#pragma omp parallel for num_threads(shape[5]) if (shape[5] > 1 && 2 * half * all > ALONE)
    for (int64_t i = 0; i < all; i++) {
        const int64_t t = i % count, h = i / count % heads, b = i / count / heads;
        const int64_t at = ((shape[4] == 1 ? 0 : b) * count + t) * half;
        turn(x + b * strides[0] + h * strides[1] + t * strides[2], cosine + at, sine + at, half, y + i * 2 * half);
    }
}

template <class T>
void gates(int activation, const T* x, const T* y, const int64_t* shape, T* to) {
    const int64_t rows = shape[0], width = shape[1];
#pragma omp parallel for num_threads(shape[2]) if (shape[2] > 1 && rows * width > ALONE)
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = r * width;
        if (activation == 1) gate<true>(x + at, y + at, width, to + at);
        else gate<false>(x + at, y + at, width, to + at);
    }
}

}  // namespace

// x and y (rows, width) and weight (width) are all of one kind: 0 float32, 1 bfloat16. shape: rows, width (a multiple
// of 16), whether 1 is added to the weight, threads.
extern "C" void handscroll_norm(int kind, const void* x, const void* weight, float epsilon, const int64_t* shape, void* y) {
    if (kind == 0) norms((const float*)x, (const float*)weight, epsilon, shape, (float*)y);
    else norms((const bf16*)x, (const bf16*)weight, epsilon, shape, (bf16*)y);
}

// shape: B, H, T, E (a multiple of 32), batches of the tables (1 or B), threads; kind: 0 float32, 1 bfloat16.
extern "C" void handscroll_turn(int kind, const void* x, const float* cosine, const float* sine, const int64_t* shape,
                                const int64_t* strides, void* y) {
    if (kind == 0) turns((const float*)x, cosine, sine, shape, strides, (float*)y);
    else turns((const bf16*)x, cosine, sine, shape, strides, (bf16*)y);
}

// x, y and the result (rows, width) are of one kind; activation: 0 silu, 1 the tanh form of gelu, of x. shape: rows,
// width (a multiple of 16), threads.
extern "C" void handscroll_gate(int kind, int activation, const void* x, const void* y, const int64_t* shape, void* to) {
    if (kind == 0) gates(activation, (const float*)x, (const float*)y, shape, (float*)to);
    else gates(activation, (const bf16*)x, (const bf16*)y, shape, (bf16*)to);
}
