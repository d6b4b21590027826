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

}  // namespace

// x (R, inner) and y (R, outer) are float32 or (narrow) bfloat16; w (outer, row_bytes) is in the format `kind`; bias
// (outer) is of x's kind, or null. shape: R, inner (a multiple of 16 and whole blocks), outer, threads.
extern "C" void handscroll_product(int kind, int narrow, const void* x, const void* w, const void* bias,
                                   const int64_t* shape, void* y) {
    const Product by{kind, shape[1], shape[2], w, bias};
    if (narrow) product((const bf16*)x, by, shape[0], shape[3], (bf16*)y);
    else product((const float*)x, by, shape[0], shape[3], (float*)y);
}
