// Tiles of AMX: 16 rows of 64 codes times 64 steps of 16 columns, one instruction.
//
// A panel's weights [depth / 4][columns][4] are what a tile of B takes as it is, and rows of codes are a tile of A. Registers 0 to 3 hold sums of up to
// four vectors of columns, 4 and 5 whole tiles of A and B, 6 and 7 the last steps of a depth that is no multiple of 64.

#if defined(VITFROST_EMULATE_AMX)
#include "amx_emulated.inl"
#else
#define VF_TILE_CONFIGURE(place) _tile_loadconfig(place)
#define VF_TILE_RELEASE() _tile_release()
#define VF_TILE_ZERO(tile) _tile_zero(tile)
#define VF_TILE_LOAD(tile, place, stride) _tile_loadd(tile, place, stride)
#define VF_TILE_STORE(tile, place, stride) _tile_stored(tile, place, stride)
#define VF_TILE_DOT(sums, codes, weights) _tile_dpbusd(sums, codes, weights)
#endif

namespace vf::VF_NAMESPACE {

constexpr int steps_of_tile = 16, unconfigured = -1;

// The shape of the last steps that this thread's registers are configured for. Other libraries may configure them too, so each run begins anew.
static thread_local int configured = unconfigured;

static void begin_run() { configured = unconfigured; }
static void end_run() {
    if (configured != unconfigured) VF_TILE_RELEASE();
    configured = unconfigured;
}

static void configure(int last_steps) {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } shape;
    for (int tile = 0; tile < 6; tile++) shape.rows[tile] = 16, shape.bytes[tile] = 64;
    shape.rows[6] = 16, shape.bytes[6] = uint16_t(4 * (last_steps ? last_steps : 1));
    shape.rows[7] = uint8_t(last_steps ? last_steps : 1), shape.bytes[7] = 64;
    VF_TILE_CONFIGURE(&shape);
    configured = last_steps;
}

// The sums of `rows` rows; all 16 are read, so rows of codes have to lie in memory up to a whole tile.
template <int V>
__attribute__((noinline)) static void amx_tile(const uint8_t *x, size_t stride, const int8_t *w, int depth4, const int32_t *start, int rows,
                                               int32_t *out, size_t out_stride) {
    const int last_steps = depth4 % steps_of_tile;
    if (configured == unconfigured || (last_steps && last_steps != configured)) configure(last_steps);
    constexpr size_t weights_stride = size_t(V) * lanes * 4;
    if (start) { // the same row for all rows
        VF_TILE_LOAD(0, start, 0);
        if constexpr (V > 1) VF_TILE_LOAD(1, start + lanes, 0);
        if constexpr (V > 2) VF_TILE_LOAD(2, start + 2 * lanes, 0);
        if constexpr (V > 3) VF_TILE_LOAD(3, start + 3 * lanes, 0);
    } else {
        VF_TILE_ZERO(0);
        if constexpr (V > 1) VF_TILE_ZERO(1);
        if constexpr (V > 2) VF_TILE_ZERO(2);
        if constexpr (V > 3) VF_TILE_ZERO(3);
    }
    const int8_t *from = w;
    int step = 0;
    for (; step + steps_of_tile <= depth4; step += steps_of_tile, from += steps_of_tile * weights_stride) {
        VF_TILE_LOAD(4, x + 4 * size_t(step), stride);
        VF_TILE_LOAD(5, from, weights_stride);
        VF_TILE_DOT(0, 4, 5);
        if constexpr (V > 1) {
            VF_TILE_LOAD(5, from + 64, weights_stride);
            VF_TILE_DOT(1, 4, 5);
        }
        if constexpr (V > 2) {
            VF_TILE_LOAD(5, from + 128, weights_stride);
            VF_TILE_DOT(2, 4, 5);
        }
        if constexpr (V > 3) {
            VF_TILE_LOAD(5, from + 192, weights_stride);
            VF_TILE_DOT(3, 4, 5);
        }
    }
    if (last_steps) {
        VF_TILE_LOAD(6, x + 4 * size_t(step), stride);
        VF_TILE_LOAD(7, from, weights_stride);
        VF_TILE_DOT(0, 6, 7);
        if constexpr (V > 1) {
            VF_TILE_LOAD(7, from + 64, weights_stride);
            VF_TILE_DOT(1, 6, 7);
        }
        if constexpr (V > 2) {
            VF_TILE_LOAD(7, from + 128, weights_stride);
            VF_TILE_DOT(2, 6, 7);
        }
        if constexpr (V > 3) {
            VF_TILE_LOAD(7, from + 192, weights_stride);
            VF_TILE_DOT(3, 6, 7);
        }
    }
    int32_t all_rows[tile_rows * V * lanes];
    int32_t *place = rows == tile_rows ? out : all_rows;
    const size_t place_stride = rows == tile_rows ? out_stride : size_t(V) * lanes;
    VF_TILE_STORE(0, place, place_stride * 4);
    if constexpr (V > 1) VF_TILE_STORE(1, place + lanes, place_stride * 4);
    if constexpr (V > 2) VF_TILE_STORE(2, place + 2 * lanes, place_stride * 4);
    if constexpr (V > 3) VF_TILE_STORE(3, place + 3 * lanes, place_stride * 4);
    if (rows == tile_rows) return;
    for (int row = 0; row < rows; row++) std::memcpy(out + size_t(row) * out_stride, all_rows + size_t(row) * place_stride, place_stride * 4);
}

} // namespace vf::VF_NAMESPACE
