// The kernels for amx: sums by the tiles of AMX, all else as on avx512vnni.
#define VF_NAMESPACE amx
#define VF_NAME "amx"
#define VF_LANES 16
#define VF_ROWS 32
#define VF_VECTORS 2
#define VF_DOT_VNNI512
#define VF_TILES_AMX
#include "table.inl"
