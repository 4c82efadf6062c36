// The layers of a model, unpacked into what the kernels read.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "file.hpp"
#include "kernels.hpp"

namespace vf {

// How floats become codes: round(x / scale + zero) within 0 .. 2^bits - 1. Dynamic: scale and zero point are each token's own.
struct Quantizer {
    int bits = 8;
    bool dynamic = false;
    float scale = 1, zero = 0;
    float inverse() const { return 1.0f / scale; }
    float highest() const { return float((1 << bits) - 1); }
};

// Weights of a linear layer: y = sum scale + offset by column. Weights stand for (code - zero point); where that does not fit 8 bits with a sign,
// 128 is taken off instead, and `column_shift` says what is missing.
struct Linear {
    int inputs = 0, outputs = 0, columns = 0;
    Quantizer input;
    Array<int8_t> weights, zeros;
    Array<uint8_t> nibbles; // instead of `weights`, see Packed
    Array<int32_t> start, column_sums, column_shift;
    Array<float> scale, offset; // [columns], the scale of a static input included
    bool shifted = false;
    Packed packed;
    size_t bytes() const { return size_t(columns) * size_t(packed.depth4) * 4; } // of weights where they are multiplied
    void point() {
        packed.data = weights.data(), packed.start = start.data();
        if (!nibbles.empty()) packed.nibbles = nibbles.data(), packed.zeros = zeros.data();
    }
};

struct Norm {
    int channels = 0;
    float epsilon = 0;
    Array<float> gamma, beta; // to whole vectors
};

// A norm whose output is a linear layer's input.
struct NormedInput {
    const Norm *norm = nullptr;
    Array<float> gain, shift; // with the quantizer in them, unless that is dynamic
};

struct Embed {
    int channels = 0, height = 0, width = 0, patch_height = 0, patch_width = 0, prefix = 0;
    const Linear *linear = nullptr;
    Array<float> prefix_tokens, positions;
    int stride_height = 0, stride_width = 0, top = 0, left = 0, grid_height = 0,
        grid_width = 0; // patches may overlap, and begin in zeros above and left
    int patches() const { return grid_height * grid_width; }
};

// Columns whose codes go up to `highest` only.
struct Limit {
    int column, count;
    uint8_t highest;
};

// A product whose outputs are codes of queries, keys and values: their quantizers are in its scales and offsets.
struct Projection {
    const Linear *linear = nullptr;
    NormedInput input;
    Array<float> scale, offset;
    size_t stride = 0;         // of its rows of codes
    std::vector<Limit> limits; // of heads with fewer bits than the layer's
};

// A depthwise convolution over a grid of tokens, zeros outside of it.
struct Depthwise {
    int channels = 0, height = 0, width = 0;
    Quantizer input;
    Array<float> weights;       // [height width][channels, to whole vectors] codes less zero points
    Array<float> scale, offset; // to whole vectors; the scale of the input included
};

// The residual stream between two changes of its grid: prefix tokens, then patches in row-major order.
struct Stage {
    int tokens = 0, prefix = 0, height = 0, width = 0, channels = 0;
    size_t stride = 0; // of its rows, in floats
    int patches() const { return height * width; }
};

// Rows of a buffer, with room for whole vectors behind them.
inline size_t stride_of(int count) { return round_up(size_t(count) + 64, 64); }

struct HeadQuantizers {
    Array<float> query_scale, query_zero, key_scale, key_zero, value_scale, value_zero, map_step, map_zero;
    Array<float> octave; // levels of log maps to a factor of two, or empty where it is 2: the log-sqrt2 grid
};

constexpr float log2e = 1.4426950408889634f;

// Windows over a grid that is shifted up and to the left, round its edges; windows may reach over the grid's end.
struct Windows {
    int grid_height = 0, grid_width = 0, height = 0, width = 0, down = 0, right = 0;
    int rows() const { return (grid_height + height - 1) / height; }
    int columns() const { return (grid_width + width - 1) / width; }
    int area() const { return height * width; }
    Array<int32_t> order() const; // [rows columns][area] token of the grid, or -1
    // Appends a mask [area][stride] for every kind of window whose tokens are in several regions, `between` where two are not in the same one.
    void add_masks(float between, size_t stride, Array<float> &masks, std::vector<int> &mask_of) const;
};

struct Attention {
    int layer = 0;
    const Norm *norm = nullptr;
    Projection first; // queries, keys and values; queries alone where keys are of fewer tokens, and nothing where no head has any
    // Keys and values of patches of tokens: these side by side through `reduction` and the norm of `keys`; null: of the tokens themselves.
    Projection keys;
    const Linear *reduction = nullptr;
    int reduction_height = 1, reduction_width = 1;
    const Linear *proj = nullptr;
    int heads = 0, width = 0, logit_heads = 0, constant_heads = 0, hallucinated = 0, tokens_out = 0;
    int queries = 0, tokens = 0, windows = 1;              // of a map: queries and keys; how many maps a head has
    int mode = 0, map_bits = 8, zero_code = 255, bits = 8; // bits: the most that a head has, where they differ
    std::vector<int> head_bits;                            // [heads] of queries, keys, values and maps, or empty where none differ
    int map_bits_of(int head) const { return head_bits.empty() ? map_bits : head_bits[size_t(head)]; }
    // Levels of more than 4 bits on a log grid reach further down than whole numbers of 8 bits.
    bool float_map(int head) const { return mode == 1 && map_bits_of(head) > 4; }
    int zero_code_of(int head) const { return zero_code + (1 << map_bits_of(head)) - (1 << map_bits); }
    float logit_scale = 1;
    HeadQuantizers quantizers;
    size_t mixed_stride = 0, map_stride = 0;
    int frozen_windows = 1, constant_windows = 1; // 1: all windows share them
    Array<uint8_t> frozen;                        // [frozen windows][heads that move][queries][map_stride], or empty
    Array<float> frozen_step;                     // [heads that move] of entries with a grid of their own, or empty
    Array<uint8_t> frozen_even, frozen_odd;
    Array<int32_t> frozen_even_sums, frozen_odd_sums; // [frozen windows][heads that move][queries]
    Array<uint8_t> constants;                         // [constant windows][constant heads][queries][map_stride]
    Array<float> row_scale, row_zero;
    Array<int32_t> row_sums;
    // Constant maps as kernels over the patch grid, where they are not whole.
    int grid_height = 0, grid_width = 0, local_height = 0, local_width = 0;
    int local_apart = 1;                // patches from tap to tap; straight lines between taps
    int windowed_heads = 0, window = 0; // the last heads with logits, whose patches look at a window of the grid of this side
    Array<float> local_kernel, local_scale, local_shared, local_rows, local_columns;
    // Windows: which token is where, and what is added to logits.
    Windows grid;
    Array<int32_t> order;             // [windows][tokens] token of the stream, or -1 where a window reaches over the grid; empty without windows
    Array<float> bias;                // [heads with logits][queries][map_stride] in units of log2, far below all logits behind the keys
    Array<float> masks;               // [kinds of windows][queries][map_stride] in units of log2
    std::vector<int> mask_of;         // [windows] kind of a window; -1: no mask
    int kernel = 0, kernel_first = 0; // of the hallucination's convolution
    Array<float> mix, mix_bias, convolution;
    int moving() const { return heads - constant_heads; }
    int query_column(int head) const { return head * width; }
    bool reduced() const { return keys.linear != nullptr; }
    int key_column(int head) const { return ((reduced() ? 0 : logit_heads) + head) * width; }
    int value_column(int head) const { return ((reduced() ? 1 : 2) * logit_heads + head) * width; }
};

struct FeedForward {
    int layer = 0;
    NormedInput input;
    const Linear *first = nullptr, *second = nullptr, *third = nullptr;
    const Depthwise *convolution = nullptr; // between the first layer and the activation
    Activation activation = Activation::gelu;
    int tokens_out = 0;
};

// A smaller grid: patches of kernel_height x kernel_width tokens, zeros outside of the grid, side by side through a linear layer.
struct Downsample {
    NormedInput input; // of the patch; without a norm its codes are those of the stream
    const Linear *linear = nullptr;
    const Norm *after = nullptr;
    int kernel_height = 0, kernel_width = 0, stride_height = 0, stride_width = 0, top = 0, left = 0;
    int patch() const { return kernel_height * kernel_width; }
};

// The stream turned, see Turning: only additions, and a factor for every channel.
struct Turn {
    int inner = 1;
    Array<float> small, factor;
    Array<int32_t> places;
};

// What a model says in the end: of the first token, the mean of the patches, the first two tokens (with a layer each), or all tokens as they are.
enum class Pooling { first, mean, two, none };

struct Classifier {
    const Norm *norm = nullptr;
    const Linear *linear = nullptr, *second = nullptr; // null: features
    Pooling pooling = Pooling::first;
    int prefix = 0;
    bool norm_last = false;
};

struct Step {
    LayerKind kind;
    int index; // into the layers of its kind
    int stage; // of the stream that it reads
};

// Everything that is read while a model runs; never changed once it is made.
struct Layers {
    const Kernels *kernels = nullptr;
    std::vector<Stage> stages;
    Embed embed;
    std::vector<std::unique_ptr<Linear>> linears; // by index of the layer table, or null
    std::vector<std::unique_ptr<Norm>> norms;
    std::vector<std::unique_ptr<Depthwise>> depthwise;
    std::vector<Attention> attention;
    std::vector<FeedForward> feed_forward;
    std::vector<Downsample> downsample;
    std::vector<Turn> turns;
    Classifier classifier;
    std::vector<Step> steps;             // in order, without embedding and classifier
    size_t bytes = 0, largest_panel = 0; // largest_panel: bytes of a panel of weights that are kept in 4 bits

    // Numbers for a picture: classes, or those of its features.
    int outputs() const {
        const Stage &last = stages.back();
        if (classifier.linear) return classifier.linear->outputs;
        return classifier.pooling == Pooling::none ? last.tokens * last.channels : last.channels;
    }
};

// Reads and checks all layers. Throws Error where the file is damaged.
Layers read_layers(const File &file, const Kernels &kernels);

Linear make_linear(int inputs, int outputs, const Quantizer &input, const Array<uint8_t> &codes, const Array<float> &scale, const Array<float> &zero,
                   const Array<float> &bias, const Kernels &kernels);

// How sums of codes up to x_max times weights within +-w_max are taken without a dot product in hardware.
void choose_sums(Packed &packed, int x_max, int w_max);

} // namespace vf
