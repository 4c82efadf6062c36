// The kernels for avxvnni.
#define VF_NAMESPACE avxvnni
#define VF_NAME "avxvnni"
#define VF_LANES 8
#define VF_ROWS 6
#define VF_VECTORS 2
#define VF_DOT_VNNI256
#include "table.inl"
