// Tiles of AMX: 16 rows of 64 codes times 64 steps of 16 columns, one instruction. Two tiles of rows and two of columns are under way together, since
// what tiles are loaded with is what bounds them.
//
// A panel's weights [depth / 4][columns][4] are what a tile of B takes as it is, and rows of codes are a tile of A. Depths are whole tiles: weights are
// zero behind the last code, whatever the codes there are. Registers 0 to 3 hold sums, 4 and 5 rows, 6 and 7 columns.

#if defined(VITFROST_EMULATE_AMX)
#include "amx_emulated.inl"
#else
// The intrinsics do not tell compilers what memory they read, so these say "memory" for themselves.
#define VF_TILE_CONFIGURE(place) __asm__ volatile("ldtilecfg (%0)" ::"r"(place) : "memory")
#define VF_TILE_RELEASE() __asm__ volatile("tilerelease" ::: "memory")
#define VF_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile::)
#define VF_TILE_LOAD(tile, place, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(place), "r"(size_t(stride)) : "memory")
#define VF_TILE_STORE(tile, place, stride) __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(place), "r"(size_t(stride)) : "memory")
#define VF_TILE_DOT(sums, codes, weights) __asm__ volatile("tdpbusd %%tmm" #weights ", %%tmm" #codes ", %%tmm" #sums::)
#endif

namespace vf::VF_NAMESPACE {

constexpr int steps_of_tile = 16, rows_of_tile = 16;

// Every run configures the registers anew, since other libraries may do so too.
static void begin_run() {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } shape;
    for (int tile = 0; tile < 8; tile++) shape.rows[tile] = rows_of_tile, shape.bytes[tile] = 64;
    VF_TILE_CONFIGURE(&shape);
}
static void end_run() { VF_TILE_RELEASE(); }

// Sums of two tiles of rows, or of one, and V vectors of columns. Whole tiles of rows are read.
template <int V, bool two>
VF_INLINE void amx_sums(const uint8_t *x, size_t stride, const int8_t *w, int depth4, const int32_t *start, int32_t *out, size_t out_stride) {
    constexpr size_t weights_stride = size_t(V) * lanes * 4;
    if (start) { // the same row for all rows
        VF_TILE_LOAD(0, start, 0);
        if constexpr (V > 1) VF_TILE_LOAD(1, start + lanes, 0);
        if constexpr (two) VF_TILE_LOAD(2, start, 0);
        if constexpr (two && V > 1) VF_TILE_LOAD(3, start + lanes, 0);
    } else {
        VF_TILE_ZERO(0);
        if constexpr (V > 1) VF_TILE_ZERO(1);
        if constexpr (two) VF_TILE_ZERO(2);
        if constexpr (two && V > 1) VF_TILE_ZERO(3);
    }
    for (int step = 0; step < depth4; step += steps_of_tile, x += 4 * steps_of_tile, w += steps_of_tile * weights_stride) {
        VF_TILE_LOAD(4, x, stride);
        VF_TILE_LOAD(6, w, weights_stride);
        if constexpr (V > 1) VF_TILE_LOAD(7, w + 64, weights_stride);
        if constexpr (two) VF_TILE_LOAD(5, x + rows_of_tile * stride, stride);
        VF_TILE_DOT(0, 4, 6);
        if constexpr (V > 1) VF_TILE_DOT(1, 4, 7);
        if constexpr (two) VF_TILE_DOT(2, 5, 6);
        if constexpr (two && V > 1) VF_TILE_DOT(3, 5, 7);
    }
    VF_TILE_STORE(0, out, out_stride * 4);
    if constexpr (V > 1) VF_TILE_STORE(1, out + lanes, out_stride * 4);
    if constexpr (two) VF_TILE_STORE(2, out + rows_of_tile * out_stride, out_stride * 4);
    if constexpr (two && V > 1) VF_TILE_STORE(3, out + rows_of_tile * out_stride + lanes, out_stride * 4);
}

// The sums of `rows` rows, and of no others.
template <int V>
static void amx_tile(const uint8_t *x, size_t stride, const int8_t *w, int depth4, const int32_t *start, int rows, int32_t *out, size_t out_stride) {
    if (rows % rows_of_tile == 0) {
        if (rows > rows_of_tile) amx_sums<V, true>(x, stride, w, depth4, start, out, out_stride);
        else amx_sums<V, false>(x, stride, w, depth4, start, out, out_stride);
        return;
    }
    constexpr size_t whole = size_t(V) * lanes;
    int32_t all_rows[2 * rows_of_tile * whole];
    if (rows > rows_of_tile) amx_sums<V, true>(x, stride, w, depth4, start, all_rows, whole);
    else amx_sums<V, false>(x, stride, w, depth4, start, all_rows, whole);
    for (int row = 0; row < rows; row++) std::memcpy(out + size_t(row) * out_stride, all_rows + size_t(row) * whole, whole * 4);
}

} // namespace vf::VF_NAMESPACE
