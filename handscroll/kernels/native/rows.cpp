// The work between the products of a few rows: the norm of a vector and the rotation of a head. In torch, each would be
// five to eight small loops, whose calls take longer than their work.

#include <cmath>
#include "simd.h"

namespace {

void keep(float* p, f16v x) { store(p, x); }
void keep(bf16* p, f16v x) {
    for (int i = 0; i < 16; i++) p[i] = narrow(x[i]);
}

// The vector over its root mean square in float32, times the weight. As `RMSNorm` in nn/norm.py, it is rounded to T
// before the product and after it; with an offset it is multiplied by 1 + weight in float32 and rounded once.
template <class T>
void norm(const T* x, const T* weight, float epsilon, int64_t rows, int64_t width, bool offset, T* y) {
    for (int64_t r = 0; r < rows; r++, x += width, y += width) {
        f16v total = {};
        for (int64_t e = 0; e < width; e += 16) {
            f16v v = load(x + e);
            total += v * v;
        }
        const f16v scale = splat(1.0f / std::sqrt(sum(total) / (float)width + epsilon));
        for (int64_t e = 0; e < width; e += 16) {
            if (offset) {
                keep(y + e, load(x + e) * scale * (splat(1.0f) + load(weight + e)));
            } else {
                keep(y + e, load(x + e) * scale);
                keep(y + e, load(y + e) * load(weight + e));
            }
        }
    }
}

// y (B, H, T, E) is contiguous; x has strides of batch, head and token; tables are (batches, T, E / 2).
template <class T>
void turn(const T* x, const float* cosine, const float* sine, const int64_t* shape, const int64_t* strides, T* y) {
    const int64_t batch = shape[0], heads = shape[1], count = shape[2], half = shape[3] / 2, tables = shape[4];
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t t = 0; t < count; t++, y += 2 * half) {
                const T* from = x + b * strides[0] + h * strides[1] + t * strides[2];
                const int64_t at = ((tables == 1 ? 0 : b) * count + t) * half;
                for (int64_t e = 0; e < half; e += 16) {
                    f16v first = load(from + e), second = load(from + half + e);
                    f16v c = load(cosine + at + e), s = load(sine + at + e);
                    keep(y + e, first * c - second * s);
                    keep(y + half + e, second * c + first * s);
                }
            }
}

}  // namespace

// x and y (rows, width) and weight (width) are all of one kind: 0 float32, 1 bfloat16. shape: rows, width (a multiple
// of 16), and whether 1 is added to the weight.
extern "C" void handscroll_norm(int kind, const void* x, const void* weight, float epsilon, const int64_t* shape, void* y) {
    const bool offset = shape[2];
    if (kind == 0) norm((const float*)x, (const float*)weight, epsilon, shape[0], shape[1], offset, (float*)y);
    else norm((const bf16*)x, (const bf16*)weight, epsilon, shape[0], shape[1], offset, (bf16*)y);
}

// shape: B, H, T, E (a multiple of 32), batches of the tables (1 or B); kind: 0 float32, 1 bfloat16.
extern "C" void handscroll_turn(int kind, const void* x, const float* cosine, const float* sine, const int64_t* shape,
                                const int64_t* strides, void* y) {
    if (kind == 0) turn((const float*)x, cosine, sine, shape, strides, (float*)y);
    else turn((const bf16*)x, cosine, sine, shape, strides, (bf16*)y);
}
