// The kernels for i8mm: products of unsigned with signed bytes on Arm.
#define VF_NAMESPACE i8mm
#define VF_NAME "i8mm"
#define VF_LANES 4
#define VF_ROWS 6
#define VF_VECTORS 4
#define VF_DOT_I8MM
#include "table.inl"
