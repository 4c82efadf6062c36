// The kernels for portable.
#define VF_NAMESPACE portable
#define VF_NAME "portable"
#define VF_LANES 4
#define VF_ROWS 2
#define VF_VECTORS 2
#include "table.inl"
