// The table of one instruction set.
#include <cmath>
#include <cstring>
#include <utility>

#include "../kernels.hpp"

// clang-format off
#include "vector.inl"
#include "product.inl"
#include "rows.inl"
#include "attention.inl"
#include "bias.inl"
#include "hallucination.inl"
#include "local.inl"
#include "depthwise.inl"
// clang-format on

namespace vf::VF_NAMESPACE {

extern const Kernels table;
const Kernels table = {
    VF_NAME,   lanes,       tile_rows,        panel_columns, product,       product_sums, norm_codes, norm,  sum_rows,  quantize,
    pack_keys, pack_values, pack_wide_values, attend,        attend_biased, attend_mixed, constant,   local, depthwise, float_values,
};

} // namespace vf::VF_NAMESPACE
