// The kernels for avx512vnni.
#define VF_NAMESPACE avx512vnni
#define VF_NAME "avx512vnni"
#define VF_LANES 16
#define VF_ROWS 6
#define VF_VECTORS 4
#define VF_DOT_VNNI512
#include "table.inl"
