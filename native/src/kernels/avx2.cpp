// The kernels for avx2.
#define VF_NAMESPACE avx2
#define VF_NAME "avx2"
#define VF_LANES 8
#define VF_ROWS 6
#define VF_VECTORS 2
#define VF_DOT_AVX2
#include "table.inl"
