// The kernels for dotprod: products of signed bytes on Arm.
#define VF_NAMESPACE dotprod
#define VF_NAME "dotprod"
#define VF_LANES 4
#define VF_ROWS 6
#define VF_VECTORS 3
#define VF_DOT_SDOT
#include "table.inl"
