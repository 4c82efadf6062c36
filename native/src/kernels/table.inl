// The table of one instruction set.
#include <cmath>
#include <cstring>
#include <utility>

#include "../kernels.hpp"

// clang-format off
#include "vector.inl"
#include "functions.inl"
namespace vf::VF_NAMESPACE {
constexpr int tile_rows = VF_ROWS, tile_vectors = VF_VECTORS, panel_columns = tile_vectors * lanes;
#if defined(VF_TILES_AMX)
constexpr int depth_unit = 64;
#else
constexpr int depth_unit = 4;
static_assert(tile_rows <= rows_behind);
#endif
constexpr int padded_depth4(int depth) { return (depth + depth_unit - 1) / depth_unit * (depth_unit / 4); }
} // namespace vf::VF_NAMESPACE
#if defined(VF_TILES_AMX)
#include "amx.inl"
#else
namespace vf::VF_NAMESPACE {
static void begin_run() {}
static void end_run() {}
} // namespace vf::VF_NAMESPACE
#endif
#include "rows.inl"
#include "finish.inl"
#include "product.inl"
#include "packing.inl"
#include "attention.inl"
#include "bias.inl"
#include "hallucination.inl"
#include "windowed.inl"
#include "local.inl"
#include "depthwise.inl"
#include "turn.inl"
// clang-format on

namespace vf::VF_NAMESPACE {

extern const Kernels table;
const Kernels table = {
    VF_NAME,      lanes,    tile_rows, panel_columns, depth_unit, begin_run,    end_run, product,       product_sums,
    norm_codes,   norm,     sum_rows,  quantize,      pack_keys,  pack_values,  attend,  attend_biased, attend_windowed,
    attend_mixed, constant, local,     depthwise,     smooth,     float_values, turn,
};

} // namespace vf::VF_NAMESPACE
