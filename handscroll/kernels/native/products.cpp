// The product of a few rows and one matrix, shared among threads.

#include <omp.h>
#include "products.h"

namespace {

template <class T>
void product(const T* x, const Product& by, int64_t count, int64_t threads, T* y) {
    const Rows<T> rows(x, count, by);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(by.outer, omp_get_thread_num(), omp_get_num_threads(), first, last);
        rows.slice(first, last, y);
    }
}

template <int KIND, class T>
void widened(const uint8_t* w, const int64_t* shape, T* y) {
    constexpr int64_t in_block = LAYOUTS[KIND].numbers, numbers = in_block == 1 ? 32 : in_block;
    const int64_t rows = shape[0], inner = shape[1], bytes = row_bytes(KIND, inner);
#pragma omp parallel for num_threads(shape[2])
    for (int64_t r = 0; r < rows; r++) {
        float block[numbers];
        const float scale = row_scale<KIND>(w + r * bytes, inner);
        for (int64_t e = 0; e < inner; e += numbers) {
            const int64_t here = std::min(numbers, inner - e);
            widen_block<KIND>(w + r * bytes + e / in_block * LAYOUTS[KIND].bytes, block, here);
            for (int64_t i = 0; i < here; i++)
                put(y + r * inner + e + i, LAYOUTS[KIND].scaled ? block[i] * scale : block[i]);
        }
    }
}

}  // namespace

extern "C" int handscroll_formats() { return FORMATS; }

// y (rows, inner), float32 or (narrow) bfloat16, are the numbers of w (rows, row_bytes) in the format `kind`. shape:
// rows, inner (whole blocks), threads.
extern "C" void handscroll_widen(int kind, int narrow, const void* w, const int64_t* shape, void* y) {
    of_format(kind, [&](auto constant) {
        if (narrow) widened<constant>((const uint8_t*)w, shape, (bf16*)y);
        else widened<constant>((const uint8_t*)w, shape, (float*)y);
    });
}

// x (R, inner) and y (R, outer) are float32 or (narrow) bfloat16; w (outer, row_bytes) is in the format `kind`; bias
// (outer) is of x's kind, or null. shape: R, inner (a multiple of 16 and whole blocks), outer, threads.
extern "C" void handscroll_product(int kind, int narrow, const void* x, const void* w, const void* bias,
                                   const int64_t* shape, void* y) {
    const Product by{kind, shape[1], shape[2], w, bias};
    if (narrow) product((const bf16*)x, by, shape[0], shape[3], (bf16*)y);
    else product((const float*)x, by, shape[0], shape[3], (float*)y);
}
