// What a processor has to do, as a table of functions: one table per instruction set, all compiled from kernels/*.inl.
//
// Codes of activations are unsigned bytes, row by row; weights are signed bytes in panels of columns, four steps of the sum together:
// [panel][depth / 4][column of the panel][4]. Sums are exact 32-bit integers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "aligned.hpp"

namespace vf {

// How sums can be taken without a dot product in hardware; see Packed::sums.
enum class Sums : int { split, direct, chunked };

// A matrix of signed bytes in the order of a processor. `columns` is a multiple of the lanes, `depth4` the depth / 4, rounded up to Kernels::depth.
struct Packed {
    int columns = 0, depth4 = 0;
    const int8_t *data = nullptr;
    // Large ones of at most 4 bits instead: two codes a byte, [panel][vector / 2], even vectors in the lower halves, and each column's zero point four times.
    const uint8_t *nibbles = nullptr;
    const int8_t *zeros = nullptr;
    const int32_t *start = nullptr; // [columns] what the sums start with; null: zeros
    Sums sums = Sums::split;
    int chunk = 1; // steps that sums of 16 bits hold
};

enum class Activation : int { none = -1, gelu = 0, gelu_tanh = 1, relu = 2, quick_gelu = 3 };

// What belongs to the rows of a product besides their codes, where scales or zero points differ from row to row or weights are shifted.
struct RowTerms {
    const float *scale = nullptr;          // [rows] null: 1
    const int32_t *zero = nullptr;         // [rows] zero points; with `column_sums`
    const int32_t *sum = nullptr;          // [rows] sums of codes, see pair_of_sum; with `column_shift`
    const int32_t *column_sums = nullptr;  // [columns]
    const int32_t *column_shift = nullptr; // [columns] see pair_of_shift
};

// A sum of codes times a shift of at most 128 as the product of two pairs of 16 bits, which one instruction adds to a sum.
constexpr int32_t most_summed = (1 << 22) - 1;
inline int32_t pair_of_sum(int32_t sum) { return (sum & 127) | (sum >> 7) << 16; }
inline int32_t shift_of_pair(int32_t pair) { return int16_t(pair & 0xFFFF); } // what is added for every code: the shift with its sign changed
inline int32_t pair_of_shift(int32_t shift) { return int32_t(uint32_t(-shift) & 0xFFFF) | -128 * shift * (1 << 16); }

// What is done with sums: y = sum scale + offset by column, an activation, and then one of three ends.
struct Epilogue {
    const float *scale = nullptr, *offset = nullptr; // [columns]
    Activation activation = Activation::none;
    // Codes: round(y inverse + zero) within 0..highest, or round(y) where `folded`: scale and offset have it already.
    uint8_t *codes = nullptr;
    bool folded = false;
    float inverse = 1, zero = 0, highest = 255;
    float *add = nullptr;   // y is added to what is there
    float *store = nullptr; // y is stored
    size_t stride = 0;      // of the output, in elements
};

struct Product {
    const uint8_t *x = nullptr;
    size_t stride = 0; // of x, in bytes
    int rows = 0;
    int first_column = 0; // panels that end before it are left out
    RowTerms terms;
    int8_t *unpacked = nullptr; // room for a panel of weights, with `nibbles`
};

// Where the outputs y of a head go: codes round(y inverse + zero) within 0..highest, or the floats themselves.
struct HeadOutput {
    uint8_t *codes = nullptr; // [queries, stride]
    float *floats = nullptr;  // instead of codes
    size_t stride = 0;
    float inverse = 1, zero = 0, highest = 255;
};

// One head of an attention layer, for queries first..last.
struct Head {
    int tokens = 0, width = 0; // keys, channels
    const uint8_t *queries = nullptr;
    size_t query_stride = 0;
    Packed keys;   // columns: keys; start: -zero point of queries times the sum of a key's codes
    Packed values; // columns: channels; depth: keys
    // [keys, width in whole vectors], for maps of more than 4 bits on a log grid.
    const float *float_values = nullptr;
    float logit_scale = 0; // what a sum is multiplied with, log2(e) included
    int mode = 0;          // 0: 8 bits of each row's largest weight, 1: log-sqrt2, 2: uniform static
    int map_bits = 8, zero_code = 255;
    float map_step = 1, log2_step = 0, map_zero = 0;
    // Levels of a log grid: so many to a factor of two, and what codes 0..15 stand for, as two planes of numbers of at most 128; a level is
    // (first plane + second_weight * second plane) / 128. Codes from zero_code on are zero there.
    float octave = 2, second_weight = 0;
    uint8_t first_levels[16] = {}, second_levels[16] = {};
    int value_shift = 0;                 // what was taken off the codes of values: (code - zero point) = (stored + value_shift)
    const int32_t *value_sums = nullptr; // [channels] sums over tokens of stored values; with `map_zero`
    float value_scale = 1;
    const uint8_t *frozen = nullptr; // [queries, frozen_stride] map codes, 255 where computed
    size_t frozen_stride = 0;
    const float *bias = nullptr, *mask = nullptr; // [queries, bias_stride] added to logits, in units of log2; no mask: null
    size_t bias_stride = 0;
    // Frozen entries with a grid of their own: levels of even and odd codes, multiplied by frozen_scale and that / sqrt2; `frozen` has zero there.
    const uint8_t *frozen_even = nullptr, *frozen_odd = nullptr;           // [queries, frozen_stride]
    const int32_t *frozen_even_sums = nullptr, *frozen_odd_sums = nullptr; // [queries] sums of them
    float frozen_scale = 0;
    int window = 0, prefix = 0, grid_height = 0, grid_width = 0; // side of the window that patches look at; 0: all tokens
    HeadOutput output;
};

// Heads whose maps are constant.
struct ConstantHead {
    int tokens = 0, width = 0;
    const uint8_t *map = nullptr;
    size_t map_stride = 0;
    const float *row_scale = nullptr, *row_zero = nullptr; // [queries]
    Packed values;
    const int32_t *value_sums = nullptr; // [channels] sums over tokens of stored values
    const int32_t *map_sums = nullptr;   // [queries] sums of codes
    int value_shift = 0;
    float value_scale = 1;
    HeadOutput output;
};

// A head whose constant map is a kernel over the patch grid, the same sum for all that is outside of it, and rows and columns of prefix tokens.
struct LocalHead {
    int tokens = 0, width = 0, prefix = 0, grid_height = 0, grid_width = 0, kernel_height = 0, kernel_width = 0;
    int apart = 1;                     // patches from tap to tap; straight lines between them are a smoothing before the kernel
    const float *kernel = nullptr;     // [kernel_height][kernel_width], less what every patch gets
    const float *scale = nullptr;      // [patches] of the kernel
    const float *shared = nullptr;     // [patches] of the sum over patches
    const float *rows = nullptr;       // [prefix][tokens]
    const float *columns = nullptr;    // [patches][prefix]
    const float *values = nullptr;     // [tokens][value_stride]
    const float *value_sums = nullptr; // [value_stride] over patches
    const float *picture = nullptr;    // [grid + 2 border][value_stride] values of patches, smoothed where taps are apart
    int border() const { return apart - 1; }
    size_t value_stride = 0;
    HeadOutput output;
};

// Heads whose maps are made of the logits of computed heads: G = mix S + bias, G = G + conv(G), a softmax, all in units of log2.
struct MixedHeads {
    int queries = 0, tokens = 0, logit_heads = 0, count = 0; // rows and columns of a map
    const Head *computed = nullptr;                          // [logit_heads] queries, keys and scales
    const int32_t *query_zero = nullptr;                     // [logit_heads]
    const int32_t *key_shift = nullptr;                      // [logit_heads] what a stored code of keys lacks: (code - zero point) = stored + shift
    const Head *made = nullptr;                              // [count] maps' grids, values and outputs
    const float *mix = nullptr, *mix_bias = nullptr;         // [count][logit_heads], [count]; the bias in units of log2
    int kernel = 0, kernel_first = 0;
    const float *convolution = nullptr; // [count][kernel][kernel]
};

// A depthwise convolution of codes over a grid, zeros outside of it, an activation, and codes of the next layer: round(y inverse + zero) within 0..highest.
struct DepthwiseProduct {
    const uint8_t *codes = nullptr; // [height width][stride]
    size_t stride = 0, weights_stride = 0, out_stride = 0;
    int height = 0, width = 0, channels = 0, kernel_height = 0, kernel_width = 0;
    float input_zero = 0;
    const float *weights = nullptr; // [kernel_height kernel_width][weights_stride]
    const float *scale = nullptr, *offset = nullptr;
    Activation activation = Activation::none;
    uint8_t *out = nullptr; // [last - first][out_stride]
    float inverse = 1, zero = 0, highest = 255;
};

// A turn of the stream: x -> z H^T with z_j = factor_j (x H)_places_j, where H is a Hadamard matrix, the product (Kronecker's) of one of a power of two
// and a small one of `inner` rows.
struct Turning {
    int channels = 0, inner = 1;
    const float *small = nullptr;    // [inner][inner] of 1 and -1
    const int32_t *places = nullptr; // [channels]
    const float *factor = nullptr;   // [channels]
};

// Memory of one worker for attention.
struct Scratch {
    Array<int32_t> logits, sums;
    Array<float> mixed, mixed_weights;
    Array<uint8_t> planes;
    Array<float> levels;
    // One query's window: logits, two planes of codes, floating-point numbers.
    Array<int32_t> near_logits;
    Array<uint8_t> near_codes;
    Array<float> near_levels;
};

struct Kernels {
    const char *name;
    int lanes, rows, panel; // lanes of a vector, rows of a tile, columns of a panel
    int depth;              // codes of a row that a product takes at once; weights are zero behind the last one
    // A thread calls `begin` before it calls anything below, and `end` after that: a processor may have registers to set up.
    void (*begin)();
    void (*end)();
    void (*product)(const Product &, const Packed &, const Epilogue &, int32_t *sums);
    void (*product_sums)(const Product &, const Packed &, int32_t *sums, size_t sums_stride);
    // Codes [rows, stride] of normalized rows: (x - mean) rstd gain + shift, where gain and shift have the quantizer in them.
    void (*norm_codes)(const float *x, size_t x_stride, int rows, int channels, float epsilon, const float *gain, const float *shift, float highest,
                       uint8_t *codes, size_t stride);
    void (*norm)(const float *x, size_t x_stride, int rows, int channels, float epsilon, const float *gain, const float *shift, float *out,
                 size_t stride);
    void (*sum_rows)(const uint8_t *codes, size_t stride, int rows, int count, int32_t *sums);
    void (*quantize)(const float *x, size_t count, float scale, float zero, float highest, uint8_t *codes);
    void (*pack_keys)(const uint8_t *codes, size_t stride, int tokens, int width, int shift, int8_t *packed, int query_zero, int32_t *start);
    void (*pack_values)(const uint8_t *codes, size_t stride, int tokens, int width, int shift, int8_t *packed, int32_t *sums);
    void (*attend)(const Head &, int first, int last, Scratch &);
    void (*attend_biased)(const Head &, int first, int last, Scratch &); // with a bias
    void (*attend_windowed)(const Head &, int first, int last, Scratch &);
    void (*attend_mixed)(const MixedHeads &, int first, int last, Scratch &);
    void (*constant)(const ConstantHead &, int first, int last, Scratch &);
    void (*local)(const LocalHead &, int first, int last);
    void (*depthwise)(const DepthwiseProduct &, int first, int last);
    // The head's values smoothed by triangles, down into `between` and then right into `picture`.
    void (*smooth)(const LocalHead &, float *between, float *picture);
    // Values [tokens][stride] of codes, (code - zero) scale, and their sums over tokens first..last.
    void (*float_values)(const uint8_t *codes, size_t codes_stride, int tokens, int width, float scale, float zero, float *values, size_t stride,
                         int first, float *sums);
    // Rows turned in place. `scratch` has room for two rows of every lane.
    void (*turn)(const Turning &, float *x, size_t stride, int rows, float *scratch);
};

// Rows behind the last one that kernels may read.
constexpr int rows_behind = 16;
// Bytes behind a row of a windowed head's map, which whole vectors reach.
constexpr int windowed_end = 64;
// Floats at both ends of a row of mixed logits, which a convolution reads.
constexpr int mixed_border = 16;

// The tables by name, best first; those that this processor runs.
struct Isa {
    const Kernels *kernels;
    bool (*runs)();
};
const Kernels *find_kernels(const char *name); // null: the best; throws Error for one that is unknown or not there
const char *isa_names();

} // namespace vf
